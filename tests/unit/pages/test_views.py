"""The pages, rendered from a real store in a process that runs no scheduler."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event

from app.db.clock import to_us
from app.pages.assets import static_address
from app.pages.job_words import element_key
from app.runtime import Runtime

PAGES = ("/dashboard", "/scheduler")
ENGLISH = {"Accept-Language": "en"}


def words(page: str) -> str:
    """The page's visible text, roughly: without tags, white space folded."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


def counted_queries(runtime: Runtime) -> list[str]:
    """Every SELECT that the job store is asked from now on."""
    queries: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT"):
            queries.append(statement)

    event.listen(runtime.jobstore, "before_cursor_execute", note)
    return queries


# -- who may look -----------------------------------------------------------------------------------------


def test_home_leads_to_the_dashboard(visitor: FlaskClient) -> None:
    answer = visitor.get("/")
    assert (answer.status_code, answer.location) == (302, "/dashboard")


@pytest.mark.parametrize(
    ("address", "back"),
    [
        ("/dashboard", "/dashboard"),
        ("/scheduler?q=a&state=idle", "/scheduler%3Fq%3Da%26state%3Didle"),
        ("/scheduler/jobs/x", "/scheduler/jobs/x"),
        ("/scheduler/runs/x", "/scheduler/runs/x"),
    ],
)
def test_without_a_session_the_login_comes_first(visitor: FlaskClient, address: str, back: str) -> None:
    answer = visitor.get(address)
    assert answer.status_code == 302
    assert answer.location.replace("%2F", "/") == f"/login?next={back}"


def test_login_page_knows_where_to_go_back_to(visitor: FlaskClient) -> None:
    page = visitor.get("/login?next=/scheduler%3Fq%3Da").text
    assert 'data-next="/scheduler?q=a"' in page


def test_login_page_does_not_send_readers_to_other_sites(visitor: FlaskClient) -> None:
    page = visitor.get("/login?next=//evil.example/").text
    assert 'data-next="/dashboard"' in page


def test_who_is_logged_in_needs_no_login_page(reader: FlaskClient) -> None:
    answer = reader.get("/login?next=/scheduler")
    assert (answer.status_code, answer.location) == (302, "/scheduler")


def test_who_may_only_look_sees_no_buttons(
    onlooker: FlaskClient, reader: FlaskClient, add_job: Callable[..., None]
) -> None:
    add_job("nightly")
    for address in ("/scheduler", "/scheduler/jobs/nightly"):
        assert "data-action=" in reader.get(address).text
        page = onlooker.get(address)
        assert page.status_code == 200
        assert re.findall(r"data-action=|data-change-trigger|data-reload|<dialog|js/jobs", page.text) == []


# -- language ---------------------------------------------------------------------------------------------


def test_pages_are_chinese_unless_the_browser_asks_for_english(visitor: FlaskClient) -> None:
    assert '<html lang="zh-CN"' in visitor.get("/login").text
    assert "登录" in visitor.get("/login").text
    english = visitor.get("/login", headers=ENGLISH).text
    assert '<html lang="en"' in english
    assert "Log in" in english


def test_language_can_be_switched_by_a_link(visitor: FlaskClient) -> None:
    link = re.search(r'href="(/language/en[^"]*)"', visitor.get("/login?next=/scheduler").text)
    assert link is not None
    answer = visitor.get(unescape(link[1]))
    assert (answer.status_code, answer.location) == (302, "/login?next=/scheduler")
    assert '<html lang="en"' in visitor.get("/login").text


def test_unknown_language_is_no_page(visitor: FlaskClient) -> None:
    assert visitor.get("/language/xx").status_code == 404


def test_english_pages_hold_no_chinese(
    reader: FlaskClient,
    runtime: Runtime,
    add_job: Callable[..., None],
    add_run: Callable[..., str],
    add_node: Callable[..., None],
) -> None:
    add_job("one")
    add_job(
        "two",
        trigger={
            "type": "interval",
            "minutes": 5,
            "start_date": "2026-01-01T00:00:00+08:00",
            "timezone": "Asia/Shanghai",
        },
        max_attempts=3,
        time_limit=60,
        soft_time_limit=50,
        executor="process",
        ping_url="https://hc.example/",
    )
    run_id = add_run("one", outcome="failed", error="ValueError: no", log="text")
    for outcome in ("running", "missed", "lost", "skipped", "pending"):
        add_run("two", outcome=outcome)
    add_node("alive")
    add_node("silent", silent_s=60)
    waiting = add_run("two", outcome="pending", finished_at=None, max_attempts=3, executor="celery")
    runtime.ledger.delete_job("one", "1")
    for address in (
        *(*PAGES, "/scheduler/jobs/one", "/scheduler/jobs/two"),
        *(f"/scheduler/runs/{run_id}", f"/scheduler/runs/{waiting}", "/missing"),
    ):
        page = reader.get(address, headers=ENGLISH).text.replace(">中文<", "><")
        assert re.findall(r"[\u4e00-\u9fff]+", page) == [], address


# -- what they show ---------------------------------------------------------------------------------------


def test_empty_store_is_shown_as_such(reader: FlaskClient) -> None:
    dashboard = words(reader.get("/dashboard").text)
    assert "还没有任何触发记录" in dashboard
    assert "没有正在工作的调度器" in dashboard
    assert "还没有任务" in words(reader.get("/scheduler").text)


def test_dashboard_tells_what_runs_failed_is_late_and_lives(
    reader: FlaskClient,
    add_job: Callable[..., None],
    add_run: Callable[..., str],
    add_node: Callable[..., None],
) -> None:
    add_job("nightly")
    running = add_run("nightly", outcome="running")
    failed = add_run("nightly", outcome="failed", error="Traceback …\nValueError: disk on fire")
    add_run("nightly", outcome="lost")
    add_run("nightly", outcome="missed", started_at=None, count=3)
    add_run("nightly", outcome="failed", at=datetime.now(UTC) - timedelta(days=3))
    add_node("node-1")
    add_node("node-2", silent_s=60)
    page = reader.get("/dashboard", headers=ENGLISH).text
    figures = dict(re.findall(r'id="tile-(\w+)">([^<]*)<', page))
    assert figures == {"running": "1", "failed": "2", "late": "0", "nodes": "1"}
    assert "Missed or skipped in 24 h: 3" in page
    assert f"/scheduler/runs/{running}" in page
    assert f"/scheduler/runs/{failed}" in page
    assert "ValueError: disk on fire" in page
    assert "silent" in words(page)


def test_dashboard_marks_jobs_that_nobody_claims_as_late(
    app: Flask, reader: FlaskClient, runtime: Runtime, add_job: Callable[..., None]
) -> None:
    add_job("stuck")
    with runtime.jobstore.begin() as connection:
        connection.exec_driver_sql("UPDATE jobs SET next_run_time = next_run_time - 100 * 86400 * 1000000")
    page = reader.get("/dashboard", headers=ENGLISH).text
    assert 'id="tile-late">1<' in page
    assert re.search(r'<span class="badge badge-warn">Late</span>', page)


def test_timeline_has_a_mark_for_every_fire(
    reader: FlaskClient, add_job: Callable[..., None], add_run: Callable[..., str]
) -> None:
    add_job("nightly")
    ran = add_run("nightly")
    missed = add_run("nightly", outcome="missed", started_at=None)
    page = reader.get("/dashboard").text
    assert re.search(rf'<a href="/scheduler/runs/{ran}"[^>]*>\s*<rect class="mark-bar outcome-success"', page)
    assert re.search(rf'<a href="/scheduler/runs/{missed}"[^>]*>\s*<circle class="mark-ring outcome-missed"', page)


def test_scheduler_lists_jobs_with_their_buttons(reader: FlaskClient, add_job: Callable[..., None]) -> None:
    add_job("mine", name="My job")
    add_job("off", is_enabled=False)
    page = reader.get("/scheduler").text
    key, off = element_key("mine"), element_key("off")
    assert {f'id="{action}-{key}"' in page for action in ("run", "pause", "disable", "trigger")} == {True}
    assert f'id="resume-{key}"' not in page
    assert f'id="enable-{off}"' in page
    assert f'id="pause-{off}"' not in page


def test_default_jobs_offer_no_change_of_their_trigger(reader: FlaskClient, add_job: Callable[..., None]) -> None:
    add_job("of-the-file", source="default")
    assert f'id="trigger-{element_key("of-the-file")}"' not in reader.get("/scheduler").text


def test_search_and_state_narrow_the_list(reader: FlaskClient, add_job: Callable[..., None]) -> None:
    for name in ("alpha", "beta"):
        add_job(name)
    add_job("gamma", is_enabled=False)

    def listed(query: str) -> list[str]:
        return re.findall(r'data-job="([^"]+)"', reader.get(f"/scheduler?{query}").text)

    assert listed("") == ["alpha", "beta", "gamma"]
    assert listed("q=ALP") == ["alpha"]
    assert listed("q=%25") == []
    assert listed("state=disabled") == ["gamma"]
    assert listed("state=scheduled") == ["alpha", "beta"]
    assert listed("q=zeta") == []
    assert listed("state=nonsense") == ["alpha", "beta", "gamma"]


def test_ten_thousand_jobs_come_in_pages_of_fifty_and_one_query(
    reader: FlaskClient, runtime: Runtime, add_job: Callable[..., None]
) -> None:
    add_job("job-00000")
    with runtime.jobstore.begin() as connection:
        columns = [row[1] for row in connection.exec_driver_sql("PRAGMA table_info(jobs)") if row[1] != "id"]
        names = ", ".join(f'"{column}"' for column in columns)
        connection.exec_driver_sql(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9999)"
            f" INSERT INTO jobs (id, {names}) SELECT printf('job-%05d', i), {names} FROM jobs, n"
        )
    queries = counted_queries(runtime)
    page = reader.get("/scheduler").text
    assert len(queries) == 1
    assert page.count("data-job=") == 50
    following = re.search(r'rel="next" href="([^"]+)"', page)
    assert following is not None
    second = reader.get(unescape(following[1])).text
    assert re.findall(r'data-job="([^"]+)"', second)[0] == "job-00050"


def test_dashboard_costs_the_same_few_queries_however_many_rows(
    reader: FlaskClient, runtime: Runtime, add_job: Callable[..., None], add_run: Callable[..., str]
) -> None:
    queries = counted_queries(runtime)
    reader.get("/dashboard")
    few = len(queries)
    for number in range(20):
        add_job(f"job-{number}")
        add_run(f"job-{number}")
    queries.clear()
    reader.get("/dashboard")
    assert len(queries) == few <= 12


def test_dashboard_tells_what_each_node_is_doing(
    reader: FlaskClient, add_job: Callable[..., None], add_run: Callable[..., str], add_node: Callable[..., None]
) -> None:
    add_job("long", executor="celery")
    run_id = add_run("long", outcome="running")
    running = [{"run_id": run_id, "job_id": "long"}] * 6
    add_node("node-1", stats={"running": [], "running_count": 0, "free": {"default": 60, "process": 2}})
    add_node("worker-1", kind="worker", version="0.0.9", stats={"running": running, "running_count": 9, "free": {}})
    add_node("old", stats={})
    page = reader.get("/dashboard", headers=ENGLISH).text
    figures = dict(re.findall(r'id="tile-(\w+)">([^<]*)<', page))
    assert figures["nodes"] == "2", "workers are no schedulers"
    told = {name: words(row) for name, row in re.findall(r'<li data-node="([^"]+)"(.*?)</li>', page, re.DOTALL)}
    assert "scheduler" in told["node-1"]
    assert "idle · free places: 62" in told["node-1"]
    assert "worker working" in told["worker-1"]
    assert "version 0.0.9" in told["worker-1"]
    assert "and others, 9 in all" in told["worker-1"]
    assert f'href="/scheduler/runs/{run_id}"' in page
    assert "idle" in told["old"]
    assert re.findall(r'data-problem="(\w+)"', page) == ["versions_differ"]
    assert "workers: 1 · problems: 1" in words(page)


def test_an_attempt_that_waits_on_purpose_is_not_late(
    reader: FlaskClient, add_job: Callable[..., None], add_run: Callable[..., str]
) -> None:
    add_job("nightly")
    soon = to_us(datetime.now(UTC) + timedelta(minutes=9))
    add_run("nightly", outcome="pending", attempt=2, started_at=None, not_before=soon)
    page = reader.get("/dashboard", headers=ENGLISH).text
    assert 'id="tile-late">0<' in page
    assert "attempt 2 · in 8 min" in words(page)


def test_job_page_shows_settings_and_history(
    reader: FlaskClient, add_job: Callable[..., None], add_run: Callable[..., str]
) -> None:
    add_job("nightly", name="Nightly", description="Counts the sheep", kwargs={"sheep": 3})
    run_id = add_run("nightly", outcome="failed", error="Traceback\nValueError: wolf", attempt=2)
    page = reader.get("/scheduler/jobs/nightly", headers=ENGLISH).text
    text = words(page)
    assert "Counts the sheep" in text
    assert "0 3 * * *" in text
    assert '{"sheep": 3}' in text
    assert "ValueError: wolf" in text
    assert "attempt 2" in text
    assert f'data-run="{run_id}" data-outcome="failed"' in page


def test_job_page_shows_attempts_limits_and_ping(reader: FlaskClient, add_job: Callable[..., None]) -> None:
    add_job("plain")
    add_job(
        "full",
        executor="process",
        max_attempts=3,
        retry_delay=30,
        soft_time_limit=50,
        time_limit=60,
        ping_url="https://hc.example/ping/1",
    )
    plain, full = (words(reader.get(f"/scheduler/jobs/{name}", headers=ENGLISH).text) for name in ("plain", "full"))
    assert "Tried again after a failure no" in plain
    assert "Time limits none" in plain
    assert "Process of its own" in full
    assert "up to 3 attempts, 30 s before the second" in full
    assert "asked to stop after 50 s · stopped after 60 s" in full
    assert "https://hc.example/ping/1" in full.replace(" ", "")


def test_settings_of_own_jobs_only_can_be_edited(reader: FlaskClient, add_job: Callable[..., None]) -> None:
    for source in ("own", "default", "builtin"):
        add_job(source, source=source)
        page = reader.get(f"/scheduler/jobs/{source}").text
        assert ("data-change-settings" in page) is (source == "own")


def test_deleted_job_is_shown_as_such_and_can_be_restored(
    reader: FlaskClient, onlooker: FlaskClient, runtime: Runtime, add_job: Callable[..., None]
) -> None:
    add_job("gone")
    runtime.ledger.delete_job("gone", "1")
    page = reader.get("/scheduler/jobs/gone", headers=ENGLISH).text
    assert re.findall(r'data-action="(\w+)"', page) == ["restore"]
    assert "data-change" not in page
    assert "It can be restored within 30 days" in page
    assert "deleted" in words(page)
    assert "data-action" not in onlooker.get("/scheduler/jobs/gone").text


def test_history_comes_in_pages(reader: FlaskClient, add_job: Callable[..., None], add_run: Callable[..., str]) -> None:
    add_job("busy")
    made = [add_run("busy") for _ in range(53)]
    page = reader.get("/scheduler/jobs/busy").text
    assert re.findall(r'data-run="(\w+)"', page) == sorted(made, reverse=True)[:50]
    older = re.search(r'rel="next" href="([^"]+)"', page)
    assert older is not None
    assert re.findall(r'data-run="(\w+)"', reader.get(unescape(older[1])).text) == sorted(made, reverse=True)[50:]


def test_run_page_shows_error_and_log(
    reader: FlaskClient, add_job: Callable[..., None], add_run: Callable[..., str]
) -> None:
    add_job("nightly")
    run_id = add_run("nightly", outcome="failed", error="ValueError: <wolf>", log="counting\n<b>sheep</b>")
    page = reader.get(f"/scheduler/runs/{run_id}").text
    assert "ValueError: &lt;wolf&gt;" in page
    assert "&lt;b&gt;sheep&lt;/b&gt;" in page
    assert "data-refresh-ms" not in page


def test_run_page_of_a_running_run_refreshes(
    reader: FlaskClient, add_job: Callable[..., None], add_run: Callable[..., str]
) -> None:
    add_job("nightly")
    assert "data-refresh-ms" in reader.get(f"/scheduler/runs/{add_run('nightly', outcome='running')}").text


@pytest.mark.parametrize("outcome", ["pending", "running", "success", "cancelled"])
def test_only_a_run_that_has_not_ended_can_be_cancelled(
    reader: FlaskClient, onlooker: FlaskClient, add_job: Callable[..., None], add_run: Callable[..., str], outcome: str
) -> None:
    add_job("nightly")
    address = f"/scheduler/runs/{add_run('nightly', outcome=outcome)}"
    page = reader.get(address).text
    offered = outcome in ("pending", "running")
    assert ("data-cancel-run" in page, "cancel-dialog" in page, "js/run." in page) == (offered,) * 3
    assert "cancel" not in onlooker.get(address).text.replace("cancelled", "")


def test_run_page_shows_attempts_limits_and_who_asked_by_name(
    reader: FlaskClient, runtime: Runtime, add_job: Callable[..., None], add_run: Callable[..., str]
) -> None:
    add_job("nightly")
    at = datetime.now(UTC) - timedelta(minutes=5)
    fire = {"scheduled_for": to_us(at), "max_attempts": 3, "kind": "manual", "created_by": "1"}
    first = add_run("nightly", outcome="failed", error="ValueError: wolf", **fire)
    second = add_run(
        "nightly",
        outcome="running",
        attempt=2,
        first_run_id=first,
        not_before=to_us(at) + 60_000_000,
        soft_time_limit=7,
        time_limit=8,
        cancel_requested_at=to_us(at) + 90_000_000,
        cancel_requested_by="999",
        **fire,
    )
    add_run("nightly", outcome="success")
    page = reader.get(f"/scheduler/runs/{second}", headers=ENGLISH).text
    text = words(page)
    assert re.findall(r'data-attempt="(\d)"', page) == ["1"]
    assert f'href="/scheduler/runs/{first}"' in page
    assert "ValueError: wolf" in text
    assert "2 of up to 3" in text
    assert "asked to stop after 7 s · stopped after 8 s" in text
    assert "manual · admin" in text
    assert "Cancellation asked for by user 999" in text, "a user that is gone keeps the number"
    assert "It was asked to stop" in text


def test_run_of_a_job_that_is_gone_for_good_links_to_no_page(reader: FlaskClient, add_run: Callable[..., str]) -> None:
    page = reader.get(f"/scheduler/runs/{add_run('forgotten')}")
    assert page.status_code == 200
    assert "/scheduler/jobs/forgotten" not in page.text


@pytest.mark.parametrize("job_id", ["任务 一", 'quote"s', "a&b=c", "x<script>alert(1)</script>", "per%cent", "a/b"])
def test_ids_of_any_kind_are_shown_and_linked_safely(
    reader: FlaskClient, add_job: Callable[..., None], job_id: str
) -> None:
    add_job(job_id)
    page = reader.get("/scheduler").text
    assert "<script>alert" not in page
    link = re.search(r'class="job-name" href="([^"]+)"', page)
    assert link is not None
    assert reader.get(unescape(link[1])).status_code == 200


def test_unreadable_job_is_shown_with_its_problem(
    reader: FlaskClient, runtime: Runtime, add_job: Callable[..., None]
) -> None:
    add_job("broken")
    with runtime.jobstore.begin() as connection:
        connection.exec_driver_sql("UPDATE jobs SET trigger = '{nonsense'")
    assert "unreadable" in words(reader.get("/scheduler", headers=ENGLISH).text)
    page = reader.get("/scheduler/jobs/broken", headers=ENGLISH)
    assert page.status_code == 200
    assert "This job was set aside" in page.text


# -- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["/missing", "/scheduler/jobs/missing", "/scheduler/runs/missing"])
def test_what_is_not_there_is_a_page_of_its_own(reader: FlaskClient, address: str) -> None:
    answer = reader.get(address)
    assert answer.status_code == 404
    assert answer.mimetype == "text/html"
    assert "找不到这个页面" in answer.text
    assert answer.headers["X-Request-ID"] in answer.text


def test_store_out_of_reach_is_a_503_page(reader: FlaskClient, runtime: Runtime) -> None:
    with runtime.jobstore.begin() as connection:
        connection.exec_driver_sql("DROP TABLE runs")
    answer = reader.get("/dashboard", headers=ENGLISH)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert "The service is not available right now" in answer.text
    assert "runs" not in words(answer.text)


def test_unforeseen_failure_is_a_500_page_that_tells_nothing_of_the_inside(
    app: Flask, reader: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr("app.pages.views.draw_timeline", fail)
    answer = reader.get("/dashboard", headers=ENGLISH)
    assert answer.status_code == 500
    assert "Something went wrong on the server" in answer.text
    assert "secret of the inside" not in answer.text
    assert answer.headers["X-Request-ID"] in answer.text


# -- what browsers are told -------------------------------------------------------------------------------


def test_pages_are_never_kept(reader: FlaskClient) -> None:
    for address in PAGES:
        answer = reader.get(address)
        assert answer.headers["Cache-Control"] == "no-store"
        assert {"Cookie", "Accept-Language"} <= set(answer.vary)


def test_pages_fit_a_policy_without_inline_code(
    reader: FlaskClient, visitor: FlaskClient, add_job: Callable[..., None], add_run: Callable[..., str]
) -> None:
    add_job("nightly")
    run_id = add_run("nightly")
    addresses = (*PAGES, "/scheduler/jobs/nightly", f"/scheduler/runs/{run_id}", "/missing")
    for page in [reader.get(address).text for address in addresses] + [visitor.get("/login").text]:
        assert re.findall(r"<script(?![^>]*\bsrc=)", page) == []
        assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:", page) == []
        assert re.findall(r'(?:src|href)="(?:https?:)?//', page) == []


def test_static_files_are_kept_for_ever_under_their_hashed_address(visitor: FlaskClient) -> None:
    hashed = visitor.get(static_address("js/http.js"))
    assert hashed.status_code == 200
    assert "immutable" in hashed.headers["Cache-Control"]
    assert hashed.mimetype == "text/javascript"
    plain = visitor.get("/static/js/http.js")
    assert plain.data == hashed.data
    assert plain.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("name", ["missing.css", "../views.py", "..%2fviews.py", "js/../../views.py"])
def test_nothing_else_is_served_as_static(visitor: FlaskClient, name: str) -> None:
    assert visitor.get(f"/static/{name}").status_code == 404
