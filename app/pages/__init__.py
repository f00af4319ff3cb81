"""The pages that people look at: rendered on the server, from the store, in Chinese and English.

They never ask this process's scheduler: the process that renders them runs none. What they change, they change
through the JSON API.
"""

from __future__ import annotations

from flask import Flask

from app.i18n import current_language
from app.pages.assets import serve_static, static_address
from app.pages.board import due_moment, node_health, node_work
from app.pages.formats import (
    breakable,
    last_line,
    milliseconds,
    relative_time_now,
    scheduler_time,
    short_count,
)
from app.pages.job_words import cron_expression, element_key, schedule_words
from app.pages.views import pages
from app.pages.words import (
    creator_name,
    executor_name,
    outcome_name,
    run_kind,
    script_texts,
    state_choices,
    timeline_words,
)
from app.services.scheduler.job_views import job_state


def page_language() -> str:
    """The language of the page for HTML's `lang`."""
    return "en" if current_language() == "en" else "zh-CN"


def init_pages(app: Flask) -> None:
    """Bind the pages, their static files and what their templates use."""
    app.add_url_rule("/static/<path:filename>", endpoint="static", view_func=serve_static)
    app.jinja_env.globals.update(
        creator_name=creator_name,
        cron_expression=cron_expression,
        due_moment=due_moment,
        element_key=element_key,
        executor_name=executor_name,
        job_state=job_state,
        node_health=node_health,
        node_work=node_work,
        outcome_name=outcome_name,
        page_language=page_language,
        run_kind=run_kind,
        schedule_words=schedule_words,
        script_texts=script_texts,
        state_choices=state_choices,
        static_address=static_address,
        timeline_words=timeline_words,
    )
    app.jinja_env.filters.update(
        breakable=breakable,
        full_time=scheduler_time,
        last_line=last_line,
        milliseconds=milliseconds,
        relative_time=relative_time_now,
        short_count=short_count,
    )
    app.jinja_env.trim_blocks = True
    app.jinja_env.lstrip_blocks = True
    app.register_blueprint(pages)
