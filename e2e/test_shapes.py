"""The shapes split and ha, brought up by scripts/up.sh: what they publish and may do, and that they grow and shrink."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Event
from typing import Any, ClassVar

import docker
import pytest
from docker.models.containers import Container

from e2e.harness.checkout import Checkout, checked_out
from e2e.harness.client import SCHEDULER, Client
from e2e.harness.oracle import parse_moment
from e2e.harness.stack import SECRETS, STORE_SECRETS
from e2e.harness.waiting import wait_until

JOBS = f"{SCHEDULER}/jobs"
#: A built-in job that the tests may start as often as they like.
JOB = "purge_run_history"
FOUND_AGAIN_S = 5.0
OBEYED_S = 1.0

#: Runs in a container of the app: METHOD PATH BODY, asked of its own scheduler; prints the answer.
ASK = """
import sys, urllib.request
method, path, body = sys.argv[1:]
token = open("/run/secrets/api_token").read().strip()
headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
request = urllib.request.Request(f"http://127.0.0.1:5002{path}", body.encode() or None, headers, method=method)
print(urllib.request.urlopen(request, timeout=30).read().decode())
"""


class Shape:
    """A stack of one shape, as an operator has it."""

    def __init__(self, name: str, services: Mapping[str, int], checkout: Checkout) -> None:
        self.name = name
        self.services = services
        self.checkout = checkout
        self.up = checkout.up("--shape", name)
        assert self.up.returncode == 0, self.up.stderr

    def client(self) -> Client:
        return self.checkout.bearer()

    def containers(self, service: str | None = None) -> list[Container]:
        return self.checkout.containers(service)

    def scale(self, *options: str, **numbers: int) -> None:
        """As many containers of each service as said, all of them healthy."""
        arguments = [word for service, number in numbers.items() for word in ("--scale", f"{service}={number}")]
        self.checkout.compose("up", "--detach", "--no-build", "--wait", *options, *arguments)

    def network(self, name: str = "default") -> str:
        return f"{self.checkout.project}_{name}"

    def identities(self) -> list[tuple[str, str]]:
        return sorted((str(one.id), str(one.attrs["State"]["StartedAt"])) for one in self.containers())


@pytest.fixture(scope="class")
def shape(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shape]:
    name, services = request.cls.NAME, request.cls.SERVICES
    with checked_out(tmp_path_factory.mktemp(name), f"whalefall-e2e-{name}-{os.getpid()}", Checkout) as checkout:
        yield Shape(name, services, checkout)


def run(container: Container, *command: str) -> str:
    code, output = container.exec_run(list(command))
    text = str(output.decode(errors="replace"))
    assert code == 0, f"{container.name}: {' '.join(command)[:100]}: exit {code}\n{text}"
    return text


def ask(container: Container, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """The data that the scheduler of one container answers, past nginx."""
    text = json.dumps(body) if body is not None else ""
    return json.loads(run(container, "python3", "-c", ASK, method, path, text))["data"]


def address_of(container: Container, network: str) -> str:
    container.reload()
    return str(container.attrs["NetworkSettings"]["Networks"][network]["IPAddress"])


def upstreams(shape: Shape, since: float) -> Counter[str]:
    """How many requests nginx passed to each address since then, by its log."""
    (nginx,) = shape.containers("nginx")
    found = (json.loads(line) for line in nginx.logs(since=int(since)).decode().splitlines())
    told = [line["upstream"] for line in found if line.get("status") == 200]
    return Counter(upstream.partition(":")[0] for upstream in told if re.fullmatch(r"[0-9.]+:500[12]", upstream))


@contextmanager
def taken(gone: Container, address: str, network: str) -> Iterator[None]:
    """The address of a container that is gone belongs to somebody else meanwhile, who does not answer there."""
    squatters: list[Container] = []
    try:
        while not squatters or address_of(squatters[-1], network) != address:
            assert len(squatters) < 16, f"{address} was not given away again"
            squatters.append(
                docker.from_env().containers.run(
                    gone.image.id, ["sleep", "600"], entrypoint=[], network=network, detach=True, auto_remove=True
                )
            )
        yield
    finally:
        for squatter in squatters:
            squatter.kill()


class EveryShape:
    """What holds in both."""

    NAME: ClassVar[str]
    SERVICES: ClassVar[Mapping[str, int]]

    def test_up_brings_it_up_healthy(self, shape: Shape) -> None:
        assert shape.up.stdout.splitlines()[0].endswith(f":{shape.checkout.port}/")
        found = Counter(one.labels["com.docker.compose.service"] for one in shape.containers())
        assert found == shape.services
        assert {one.attrs["State"]["Health"]["Status"] for one in shape.containers()} == {"healthy"}

    def test_up_again_and_plain_compose_are_the_same_stack(self, shape: Shape) -> None:
        before = shape.identities()
        done = shape.checkout.up(env={})
        assert (done.returncode, done.stdout) == (0, shape.up.stdout), done.stderr
        shape.checkout.compose("up", "--detach")
        assert shape.identities() == before
        listed = shape.checkout.compose("ps", "--quiet").split()
        assert sorted(listed) == [identity for identity, _ in before]

    def test_another_shape_in_the_same_project_is_refused(self, shape: Shape) -> None:
        before, files = shape.identities(), shape.checkout.files()
        for other in {"prod", "split", "ha"} - {shape.name}:
            done = shape.checkout.up("--shape", other, env={})
            assert (done.returncode, done.stdout) == (1, "")
            (line,) = done.stderr.splitlines()
            assert f"the shape {shape.name} is here; take it down first" in line
        assert (shape.identities(), shape.checkout.files()) == (before, files)

    def test_only_nginx_publishes(self, shape: Shape) -> None:
        published = {
            (one.labels["com.docker.compose.service"], port)
            for one in shape.containers()
            for port, hosts in one.attrs["NetworkSettings"]["Ports"].items()
            if hosts
        }
        assert published == {("nginx", "8080/tcp")}

    def test_every_container_runs_without_rights(self, shape: Shape) -> None:
        for container in shape.containers():
            status = run(container, "sh", "-c", "cat /proc/[0-9]*/status")
            uids = set(re.findall(r"^Uid:\t(\d+)", status, re.MULTILINE))
            assert len(uids) == 1, container.name
            assert int(uids.pop()) >= 999, container.name
            assert set(re.findall(r"^Cap(?:Prm|Eff|Bnd):\t(\S+)$", status, re.MULTILINE)) == {"0" * 16}
            assert set(re.findall(r"^NoNewPrivs:\t(\d)$", status, re.MULTILINE)) == {"1"}
            code, output = container.exec_run(["touch", "/usr/local/trace"])
            assert code != 0, container.name
            assert b"Read-only file system" in output
            host = container.attrs["HostConfig"]
            assert (host["ReadonlyRootfs"], host["Privileged"], host["Init"]) == (True, False, True)
            assert 0 < host["Memory"] <= 2 * 1024**3
            assert 0 < host["PidsLimit"] <= 1024
            assert host["RestartPolicy"]["Name"] == "unless-stopped"
            assert host["LogConfig"]["Config"]["max-size"]

    def test_secrets_are_files_only(self, shape: Shape) -> None:
        names = SECRETS + (STORE_SECRETS if shape.name == "ha" else ())
        values = {name: shape.checkout.secret(name) for name in names}
        assert {file.name for file in (shape.checkout.folder / ".secrets").iterdir()} == set(names)
        for container in shape.containers():
            processes = run(container, "sh", "-c", "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'")
            told = json.dumps(container.attrs) + processes + container.logs().decode(errors="replace")
            assert [name for name, value in values.items() if value in told] == [], container.name

    def test_every_line_of_the_log_is_json(self, shape: Shape) -> None:
        shape.client().jobs()  # nginx says nothing until it is asked

        def programs() -> set[str]:
            told = set()
            for container in shape.containers():
                for line in container.logs().decode().splitlines():
                    read = json.loads(line)
                    assert {"time", "level", "program", "node", "message"} <= set(read), line
                    assert read["node"] == container.attrs["Config"]["Hostname"], line
                    assert datetime.fromisoformat(read["time"]).utcoffset() is not None, line
                    told.add(read["program"])
            return told

        wait_until("a line of each", programs, lambda told: told == set(self.SERVICES), within=10)

    def test_a_run_is_followed_through_the_containers(self, shape: Shape) -> None:
        run_id = shape.client().run_now(JOB)["run_id"]

        def told() -> list[dict[str, Any]]:
            done = shape.checkout.run("scripts/logs.sh", "--run", run_id, "--json", env={})
            return [json.loads(line) for line in done.stdout.splitlines()]

        def ended(lines: list[dict[str, Any]]) -> bool:
            return any(" ended after " in line["message"] for line in lines)

        def asked_for(lines: list[dict[str, Any]]) -> bool:
            return any(line["program"] == "nginx" and line["status"] == 200 for line in lines)

        # nginx writes its line once the answer is out, by when a short run may have ended.
        lines = wait_until(
            "its end, and who asked for it", told, lambda found: ended(found) and asked_for(found), within=30
        )
        of_the_app = [line for line in lines if line["program"] != "nginx"]
        assert [line["program"] for line in of_the_app][-2:] == ["scheduler", "scheduler"]
        assert {line["run_id"] for line in of_the_app if line["program"] == "scheduler"} == {run_id}

    def test_a_job_is_explained_and_checked_from_the_host(self, shape: Shape) -> None:
        shape.client().run_now(JOB)
        wait_until("its end", lambda: shape.client().job(JOB)["last_outcome"], lambda it: it == "success", within=30)
        told = shape.checkout.run("scripts/explain.sh", JOB, f"{datetime.now(UTC):%Y-%m-%d %H:%M}+00:00", "--json")
        assert json.loads(told.stdout)["job_id"] == JOB, told.stderr
        # Its address and its token are found where the stack keeps them.
        checked = shape.checkout.run("scripts/check_job.py", "--job-id", JOB)
        assert (checked.returncode, checked.stdout[:5]) == (0, "OK - "), checked
        refused = shape.checkout.run("scripts/import_legacy_jobstore.sh", "README.md", "--dry-run")
        assert "no SQLite database" in refused.stderr

    def test_api_and_pages_work_through_nginx(self, shape: Shape) -> None:
        person = Client(shape.checkout.base_url)
        person.log_in("admin", shape.checkout.secret("admin_password"))
        assert JOB in {job["id"] for job in person.jobs()}
        page = person.get("/dashboard")
        assert page.status_code == 200
        for path in set(re.findall(r'(?:href|src)="(/static/[^"]+)"', page.text)):
            assert person.get(path).status_code == 200, path
        assert person.post(f"{JOBS}/{JOB}/actions/pause").status_code == 200
        assert person.post(f"{JOBS}/{JOB}/actions/resume").status_code == 200
        assert person.get("/api/v1/scheduler").status_code == 308

    def test_requests_are_spread(self, shape: Shape) -> None:
        shape.scale(web=2, scheduler=2)
        client, since = shape.client(), time.time()
        both = {
            address_of(one, shape.network()) for service in ("web", "scheduler") for one in shape.containers(service)
        }
        assert len(both) == 4
        # nginx asks for the addresses again after some seconds; until then it knows of one container of each.
        wait_until(
            "all four are asked",
            lambda: (self.look_around(client), upstreams(shape, since))[1],
            lambda found: set(found) == both,
            within=FOUND_AGAIN_S,
        )
        before = upstreams(shape, since)
        for _ in range(40):
            self.look_around(client)
        found = upstreams(shape, since) - before
        # Half of 40 each; less than 7 happens once in a hundred thousand times.
        assert {address: number for address, number in found.items() if number < 7} == {}
        assert set(found) == both

    @staticmethod
    def look_around(client: Client) -> None:
        for path in (JOBS, "/api/v1/health/ready"):
            assert client.get(path).status_code == 200

    def test_it_grows_and_shrinks_under_requests(self, shape: Shape) -> None:
        ended = Event()

        def read() -> Counter[int]:
            client, seen = shape.client(), Counter[int]()
            while not ended.is_set():
                for path in (JOBS, "/dashboard", f"{SCHEDULER}/status"):
                    seen[client.get(path).status_code] += 1
            return seen

        def write() -> Counter[int]:
            client, seen = shape.client(), Counter[int]()
            while not ended.is_set():
                for action in ("pause", "resume"):
                    seen[client.post(f"{JOBS}/{JOB}/actions/{action}").status_code] += 1
            return seen

        more = {name: 3 for name in ("web", "scheduler", "worker") if name in shape.services}
        with ThreadPoolExecutor() as pool:
            reads = [pool.submit(read) for _ in range(2)]
            writes = pool.submit(write)
            try:
                shape.scale(**more)
                shape.scale(**dict.fromkeys(more, 1))
            finally:
                ended.set()
            answers = sum((one.result() for one in reads), Counter[int]())
            changes = writes.result()
        assert set(answers) == {200}
        # A change whose container ended before it answered may have been made, so nginx does not make it again.
        assert set(changes) <= {200, 503}
        assert changes[503] <= 4
        assert changes[200] > 20


class TestSplit(EveryShape):
    NAME = "split"
    SERVICES: ClassVar = {"nginx": 1, "web": 1, "scheduler": 1}

    @pytest.mark.parametrize("service", ["web", "scheduler"])
    def test_a_container_that_moved_is_found_again(self, shape: Shape, service: str) -> None:
        shape.scale(web=1, scheduler=1)
        path = {"web": "/api/v1/health/basic", "scheduler": JOBS}[service]
        client = shape.client()
        wait_until("answers", lambda: client.get(path).status_code, lambda status: status == 200, within=10)
        (old,) = shape.containers(service)
        old_address = address_of(old, shape.network())
        old.remove(force=True)
        with taken(old, old_address, shape.network()):
            shape.checkout.compose("up", "--detach", "--no-build", service)
            (new,) = shape.containers(service)
            assert address_of(new, shape.network()) != old_address
            probe = new.attrs["Config"]["Healthcheck"]["Test"][1:]
            wait_until("it works", lambda: new.exec_run(probe).exit_code, lambda code: code == 0, within=60, every=0.1)
            wait_until(
                "found", lambda: client.get(path).status_code, lambda status: status == 200, within=FOUND_AGAIN_S
            )

    def test_data_stays_behind_for_no_shape(self, shape: Shape) -> None:
        shape.checkout.compose("down")
        done = shape.checkout.up("--shape", "ha", env={})
        assert done.returncode == 1
        assert "the jobs of this project are in SQLite" in done.stderr.splitlines()[-1]
        assert "scripts/move_to_postgres.sh" in done.stderr.splitlines()[-1]
        assert shape.containers() == []


class TestHa(EveryShape):
    NAME = "ha"
    SERVICES: ClassVar = {"nginx": 1, "web": 2, "scheduler": 2, "worker": 2, "postgres": 1, "valkey": 1}

    def test_an_edit_through_one_scheduler_is_obeyed_by_the_other(self, shape: Shape) -> None:
        shape.scale(web=2, scheduler=2, worker=2)
        schedulers = shape.containers("scheduler")
        ask(schedulers[0], "POST", f"{JOBS}/{JOB}/actions/resume")
        for edited, other in (schedulers, schedulers[::-1]):
            moment = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=4)
            ask(edited, "PUT", f"{JOBS}/{JOB}", {"trigger_type": "date", "run_date": moment.isoformat()})
            edited.pause()
            try:
                row = wait_until("its run", partial(ended_run, other, moment), within=15)
            finally:
                edited.unpause()
            assert row["node"] == other.attrs["Config"]["Hostname"]
            assert row["outcome"] == "success"
            assert row["lateness_ms"] <= OBEYED_S * 1000

    def test_the_stores_are_out_of_reach_for_nginx(self, shape: Shape) -> None:
        (nginx,) = shape.containers("nginx")
        for service, port in (("postgres", 5432), ("valkey", 6379)):
            (store,) = shape.containers(service)
            address = address_of(store, shape.network("stores"))
            code, _ = nginx.exec_run(["timeout", "2", "bash", "-c", f"exec 3<> /dev/tcp/{address}/{port}"])
            assert code != 0, service
            (first, *_) = shape.containers("web")
            run(first, "timeout", "5", "bash", "-c", f"exec 3<> /dev/tcp/{address}/{port}")

    def test_both_databases_are_sound_and_the_nightly_backup_works(self, shape: Shape) -> None:
        (first, *_) = shape.containers("scheduler")
        states = json.loads(run(first, "flask", "db", "check", "--json"))
        sound = ("postgresql://postgres/whalefall", None)
        assert [(state["file"], state["problem"]) for state in states] == [sound, sound]
        client = shape.client()
        assert all(job["is_enabled"] for job in client.jobs())
        asked_for = client.run_now("backup_jobstore")["run_id"]

        def outcome() -> str:
            return str({row["run_id"]: row["outcome"] for row in client.history("backup_jobstore")}[asked_for])

        wait_until("the backup is made", outcome, lambda found: found not in ("pending", "running"), within=60)
        assert outcome() == "success"
        run(first, "flask", "jobs", "verify", "latest")
        told = run(first, "flask", "jobs", "restore", "latest", "--dry-run", "--json")
        planned = json.loads(told.splitlines()[-1])  # behind what it logs
        assert planned["rows"]["jobstore"]["jobs"] >= len(client.jobs())

    def test_postgres_asks_for_a_password_and_keeps_what_it_says(self, shape: Shape) -> None:
        (postgres,) = shape.containers("postgres")
        asked = ["psql", "--username=whalefall", "--dbname=whalefall", "-Atc"]
        assert run(postgres, *asked, "SHOW fsync; SHOW synchronous_commit; SHOW data_checksums").split() == ["on"] * 3
        code, output = postgres.exec_run(
            [*asked, "SELECT 1", "--host", address_of(postgres, shape.network("stores")), "--no-password"]
        )
        assert code != 0
        assert b"no password supplied" in output

    def test_stores_end_in_order_and_keep_what_they_hold(self, shape: Shape) -> None:
        (valkey,) = shape.containers("valkey")
        cli = 'REDISCLI_AUTH="$(cat /run/secrets/valkey_password)" valkey-cli '
        run(valkey, "sh", "-c", f"{cli} rpush kept one two")
        assert "NOAUTH" in run(valkey, "valkey-cli", "lrange", "kept", "0", "-1")
        since = int(time.time())
        shape.checkout.compose("restart", "postgres", "valkey")
        (postgres,) = shape.containers("postgres")
        assert b"database system is shut down" in postgres.logs(since=since)
        wait_until(
            "the queue",
            lambda: run(valkey, "sh", "-c", f"{cli} lrange kept 0 -1").split(),
            lambda found: found == ["one", "two"],
            within=20,
        )
        ready = shape.client()
        wait_until("ready", lambda: ready.get("/api/v1/health/ready").status_code, lambda code: code == 200, within=30)

    def test_a_lost_password_of_postgres_is_made_again(self, shape: Shape) -> None:
        (shape.checkout.folder / ".secrets" / "postgres_password").unlink()
        done = shape.checkout.up(env={})
        assert done.returncode == 0, done.stderr
        assert JOB in {job["id"] for job in shape.client().jobs()}

    def test_data_stays_behind_for_no_shape(self, shape: Shape) -> None:
        shape.checkout.compose("down")
        done = shape.checkout.up("--shape", "split", env={})
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "the jobs of this project are in PostgreSQL" in line
        assert shape.containers() == []


def ended_run(container: Container, due: datetime) -> dict[str, Any]:
    """The run of that moment when it has ended; LookupError before. Asked of one scheduler."""
    rows: list[dict[str, Any]] = ask(container, "GET", f"{JOBS}/{JOB}/history")
    for row in rows:
        if parse_moment(row["scheduled_for"]) == due and row["finished_at"]:
            return row
    raise LookupError(f"no ended run of {due} in {rows}")
