"""The archive of a machine whose app cannot start, and of one that works: masked, and nothing of `secrets/` in it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping

import pytest

from app.ledger import NewJob
from app.runtime import Runtime
from app.services.operations.support.bundle import write_bundle
from app.triggers import parse_trigger

EVERY_NIGHT = parse_trigger({"trigger_type": "cron", "cron_expression": "0 1 * * *"}, default_timezone="UTC").spec


def bundle_of(host: Mapping[str, str]) -> dict[str, str]:
    source, target = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=source, mode="w") as archive:
        for name, text in host.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    source.seek(0)
    write_bundle(source, target)
    target.seek(0)
    with tarfile.open(fileobj=target, mode="r:gz") as archive:
        found = {member.name: archive.extractfile(member) for member in archive}
        return {name.removeprefix("whalefall-support/"): file.read().decode() for name, file in found.items() if file}


def test_an_app_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "LOUD")
    inspected = [{"Config": {"Env": ["SMTP_PASSWORD=of-the-container", "PATH=/usr/bin"]}}]
    held = bundle_of(
        {
            "secrets/1": "of-a-file\n",
            "env.txt": "# a comment\nALERT_WEBHOOK_URL='https://hooks.invalid/of-the-env-file'\n",
            "inspect.json": json.dumps(inspected),
            "logs/one.log": "of-a-file, of-the-container and of-the-env-file, in a log; GET / 200\n",
        }
    )
    assert held["host/logs/one.log"] == "***, *** and ***, in a log; GET / 200\n"
    assert not any(name.startswith("secrets") or "/secrets" in name for name in held)
    assert "LOG_LEVEL is 'LOUD'" in held["app/problems.txt"]
    assert "PATH=/usr/bin" in held["host/inspect.json"]
    for text in held.values():
        for secret in ("of-a-file", "of-the-container", "of-the-env-file"):
            assert secret not in text


def test_an_app_that_works(runtime: Runtime, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    job = NewJob(id="nightly", task="copy", trigger=EVERY_NIGHT, kwargs={"to": "/srv", "password": "of-a-parameter"})
    runtime.ledger.add_job(job, by="test")
    runtime.settings.userdata_dir.joinpath("databases.yaml").write_text("instances: [{password: of-an-instance}]\n")
    held = bundle_of({"logs/one.log": "of-a-parameter of-an-instance token-of-the-tests"})
    assert held["host/logs/one.log"] == "*** *** ***"
    (told,) = json.loads(held["app/jobs.json"])
    assert told["id"] == "nightly"
    assert told["kwargs_names"] == ["password", "to"]
    assert "api_token is set" in held["app/settings.txt"]
    assert json.loads(held["app/status.json"])["problems"]
    assert "app/problems.txt" not in held


def test_a_store_that_cannot_be_read(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    held = bundle_of({})
    assert "the job store was not read" in held["app/problems.txt"]
    assert "app/jobs.json" not in held
