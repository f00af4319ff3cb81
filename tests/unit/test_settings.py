"""Settings: strict about every value, silent about secrets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.settings import PROJECT_ROOT, SECRET_NAMES, Settings, SettingsError


def test_defaults_are_the_documented_ones() -> None:
    settings = Settings.load({})

    assert settings.enable_scheduler is True
    assert settings.jobstore_url == f"sqlite:///{PROJECT_ROOT}/userdata/scheduler.db"
    assert settings.database_url == f"sqlite:///{PROJECT_ROOT}/userdata/whalefall.db"
    assert settings.scheduler_timezone == "Asia/Shanghai"
    assert settings.tasks_dir == PROJECT_ROOT / "userdata" / "tasks"
    assert settings.scheduler_tasks_file == PROJECT_ROOT / "app" / "config" / "scheduler_tasks.yaml"
    assert settings.celery_broker_url == ""
    assert (settings.run_retention_days, settings.backup_keep) == (90, 14)


@pytest.mark.parametrize("value", ["true", "TRUE", "1", "yes", "Yes", " true "])
def test_enable_scheduler_says_yes(value: str) -> None:
    assert Settings.load({"ENABLE_SCHEDULER": value}).enable_scheduler is True


@pytest.mark.parametrize("value", ["false", "0", "no", "", "on", "enabled", "truee"])
def test_anything_else_disables_the_scheduler(value: str) -> None:
    assert Settings.load({"ENABLE_SCHEDULER": value}).enable_scheduler is False


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("JOBSTORE_URL", "not a url"),
        ("JOBSTORE_URL", "sqlite://"),
        ("JOBSTORE_URL", "sqlite:///:memory:"),
        ("JOBSTORE_URL", "mysql://host/name"),
        ("JOBSTORE_URL", "postgresql://host"),
        ("DATABASE_URL", "postgresql+psycopg2://host/name"),
        ("DATABASE_URL", "postgresql://host:port/name"),
        ("SCHEDULER_TIMEZONE", "Mars/Olympus"),
        ("SCHEDULER_TIMEZONE", "../etc/passwd"),
        ("SCHEDULER_TIMEZONE", "Asia"),
        ("TRUSTED_PROXIES", "10.0.0.1,proxy.example"),
        ("SCHEDULER_THREADS", "0"),
        ("SCHEDULER_THREADS", "many"),
        ("SCHEDULER_THREADS", "1.5"),
        ("LOST_AFTER_SECONDS", "nan"),
        ("LOST_AFTER_SECONDS", "inf"),
        ("DRAIN_SECONDS", "-1"),
        ("RUN_RETENTION_DAYS", "0"),
        ("BACKUP_KEEP", "0"),
        ("LOG_LEVEL", "chatty"),
        ("NODE_NAME", "名字"),
        ("USERDATA_DIR", "a\0b"),
    ],
)
def test_a_bad_value_is_one_line_that_names_it(variable: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({variable: value})

    line = str(caught.value)
    assert line.startswith(f"{variable} is ")
    assert "; accepted: " in line
    assert "\n" not in line
    assert caught.value.variable == variable


@pytest.mark.parametrize(
    "value",
    [
        "mysql://me:hunter2@host/db",
        "postgresql+pg8000://me:hun@ter2@h/db",
        "x://a:hunter2@",
        "me:hunter2@host",
        "my://@h/?password=hunter2",
    ],
)
def test_a_refused_url_is_shown_without_its_password(value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({"JOBSTORE_URL": value})
    assert "ter2" not in str(caught.value)
    assert "***" in str(caught.value)


def test_empty_counts_as_unset() -> None:
    names = ("JOBSTORE_URL", "DATABASE_URL", "SCHEDULER_TIMEZONE", "SCHEDULER_THREADS", "NODE_NAME", "SECRET_KEY_FILE")
    assert Settings.load(dict.fromkeys(names, "")) == Settings.load({})


def test_relative_places_count_from_the_project_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.load({"USERDATA_DIR": "data", "JOBSTORE_URL": "sqlite:///data/jobs.db"})

    assert settings.userdata_dir == PROJECT_ROOT / "data"
    assert settings.tasks_dir == PROJECT_ROOT / "data" / "tasks"
    assert settings.jobstore_url == f"sqlite:///{PROJECT_ROOT}/data/jobs.db"
    assert settings.database_url == f"sqlite:///{PROJECT_ROOT}/data/whalefall.db"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgresql_gets_the_driver_that_is_installed(scheme: str) -> None:
    settings = Settings.load({"JOBSTORE_URL": f"{scheme}://me:p%40ss@db/jobs"})
    assert settings.jobstore_url == "postgresql+psycopg://me:p%40ss@db/jobs"


def test_networks_are_normalised() -> None:
    settings = Settings.load({"TRUSTED_PROXIES": "10.1.2.3/8, 192.0.2.1 fd00::/8"})
    assert settings.trusted_proxies == ("10.0.0.0/8", "192.0.2.1/32", "fd00::/8")


def test_a_missing_secret_stops_only_who_needs_it() -> None:
    settings = Settings.load({})
    with pytest.raises(SettingsError, match=r"^SECRET_KEY is not set"):
        settings.require_secrets()
    Settings.load(dict.fromkeys(SECRET_NAMES, "x")).require_secrets()


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_a_secret_may_come_from_a_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("  with blanks \r\n", encoding="utf-8")

    settings = Settings.load({f"{name}_FILE": str(file)})

    assert getattr(settings, name.lower()) == "  with blanks "


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe"])
def test_a_secret_file_without_a_secret_is_named(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    settings = Settings.load({"SECRET_KEY": "x", "ADMIN_PASSWORD_FILE": str(file), "API_TOKEN": "x"})

    with pytest.raises(SettingsError, match=f"^ADMIN_PASSWORD_FILE is '{re.escape(str(file))}'"):
        settings.require_secrets()


def test_a_secret_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="only one of API_TOKEN and API_TOKEN_FILE") as caught:
        Settings.load({"API_TOKEN": "sesame", "API_TOKEN_FILE": str(tmp_path / "f")})
    assert "sesame" not in str(caught.value)


ADDRESSES = ("ALERT_WEBHOOK_URL", "SCHEDULER_PING_URL")


@pytest.mark.parametrize("name", ADDRESSES)
def test_an_address_may_come_from_a_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / "address"
    file.write_text("https://hooks.example/sesame\n", encoding="utf-8")
    assert getattr(Settings.load({f"{name}_FILE": str(file)}), name.lower()) == "https://hooks.example/sesame"
    with pytest.raises(SettingsError, match=f"^{name}_FILE is .*; accepted: only one of") as caught:
        Settings.load({name: "https://hooks.example/sesame", f"{name}_FILE": str(file)})
    assert "sesame" not in str(caught.value)
    file.write_text("", encoding="utf-8")
    with pytest.raises(SettingsError, match=f"^{name}_FILE is .*; accepted: a readable, non-empty file"):
        Settings.load({f"{name}_FILE": str(file)})


@pytest.mark.parametrize("name", ADDRESSES)
@pytest.mark.parametrize(
    "value", ["ftp://hooks.example/sesame", "hooks.example/sesame", "file:///sesame", "https:///sesame"]
)
def test_an_address_that_cannot_be_asked_is_refused_without_being_shown(name: str, value: str) -> None:
    with pytest.raises(
        SettingsError, match=f"^{name} is .*; accepted: an address that begins with http:// or https://"
    ) as caught:
        Settings.load({name: value})
    assert "sesame" not in str(caught.value)


def test_settings_do_not_print_what_is_secret() -> None:
    env = dict.fromkeys(SECRET_NAMES, "sesame") | {
        "JOBSTORE_URL": "postgresql://me:sesame@db/jobs",
        **dict.fromkeys(ADDRESSES, "https://hooks.example/sesame"),
    }
    assert "sesame" not in repr(Settings.load(env))


def test_env_example_lists_every_variable_with_its_default() -> None:
    example = (PROJECT_ROOT / "env.example").read_text(encoding="utf-8")
    given = dict(re.findall(r"^([A-Z_]+)=(.*)$", example, flags=re.MULTILINE))
    read = set(re.findall(r'"([A-Z][A-Z_]{5,})"', (PROJECT_ROOT / "app" / "settings.py").read_text(encoding="utf-8")))
    set_by_programs = {"FLASK_RUN_FROM_CLI", "WERKZEUG_RUN_MAIN"}
    levels = {"WARNING", "CRITICAL"}

    assert Settings.load(given) == Settings.load({})
    assert {
        name for name in read - set_by_programs - levels if not re.search(rf"^#?{name}=", example, re.MULTILINE)
    } == set()


def test_env_example_lists_what_the_containers_read() -> None:
    example = (PROJECT_ROOT / "env.example").read_text(encoding="utf-8")
    folder = PROJECT_ROOT / "compose"
    files = set(folder.glob("*.yml")) - set(folder.glob("docker-compose.e2e*.yml"))  # what only tests set
    compose = "".join(file.read_text(encoding="utf-8") for file in files)
    gunicorn = "".join(file.read_text(encoding="utf-8") for file in (PROJECT_ROOT / "gunicorn").glob("*.py"))
    read = {
        *re.findall(r"\$\{([A-Z_]+)", compose),
        *re.findall(r"^ +([A-Z][A-Z_]+): *$", compose, re.MULTILINE),
        *re.findall(r'environ\.get\("([A-Z_]+)"', gunicorn),
    }
    assert "HTTP_PORT" in read
    assert {name for name in read if not re.search(rf"^#?{name}=", example, re.MULTILINE)} == set()


def test_env_example_says_what_the_containers_do_not_take_from_it() -> None:
    example = (PROJECT_ROOT / "env.example").read_text(encoding="utf-8")
    told = "".join(file.read_text(encoding="utf-8") for file in (PROJECT_ROOT / "compose").glob("*.yml"))
    told += "".join(file.read_text(encoding="utf-8") for file in (PROJECT_ROOT / "scripts").rglob("*.sh"))
    told += (PROJECT_ROOT / "images" / "base" / "build.sh").read_text(encoding="utf-8")
    secrets = example[example.index("# --- Secrets") : example.index("# --- In front")]
    for paragraph in example.split("\n\n"):
        for name in re.findall(r"^#?([A-Z][A-Z_]+)=", paragraph, re.MULTILINE):
            # A name alone is passed on; ${NAME} is put into the compose file or read by a script.
            taken = re.search(rf"^ +{name}: *$|\$\{{?{name}\b|\b(setting|keep_setting) {name}\b", told, re.MULTILINE)
            excused = paragraph in secrets or "ot passed on from .env" in paragraph or "For tests alone" in paragraph
            assert taken or excused, f"{name} does nothing in .env"


def test_only_the_settings_read_the_environment() -> None:
    readers = {
        str(file.relative_to(PROJECT_ROOT))
        for file in (PROJECT_ROOT / "app").rglob("*.py")
        if re.search(
            r"\bos\.(environ|getenv)\b|from os import .*\b(environ|getenv)\b", file.read_text(encoding="utf-8")
        )
    }
    assert readers == {"app/settings.py"}


def test_a_store_without_a_password_gets_that_of_postgres() -> None:
    settings = Settings.load(
        {
            "POSTGRES_PASSWORD": "p@ss/word",
            "JOBSTORE_URL": "postgresql://whalefall@postgres/whalefall",
            "DATABASE_URL": "postgresql://other:own@elsewhere/app",
        }
    )
    assert settings.jobstore_url == "postgresql+psycopg://whalefall:p%40ss%2Fword@postgres/whalefall"
    assert settings.database_url == "postgresql+psycopg://other:own@elsewhere/app"
    assert "p%40ss" not in repr(settings)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://valkey:6379/0", "redis://:b%40d@valkey:6379/0"),
        ("redis://:@valkey:6379/0", "redis://:b%40d@valkey:6379/0"),
        ("redis://:own@valkey:6379/0", "redis://:own@valkey:6379/0"),
        ("amqp://user@rabbit:5672//", "amqp://user:b%40d@rabbit:5672//"),
        ("redis://one;redis://two", "redis://:b%40d@one;redis://:b%40d@two"),
        ("", ""),
    ],
)
def test_a_broker_without_a_password_gets_its_own(tmp_path: Path, url: str, expected: str) -> None:
    file = tmp_path / "valkey_password"
    file.write_text("b@d\n")
    settings = Settings.load({"BROKER_PASSWORD_FILE": str(file), "CELERY_BROKER_URL": url})
    assert settings.celery_broker_url == expected


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "http://broker",
        "redis://",
        "redis://:secret@/0",
        "redis://host:port/0",
        "redis://one;two",
        "amqp://[/",
    ],
)
def test_a_broker_that_there_cannot_be_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match=r"CELERY_BROKER_URL is .*; accepted: redis://host") as refusal:
        Settings.load({"CELERY_BROKER_URL": url})
    assert "secret" not in str(refusal.value)


def test_a_password_is_not_needed_but_its_file_must_be_readable() -> None:
    secrets = dict.fromkeys(SECRET_NAMES, "x")
    Settings.load(secrets).require_secrets()
    settings = Settings.load(secrets | {"POSTGRES_PASSWORD_FILE": "/nowhere"})
    with pytest.raises(SettingsError, match=r"POSTGRES_PASSWORD_FILE is '/nowhere'; accepted: a readable"):
        settings.require_secrets()
