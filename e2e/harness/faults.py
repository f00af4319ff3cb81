"""Faults, injected for real: processes are killed and stopped, containers frozen and cut off, packets dropped.

What opens a fault and ends it again is a context manager; leaving it heals the stack, also when a test fails.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from itertools import count

import docker
from docker.models.containers import Container
from docker.models.networks import Network

from e2e.harness.oracle import parse_moment
from e2e.harness.stack import ROOT, SEND_SIGNAL, Stack
from e2e.harness.waiting import wait_until

TOOLS = f"whalefall/e2e-tools:{os.environ.get('WHALEFALL_TAG', 'latest')}"
SCHEDULER_SERVICE = "scheduler"
DATABASE_SERVICE = "postgres"
DATABASE_PORT = 5432
#: What finds the engine, the base image and the build's settings.
PASSED_ON = ("PATH", "HOME", "DOCKER_HOST", "WHALEFALL_TAG", "BASE_IMAGE", "BUILD_SETTINGS_DIR")
#: Where `clock.so` is mounted, and the file that tells it how far off the clock is; every container has a /tmp.
CLOCK_LIBRARY = "/e2e/clock.so"
CLOCK_OFFSET = "/tmp/clock"
WRITE_FILE = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"

_numbers = count(1)


def build_tools() -> None:
    """The image with packet filters and the steppable clock; quick where it is built already."""
    command = ["docker", "compose", "--project-name", "whalefall-e2e-tools", "--project-directory", "compose"]
    command += ["--file", "e2e/faults/tools/docker-compose.yml"]
    if (ROOT / ".env").exists():
        command += ["--env-file", ".env"]
    done = subprocess.run(
        [*command, "build"],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key in PASSED_ON},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"the tools cannot be built:\n{done.stdout}\n{done.stderr}"


def node_of(container: Container) -> str:
    """The name under which a scheduler in this container writes to ledger and log."""
    name: str = container.attrs["Config"]["Hostname"]
    return name


# -- processes ----------------------------------------------------------------------------------------------------


@contextmanager
def stopped_worker(stack: Stack, container: Container) -> Iterator[None]:
    """The scheduler's process is stopped (SIGSTOP) in here, and goes on afterwards."""
    stack.signal(signal.SIGSTOP, "scheduler", "worker", container=container)
    try:
        yield
    finally:
        stack.signal(signal.SIGCONT, "scheduler", "worker", container=container)


@contextmanager
def paused(container: Container) -> Iterator[None]:
    """Every process of the container is frozen in here (the cgroup's freezer: none can notice)."""
    container.pause()
    try:
        yield
    finally:
        container.unpause()


def kill_master(stack: Stack, container: Container) -> None:
    """SIGKILL to the Gunicorn master of a scheduler's container, which ends with it; Docker starts it again."""
    (master,) = stack.gunicorn("scheduler", "master", container=container)
    # The command dies with its container, so its exit tells nothing.
    container.exec_run(["python3", "-c", SEND_SIGNAL, "0", str(int(signal.SIGKILL)), str(master.pid)])


def kill_and_start(container: Container) -> None:
    """SIGKILL to all of the container; then somebody starts it again, because Docker takes a kill for a wish."""
    container.kill()
    container.start()


# -- network ------------------------------------------------------------------------------------------------------


def networks_of(container: Container) -> dict[str, list[str]]:
    """The networks of a container by name, each with the container's other names in it."""
    container.reload()
    found = container.attrs["NetworkSettings"]["Networks"]
    return {name: list(entry.get("Aliases") or []) for name, entry in found.items()}


def network_of_database(stack: Stack) -> Network:
    """The network in which the database is reached."""
    (name,) = networks_of(stack.container(DATABASE_SERVICE))
    return stack.docker.networks.get(name)


@contextmanager
def disconnected(stack: Stack, container: Container) -> Iterator[None]:
    """The container is out of the database's network in here; connections that are open hear nothing of it."""
    network = network_of_database(stack)
    aliases = networks_of(container)[network.name]
    network.disconnect(container)
    try:
        yield
    finally:
        network.connect(container, aliases=aliases)


@contextmanager
def packets_dropped(container: Container, *, port: int = DATABASE_PORT, share: float = 1.0) -> Iterator[None]:
    """That share of the packets between the container and `port` of anybody is dropped in here, in both directions."""
    chance = f"-m statistic --mode random --probability {share}" if share < 1 else ""
    rules = [f"OUTPUT -p tcp --dport {port} {chance} -j DROP", f"INPUT -p tcp --sport {port} {chance} -j DROP"]

    def change(action: str) -> None:
        script = " && ".join(f"iptables --wait {action} {rule}" for rule in rules)
        # In the container's own network namespace: nobody else's packets are touched.
        in_its_network = f"container:{container.id}"
        docker.from_env().containers.run(
            TOOLS, ["sh", "-c", script], network_mode=in_its_network, cap_add=["NET_ADMIN"], remove=True
        )

    change("--insert")
    try:
        yield
    finally:
        container.reload()
        if container.status == "running":
            change("--delete")


@dataclass
class Detour:
    """A way to the database that can be made bad: `url` is the store's, by that way."""

    url: str
    proxy: Container

    @contextmanager
    def bad(self) -> Iterator[None]:
        """The way is slow and lossy in here."""
        self._turn("SIGUSR1", "bad")
        try:
            yield
        finally:
            self._turn("SIGUSR2", "good")

    def _turn(self, number: str, said: str) -> None:
        self.proxy.kill(signal=number)
        wait_until(f"the network is {said}", lambda: self.proxy.logs().decode().split()[-1] == said, within=10)


@contextmanager
def detour_to_database(
    stack: Stack, *, delay_s: float, stall_share: float = 0.0, stall_s: float = 0.5
) -> Iterator[Detour]:
    """A proxy in the database's network; while it is bad, each way takes `delay_s` seconds, and a share is held up."""
    scheduler = stack.container(SCHEDULER_SERVICE)
    arguments = [str(DATABASE_PORT), DATABASE_SERVICE, str(DATABASE_PORT), str(delay_s), str(stall_share), str(stall_s)]
    proxy: Container = stack.docker.containers.run(
        scheduler.image.id,
        entrypoint=["python3", "-u", "/tcp_proxy.py"],
        command=arguments,
        volumes={str(ROOT / "e2e" / "harness" / "tcp_proxy.py"): {"bind": "/tcp_proxy.py", "mode": "ro"}},
        network=network_of_database(stack).name,
        name=f"{stack.name}-detour-{next(_numbers)}",
        detach=True,
        # So that it goes with the stack, whatever happens.
        labels={"com.docker.compose.project": stack.name},
        healthcheck={"test": ["NONE"]},
    )
    try:
        wait_until("the proxy listens", lambda: b"listening" in proxy.logs(), within=20)
        proxy.reload()
        (network,) = proxy.attrs["NetworkSettings"]["Networks"].values()
        # The same host name: a scheduler whose store has another one is refused beside these.
        url = f"postgresql+psycopg://whalefall@{DATABASE_SERVICE}/whalefall?hostaddr={network['IPAddress']}"
        yield Detour(url, proxy)
    finally:
        proxy.remove(force=True, v=True)


# -- more schedulers ----------------------------------------------------------------------------------------------


@contextmanager
def extra_scheduler(
    stack: Stack,
    environment: Mapping[str, str],
    *,
    mounts: Mapping[str, str] | None = None,
    is_doomed: bool = False,
    within: float = 60.0,
) -> Iterator[Container]:
    """One more scheduler of the stack, with variables of its own: nginx does not know it, the store does.

    `mounts` are files of this machine by their place in the container, read-only. Yields once it is a node; at once
    when it `is_doomed` to die or freeze, perhaps before anybody sees it.
    """
    name = f"{stack.name}-extra-{next(_numbers)}"
    options = [option for key, value in environment.items() for option in ("--env", f"{key}={value}")]
    for target, source in (mounts or {}).items():
        options += ["--volume", f"{source}:{target}:ro"]
    stack.compose("run", "--detach", "--no-deps", "--name", name, *options, stack.service_of("scheduler"))
    container: Container = stack.docker.containers.get(name)
    try:
        if not is_doomed:
            wait_until_node(stack, container, within=within)
        yield container
    except BaseException as error:
        # It will be gone before pytest asks for the evidence.
        error.add_note(f"--- log of {name}\n{container.logs(tail=200).decode(errors='replace')}")
        raise
    finally:
        container.remove(force=True)


def wait_until_node(stack: Stack, container: Container, *, since: float = 0.0, within: float = 60.0) -> None:
    """Wait until the scheduler in this container runs as a node, as the ledger tells it.

    Only a node that was registered after the container's own start, and after `since` (seconds since the epoch),
    counts: the ledger remembers those of earlier lives.
    """
    client = stack.bearer()

    def runs() -> bool:
        container.reload()
        began = max(since, datetime.fromisoformat(container.attrs["State"]["StartedAt"][:23] + "+00:00").timestamp())
        answer = client.get("/api/v1/scheduler/status")
        return container.status == "running" and any(
            node["name"] == node_of(container)
            and node["state"] == "running"
            and parse_moment(node["started_at"]).timestamp() >= began
            for node in (answer.json()["data"]["nodes"] if answer.status_code == 200 else [])
        )

    wait_until(f"{container.name} runs as a node", runs, within=within)


def said_at(container: Container, words: str, *, after: float = 0.0) -> float | None:
    """When the container first wrote these words, later than `after`; seconds since the epoch, None: not yet."""
    for line in container.logs(timestamps=True).decode(errors="replace").splitlines():
        if words in line:
            moment = datetime.fromisoformat(line.split(" ", 1)[0][:26] + "+00:00").timestamp()
            if moment > after:
                return moment
    return None


# -- clocks -------------------------------------------------------------------------------------------------------


@contextmanager
def steppable_clock(stack: Stack) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """What `extra_scheduler` needs for a clock that `step_clock` can step: its environment and its mounts."""
    folder = stack.folder / f"clock-{next(_numbers)}"
    folder.mkdir()
    holder: Container = stack.docker.containers.create(TOOLS)
    try:
        pieces, _ = holder.get_archive("/libfaketime.so.1")
        with tarfile.open(fileobj=BytesIO(b"".join(pieces))) as archive:
            archive.extractall(folder, filter="data")
    finally:
        holder.remove(force=True)
    library = folder / "libfaketime.so.1"
    library.chmod(0o755)
    folder.chmod(0o755)
    try:
        yield (
            {
                "LD_PRELOAD": CLOCK_LIBRARY,
                "FAKETIME_TIMESTAMP_FILE": CLOCK_OFFSET,
                "FAKETIME_CACHE_DURATION": "1",
                # A stepped clock is the wall clock; what measures durations goes on as it did.
                "DONT_FAKE_MONOTONIC": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "NO_FAKE_STAT": "1",
            },
            {CLOCK_LIBRARY: str(library)},
        )
    finally:
        shutil.rmtree(folder)


def step_clock(stack: Stack, container: Container, offset_s: int) -> None:
    """Set the container's clock to `offset_s` seconds from the true time; takes effect within a second."""
    stack.execute("python3", "-I", "-c", WRITE_FILE, CLOCK_OFFSET, f"{offset_s:+d}s\n", container=container)


# -- the database -------------------------------------------------------------------------------------------------


def query(stack: Stack, statement: str) -> list[list[str]]:
    """The rows of a statement, asked inside the database's container."""
    output = stack.execute(
        *("psql", "--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--username", "whalefall"),
        *("--dbname", "whalefall", "--command", statement),
        container=stack.container(DATABASE_SERVICE),
    )
    return [line.split("|") for line in output.splitlines()]


def claimed_by(stack: Stack, container: Container) -> int:
    """How many runs the scheduler in this container has claimed and not started."""
    ((found,),) = query(
        stack,
        "SELECT count(*) FROM runs JOIN nodes ON nodes.node_id = runs.owner"
        f" WHERE runs.outcome = 'pending' AND nodes.name = '{node_of(container)}'",
    )
    return int(found)


def oldest_open_transaction_s(stack: Stack) -> float:
    """How long the oldest transaction that a client left open has been idle, in seconds; 0: there is none."""
    ((seconds,),) = query(
        stack,
        "SELECT coalesce(extract(epoch FROM max(clock_timestamp() - state_change)), 0)"
        " FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'",
    )
    return float(seconds)
