"""Metrics: right across workers, containers and restarts, shown to whom they are meant for; Prometheus beside them."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import docker
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from e2e.harness.client import SCHEDULER, Client
from e2e.harness.oracle import FINAL
from e2e.harness.receiver import Receiver, bridge_address
from e2e.harness.stack import ROOT, Shape, Stack, free_port
from e2e.harness.waiting import wait_until

OBSERVABILITY = "compose/docker-compose.observability.yml"
TOKEN = "token-of-the-monitoring"
ASKED_FOR = "/api/v1/openapi.json"
EVERY_SECOND = {"trigger_type": "cron", "cron_expression": "* * * * * *"}
#: Prometheus looks for its targets every 5 s and asks them every 10 s.
SCRAPED_WITHIN_S = 45.0

#: Runs in a container of the app.
ADD_TO_TOTALS = """
from app.db.engines import create_engine_for, database_now_us
from app.repositories.run_totals_repository import RunTotalsRepository
from app.settings import Settings
engine = create_engine_for(Settings.load().jobstore_url)
print(RunTotalsRepository(engine, clock=lambda c: database_now_us(c) + 3_600_000_000).add_settled())
"""

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


class Prometheus:
    """The Prometheus beside a stack."""

    def __init__(self, port: int) -> None:
        self._client = Client(f"http://127.0.0.1:{port}")

    def api(self, path: str, **params: str) -> Any:
        answer = self._client.get(f"/api/v1/{path}", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def query(self, expression: str) -> dict[tuple[str, ...], float]:
        """Values by the values of the labels, in the order of the labels' names."""
        found = self.api("query", query=expression)["result"]
        return {
            tuple(value for label, value in sorted(one["metric"].items()) if label != "__name__"): float(
                one["value"][1]
            )
            for one in found
        }

    def up(self) -> Counter[str]:
        """Targets that answer, by job."""
        return Counter(one["labels"]["job"] for one in self.api("targets")["activeTargets"] if one["health"] == "up")


@contextmanager
def observed_stack(
    folder: Path, shape: Shape, *, scale: Mapping[str, int] | None = None, **environment: str
) -> Iterator[tuple[Stack, Prometheus]]:
    port = free_port()
    name = f"whalefall-e2e-{os.getpid()}-metrics-{shape}"
    stack = Stack(
        name, folder / name, {"PROMETHEUS_ADDRESS": f"127.0.0.1:{port}", **environment}, shape=shape, scale=scale
    )
    stack.compose_files = (*stack.compose_files, OBSERVABILITY)
    try:
        stack.start()
        yield stack, Prometheus(port)
    finally:
        stack.remove()


@pytest.fixture(scope="module")
def alertmanager() -> Iterator[Receiver]:
    """What stands in an Alertmanager's place."""
    with Receiver(bridge_address()) as listening:
        yield listening


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory, alertmanager: Receiver) -> Iterator[tuple[Stack, Prometheus]]:
    managers = alertmanager.url("").removeprefix("http://").rstrip("/")
    folder = tmp_path_factory.mktemp("metrics")
    with observed_stack(folder, "prod", METRICS_TOKEN=TOKEN, ALERTMANAGERS=managers) as made:
        yield made


@pytest.fixture
def stack(observed: tuple[Stack, Prometheus]) -> Stack:
    return observed[0]


@pytest.fixture
def prometheus(observed: tuple[Stack, Prometheus]) -> Prometheus:
    return observed[1]


@pytest.fixture
def read(stack: Stack) -> Callable[[], Samples]:
    """All samples as the published port gives them to the holder of the token."""
    return lambda: samples(Client(stack.base_url, token=TOKEN))


def samples(client: Client) -> Samples:
    answer = client.get("/metrics")
    assert answer.status_code == 200, answer.text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def total(found: Samples, name: str, **labels: str) -> float:
    """The sum of the samples of that name with these labels, whatever their others."""
    return sum(value for (sample, held), value in found.items() if sample == name and labels.items() <= set(held))


def asked(found: Samples) -> float:
    return total(found, "whalefall_http_requests_total", route=ASKED_FOR, status="200")


def fires(found: Samples, outcome: str = "success", task: str = "oracle_fire") -> float:
    return total(found, "whalefall_fires_total", outcome=outcome, task=task, kind="schedule")


def open_runs(client: Client, job_id: str) -> list[str]:
    return [row["run_id"] for row in client.history(job_id) if row["outcome"] not in FINAL]


def outcomes_on_record(client: Client, job_id: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for row in client.history(job_id):
        found[row["outcome"]] += row["count"]
    return found


@pytest.mark.parametrize(
    "path", ["/metrics", "//metrics", "/%6Detrics", "/x/../metrics", "/metrics?collect[]=requests"]
)
def test_the_published_port_shows_them_to_nobody_without_the_token(stack: Stack, path: str) -> None:
    prepared = requests.Request("GET", stack.base_url).prepare()
    prepared.url = stack.base_url + path  # as it stands: requests would tidy it up
    for headers in ({}, {"X-Metrics-Gate": "open"}, {"Authorization": f"Bearer {stack.secrets['api_token']}"}):
        prepared.headers.clear()
        prepared.headers.update(headers)
        with requests.Session() as session:
            session.trust_env = False
            answer = session.send(prepared, timeout=30)
        assert answer.status_code in (401, 404), answer.text
        assert "whalefall_" not in answer.text


def test_the_port_for_prometheus_is_not_published(stack: Stack) -> None:
    container = stack.container()
    assert "8081/tcp" not in container.attrs["NetworkSettings"]["Ports"]
    (network,) = container.attrs["NetworkSettings"]["Networks"].values()
    inside = Client(f"http://{network['IPAddress']}:8081")
    assert inside.get("/metrics").status_code == 200
    assert inside.get("/api/v1/health/basic").status_code == 404  # it leads to nothing else


def test_requests_add_up_over_all_workers_and_outlive_them(stack: Stack, read: Callable[[], Samples]) -> None:
    before = asked(read())
    client = stack.anonymous()
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: client.get(ASKED_FOR).status_code, range(60)))
    assert set(statuses) == {200}
    # Every worker gives the same sum: some connections are new, and meet another one.
    assert {asked(samples(Client(stack.base_url, token=TOKEN))) for _ in range(8)} == {before + 60}
    assert total(read(), "whalefall_http_requests_total", program="scheduler") > 0

    killed = stack.signal(signal.SIGKILL, "web", "worker")
    gone = {process.pid for process in killed}
    wait_until(
        "new web workers",
        lambda: {process.pid for process in stack.gunicorn("web", "worker")},
        lambda pids: len(pids) == len(gone) and not pids & gone,
        within=30,
    )
    stack.wait_until_ready()
    assert asked(read()) == before + 60
    # As many files as processes: one that dies over and over does not fill the memory.
    files = stack.execute("sh", "-c", "ls /run/whalefall/metrics/counter_*.db").split()
    assert len(files) <= len(gone) + 1


def test_fires_are_those_on_record_also_after_a_restart(stack: Stack, read: Callable[[], Samples]) -> None:
    client = stack.bearer()
    client.create_job("metered", "oracle_fire", EVERY_SECOND)
    wait_until("three fires", lambda: fires(read()), lambda count: count >= 3, within=30)
    stack.container().restart(timeout=60)
    stack.wait_until_ready()
    after_restart = fires(read())
    assert after_restart >= 3
    wait_until("more fires", lambda: fires(read()), lambda count: count >= after_restart + 2, within=30)
    client.post(f"{SCHEDULER}/jobs/metered/actions/pause")
    wait_until("all at rest", partial(open_runs, client, "metered"), lambda found: not found, within=30)

    found = read()
    on_record = outcomes_on_record(client, "metered")
    assert {outcome: fires(found, outcome) for outcome in on_record} == on_record
    started = sum(1 for start in stack.starts() if start.job_id == "metered")
    assert fires(found) == started
    assert total(found, "whalefall_fire_lateness_seconds_count", executor="default") == started
    assert total(found, "whalefall_run_duration_seconds_count", task="oracle_fire") == started


def test_the_state_of_the_stack(stack: Stack, read: Callable[[], Samples]) -> None:
    found = read()
    assert total(found, "whalefall_store_up") == 2
    assert total(found, "whalefall_nodes", kind="scheduler") == 1
    assert total(found, "whalefall_loop_age_seconds", kind="scheduler") < 30
    assert total(found, "whalefall_store_bytes", store="jobstore") > 0
    assert total(found, "whalefall_backups") == 0
    client = stack.bearer()
    client.run_now("backup_jobstore")
    wait_until("a backup", lambda: total(read(), "whalefall_backups"), lambda count: count == 1, within=60)
    assert total(read(), "whalefall_backup_age_seconds") < 600


def test_prometheus_reads_them_and_sends_an_alert(stack: Stack, prometheus: Prometheus, alertmanager: Receiver) -> None:
    expected = {"whalefall": 1, "whalefall_requests": 1}
    wait_until("the targets", prometheus.up, lambda up: up == expected, within=SCRAPED_WITHIN_S)
    (group,) = prometheus.api("rules")["groups"]
    assert all(rule["health"] in ("ok", "unknown") for rule in group["rules"])

    client = stack.bearer()
    client.create_job("fails", "oracle_fail", {"trigger_type": "cron", "cron_expression": "0 0 1 1 *"})
    failed = 'whalefall_fires_total{task="oracle_fail", outcome="failed", kind="manual"}'
    wait_until(
        "the task's series",
        lambda: list(prometheus.query(failed).values()),
        lambda v: v == [0],
        within=SCRAPED_WITHIN_S,
    )
    client.run_now("fails")

    def sent() -> list[dict[str, Any]]:
        alerts = [alert for request in alertmanager.received for alert in json.loads(request.body)]
        return [alert for alert in alerts if alert["labels"]["alertname"] == "WhalefallRunsFail"]

    (alert, *_) = wait_until("the alert", sent, within=2 * SCRAPED_WITHIN_S)
    assert alert["labels"]["task"] == "oracle_fail"
    assert alert["annotations"] == {
        "summary": "Runs of oracle_fail failed",
        "runbook": "runbooks/job-did-not-fire.md",
    }
    assert not prometheus.query('ALERTS{alertname="WhalefallDown"}')
    (container,) = stack.containers_of("prometheus")
    log = [json.loads(line) for line in container.logs().decode().splitlines()]
    assert {entry["program"] for entry in log} == {"prometheus"}
    assert not any(entry["message"].startswith(("ts=", "time=")) for entry in log), "its own form is read"


def test_many_containers_are_read_each(tmp_path: Path) -> None:
    scale = {"web": 2, "scheduler": 2, "worker": 1}
    with observed_stack(tmp_path, "ha", scale=scale, METRICS_ALLOW="0.0.0.0/0") as (stack, prometheus):
        expected = {"whalefall": 1, "whalefall_requests": 4}
        client = stack.anonymous()  # METRICS_ALLOW lets everybody read them
        wait_until(
            "every node's heartbeat",
            lambda: {kind: total(samples(client), "whalefall_nodes", kind=kind) for kind in ("scheduler", "worker")},
            lambda nodes: nodes == {"scheduler": 2, "worker": 1},
            within=60,
        )
        scripts = stack.bearer()
        scripts.create_job("metered", "oracle_fire", EVERY_SECOND)
        scripts.create_job("carried", "oracle_fire", EVERY_SECOND, executor="celery")
        wait_until("the targets", prometheus.up, lambda up: up == expected, within=SCRAPED_WITHIN_S)
        victim = stack.containers_of("scheduler")[0]
        victim.kill()
        stack.up()
        stack.wait_until_ready()
        for job_id in ("metered", "carried"):
            ran = partial(outcomes_on_record, scripts, job_id)
            wait_until(f"fires of {job_id} after the kill", ran, lambda found: found["success"] >= 8, within=60)
            scripts.post(f"{SCHEDULER}/jobs/{job_id}/actions/pause")
        for job_id in ("metered", "carried"):
            wait_until(f"{job_id} at rest", partial(open_runs, scripts, job_id), lambda found: not found, within=60)
        on_record = outcomes_on_record(scripts, "metered") + outcomes_on_record(scripts, "carried")
        # Whichever container answers says the same.
        for container in (*stack.containers_of("web"), *stack.containers_of("scheduler")):
            port = 5001 if container.labels["com.docker.compose.service"] == "web" else 5002
            networks = container.attrs["NetworkSettings"]["Networks"]
            address = networks[f"{stack.name}_default"]["IPAddress"]
            found = samples(Client(f"http://{address}:{port}"))
            assert {outcome: fires(found, outcome) for outcome in on_record} == on_record
        wait_until(
            "Prometheus' sum",
            lambda: prometheus.query('sum(whalefall_fires_total{task="oracle_fire", outcome="success"})'),
            lambda found: found == {(): on_record["success"]},
            within=SCRAPED_WITHIN_S,
        )
        # What ended long ago is added to the totals, here by a clock an hour ahead: no count is lost or doubled.
        assert "True" in stack.execute("python3", "-c", ADD_TO_TOTALS, container=stack.container("web"))
        found = samples(client)
        assert {outcome: fires(found, outcome) for outcome in on_record} == on_record
        # Each container's requests are series of its own.
        nodes = prometheus.query("count by (node) (whalefall_http_requests_total)")
        assert len(nodes) >= 4
        # While the database is away they still say so, in time for Prometheus.
        stack.container("postgres").stop(timeout=30)
        down = 'count(whalefall_store_up == 0 and on() up{job="whalefall"} == 1)'
        wait_until("word of the outage", lambda: prometheus.query(down), lambda found: found == {(): 2}, within=60)


@pytest.mark.parametrize("shape", ["prod", "split", "ha"])
def test_the_overlay_fits_every_shape(tmp_path: Path, shape: Shape) -> None:
    stack = Stack("whalefall-e2e-config", tmp_path / shape, shape=shape)
    stack.compose_files = (*stack.compose_files, OBSERVABILITY)
    assert "prometheus" in stack.compose("config", "--services").split()


@pytest.mark.parametrize(
    ("image", "command", "variable", "value", "accepted"),
    [
        ("nginx", "start-nginx.sh", "METRICS_ALLOW", "10.0.0.0/8, everybody", "IP addresses or networks"),
        ("prometheus", "start-prometheus.sh", "ALERTMANAGERS", "http://here:9093", "host:port"),
    ],
)
def test_a_bad_value_is_one_clear_line(image: str, command: str, variable: str, value: str, accepted: str) -> None:
    name = f"whalefall/{image}:{os.environ.get('WHALEFALL_TAG', 'latest')}"
    container = docker.from_env().containers.run(
        name, [command], environment={variable: value}, network_mode="none", detach=True
    )
    try:
        assert container.wait(timeout=30)["StatusCode"] == 1
        (line,) = container.logs().decode().splitlines()
    finally:
        container.remove(force=True)
    told = json.loads(line)
    assert (told["level"], told["program"]) == ("error", image)
    assert variable in told["message"]
    assert value.rpartition(" ")[2] in told["message"]
    assert accepted in told["message"]


@pytest.fixture
def promtool() -> Callable[..., str]:
    """promtool of the image, on the tree's own files."""
    image = f"whalefall/prometheus:{os.environ.get('WHALEFALL_TAG', 'latest')}"

    def run(*arguments: str, folder: Path = ROOT / "prometheus") -> str:
        try:
            output = docker.from_env().containers.run(
                image,
                [*arguments],
                entrypoint="promtool",
                volumes={str(folder): {"bind": "/prometheus-files", "mode": "ro"}},
                working_dir="/prometheus-files",
                network_mode="none",
                remove=True,
                stderr=True,
            )
        except docker.errors.ContainerError as error:
            raise AssertionError(error.stderr.decode()) from error
        return str(output.decode())

    return run


def test_the_rules_are_sound_and_fire_when_they_should(promtool: Callable[..., str]) -> None:
    assert "SUCCESS" in promtool("check", "rules", "--lint=all", "--lint-fatal", "rules/whalefall.yml")
    assert "SUCCESS" in promtool("test", "rules", "tests/whalefall.yml", "tests/long_waits.yml")


def test_a_spoilt_rule_is_found(promtool: Callable[..., str], tmp_path: Path) -> None:
    for part in ("rules", "tests"):
        (tmp_path / part).mkdir()
        text = (ROOT / "prometheus" / part / "whalefall.yml").read_text()
        (tmp_path / part / "whalefall.yml").write_text(text.replace("whalefall_overdue_seconds > 30", "vector(1) < 0"))
    tmp_path.chmod(0o755)
    with pytest.raises(AssertionError, match="WhalefallJobsOverdue"):
        promtool("test", "rules", "tests/whalefall.yml", folder=tmp_path)


def test_the_metrics_keep_to_the_conventions(stack: Stack, promtool: Callable[..., str]) -> None:
    text = Client(stack.base_url, token=TOKEN).get("/metrics").text
    container = stack.container("prometheus")
    code, output = container.exec_run(["sh", "-c", f"promtool check metrics <<'EOT'\n{text}\nEOT"])
    assert (code, output.decode()) == (0, "")
