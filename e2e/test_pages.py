"""The pages in a real browser, through nginx: what a person does, in both languages, under the real policy."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Route, expect, sync_playwright

from e2e.harness.client import SCHEDULER, Client
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_until

# Debian's own browser; it must neither call home nor need a sandbox that a container's root cannot make.
CHROMIUM = "/usr/bin/chromium"
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]
WAIT_MS = 15_000
#: What the browser says of an answer above 399, which some tests bring about on purpose.
REFUSED = re.compile(r"Failed to load resource: the server responded with a status of (\d+)")

DAILY = {"trigger_type": "cron", "cron_expression": "30 4 * * *", "timezone": "Asia/Shanghai"}


@dataclass
class Window:
    """A browser window with what its console complained about."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def note(self, message: ConsoleMessage) -> None:
        if message.type not in ("error", "warning"):
            return
        refused = REFUSED.match(message.text)
        if refused:
            self.refused.append(refused[1])
        else:
            self.complaints.append(message.text)


Open = Callable[..., Window]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=WAIT_MS)  # three turns of a page that refreshes itself
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def session(stack: Stack, browser: Browser) -> Any:
    """The cookies of the admin's session: one login for the module."""
    context = browser.new_context()
    answer = context.request.post(
        f"{stack.base_url}/api/v1/auth/login",
        data={"username": "admin", "password": stack.secrets["admin_password"]},
    )
    assert answer.ok, answer.text()
    kept = context.storage_state()
    context.close()
    return kept


@pytest.fixture
def open_window(stack: Stack, browser: Browser, session: Any) -> Iterator[Open]:
    """Open a window: `open_window("/scheduler", language="en-US", logged_in=False, width=390)`.

    At the end of the test no console may have complained: of a script's error, or of the policy.
    """
    windows: list[Window] = []
    contexts: list[BrowserContext] = []

    def open_one(
        path: str,
        *,
        language: str = "en-US",
        logged_in: bool = True,
        width: int = 1280,
        scheme: Any = "light",
    ) -> Window:
        context = browser.new_context(
            base_url=stack.base_url,
            locale=language,
            color_scheme=scheme,
            viewport={"width": width, "height": 900},
            storage_state=session if logged_in else None,
        )
        context.set_default_timeout(WAIT_MS)
        contexts.append(context)
        window = Window(context.new_page())
        window.page.on("console", window.note)
        window.page.on("pageerror", lambda error: window.complaints.append(str(error)))
        windows.append(window)
        window.page.goto(path)
        return window

    yield open_one
    for context in contexts:
        context.close()
    assert [window.complaints for window in windows if window.complaints] == []


@pytest.fixture
def own_job(api: Client) -> Iterator[Callable[..., str]]:
    """Create an own job that is deleted after the test: `own_job("pages-run", "oracle_fail")`; its id.

    The id gets a tail of its own, because that of a deleted job stays taken.
    """
    made: list[str] = []

    def create(name: str, task: str = "oracle_fire", trigger: Any = None, **fields: Any) -> str:
        job_id = f"{name}-{secrets.token_hex(3)}"
        api.create_job(job_id, task, trigger or DAILY, **fields)
        made.append(job_id)
        return job_id

    yield create
    for job_id in made:
        answer = api.delete(f"{SCHEDULER}/jobs/{job_id}")
        assert answer.status_code in (200, 404), answer.text  # a reload may have deleted it


def row_of(page: Page, job_id: str) -> Any:
    return page.locator(f'tr[data-job="{job_id}"]')


def button(scope: Any, name: str) -> Any:
    return scope.get_by_role("button", name=re.compile(rf"^{re.escape(name)}"))


# -- login ------------------------------------------------------------------------------------------------


def test_login_leads_to_where_the_reader_wanted_to_go(open_window: Open, stack: Stack) -> None:
    page = open_window("/scheduler?q=backup", logged_in=False).page
    expect(page).to_have_url(f"{stack.base_url}/login?next=/scheduler%3Fq%3Dbackup")
    expect(page.get_by_label("User name")).to_be_focused()
    page.keyboard.type("admin")
    page.keyboard.press("Tab")
    page.keyboard.type(stack.secrets["admin_password"])
    expect(page.get_by_role("button", name="Log in")).to_be_enabled()
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{stack.base_url}/scheduler?q=backup")
    expect(row_of(page, "backup_jobstore")).to_be_visible()
    page.wait_for_load_state()  # the scripts that listen to the buttons
    page.get_by_role("button", name="Log out").click()
    expect(page).to_have_url(f"{stack.base_url}/login")
    page.goto("/dashboard")
    expect(page).to_have_url(f"{stack.base_url}/login?next=/dashboard")


@pytest.mark.parametrize(
    ("language", "labels", "refusal"),
    [
        ("en-US", ("User name", "Password", "Log in", "Request ID"), "Wrong user name or password"),
        ("zh-CN", ("用户名", "密码", "登录", "请求编号"), "用户名或密码错误"),
    ],
)
def test_wrong_password_is_told_in_place(
    open_window: Open, language: str, labels: tuple[str, str, str, str], refusal: str
) -> None:
    user, password, submit, request_id = labels
    window = open_window("/login", language=language, logged_in=False)
    page = window.page
    page.get_by_label(user).fill("admin")
    page.get_by_label(password).fill("not the password")
    page.get_by_role("button", name=submit).click()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text(refusal)
    expect(alert).to_contain_text(request_id)
    expect(page.get_by_label(password)).to_be_focused()
    expect(page).to_have_url(re.compile("/login$"))
    assert window.refused == ["401"]


def test_ended_session_leads_to_the_login_and_back(open_window: Open, stack: Stack, own_job: Any) -> None:
    job_id = own_job("pages-session")
    window = open_window(f"/scheduler?q={job_id}")
    page = window.page
    page.context.clear_cookies()
    button(row_of(page, job_id), "Pause").click()
    expect(page).to_have_url(f"{stack.base_url}/login?next=%2Fscheduler%3Fq%3D{job_id}")
    page.get_by_label("User name").fill("admin")
    page.get_by_label("Password").fill(stack.secrets["admin_password"])
    page.get_by_role("button", name="Log in").click()
    expect(page).to_have_url(f"{stack.base_url}/scheduler?q={job_id}")
    page.wait_for_load_state()
    button(row_of(page, job_id), "Pause").click()
    expect(row_of(page, job_id)).to_contain_text("paused")


def test_page_left_open_notices_that_the_session_ended(open_window: Open) -> None:
    page = open_window("/dashboard").page
    page.context.clear_cookies()
    expect(page).to_have_url(re.compile(r"/login\?next=%2Fdashboard$"))


# -- what a job's buttons do ------------------------------------------------------------------------------


def test_run_now_shows_up_in_the_history_with_its_log(open_window: Open, own_job: Any, api: Client) -> None:
    job_id = own_job("pages-run", "oracle_fail", kwargs={"message": "wolf among the sheep"})
    page = open_window(f"/scheduler?q={job_id}").page
    row = row_of(page, job_id)
    button(row, "Run now").click()
    expect(row.get_by_role("status")).to_contain_text("Show this run")
    expect(row).to_contain_text("failed")  # the row follows the run by itself
    row.get_by_role("link", name=job_id).click()
    history = page.locator("tr[data-run]")
    expect(history).to_have_count(1)
    expect(history).to_have_attribute("data-outcome", "failed")
    expect(history).to_contain_text("manual")
    expect(history).to_contain_text("wolf among the sheep")
    history.get_by_role("link").click()
    expect(page.locator("#run")).to_have_attribute("data-outcome", "failed")
    expect(page.get_by_role("region", name="Error")).to_contain_text("RuntimeError: wolf among the sheep")
    (recorded,) = api.history(job_id)
    assert recorded["run_id"] in page.url


def test_run_page_follows_a_run_to_its_end(open_window: Open, own_job: Any) -> None:
    job_id = own_job("pages-follow", "oracle_sleep", kwargs={"seconds": 3})
    page = open_window(f"/scheduler/jobs/{job_id}").page
    button(page, "Run now").click()
    page.get_by_role("link", name="Show this run").click()
    expect(page.locator("#run")).to_have_attribute("data-outcome", "running")
    expect(page.locator("#run")).to_have_attribute("data-outcome", "success")


def test_refused_run_is_told_in_place_with_its_request_id(open_window: Open, own_job: Any) -> None:
    job_id = own_job("pages-busy", "oracle_sleep", kwargs={"seconds": 8})
    window = open_window(f"/scheduler?q={job_id}")
    row = row_of(window.page, job_id)
    button(row, "Run now").click()
    expect(row.get_by_role("status")).to_contain_text("Show this run")
    button(row, "Run now").click()
    expect(row.get_by_role("status")).to_contain_text(re.compile(r"Request ID [A-Za-z0-9._-]{8,}"))
    expect(row.get_by_role("status")).to_contain_text("max_instances")
    assert window.refused == ["400"]


def test_pause_resume_disable_enable(open_window: Open, own_job: Any, api: Client) -> None:
    job_id = own_job("pages-pause")
    page = open_window(f"/scheduler?q={job_id}").page
    row = row_of(page, job_id)
    for press, word, scheduled in [
        ("Pause", "paused", False),
        ("Resume", "04:30:00", True),
        ("Disable", "disabled", False),
        ("Enable", "04:30:00", True),
    ]:
        button(row, press).click()
        expect(row).to_contain_text(word)
        assert (api.job(job_id)["next_run_time"] is not None) is scheduled
    # The whole way back by keyboard: the focus stays on the row while its content is replaced.
    button(row, "Pause").focus()
    page.keyboard.press("Enter")
    expect(button(row, "Resume")).to_be_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('tr')?.dataset.job") == job_id


def test_two_people_one_sees_what_the_other_does(open_window: Open, own_job: Any, api: Client) -> None:
    job_id = own_job("pages-shared")
    row = row_of(open_window(f"/scheduler?q={job_id}").page, job_id)
    expect(button(row, "Pause")).to_be_visible()
    api.data("POST", f"{SCHEDULER}/jobs/{job_id}/actions/pause")
    expect(button(row, "Resume")).to_be_visible()


# -- the trigger ------------------------------------------------------------------------------------------


def test_changing_a_trigger_previews_five_fires(open_window: Open, own_job: Any, api: Client) -> None:
    job_id = own_job("pages-trigger")
    page = open_window(f"/scheduler?q={job_id}").page
    row = row_of(page, job_id)
    button(row, "Change trigger").click()
    dialog = page.get_by_role("dialog", name="Change trigger")
    expect(dialog.get_by_label("Cron expression")).to_have_value("30 4 * * *")
    expect(dialog.get_by_label("Time zone")).to_have_value("Asia/Shanghai")
    fires = dialog.get_by_role("listitem")
    expect(fires).to_have_count(5)
    for fire in fires.all():
        expect(fire).to_contain_text(re.compile(r"\d{4}-\d\d-\d\d 04:30:00 *UTC\+08:00"))
    dialog.get_by_label("Cron expression").fill("15 10 * * 1")
    expect(fires.first).to_contain_text("10:15:00")
    expect(dialog).to_contain_text("Monday")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_be_hidden()
    expect(row).to_contain_text("Monday")
    stored = api.job(job_id)["trigger_args"]
    assert (stored["minute"], stored["hour"], stored["day_of_week"]) == ("15", "10", "mon")


def test_trigger_can_become_an_interval_or_a_date(open_window: Open, own_job: Any, api: Client) -> None:
    job_id = own_job("pages-kinds")
    page = open_window(f"/scheduler/jobs/{job_id}").page
    dialog = page.get_by_role("dialog", name="Change trigger")
    fires = dialog.get_by_role("listitem")

    button(page, "Change trigger").click()
    dialog.get_by_role("radio", name="Interval").check()
    expect(dialog.get_by_label("Cron expression")).to_be_hidden()
    dialog.get_by_label("Hours").fill("6")
    expect(fires).to_have_count(5)
    dialog.get_by_role("button", name="Save").click()
    expect(page.locator("#facts")).to_contain_text("Every 6 hours")
    assert api.job(job_id)["trigger_type"] == "interval"

    button(page, "Change trigger").click()
    expect(dialog.get_by_label("Hours")).to_have_value("6")
    dialog.get_by_role("radio", name="Once").check()
    dialog.get_by_label("Date and time").fill("2031-05-01T08:30:15")
    expect(fires).to_have_count(1)
    expect(fires).to_contain_text("2031-05-01 08:30:15")
    dialog.get_by_role("button", name="Save").click()
    expect(page.locator("#facts")).to_contain_text("2031-05-01 08:30:15")
    assert api.job(job_id)["next_run_time"].startswith("2031-05-01T08:30:15")


def test_bad_trigger_is_told_in_the_dialog_and_changes_nothing(open_window: Open, own_job: Any, api: Client) -> None:
    job_id = own_job("pages-bad-trigger")
    before = api.job(job_id)
    window = open_window(f"/scheduler?q={job_id}")
    page = window.page
    button(row_of(page, job_id), "Change trigger").click()
    dialog = page.get_by_role("dialog", name="Change trigger")
    dialog.get_by_label("Cron expression").fill("61 4 * * *")
    expect(dialog.get_by_role("listitem")).to_have_count(0)
    expect(dialog.locator("#preview-notice")).to_contain_text("61")
    dialog.get_by_role("button", name="Save").click()
    alert = dialog.get_by_role("alert")
    expect(alert).to_contain_text("Request ID")
    expect(alert).to_contain_text("61")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert api.job(job_id) == before
    assert set(window.refused) == {"400"}


def test_unknown_time_zone_is_a_warning(open_window: Open, own_job: Any) -> None:
    job_id = own_job("pages-zone")
    page = open_window(f"/scheduler?q={job_id}").page
    button(row_of(page, job_id), "Change trigger").click()
    dialog = page.get_by_role("dialog", name="Change trigger")
    dialog.get_by_label("Time zone").fill("Mars/Olympus")
    expect(dialog.locator("#preview-notice")).to_contain_text("Mars/Olympus")
    expect(dialog.get_by_role("listitem")).to_have_count(5)


def test_clock_change_is_marked_in_the_preview(open_window: Open, own_job: Any) -> None:
    job_id = own_job("pages-clock")
    page = open_window(f"/scheduler?q={job_id}").page
    button(row_of(page, job_id), "Change trigger").click()
    dialog = page.get_by_role("dialog", name="Change trigger")
    dialog.get_by_label("Time zone").fill("Europe/Berlin")
    dialog.get_by_label("Cron expression").fill("0 30 2 * 3 sun 2031")  # 30 March 2031 has no 02:30
    expect(dialog.get_by_role("listitem").last).to_contain_text("moved by a clock change")


def test_edit_by_somebody_else_is_not_overwritten(open_window: Open, own_job: Any, api: Client) -> None:
    job_id = own_job("pages-conflict")
    window = open_window(f"/scheduler?q={job_id}")
    page = window.page
    button(row_of(page, job_id), "Change trigger").click()
    dialog = page.get_by_role("dialog", name="Change trigger")
    expect(dialog.get_by_role("listitem")).to_have_count(5)
    theirs = {"trigger_type": "cron", "cron_expression": "0 12 * * *"}
    api.data("PUT", f"{SCHEDULER}/jobs/{job_id}", json=theirs)
    dialog.get_by_label("Cron expression").fill("0 13 * * *")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog.get_by_role("alert")).to_contain_text("Somebody else has changed it")
    assert api.job(job_id)["trigger_args"]["hour"] == "12"
    assert window.refused == ["412"]


# -- settings, deletion, runs -----------------------------------------------------------------------------


def test_changing_settings_is_refused_in_place_and_then_saved(open_window: Open, own_job: Any, api: Client) -> None:
    job_id = own_job("pages-settings", misfire_grace_time=77)
    window = open_window(f"/scheduler/jobs/{job_id}")
    page = window.page
    button(page, "Change settings").click()
    dialog = page.get_by_role("dialog", name="Change settings")
    expect(dialog.get_by_label("Attempts at most")).to_have_value("1")
    dialog.get_by_label("Attempts at most").fill("3")
    dialog.get_by_label("First retry after").fill("5")
    dialog.get_by_label("Asked to stop after").fill("60")
    dialog.get_by_label("Stopped after").fill("30")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog.get_by_role("alert")).to_contain_text("soft_time_limit (60 s) must be below time_limit (30 s)")
    expect(dialog.get_by_label("Asked to stop after")).to_be_focused()
    assert api.job(job_id)["max_attempts"] == 1
    dialog.get_by_label("Stopped after").fill("90")
    dialog.get_by_label("Ping address").fill("https://hc.example/ping/1")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator("#facts")).to_contain_text("up to 3 attempts, 5 s before the second")
    stored = api.job(job_id)
    assert (stored["max_attempts"], stored["retry_delay"]) == (3, 5)
    assert (stored["soft_time_limit"], stored["time_limit"]) == (60, 90)
    assert (stored["ping_url"], stored["misfire_grace_time"]) == ("https://hc.example/ping/1", 77)
    assert stored["trigger_args"]["hour"] == "4", "its trigger is what it was"

    button(page, "Change settings").click()
    dialog.get_by_label("Stopped after").fill("")
    dialog.get_by_label("Ping address").fill("")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_be_hidden()
    expect(button(page, "Change settings")).to_be_focused()
    stored = api.job(job_id)
    assert (stored["soft_time_limit"], stored["time_limit"], stored["ping_url"]) == (60, None, None)
    assert window.refused == ["400"]


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("en-US", ("Cancel this run", "Back", "The run was asked to stop")),
        ("zh-CN", ("取消这次运行", "返回", "已请求停止这次运行")),
    ],
)
def test_cancelling_a_run_asks_first_and_is_followed_to_its_end(
    open_window: Open, own_job: Any, api: Client, language: str, words: tuple[str, str, str]
) -> None:
    cancel, back, asked = words
    job_id = own_job("pages-cancel", "oracle_sleep", kwargs={"seconds": 120}, executor="process", time_limit=200)
    run_id = api.run_now(job_id)["run_id"]
    page = open_window(f"/scheduler/runs/{run_id}", language=language).page
    expect(page.locator("#run")).to_have_attribute("data-outcome", "running")
    dialog = page.get_by_role("dialog")

    page.get_by_role("button", name=cancel).focus()
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("button", name=back)).to_be_focused()
    page.keyboard.press("Enter")  # what is chosen by mistake does nothing
    expect(dialog).to_be_hidden()
    assert api.data("GET", f"{SCHEDULER}/runs/{run_id}")["cancel_requested_at"] is None

    page.get_by_role("button", name=cancel).click()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#page-notice")).to_contain_text(asked)
    expect(page.locator("#run")).to_have_attribute("data-outcome", "cancelled")
    expect(page.locator("#run")).to_contain_text("admin")  # who cancelled it, by name
    expect(page.get_by_role("button", name=cancel)).to_have_count(0)


def test_run_that_ended_meanwhile_is_told_in_place(open_window: Open, own_job: Any, api: Client) -> None:
    job_id = own_job("pages-cancel-late", "oracle_sleep", kwargs={"seconds": 2})
    run_id = api.run_now(job_id)["run_id"]
    window = open_window(f"/scheduler/runs/{run_id}")
    page = window.page
    page.get_by_role("button", name="Cancel this run").click()
    wait_until("the run ends", lambda: api.history(job_id)[0]["outcome"] == "success", within=15)
    page.get_by_role("dialog").get_by_role("button", name="Cancel this run").click()
    expect(page.locator("#page-notice")).to_contain_text("has ended (success)")
    assert window.refused == ["400"]


def test_attempts_of_a_run_lead_to_each_other(open_window: Open, own_job: Any, api: Client) -> None:
    job_id = own_job("pages-attempts", "oracle_fail", max_attempts=2, retry_delay=1)
    run_id = api.run_now(job_id)["run_id"]
    wait_until(
        "both attempts failed", lambda: [run["outcome"] for run in api.history(job_id)] == ["failed"] * 2, within=15
    )
    page = open_window(f"/scheduler/runs/{run_id}").page
    other = page.get_by_role("region", name="Other attempts of the same fire")
    expect(other.get_by_role("listitem")).to_contain_text("failed")
    other.get_by_role("link", name="attempt 2").click()
    expect(page.locator("#run")).to_contain_text("2 of up to 2")
    page.get_by_role("link", name="attempt 1").click()
    expect(page).to_have_url(re.compile(run_id))


def test_deleted_job_can_be_restored_from_its_page(open_window: Open, own_job: Any, api: Client) -> None:
    job_id = own_job("pages-restore")
    run_id = api.run_now(job_id)["run_id"]
    api.delete_job(job_id)
    page = open_window(f"/scheduler/runs/{run_id}").page
    page.get_by_role("link", name=re.compile("pages-restore")).click()
    expect(page.locator("#facts")).to_contain_text("deleted")
    button(page, "Restore").click()
    expect(button(page, "Run now")).to_be_visible()
    assert api.job(job_id)["next_run_time"] is not None


def test_run_now_sends_a_key_and_survives_an_unanswered_request(open_window: Open, own_job: Any, api: Client) -> None:
    """The first answer is lost on its way: the page asks again under the same key, and one run is started."""
    job_id = own_job("pages-repeat")
    window = open_window(f"/scheduler?q={job_id}")
    page = window.page
    keys: list[str] = []

    def lose_the_first_answer(route: Route) -> None:
        keys.append(route.request.headers.get("idempotency-key", ""))
        if len(keys) == 1:
            assert route.fetch().ok
            route.abort("connectionreset")
        else:
            route.continue_()

    page.route("**/actions/run", lose_the_first_answer)
    button(row_of(page, job_id), "Run now").click()
    expect(row_of(page, job_id).get_by_role("status")).to_contain_text("Show this run")
    assert len(keys) == 2
    assert keys[0] == keys[1] != ""
    assert len(api.history(job_id)) == 1
    window.complaints.clear()  # the browser tells of the connection that the test broke


# -- reload -----------------------------------------------------------------------------------------------


def test_reload_asks_first_and_says_what_it_did(open_window: Open, own_job: Any, api: Client) -> None:
    job_id = own_job("pages-reload")
    api.data("POST", f"{SCHEDULER}/jobs/sync_accounts/actions/pause")
    page = open_window("/scheduler").page
    expect(row_of(page, "sync_accounts")).to_contain_text("paused")
    dialog = page.get_by_role("dialog", name="Reload the default jobs?")

    page.get_by_role("button", name="Reload default jobs").click()
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    assert api.job("sync_accounts")["next_run_time"] is None

    page.get_by_role("button", name="Reload default jobs").click()
    dialog.get_by_role("button", name="Reload", exact=True).click()
    notice = page.locator("#page-notice")
    expect(notice).to_contain_text("sync_accounts")
    expect(notice).to_contain_text(re.compile(f"Deleted: .*{job_id}"))
    expect(row_of(page, "sync_accounts")).not_to_contain_text("paused")
    assert api.get(f"{SCHEDULER}/jobs/{job_id}").status_code == 404


# -- the dashboard ----------------------------------------------------------------------------------------


def test_dashboard_follows_runs_by_itself(open_window: Open, own_job: Any, api: Client) -> None:
    sleeping = own_job("pages-dash-sleep", "oracle_sleep", kwargs={"seconds": 9})
    failing = own_job("pages-dash-fail", "oracle_fail")
    page = open_window("/dashboard").page
    api.run_now(sleeping)
    failed = api.run_now(failing)["run_id"]
    expect(page.locator("#running")).to_contain_text(sleeping)
    expect(page.locator("#alarms")).to_contain_text(failing)
    expect(page.locator("#alarms")).to_contain_text("RuntimeError: failed on purpose")
    expect(page.locator(f'#timeline a[href="/scheduler/runs/{failed}"] .outcome-failed')).to_have_count(1)
    expect(page.locator("#nodes")).to_contain_text("working")
    expect(page.locator("#tile-nodes")).to_have_text("1")
    # A test that ran before may have restarted the stack: those that stopped stay on the list for a while.
    expect(page.locator('#nodes [data-kind="scheduler"]', has_text="working")).to_contain_text(sleeping)
    expect(page.locator("#running")).not_to_contain_text(sleeping)


def test_mark_of_the_timeline_leads_to_its_run(open_window: Open, own_job: Any, api: Client) -> None:
    job_id = own_job("pages-mark")
    run_id = api.run_now(job_id)["run_id"]
    wait_until("the run ends", lambda: api.history(job_id)[0]["outcome"] == "success", within=15)
    page = open_window("/dashboard").page
    page.locator(f'#timeline a[href="/scheduler/runs/{run_id}"] > *').first.click(force=True)
    expect(page.locator("#run")).to_have_attribute("data-outcome", "success")


# -- languages, screens, policy ---------------------------------------------------------------------------


def test_language_follows_the_browser_and_the_link(open_window: Open) -> None:
    page = open_window("/dashboard", language="zh-CN").page
    expect(page.get_by_role("heading", level=1)).to_have_text("总览")
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    page.get_by_role("link", name="English").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Dashboard")
    page.get_by_role("link", name="Scheduler", exact=True).click()
    expect(page.get_by_role("button", name="Reload default jobs")).to_be_visible()
    page.get_by_role("link", name="中文").click()
    expect(page.get_by_role("button", name="重新加载默认任务")).to_be_visible()


def test_chosen_language_is_also_that_of_the_api(open_window: Open, own_job: Any) -> None:
    job_id = own_job("pages-language")
    page = open_window(f"/scheduler?q={job_id}", language="en-US").page
    page.get_by_role("link", name="中文").click()
    row = row_of(page, job_id)
    expect(button(row, "暂停")).to_be_visible()
    page.wait_for_load_state()
    button(row, "暂停").click()
    expect(row.get_by_role("status")).to_contain_text(re.compile("[\u4e00-\u9fff]"))
    button(row, "修改触发器").click()
    expect(page.get_by_role("dialog", name="修改触发器")).to_contain_text("接下来的 5 次触发")


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_is_wider_than_its_screen(
    open_window: Open, own_job: Any, api: Client, width: int, scheme: str
) -> None:
    job_id = own_job("pages-a-rather-long-id-of-a-job-that-nobody-would-ever-type-by-hand-but-programs-do")
    run_id = api.run_now(job_id)["run_id"]
    for path in (*("/dashboard", "/scheduler", f"/scheduler/jobs/{job_id}", f"/scheduler/runs/{run_id}", "/missing"),):
        page = open_window(path, width=width, scheme=scheme).page
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path


def test_every_control_has_a_name_and_every_page_one_heading(open_window: Open) -> None:
    for path in ("/login", "/dashboard", "/scheduler", "/scheduler/jobs/sync_accounts"):
        page = open_window(path, logged_in=path != "/login").page
        expect(page.get_by_role("heading", level=1)).to_have_count(1)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("button, a, input, select")].filter(
                (e) => !(e.textContent.trim() || e.labels?.length || e.getAttribute("aria-label")
                         || e.closest("svg"))).map((e) => e.outerHTML)"""
        )
        assert nameless == [], path


def test_skip_link_is_the_first_stop_of_the_keyboard(open_window: Open) -> None:
    page = open_window("/dashboard").page
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#content")).to_be_focused()


@pytest.mark.parametrize("path", ["/dashboard", "/scheduler", "/login"])
def test_policy_is_strict_and_kept(open_window: Open, path: str) -> None:
    window = open_window(path, logged_in=path != "/login")
    answer = window.page.request.get(path)
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    window.page.wait_for_load_state("networkidle")
    assert window.complaints == []


def test_console_would_tell_of_a_broken_policy(open_window: Open) -> None:
    """The check above can see: an inline script is refused, and the console says so."""
    window = open_window("/login", logged_in=False)
    window.page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.ran = true';"
        " document.head.append(s); }"
    )
    assert window.page.evaluate("window.ran") is None
    wait_until("the complaint", lambda: list(window.complaints), within=5)
    assert "Content Security Policy" in window.complaints.pop()


def test_static_files_come_under_hashed_addresses_and_stay(open_window: Open) -> None:
    page = open_window("/dashboard").page
    addresses = page.evaluate(
        """() => [...document.querySelectorAll('link[rel="stylesheet"], script[src]')]
            .map((e) => e.getAttribute("href") || e.getAttribute("src"))"""
    )
    assert len(addresses) >= 2
    for address in addresses:
        assert re.fullmatch(r"/static/.+\.[0-9a-f]{12}\.(css|js)", address)
        kept = page.request.get(address)
        assert kept.status == 200
        assert "immutable" in kept.headers["cache-control"]


def test_what_is_not_there_is_a_page_of_its_own(open_window: Open) -> None:
    window = open_window("/scheduler/jobs/not-there")
    expect(window.page.get_by_role("heading", level=1)).to_have_text("This page was not found")
    expect(window.page.locator("code")).to_have_text(re.compile(r"^[A-Za-z0-9._-]{8,}$"))
    window.page.get_by_role("link", name="Back to the dashboard").click()
    expect(window.page.get_by_role("heading", level=1)).to_have_text("Dashboard")
    assert window.refused == ["404"]
