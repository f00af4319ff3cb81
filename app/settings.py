"""The settings of a process: the only reader of the environment.

`Settings.load()` takes every variable of `env.example` that the app itself uses. A bad value raises
`SettingsError`, one line that names the variable, the value and what is accepted. A missing secret does not:
`create_app` asks for those with `Settings.require_secrets()`.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit, urlunsplit
from zoneinfo import ZoneInfo

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from app.web_address import web_address

PROJECT_ROOT = Path(__file__).resolve().parent.parent
SECRET_NAMES = ("SECRET_KEY", "ADMIN_PASSWORD", "API_TOKEN")
PASSWORD_NAMES = ("POSTGRES_PASSWORD", "BROKER_PASSWORD")
"""Put into the URLs of PostgreSQL stores and of the broker that hold none; needed only where a server asks for one."""
OTHER_SECRETS = ("METRICS_TOKEN",)
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LOG_FORMATS = ("JSON", "TEXT")
STORE_URLS_ACCEPTED = (
    "sqlite:////absolute/path.db (a file, never memory) or postgresql+psycopg://user:password@host/name"
)

BROKER_SCHEMES = ("redis", "rediss", "amqp", "amqps")
BROKER_URLS_ACCEPTED = "redis://host:6379/0 (rediss: with TLS) or amqp://user:password@host:5672// (amqps: with TLS)"

_Number = TypeVar("_Number", int, float)


class SettingsError(ValueError):
    """A variable holds a value that cannot be used, or a secret is missing. One line, without secrets."""

    def __init__(self, variable: str, value: str | None, accepted: str) -> None:
        self.variable = variable
        held = "is not set" if value is None else f"is {value!r}"
        super().__init__(f"{variable} {held}; accepted: {accepted}")


@dataclass(frozen=True)
class Settings:
    """Checked values; field names are the variables' names in lower case. Paths are absolute."""

    enable_scheduler: bool
    jobstore_url: str = field(repr=False)
    database_url: str = field(repr=False)
    scheduler_timezone: str
    userdata_dir: Path
    tasks_dir: Path
    scheduler_tasks_file: Path
    celery_broker_url: str = field(repr=False)
    secret_key: str | None = field(repr=False)
    admin_password: str | None = field(repr=False)
    api_token: str | None = field(repr=False)
    alert_webhook_url: str | None = field(repr=False)  # where alerts are posted
    scheduler_ping_url: str | None = field(repr=False)  # the scheduler's own dead-man ping
    metrics_token: str | None = field(repr=False)  # opens /metrics through the published port
    metrics_dir: Path | None  # where the processes of this container keep their counts of requests
    trusted_proxies: tuple[str, ...]
    scheduler_threads: int  # threads of the executor `default`
    worker_concurrency: int  # processes of a worker of the fleet
    lost_after_s: float  # silence of a node after which its running runs are called lost
    drain_s: float  # how long a stopping scheduler waits for its running runs
    run_retention_days: int
    backup_keep: int  # newest backups that stay
    log_level: str
    log_format: str  # json or text
    tls_address: str | None  # host:port where nginx serves https, when a certificate is mounted
    node_name: str  # this process's name in the ledger and in logs
    fail_points: Mapping[str, tuple[str, float]]  # of the end-to-end tests: name -> action, probability
    flask_run_from_cli: bool  # set by the `flask` command
    werkzeug_run_main: bool  # set by Flask's reloader in its child process
    secret_problems: Mapping[str, str] = field(default_factory=dict, repr=False)
    postgres_password: str | None = field(default=None, repr=False)  # in the URLs that held none
    secret_files: Mapping[str, Path] = field(default_factory=dict)  # by name, of those that came from a file

    @property
    def locks_dir(self) -> Path:
        """Where the living processes on this volume hold their lock files."""
        return self.userdata_dir / "locks"

    @classmethod
    def load(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Read the environment (or the given mapping); SettingsError on the first bad value."""
        reader = _Reader(os.environ if env is None else env)
        userdata = reader.path("USERDATA_DIR", PROJECT_ROOT / "userdata")
        secrets, problems = reader.secrets()
        return cls(
            enable_scheduler=_enabled(reader.env.get("ENABLE_SCHEDULER", "true")),
            jobstore_url=reader.store_url("JOBSTORE_URL", userdata / "scheduler.db", secrets["POSTGRES_PASSWORD"]),
            database_url=reader.store_url("DATABASE_URL", userdata / "whalefall.db", secrets["POSTGRES_PASSWORD"]),
            scheduler_timezone=reader.timezone("SCHEDULER_TIMEZONE", "Asia/Shanghai"),
            userdata_dir=userdata,
            tasks_dir=reader.path("TASKS_DIR", userdata / "tasks"),
            scheduler_tasks_file=reader.path(
                "SCHEDULER_TASKS_FILE", PROJECT_ROOT / "app" / "config" / "scheduler_tasks.yaml"
            ),
            celery_broker_url=reader.broker_url("CELERY_BROKER_URL", secrets["BROKER_PASSWORD"]),
            secret_key=secrets["SECRET_KEY"],
            admin_password=secrets["ADMIN_PASSWORD"],
            api_token=secrets["API_TOKEN"],
            alert_webhook_url=reader.web_address("ALERT_WEBHOOK_URL"),
            scheduler_ping_url=reader.web_address("SCHEDULER_PING_URL"),
            metrics_token=secrets["METRICS_TOKEN"],
            metrics_dir=reader.optional_path("PROMETHEUS_MULTIPROC_DIR"),
            trusted_proxies=reader.networks("TRUSTED_PROXIES"),
            scheduler_threads=reader.whole("SCHEDULER_THREADS", 64, 1, 1024),
            worker_concurrency=reader.whole("WORKER_CONCURRENCY", 4, 1, 256),
            lost_after_s=reader.seconds("LOST_AFTER_SECONDS", 30.0, 3.0, 86_400.0),
            drain_s=reader.seconds("DRAIN_SECONDS", 30.0, 0.0, 3600.0),
            run_retention_days=reader.whole("RUN_RETENTION_DAYS", 90, 1, 36_500),
            backup_keep=reader.whole("BACKUP_KEEP", 14, 1, 10_000),
            log_level=reader.choice("LOG_LEVEL", "INFO", LOG_LEVELS),
            log_format=reader.choice("LOG_FORMAT", "JSON", LOG_FORMATS).lower(),
            tls_address=reader.address("TLS_ADDRESS"),
            node_name=reader.node_name("NODE_NAME"),
            fail_points=reader.fail_points("FAIL_POINTS"),
            flask_run_from_cli=reader.text("FLASK_RUN_FROM_CLI", "") == "true",
            werkzeug_run_main=reader.text("WERKZEUG_RUN_MAIN", "") == "true",
            secret_problems=problems,
            postgres_password=secrets["POSTGRES_PASSWORD"],
            secret_files=reader.secret_files(),
        )

    def require_secrets(self) -> None:
        """Raise SettingsError naming the first secret that is missing."""
        for name, file in self.secret_problems.items():
            raise SettingsError(f"{name}_FILE", file, "a readable, non-empty file")
        for name in SECRET_NAMES:
            if not getattr(self, name.lower()):
                raise SettingsError(
                    name,
                    None,
                    f"the secret itself, or {name}_FILE with the path of a file that holds it"
                    " (scripts/up.sh generates .secrets/)",
                )


def _enabled(value: str) -> bool:
    return value.strip().lower() in {"true", "1", "yes"}


def _shown_url(value: str) -> str:
    """The URL without user, password and options, for an error line."""
    without_options = re.sub(r"\?.*", "?***", value, flags=re.DOTALL)
    return re.sub(r"^(\w[\w+.-]*://)?.*@", r"\1***@", without_options, flags=re.DOTALL)


def _with_password(url: str, password: str | None) -> str:
    # Not by SQLAlchemy's URL: it would lose the double slash of RabbitMQ's default virtual host.
    parts = urlsplit(url)
    if not password or not parts.netloc or parts.password:
        return url
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.rstrip(':')}:{quote(password, safe='')}@{host}"))


class _Reader:
    """Takes variables out of the environment; blanks around them are dropped, empty counts as unset."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env

    def text(self, name: str, default: str) -> str:
        return self.env.get(name, "").strip() or default

    def path(self, name: str, default: Path) -> Path:
        """An absolute path; a relative one counts from the project's root, not from the working one."""
        value = self.text(name, str(default))
        if "\0" in value:
            raise SettingsError(name, value, "a path")
        return PROJECT_ROOT / Path(value).expanduser()

    def optional_path(self, name: str) -> Path | None:
        """The same without a default: None when unset."""
        return self.path(name, PROJECT_ROOT) if self.text(name, "") else None

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        return self._number(name, default, (low, high), int)

    def seconds(self, name: str, default: float, low: float, high: float) -> float:
        return self._number(name, default, (low, high), float)

    def _number(
        self, name: str, default: _Number, limits: tuple[_Number, _Number], kind: Callable[[str], _Number]
    ) -> _Number:
        value = self.text(name, str(default))
        low, high = limits
        accepted = f"{'a whole number' if kind is int else 'a number of seconds'} from {low} to {high}"
        try:
            number = kind(value)
        except ValueError:
            raise SettingsError(name, value, accepted) from None
        if not low <= number <= high:  # also refuses nan
            raise SettingsError(name, value, accepted)
        return number

    def choice(self, name: str, default: str, accepted: tuple[str, ...]) -> str:
        value = self.text(name, default)
        if value.upper() not in accepted:
            raise SettingsError(name, value, ", ".join(accepted))
        return value.upper()

    def timezone(self, name: str, default: str) -> str:
        value = self.text(name, default)
        try:
            ZoneInfo(value)
        except (ValueError, OSError, LookupError):  # a bad key, a folder's name, an unknown zone
            raise SettingsError(name, value, "an IANA time zone such as Asia/Shanghai or UTC") from None
        return value

    def fail_points(self, name: str) -> dict[str, tuple[str, float]]:
        """Points by name, as `claim.inserted=exit@0.05`, separated by commas; without a probability it is 1."""
        found = {}
        for part in self.text(name, "").split(","):
            if not part.strip():
                continue
            match = re.fullmatch(r"\s*([\w.]+)=(\w+)(?:@(0?\.\d+|[01]))?\s*", part)
            if match is None:
                raise SettingsError(name, part, "NAME=ACTION or NAME=ACTION@PROBABILITY, separated by commas")
            found[match[1]] = (match[2], float(match[3] or 1))
        return found

    def networks(self, name: str) -> tuple[str, ...]:
        """Addresses or networks, separated by commas or blanks."""
        found = []
        for part in re.split(r"[\s,]+", self.text(name, "")):
            if not part:
                continue
            try:
                found.append(str(ipaddress.ip_network(part, strict=False)))
            except ValueError:
                raise SettingsError(
                    name, part, "IP addresses or networks such as 10.0.0.0/8, separated by commas"
                ) from None
        return tuple(found)

    def address(self, name: str) -> str | None:
        """A host and its port, as `host:port`; None when unset."""
        value = self.text(name, "")
        if value and not re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[1-9][0-9]{0,4}", value):
            raise SettingsError(name, value, "host:port")
        return value or None

    def node_name(self, name: str) -> str:
        value = self.text(name, "") or socket.gethostname()
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value):
            raise SettingsError(name, value, "1 to 64 letters, digits, '.', '_' or '-'")
        return value

    def store_url(self, name: str, default_file: Path, password: str | None) -> str:
        """The store's URL with its driver; a relative SQLite file counts from the project's root, and a PostgreSQL
        user without a password gets the given one."""
        value = self.text(name, "")
        if not value:
            return _sqlite_url(default_file)
        try:
            url = make_url(value)
        except (ArgumentError, ValueError):
            raise SettingsError(name, _shown_url(value), STORE_URLS_ACCEPTED) from None
        if url.drivername in {"sqlite", "sqlite+pysqlite"}:
            if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
                raise SettingsError(name, value, STORE_URLS_ACCEPTED)
            return _sqlite_url(PROJECT_ROOT / url.database)
        if url.drivername in {"postgres", "postgresql", "postgresql+psycopg"}:
            if not url.database:
                raise SettingsError(name, _shown_url(value), STORE_URLS_ACCEPTED)
            url = url.set(drivername="postgresql+psycopg", password=url.password or password)
            return url.render_as_string(hide_password=False)
        raise SettingsError(name, _shown_url(value), STORE_URLS_ACCEPTED)

    def broker_url(self, name: str, password: str | None) -> str:
        """The broker's URL, or several with ';' between them; those without a password get the given one."""
        urls = [url.strip() for url in self.text(name, "").split(";") if url.strip()]
        for url in urls:
            try:
                parts = urlsplit(url)
                usable = parts.scheme in BROKER_SCHEMES and parts.hostname and (parts.port or 1) > 0
            except ValueError:  # of the port, or of an address in brackets
                usable = False
            if not usable:
                raise SettingsError(name, _shown_url(url), BROKER_URLS_ACCEPTED)
        return ";".join(_with_password(url, password) for url in urls)

    def web_address(self, name: str) -> str | None:
        """An http or https address, or what the file of NAME_FILE holds. It may hold a token: no error repeats it."""
        value, file = self.text(name, ""), self.text(f"{name}_FILE", "")
        if file:
            if value:
                raise SettingsError(f"{name}_FILE", file, f"only one of {name} and {name}_FILE")
            try:
                value = Path(file).read_text(encoding="utf-8").strip()
            except (OSError, ValueError):
                value = ""
            if not value:
                raise SettingsError(f"{name}_FILE", file, "a readable, non-empty file")
        if not value:
            return None
        try:
            return web_address(value)
        except ValueError as error:
            raise SettingsError(name, "***", str(error)) from None

    def secrets(self) -> tuple[dict[str, str | None], dict[str, str]]:
        """The secrets by name, and what is wrong with the files of those that could not be read."""
        values: dict[str, str | None] = {}
        problems: dict[str, str] = {}
        for name in SECRET_NAMES + PASSWORD_NAMES + OTHER_SECRETS:
            values[name] = self.env.get(name) or None
            file = self.text(f"{name}_FILE", "")
            if not file:
                continue
            if values[name]:
                raise SettingsError(f"{name}_FILE", file, f"only one of {name} and {name}_FILE")
            try:
                values[name] = Path(file).read_text(encoding="utf-8").rstrip("\r\n") or None
            except (OSError, ValueError):
                values[name] = None
            if values[name] is None:
                problems[name] = file
        return values, problems

    def secret_files(self) -> dict[str, Path]:
        """The files that the environment names for secrets, by the secrets' names."""
        named = {name: self.text(f"{name}_FILE", "") for name in SECRET_NAMES + PASSWORD_NAMES}
        return {name: Path(file) for name, file in named.items() if file}


def _sqlite_url(file: Path) -> str:
    return URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)
