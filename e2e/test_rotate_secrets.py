"""scripts/rotate_secrets.sh: new secrets come into use while fires go on; an interrupted rotation can be finished."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from e2e.harness.client import SCHEDULER, Client
from e2e.harness.probes import Probes
from e2e.harness.scripts import environment_of, run_on, run_script
from e2e.harness.stack import SECRETS, STORE_SECRETS, Stack, running_stack
from e2e.harness.waiting import wait_until

SCRIPT = "rotate_secrets.sh"
KILLED = -9


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory) as stack:
        yield stack


def held(stack: Stack, name: str) -> str:
    return (stack.folder / "secrets" / name).read_text().strip()


def take_up(stack: Stack) -> dict[str, str]:
    """The harness knows the present secrets; those of before."""
    before = dict(stack.secrets)
    stack.secrets |= {name: held(stack, name) for name in stack.secrets}
    return before


def status_with(stack: Stack, token: str) -> int:
    return Client(stack.base_url, token=token).get(f"{SCHEDULER}/jobs?limit=1").status_code


def can_log_in(stack: Stack, password: str) -> bool:
    client = Client(stack.base_url)
    answer = client.post("/api/v1/auth/login", json={"username": "admin", "password": password})
    assert answer.status_code in (200, 401), answer.text
    return answer.status_code == 200


def assert_rotated(stack: Stack, before: dict[str, str], *names: str) -> None:
    """These are new and in use, all others are what they were, and nothing is left over."""
    after = {name: held(stack, name) for name in before}
    assert {name for name in before if after[name] != before[name]} == set(names)
    assert {file.name for file in (stack.folder / "secrets").iterdir()} == set(before)
    assert all(file.stat().st_mode & 0o777 == 0o444 for file in (stack.folder / "secrets").iterdir())
    if "api_token" in names:
        assert status_with(stack, before["api_token"]) == 401
    assert status_with(stack, after["api_token"]) == 200
    if "admin_password" in names:
        assert not can_log_in(stack, before["admin_password"])
    assert can_log_in(stack, after["admin_password"])


@dataclass
class Callers:
    """Scripts that read the token's file before each call, as fast as they can; what they were answered."""

    stack: Stack
    answers: list[tuple[str, int]] = field(default_factory=list)
    _enough: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self._enough.is_set():
            token = held(self.stack, "api_token")
            self.answers.append((token, status_with(self.stack, token)))

    @contextmanager
    def calling(self) -> Iterator[None]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            wait_until("an answer", lambda: self.answers, within=20)
            yield
            seen = len(self.answers)
            wait_until("answers afterwards", lambda: len(self.answers), lambda count: count > seen + 3, within=20)
        finally:
            self._enough.set()
            thread.join()


def test_a_new_token_needs_no_restart(one: Stack) -> None:
    started = one.container().attrs["State"]["StartedAt"]
    callers = Callers(one)
    with callers.calling():
        told = run_on(one, SCRIPT, "--yes", "--json", "api_token")
    assert told.stdout == '{"rotated": ["api_token"], "replaced": []}\n'
    before = take_up(one)
    assert_rotated(one, before, "api_token")
    assert one.container().attrs["State"]["StartedAt"] == started
    # Read just before the write, and shown just after it: at most the one call that was on its way.
    refused = [token for token, status in callers.answers if status != 200]
    assert len(refused) <= 1, callers.answers
    assert {token for token, _ in callers.answers} == {before["api_token"], one.secrets["api_token"]}
    for secret in (*before.values(), *one.secrets.values()):
        assert secret not in told.stdout + told.stderr


def test_all_of_the_one_container_and_no_fire_fails(one: Stack) -> None:
    before = dict(one.secrets)
    probes = Probes(one, 5, prefix="rotating")
    probes.start()
    with probes.watch("secrets rotated", "all, one container", outage=True, limit="no fire lost") as watch:
        watch.strike()
        run_on(one, SCRIPT, "--yes", "all")
        watch.heal()
        take_up(one)
        one.wait_until_ready()
    probes.stop()
    watch.check()
    assert set(watch.verdict.outcomes) <= {"success", "coalesced"}, watch.verdict
    assert_rotated(one, before, *SECRETS)


def test_a_rotation_that_was_cut_off_is_finished_by_the_next_one(one: Stack) -> None:
    before = dict(one.secrets)
    # Its second step is the verification: the new one is in its place by then.
    cut = run_script(SCRIPT, "--yes", "api_token", environment=environment_of(one) | {"FAIL_AT_STEP": "2"})
    assert cut.code == KILLED, cut
    half_done = held(one, "api_token")
    run_on(one, SCRIPT, "--yes", "api_token")
    assert held(one, "api_token") == half_done, "a third token, while somebody may have the second one already"
    take_up(one)
    assert_rotated(one, before, "api_token")


@pytest.mark.faults_long
def test_cut_off_at_every_step(one: Stack) -> None:
    for number in range(1, 10):
        before = dict(one.secrets)
        cut = run_script(SCRIPT, "--yes", "all", environment=environment_of(one) | {"FAIL_AT_STEP": str(number)})
        if cut.code == 0:
            break
        assert cut.code == KILLED, cut
        run_on(one, SCRIPT, "--yes", "all")
        take_up(one)
        assert_rotated(one, before, *SECRETS)
    else:
        raise AssertionError("more steps than were thought of")
    take_up(one)


def test_a_dry_run_changes_nothing(one: Stack) -> None:
    before = dict(one.secrets)
    told = run_on(one, SCRIPT, "--dry-run", "all")
    assert [line.split()[:3] for line in told.stdout.splitlines()] == [
        *(["would", "rotate", name] for name in ("api_token", "admin_password", "secret_key")),
        ["would", "replace", "1"],
    ]
    assert_rotated(one, before)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], "no secret is named; accepted: all, api_token,"),
        (["--yes"], "no secret is named"),
        (["password"], "unknown argument 'password'"),
        (["--yes", "valkey_password"], "a stack of the shape prod has no valkey_password"),
    ],
)
def test_wrong_arguments(one: Stack, arguments: list[str], names: str) -> None:
    outcome = run_script(SCRIPT, *arguments, environment=environment_of(one))
    assert outcome.code == 2, outcome
    assert names in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1


def test_nobody_is_asked_without_a_terminal(one: Stack) -> None:
    outcome = run_script(SCRIPT, "all", environment=environment_of(one))
    assert outcome.code == 1
    assert "--yes" in outcome.stderr
    assert_rotated(one, dict(one.secrets))


@pytest.mark.faults_long
@pytest.mark.timeout(600)
def test_all_of_a_cluster_and_no_fire_fails(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running_stack(tmp_path_factory, shape="ha") as stack:
        before = dict(stack.secrets)
        local, fleet = Probes(stack, 5, prefix="local"), Probes(stack, 5, prefix="fleet", executor="celery")
        for probes in (local, fleet):
            probes.start()
        callers = Callers(stack)
        with (
            local.watch("secrets rotated", "all, cluster", limit="no fire lost") as watch,
            fleet.watch("secrets rotated", "all, fleet", limit="no fire lost") as fleets,
            callers.calling(),
        ):
            watch.strike()
            fleets.strike()
            run_on(stack, SCRIPT, "--yes", "all", timeout=500)
            take_up(stack)
        for probes in (local, fleet):
            probes.stop()
        for one_watch in (watch, fleets):
            one_watch.check()
            assert set(one_watch.verdict.outcomes) <= {"success", "coalesced"}, one_watch.verdict
        refused = [token for token, status in callers.answers if status != 200]
        assert len(refused) <= 1, callers.answers
        assert_rotated(stack, before, *SECRETS, *STORE_SECRETS)
        valkey = stack.container("valkey")
        for name, answer in ((before["valkey_password"], "WRONGPASS"), (held(stack, "valkey_password"), "PONG")):
            _, said = valkey.exec_run(["valkey-cli", "ping"], environment={"REDISCLI_AUTH": name})
            assert answer in said.decode() or "NOAUTH" in said.decode(), said
        refusal = stack.container().exec_run(
            ["python3", "-c", "import psycopg, sys; psycopg.connect(sys.argv[1])", url(before["postgres_password"])]
        )
        assert b"password authentication failed" in refusal.output
        stack.execute(
            "python3", "-c", "import psycopg, sys; psycopg.connect(sys.argv[1])", url(held(stack, "postgres_password"))
        )


def url(password: str) -> str:
    return f"postgresql://whalefall:{password}@postgres/whalefall"
