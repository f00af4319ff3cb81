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
from app.db.engines import RECONNECT_S, DamagedDatabase, check_integrity, create_engine_for
from app.db.migrate import NewerSchema, Store, ensure_schema
from app.db.password_file import follow_password_file
from app.db.reach import StoreUnusable, is_out_of_reach, lacks_rights, store_name, unusable, wait_for_server
from app.http.audit_trail import init_audit_trail
from app.http.error_handlers import init_error_handlers
from app.http.json_format import JSONProvider
from app.http.request_id import init_request_id
from app.http.store_outage import init_store_outage
from app.http.web_server import init_web_server
from app.i18n import init_i18n
from app.ledger import Ledger
from app.ledger.one_store import refuse_other_store
from app.logging_setup import configure_logging, log_what_nobody_catches
from app.metrics import init_metrics
from app.pages import init_pages
from app.runtime import EXTENSION_KEY, Runtime
from app.services.accounts.admin_sync import sync_admin
from app.services.accounts.audit_service import purge_audit
from app.services.operations.move.note import refuse_moved_store
from app.services.operations.restore.swap import finish_swap
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
    init_store_outage(app)
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
    if not settings.flask_run_from_cli:
        init_metrics(app, program="scheduler" if runs_scheduler else "web")
    init_cli(app)
    # A preloaded web process forks after this: no connection may be shared with the children.
    runtime.jobstore.dispose()
    runtime.database.dispose()
    return app


def _open_runtime(settings: Settings) -> Runtime:
    finish_swap(settings)  # a restore that was interrupted: before any store is opened
    if not settings.flask_run_from_cli:
        refuse_moved_store(settings)
        refuse_other_store(settings.locks_dir, store_name(settings.jobstore_url, settings.userdata_dir))
    _follow_password_file(settings)
    reconnect_s = 0.0 if settings.flask_run_from_cli else RECONNECT_S  # a command says at once what is wrong
    jobstore = _engine("JOBSTORE_URL", settings.jobstore_url, reconnect_s=reconnect_s)
    database = _engine("DATABASE_URL", settings.database_url, reconnect_s=reconnect_s)
    try:
        _prepare_stores(settings, jobstore, database)
    except (SQLAlchemyError, DamagedDatabase, NewerSchema, StoreUnusable) as error:
        if not settings.flask_run_from_cli:
            raise
        # A command may be the very one that looks after a damaged store.
        log.warning("the stores cannot be used", error=str(getattr(error, "orig", None) or error))
    tasks = TaskRegistry()
    tasks.load_builtin()
    tasks.load_folder(settings.tasks_dir)
    for problem in tasks.problems:
        log.error("task module not loaded", module=problem.module, error=problem.error)
    ledger = Ledger(jobstore, alerts=bool(settings.alert_webhook_url))
    return Runtime(settings=settings, jobstore=jobstore, database=database, ledger=ledger, tasks=tasks)


def _follow_password_file(settings: Settings) -> None:
    file = settings.secret_files.get("POSTGRES_PASSWORD")
    if file is not None and settings.postgres_password:
        follow_password_file(file, settings.postgres_password)


def _engine(variable: str, url: str, *, reconnect_s: float) -> Engine:
    try:
        return create_engine_for(url, reconnect_s=reconnect_s)
    except OSError as error:  # of the folder that it makes
        raise unusable(url, variable, error) from error


def _prepare_stores(settings: Settings, jobstore: Engine, database: Engine) -> None:
    waits = not settings.flask_run_from_cli  # a command says at once what is wrong, and reads no large file through
    _prepare_store("JOBSTORE_URL", jobstore, "jobstore", waits=waits)
    _prepare_store("DATABASE_URL", database, "app", waits=waits)
    sync_admin(database, settings.admin_password or "", settings.secret_key or "")
    purge_audit(database)


def _prepare_store(variable: str, engine: Engine, store: Store, *, waits: bool) -> None:
    try:
        if waits:
            wait_for_server(engine, variable)
            check_integrity(engine)
        ensure_schema(engine, store)
    except SQLAlchemyError as error:
        if is_out_of_reach(error) or lacks_rights(error):
            raise unusable(engine.url, variable, error) from error
        raise


def _configure_logging(settings: Settings, *, runs_scheduler: bool) -> None:
    if settings.flask_run_from_cli:
        # Results of a command go to standard output, so its records must not.
        # In text: whoever typed the command reads them.
        configure_logging("cli", settings.log_level, sys.stderr, log_format="text")
    else:
        program = "scheduler" if runs_scheduler else "web"
        configure_logging(program, settings.log_level, log_format=settings.log_format, node=settings.node_name)
        log_what_nobody_catches()
