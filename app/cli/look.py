"""Looking: jobs, nodes, runs."""

from __future__ import annotations

import click

from app.cli.console import as_json, iso, jobs, one_line_errors, print_json, print_table
from app.repositories.jobs_repository import JobFilter, JobsRepository
from app.runtime import current_runtime
from app.services.scheduler.job_views import job_state
from app.services.scheduler.scheduler_runs_read_service import SchedulerRunsReadService
from app.services.scheduler.scheduler_status_read_service import SchedulerStatusReadService


@jobs.command("list")
@click.option("--deleted", is_flag=True, help="Deleted jobs that can be restored, too.")
@as_json
@one_line_errors
def list_jobs(*, deleted: bool, as_json: bool) -> None:
    """List the jobs of the store."""
    wanted = JobFilter(is_active=None if deleted else True)
    found = JobsRepository(current_runtime().jobstore).page(wanted)
    rows = [
        {
            "id": reading.job.id,
            "task": reading.job.task,
            "source": reading.job.source,
            "state": job_state(reading.job),
            "next_run_time": iso(reading.job.next_run_time),
            "last_run_time": iso(reading.last_run_time),
            "last_outcome": reading.last_outcome,
            "trigger": dict(reading.job.trigger),
            "overrides": list(reading.job.overrides),
            "problem": reading.job.problem,
        }
        for reading in found
    ]
    if as_json:
        print_json(rows)
        return
    columns = ("id", "source", "state", "next_run_time", "last_outcome")
    print_table(columns, [[str(row[name] or "-") for name in columns] for row in rows])


@jobs.command()
@as_json
@one_line_errors
def status(*, as_json: bool) -> None:
    """Tell which schedulers are alive, what runs and waits, and how the last hour went."""
    found = SchedulerStatusReadService(language="en").status()
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    for node in found.nodes:
        life = "alive" if node.is_alive else "silent"
        click.echo(f"{node.kind} {node.name}: {node.state}, {life}, heartbeat {node.heartbeat_age_s:.1f} s ago")
    if not found.nodes:
        click.echo("scheduler: none has ever used this store")
    click.echo(f"queue: {found.queue.pending} pending, {found.queue.running} running")
    late = found.lateness
    if late.sample:
        click.echo(f"lateness of the last {late.sample} runs: p50 {late.p50_ms} ms, p99 {late.p99_ms} ms")
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.counters.outcomes.items()))
    click.echo(f"last hour: {outcomes or 'no runs'}")
    click.echo(f"jobs: {', '.join(f'{count} {kind}' for kind, count in found.counters.jobs.items())}")
    for warning in found.problems:
        click.echo(f"problem: {warning.message}")
    for problem in found.task_problems:
        click.echo(f"task module {problem['module']}: {problem['error']}")


@jobs.command("history")
@click.argument("job_id")
@click.option("--limit", type=click.IntRange(1, 500), default=20, show_default=True, help="How many rows.")
@as_json
@one_line_errors
def show_history(*, job_id: str, limit: int, as_json: bool) -> None:
    """List the runs of a job, newest first."""
    page = SchedulerRunsReadService().history(job_id, limit=limit)
    if as_json:
        print_json([run.model_dump(mode="json") for run in page.items])
        return
    columns = ("scheduled_for", "kind", "outcome", "count", "started_at", "node", "reason")
    rows = []
    for run in page.items:
        why = run.error.partition("\n")[0] if run.error else run.reason
        times = (iso(run.scheduled_for), iso(run.started_at) or "-")
        rows.append([times[0], run.kind, run.outcome, str(run.count), times[1], run.node or "-", why or ""])
    print_table(columns, rows)
