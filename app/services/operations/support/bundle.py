"""The support archive: what the host gathered and what the app knows, in one tar.gz without secrets.

The host's part comes as a tar. Its members below `secrets/` are secrets to be masked and are not passed on. Raw data is
kept in memory alone.
"""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import timedelta
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import yaml
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from app.db.engines import read_transaction
from app.db.jobstore_tables import jobs, runs
from app.db.reach import public_url
from app.errors import DomainError
from app.inventory.instances import InstancesFileError, ServerInstance, load_instances
from app.repositories.runs_repository import RunsRepository
from app.runtime import Runtime
from app.secret_files import present_secret
from app.services.operations.doctor.doctor import opened
from app.services.operations.stores.state import check_databases
from app.services.operations.support.masking import Masker, is_secret_name, secrets_among
from app.services.scheduler.scheduler_status_read_service import SchedulerStatusReadService
from app.settings import Settings, SettingsError
from app.version import VERSION

SECRETS = "secrets/"
KWARGS_LOOKED_AT = 20_000
"""Of so many of the newest runs the parameters are searched for secrets: logs do not reach further back."""
ALARMS_SINCE = timedelta(days=7)
ALARMS = 200
LARGEST_MEMBER = 64 << 20
INSTANCES_FILE = "databases.yaml"


def write_bundle(source: BinaryIO, target: BinaryIO) -> None:
    """Reads the host's tar from `source`, adds what this process can see, masks all of it, writes it to `target`.

    What cannot be had, because the settings or the stores are broken, is told in `app/problems.txt`.
    """
    gathered, secrets = _read_host(source)
    own, problems = {}, []
    try:
        settings = Settings.load()
        secrets |= _secrets_of_settings(settings)
        states = check_databases(settings)
        own["app/stores.json"] = _as_json([state.as_json() for state in states])
        if states[0].problem:  # nothing can be read from it, and a missing file must not be made
            problems.append(f"the job store was not read, nor searched for secrets: {states[0].problem}")
        else:
            with opened(settings) as runtime:
                secrets |= _secrets_of_jobs(runtime)
                for name, read in (("status", _status), ("jobs", _jobs), ("alarms", _alarms)):
                    own[f"app/{name}.json"] = _as_json(read(runtime))
        secrets |= _secrets_of_instances(settings)
        own["app/settings.txt"] = "".join(_setting_lines(settings)).encode()
    except SettingsError as error:
        problems.append(f"settings: {error}")
    except (SQLAlchemyError, DomainError) as error:
        problems.append(f"the job store could not be read to its end: {error}")
    own["app/version.txt"] = f"{VERSION}\n".encode()
    if problems:
        own["app/problems.txt"] = "".join(f"{problem}\n" for problem in problems).encode()
    masker = Masker(secrets)
    with tarfile.open(fileobj=target, mode="w|gz") as archive:
        for name, content in sorted({**gathered, **own}.items()):
            masked = masker.mask(content.decode("utf-8", "backslashreplace")).encode()
            member = tarfile.TarInfo(f"whalefall-support/{masker.mask(name)}")
            member.size, member.mtime, member.mode = len(masked), int(time.time()), 0o600
            archive.addfile(member, io.BytesIO(masked))


def _read_host(source: BinaryIO) -> tuple[dict[str, bytes], set[str]]:
    gathered: dict[str, bytes] = {}
    secrets: set[str] = set()
    with tarfile.open(fileobj=source, mode="r|") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is None:  # a folder
                continue
            name = member.name.removeprefix("./")
            held = content.read(LARGEST_MEMBER)
            if name.startswith(SECRETS):
                secrets.add(held.decode("utf-8", "replace").strip())
            else:
                gathered[f"host/{name}"] = held
    for name, held in gathered.items():
        if name == "host/env.txt":
            lines = held.decode("utf-8", "replace").splitlines()
            pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
            secrets |= _secrets_of_environment({key.strip(): value.strip(" \"'") for key, _, value in pairs})
        elif name == "host/inspect.json":
            secrets |= _secrets_of_containers(held)
    return gathered, secrets


def _secrets_of_containers(inspected: bytes) -> set[str]:
    try:
        found = json.loads(inspected)
    except ValueError:
        return set()
    secrets: set[str] = set()
    for container in found if isinstance(found, list) else ():
        pairs = (entry.partition("=") for entry in container.get("Config", {}).get("Env") or ())
        secrets |= _secrets_of_environment({name: value for name, _, value in pairs})
    return secrets


def _secrets_of_environment(environment: Mapping[str, str]) -> set[str]:
    found = {value for name, value in environment.items() if value and is_secret_name(name)}
    for value in environment.values():
        found |= _password_in(value)
    return found


def _password_in(url: str) -> set[str]:
    try:
        password = urlsplit(url).password
    except ValueError:
        return set()
    return {password} if password else set()


def _secrets_of_settings(settings: Settings) -> set[str]:
    hidden = [getattr(settings, field.name) for field in fields(settings) if not field.repr]
    urls = (settings.jobstore_url, settings.database_url, *settings.celery_broker_url.split(";"))
    found = {value for value in hidden if isinstance(value, str) and value} - {*urls, settings.celery_broker_url}
    for url in urls:
        found |= _password_in(url)
    for file in settings.secret_files.values():
        if held := present_secret(file, None):  # it may be another one than the process started with
            found.add(held)
    return found


def _secrets_of_jobs(runtime: Runtime) -> set[str]:
    newest = select(runs.c.kwargs).order_by(runs.c.run_id.desc()).limit(KWARGS_LOOKED_AT).subquery()
    found: set[str] = set()
    with read_transaction(runtime.jobstore) as connection:
        texts = set(connection.execute(select(jobs.c.kwargs)).scalars())
        texts |= set(connection.execute(select(newest.c.kwargs).distinct()).scalars())
        found |= {url for url in connection.execute(select(jobs.c.ping_url)).scalars() if url}
    for text in texts:
        try:
            found |= secrets_among(json.loads(text))
        except ValueError:  # a damaged row; patterns have to do
            continue
    return found


def _secrets_of_instances(settings: Settings) -> set[str]:
    file = settings.userdata_dir / INSTANCES_FILE
    found: set[str] = set()
    try:
        found |= secrets_among(yaml.safe_load(file.read_text(encoding="utf-8")))
        instances = load_instances(file)
    except (OSError, ValueError, yaml.YAMLError, InstancesFileError):
        return found
    for instance in instances:
        if isinstance(instance, ServerInstance):
            try:
                found.add(instance.read_password())
            except (OSError, ValueError, InstancesFileError):  # the file is gone: nothing to give away
                continue
    return found


def _setting_lines(settings: Settings) -> Iterator[str]:
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name in ("jobstore_url", "database_url"):
            yield f"{field.name}: {public_url(value)}\n"
        elif field.repr:
            yield f"{field.name}: {value}\n"
        else:
            yield f"{field.name} is {'set' if value else 'not set'}\n"  # no colon: it would be masked


def _as_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, default=str, indent=1).encode()


def _status(runtime: Runtime) -> Any:
    return SchedulerStatusReadService(runtime, language="en").status().model_dump(mode="json")


def _jobs(runtime: Runtime) -> Any:
    """Every job but for its parameters, of which only the names are told."""
    shown = [column for column in jobs.c if column.name not in ("kwargs", "ping_url")]
    with read_transaction(runtime.jobstore) as connection:
        found = [dict(row) for row in connection.execute(select(*shown).order_by(jobs.c.id)).mappings()]
        texts = {row.id: row.kwargs for row in connection.execute(select(jobs.c.id, jobs.c.kwargs))}
    for job in found:
        job["kwargs_names"] = _names_in(texts.get(job["id"], ""))
    return found


def _names_in(kwargs: str) -> list[str]:
    try:
        read = json.loads(kwargs)
    except ValueError:
        return []
    return sorted(read) if isinstance(read, dict) else []


def _alarms(runtime: Runtime) -> Any:
    found = RunsRepository(runtime.jobstore).alarming(runtime.ledger.now() - ALARMS_SINCE, limit=ALARMS)
    wanted = ("run_id", "job_id", "kind", "scheduled_for", "count", "outcome", "reason", "error", "node", "started_at")
    return [{name: getattr(run, name) for name in wanted} for run in found]
