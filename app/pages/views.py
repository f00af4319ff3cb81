"""The pages' routes: ask a service, render a template."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec
from urllib.parse import quote

from flask import Blueprint, abort, redirect, render_template, request
from flask.typing import ResponseReturnValue

from app.i18n import LANGUAGE_COOKIE, LANGUAGES, current_language
from app.pages.board import ALARMS_COUNTED, FIRES_DRAWN, board_of
from app.pages.formats import page_now, page_zone
from app.pages.return_address import HOME, safe_return_address
from app.pages.timeline import draw_timeline
from app.repositories.jobs_repository import JobFilter
from app.runtime import current_runtime
from app.services.accounts import current_principal
from app.services.accounts.user_names import names_of
from app.services.scheduler.scheduler_jobs_read_service import SchedulerJobsReadService
from app.services.scheduler.scheduler_runs_read_service import SchedulerRunsReadService
from app.services.scheduler.scheduler_status_read_service import SchedulerStatusReadService
from app.version import VERSION

JOBS_ON_A_PAGE = 50
RUNS_ON_A_PAGE = 50
SEARCH_LENGTH = 100
LANGUAGE_COOKIE_LIFETIME_S = 365 * 24 * 3600

FILTERS: dict[str, JobFilter] = {
    "scheduled": JobFilter(scheduled=True),
    "idle": JobFilter(scheduled=False),
    "disabled": JobFilter(is_enabled=False),
}

P = ParamSpec("P")

pages = Blueprint("pages", __name__, template_folder="templates")


@pages.context_processor
def page_values() -> dict[str, Any]:
    """What every template may use."""
    return {
        "app_version": VERSION,
        "now": page_now(),
        "principal": current_principal(),
        "zone_name": page_zone().key,
    }


def login_first(
    view: Callable[P, ResponseReturnValue],
) -> Callable[P, ResponseReturnValue]:
    """Sends whoever is not logged in to the login page, which comes back here."""

    @wraps(view)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> ResponseReturnValue:
        principal = current_principal()
        if principal is None:
            here = request.full_path if request.query_string else request.path
            return redirect(f"/login?next={quote(here)}")
        if not principal.may("view"):
            abort(403)
        return view(*args, **kwargs)

    return guarded


@pages.after_request
def keep_private(response: Any) -> Any:
    """Pages show one reader's data, in one reader's language."""
    response.headers["Cache-Control"] = "no-store"
    response.vary.update(["Cookie", "Accept-Language"])
    return response


@pages.get("/")
def home() -> ResponseReturnValue:
    return redirect(HOME)


@pages.get("/login")
def login() -> ResponseReturnValue:
    wanted = safe_return_address(request.args.get("next"))
    if current_principal() is not None:
        return redirect(wanted)
    return render_template("login.html", next_address=wanted)


@pages.get("/language/<language>")
def choose_language(language: str) -> ResponseReturnValue:
    if language not in LANGUAGES:
        abort(404)
    wanted = request.args.get("next", "")
    # The login's own address is no place to return to after a login, but after choosing a language it is.
    target = wanted if wanted == "/login" or wanted.startswith("/login?") else safe_return_address(wanted)
    response = redirect(target)
    response.set_cookie(
        LANGUAGE_COOKIE,
        language,
        max_age=LANGUAGE_COOKIE_LIFETIME_S,
        httponly=True,
        samesite="Lax",
        secure=request.is_secure,
    )
    return response


@pages.get("/dashboard")
@login_first
def dashboard() -> ResponseReturnValue:
    state = SchedulerStatusReadService(language=current_language()).dashboard(
        recent=FIRES_DRAWN, alarms=ALARMS_COUNTED + 1
    )
    timeline = draw_timeline(state.recent, now=page_now(), zone=page_zone())
    return render_template(
        "dashboard.html",
        page="dashboard",
        board=board_of(state),
        count_limit=ALARMS_COUNTED,
        timeline=timeline,
    )


@pages.get("/scheduler")
@login_first
def scheduler() -> ResponseReturnValue:
    search = request.args.get("q", "").strip()[:SEARCH_LENGTH]
    state = request.args.get("state", "")
    wanted = FILTERS.get(state, JobFilter())
    cursor = request.args.get("cursor") or None
    found = SchedulerJobsReadService(language=current_language()).page(
        JobFilter(scheduled=wanted.scheduled, is_enabled=wanted.is_enabled, q=search or None),
        limit=JOBS_ON_A_PAGE,
        cursor=cursor,
    )
    return render_template(
        "scheduler.html",
        page="scheduler",
        jobs=found.items,
        next_cursor=found.next_cursor,
        cursor=cursor,
        search=search,
        state=state if state in FILTERS else "",
    )


@pages.get("/scheduler/jobs/<path:job_id>")
@login_first
def job(job_id: str) -> ResponseReturnValue:
    cursor = request.args.get("cursor") or None
    # Deleted ones too: runs lead to them, and they can be restored here.
    found = SchedulerJobsReadService(language=current_language()).get_job(job_id, include_deleted=True)
    history = SchedulerRunsReadService().history(job_id, limit=RUNS_ON_A_PAGE, cursor=cursor)
    timeline = draw_timeline(history.items, now=page_now(), zone=page_zone()) if cursor is None else None
    return render_template(
        "job.html",
        page="scheduler",
        job=found,
        runs=history.items,
        next_cursor=history.next_cursor,
        cursor=cursor,
        timeline=timeline,
    )


@pages.get("/scheduler/runs/<run_id>")
@login_first
def run(run_id: str) -> ResponseReturnValue:
    found = SchedulerRunsReadService().get_run(run_id)
    return render_template(
        "run.html",
        page="scheduler",
        run=found,
        names=names_of(current_runtime().database, (found.created_by, found.cancel_requested_by)),
    )
