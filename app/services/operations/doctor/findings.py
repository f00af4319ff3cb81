"""What the doctor can find: of each finding what it means, what to do next, and the runbook that says more.

scripts/lib/host_findings.sh holds those that only the host can see, in the same form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""error: jobs do not fire, or may not, or the service is out of reach; warning: something was lost or will be; note: on
purpose perhaps, and a reason why a job did not fire."""


@dataclass(frozen=True)
class Place:
    """Where the doctor looks from, for the commands that it names.

    service: the Compose service whose containers run the scheduler. url: where nginx is, as this container reaches it;
    None when it cannot be asked. nodes: the names that this project's own schedulers and workers go by; None: unknown.
    is_running: whether a container of the service runs, in which a command can be typed.
    """

    project: str = "whalefall"
    service: str = "whalefall"
    shape: str = "prod"
    url: str | None = None
    nodes: frozenset[str] | None = None
    is_running: bool = True


@dataclass(frozen=True)
class Finding:
    """One thing that was found. `what` names the thing, `means` explains it, `command` is what to type next."""

    id: str
    severity: Severity
    what: str
    means: str
    command: str
    runbook: str

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


@dataclass(frozen=True)
class Kind:
    """What all findings of one id have in common. In `command`, {service} and {inside} (a command of the app, in a
    container) are filled in, and what the finding itself brings along."""

    severity: Severity
    means: str
    command: str
    runbook: str


CATALOGUE: Mapping[str, Kind] = {
    # What every process of the app reads first
    "settings-refused": Kind(
        "error",
        "A process of the app does not start with this; what runs still has the settings it started with.",
        "grep -v '^#' .env; docker compose config --quiet",
        "scheduler-api-409",
    ),
    # The stores
    "store-damaged": Kind(
        "error",
        "Its file cannot be trusted. The scheduler does not start on it, and nothing is deleted or replaced by itself.",
        "scripts/restore_jobstore.sh latest",
        "jobstore-damaged",
    ),
    "store-missing": Kind(
        "error",
        "There is no database where the setting points: a new volume, a wrong path, or it was moved away.",
        "scripts/restore_jobstore.sh latest",
        "jobstore-without-jobs",
    ),
    "store-unreachable": Kind(
        "error",
        "The database server does not answer, or refuses this app. Nothing is claimed meanwhile; due fires run when it"
        " is back, if their grace time allows.",
        "docker compose ps postgres; docker compose logs --tail 20 postgres",
        "database-is-locked",
    ),
    "store-newer": Kind(
        "error",
        "A newer release wrote it, and this one cannot use it.",
        "scripts/upgrade.sh VERSION",
        "upgrade-and-rollback",
    ),
    "store-locked": Kind(
        "error",
        "Some program holds SQLite's write lock: a backup tool, a shell, a process that froze. No fire can be claimed"
        " and no change saved until it lets go; fires wait.",
        "docker ps --filter volume={volume}",
        "database-is-locked",
    ),
    "store-moved": Kind(
        "error",
        "These files were moved to PostgreSQL and are only kept. A scheduler does not start on them, because two stores"
        " would fire everything twice.",
        "scripts/up.sh --shape ha",
        "move-to-postgres",
    ),
    "two-stores": Kind(
        "error",
        "Two stacks share the volume and have different job stores: both would fire the same jobs, so the second one"
        " does not start.",
        "docker ps --filter volume={volume}",
        "two-deployments",
    ),
    "store-without-jobs": Kind(
        "error",
        "The store is sound, but default jobs are not in it: it is a new one, or somebody emptied it. Jobs of your own"
        " may be missing as well.",
        "{inside} sh -c 'ls -d userdata/backups/* userdata/exports/*'",
        "jobstore-without-jobs",
    ),
    "legacy-jobs": Kind(
        "note",
        "An older app kept its jobs in this file (apscheduler_jobs). They are left as they are and do not run here.",
        "scripts/import_legacy_jobstore.sh --from-store --dry-run",
        "job-did-not-fire",
    ),
    "defaults-invalid": Kind(
        "error",
        "The file of the default jobs has a mistake; a scheduler does not start with it.",
        "{inside} printenv SCHEDULER_TASKS_FILE TASKS_DIR",
        "scheduler-api-409",
    ),
    # The volume
    "disk-full": Kind(
        "error",
        "Nothing can be written any more: no run is claimed until there is room again. What is stored is safe.",
        "{inside} du -a -x --max-depth=2 /app/userdata",
        "disk-full",
    ),
    "disk-low": Kind(
        "warning",
        "The data volume is nearly full. When it is, no run is claimed any more.",
        "{inside} du -a -x --max-depth=2 /app/userdata",
        "disk-full",
    ),
    "volume-read-only": Kind(
        "error",
        "The app may not write to its data folder: wrong owner, or mounted read-only.",
        "docker volume inspect {volume}",
        "disk-full",
    ),
    # Schedulers
    "no-scheduler": Kind(
        "error",
        "Nobody fires the jobs. Their moments are caught up within each job's grace time, or missed.",
        "docker compose logs --tail 50 {service}",
        "job-did-not-fire",
    ),
    "unknown-node": Kind(
        "warning",
        "A process that is none of this project's works on its job store: a second deployment, or a container left"
        " behind. A fire still starts once, but perhaps there, with other code and settings.",
        "docker ps --filter volume={volume}",
        "two-deployments",
    ),
    "jobs-held": Kind(
        "warning",
        "Nothing is fired until somebody says what becomes of the fires that fell into the hold.",
        "{inside} flask jobs due",
        "backup-and-restore",
    ),
    "clock-off": Kind(
        "warning",
        "The clock of a machine is off. Fires follow the database's clock; its logs and its lateness are wrong.",
        "date --utc; timedatectl status",
        "jobs-fire-late",
    ),
    "clock-went-back": Kind(
        "error",
        "What is on record lies in the future: this machine's clock was set back. On SQLite it is the only clock, so"
        " jobs wait until it has caught up.",
        "date --utc; timedatectl status",
        "jobs-fire-late",
    ),
    "versions-differ": Kind(
        "warning",
        "Processes of different releases or of different code share the store. During an upgrade that is normal.",
        "scripts/rolling_restart.sh",
        "upgrade-and-rollback",
    ),
    "broker-unreachable": Kind(
        "error",
        "Runs of jobs on the executor celery wait until it is back; each still starts once. All other jobs fire.",
        "docker compose ps valkey; docker compose logs --tail 20 valkey",
        "broker-down",
    ),
    "no-worker": Kind(
        "error",
        "Jobs on the executor celery have nobody to run them.",
        "docker compose up --detach worker",
        "broker-down",
    ),
    # The way through nginx
    "api-409": Kind(
        "error",
        "The scheduler API is answered by a process that runs no scheduler on purpose: ENABLE_SCHEDULER is off where it"
        " should be on.",
        "grep ENABLE_SCHEDULER .env; docker compose exec {service} printenv ENABLE_SCHEDULER",
        "scheduler-api-409",
    ),
    "api-unreachable": Kind(
        "error",
        "Requests do not get through nginx to the app, or are answered with an error.",
        "docker compose logs --tail 50 {nginx}",
        "scheduler-api-409",
    ),
    "token-refused": Kind(
        "warning",
        "A process behind nginx knows another API token than this container: it was changed, and not every container"
        " was made anew.",
        "docker compose up --detach --force-recreate",
        "forgotten-admin-password",
    ),
    "certificate-expired": Kind(
        "error",
        "Clients refuse https.",
        "{inside} flask jobs certificate",
        "certificate-expired",
    ),
    "certificate-expires-soon": Kind(
        "warning",
        "It was not renewed in time; when it expires, clients refuse https.",
        "{inside} flask jobs certificate",
        "certificate-expired",
    ),
    # Jobs
    "task-unknown": Kind(
        "warning",
        "Their runs fail: the module is missing from TASKS_DIR, or cannot be loaded.",
        "{inside} flask jobs status",
        "job-did-not-fire",
    ),
    "task-module": Kind(
        "warning",
        "A module in TASKS_DIR could not be loaded; runs of its tasks fail.",
        "{inside} flask jobs status",
        "job-did-not-fire",
    ),
    "job-unreadable": Kind(
        "error",
        "Its row cannot be read and was set aside untouched; it does not fire until it gets a new trigger.",
        "{inside} flask jobs list --json",
        "job-did-not-fire",
    ),
    "jobs-overdue": Kind(
        "error",
        "They are due, and nobody has claimed them.",
        "scripts/explain.sh {job}",
        "job-did-not-fire",
    ),
    "jobs-late": Kind(
        "warning",
        "Runs start later than they were due: too few threads, a slow disk, a busy machine.",
        "{inside} flask jobs status",
        "jobs-fire-late",
    ),
    "queue-waits": Kind(
        "warning",
        "Claimed runs wait for a free place: SCHEDULER_THREADS or WORKER_CONCURRENCY are too few for what runs.",
        "{inside} flask jobs status",
        "jobs-fire-late",
    ),
    "runs-missed": Kind(
        "warning",
        "They did not start: later than their grace time, or at max_instances. Each is on record with its reason.",
        "scripts/explain.sh {job}",
        "job-did-not-fire",
    ),
    "runs-lost": Kind(
        "warning",
        "Their process died under them: killed, out of memory, a power cut. They run again only where the job says so.",
        "{inside} flask jobs history {job}",
        "job-did-not-fire",
    ),
    "runs-failed": Kind(
        "warning",
        "Their task raised an error; the log of the run says which.",
        "{inside} flask jobs history {job}",
        "job-did-not-fire",
    ),
    "jobs-alike": Kind(
        "warning",
        "They do the same with the same parameters at the same times: what looks like a job that runs twice.",
        "{inside} flask jobs list",
        "jobs-run-twice",
    ),
    "jobs-paused": Kind(
        "note",
        "They do not fire until somebody resumes or enables them.",
        "{inside} flask jobs list",
        "job-did-not-fire",
    ),
    # Upkeep
    "backup-old": Kind(
        "warning",
        "There is no recent backup: what happened since cannot be brought back.",
        "scripts/backup_jobstore.sh",
        "backup-and-restore",
    ),
    "alerts-stuck": Kind(
        "warning",
        "Alerts and pings do not reach their address; they are kept and tried again.",
        "docker compose logs --tail 50 {service}",
        "job-did-not-fire",
    ),
}


def make_finding(finding_id: str, what: str, place: Place, *, job: str = "") -> Finding:
    """A finding of the catalogue, its command filled in for this stack; `job` is the job that the command names."""
    kind = CATALOGUE[finding_id]
    nginx = "whalefall" if place.shape == "prod" else "nginx"
    # Beside one that is stopped, or that starts over and over, in a container of its own.
    way_in = "exec" if place.is_running else "run --rm --no-deps"
    command = kind.command.format(
        service=place.service,
        inside=f"docker compose {way_in} {place.service}",
        nginx=nginx,
        job=job,
        volume=f"{place.project}_userdata",
    )
    return Finding(finding_id, kind.severity, what, kind.means, command, f"runbooks/{kind.runbook}.md")
