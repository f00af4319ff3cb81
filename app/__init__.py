"""WhaleFall Scheduler: scheduled jobs that fire once. `create_app` builds the app of one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from app.settings import Settings


def create_app(settings: Settings | None = None, *, init_scheduler_on_start: bool = True) -> Flask:
    """The app of this process, its scheduler running if one belongs here.

    settings: read from the environment when left out.
    init_scheduler_on_start: False builds an app without a scheduler, whatever the settings say.

    Raises SettingsError for a bad value or a missing secret, and what a store raises that cannot be used.
    """
    # Imported here, so that importing one part of the app does not load all of it.
    from app.factory import build_app  # noqa: PLC0415
    from app.scheduler import _should_start_scheduler, start_scheduler  # noqa: PLC0415
    from app.settings import Settings  # noqa: PLC0415

    settings = settings or Settings.load()
    runs_scheduler = init_scheduler_on_start and _should_start_scheduler(settings)
    app = build_app(settings, runs_scheduler=runs_scheduler)
    if runs_scheduler:
        start_scheduler(app)
    return app
