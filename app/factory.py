"""Puts the app of one process together."""

from __future__ import annotations

import sys

import structlog
from apiflask import APIFlask
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from app.api.v1.auth import auth, init_auth
from app.api.v1.csrf import init_csrf
from app.api.v1.health import health
from app.api.v1.openapi import SPEC_PATH, init_openapi
from app.api.v1.scheduler import init_scheduler_api
from app.cli import init_cli
from app.db.engines import DamagedDatabase, check_integrity, create_engine_for
from app.db.migrate import NewerSchema, ensure_schema
from app.http.audit_trail import init_audit_trail
from app.http.error_handlers import init_error_handlers
from app.http.json_format import JSONProvider
from app.http.request_id import init_request_id
from app.http.web_server import init_web_server
from app.i18n import init_i18n
from app.ledger import Ledger
from app.logging_setup import configure_logging
from app.pages import init_pages
from app.runtime import EXTENSION_KEY, Runtime
from app.services.accounts.admin_sync import sync_admin
from app.services.accounts.audit_service import purge_audit
from app.settings import Settings
from app.tasks import TaskRegistry
from app.version import VERSION

log = structlog.get_logger(__name__)


def build_app(settings: Settings, *, runs_scheduler: bool) -> APIFlask:
    """The app, its stores at this release's schema, its admin as the secret says; no scheduler yet."""
    settings.require_secrets()
    _configure_logging(settings, runs_scheduler=runs_scheduler)
    app = APIFlask(
        "app",
        title="WhaleFall Scheduler",
        version=VERSION,
        spec_path=SPEC_PATH,
        docs_path=None,
        static_folder=None,  # type: ignore[arg-type]  # app.pages serves them, under hashed names
    )
    app.config["SECRET_KEY"] = settings.secret_key
    app.json = JSONProvider(app)
    runtime = _open_runtime(settings)
    app.extensions[EXTENSION_KEY] = runtime

    init_request_id(app)  # first: everything after it may log or fail
    init_web_server(app)
    init_i18n(app)
    init_error_handlers(app)
    init_auth(app)
    init_csrf(app)
    init_audit_trail(app)
    init_openapi(app)
    app.register_blueprint(auth)
    app.register_blueprint(health)
    init_scheduler_api(app)
    init_pages(app)
    init_cli(app)
    # A preloaded web process forks after this: no connection may be shared with the children.
    runtime.jobstore.dispose()
    runtime.database.dispose()
    return app


def _open_runtime(settings: Settings) -> Runtime:
    jobstore = create_engine_for(settings.jobstore_url)
    database = create_engine_for(settings.database_url)
    try:
        _prepare_stores(settings, jobstore, database)
    except (SQLAlchemyError, DamagedDatabase, NewerSchema) as error:
        if not settings.flask_run_from_cli:
            raise
        # A command may be the very one that looks after a damaged store.
        log.warning("the stores cannot be used", error=str(getattr(error, "orig", None) or error))
    tasks = TaskRegistry()
    tasks.load_builtin()
    tasks.load_folder(settings.tasks_dir)
    for problem in tasks.problems:
        log.error("task module not loaded", module=problem.module, error=problem.error)
    return Runtime(settings=settings, jobstore=jobstore, database=database, ledger=Ledger(jobstore), tasks=tasks)


def _prepare_stores(settings: Settings, jobstore: Engine, database: Engine) -> None:
    if not settings.flask_run_from_cli:  # a command need not wait until a large file is read through
        check_integrity(jobstore)
        check_integrity(database)
    ensure_schema(jobstore, "jobstore")
    ensure_schema(database, "app")
    sync_admin(database, settings.admin_password or "", settings.secret_key or "")
    purge_audit(database)


def _configure_logging(settings: Settings, *, runs_scheduler: bool) -> None:
    if settings.flask_run_from_cli:
        # Results of a command go to standard output, so its records must not.
        configure_logging("cli", settings.log_level, sys.stderr)
    else:
        configure_logging("scheduler" if runs_scheduler else "web", settings.log_level)
