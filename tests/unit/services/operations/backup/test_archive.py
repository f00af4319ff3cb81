"""A backup leaves and comes back as it was; whatever else comes in is refused, and nothing of it is kept."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from app.runtime import Runtime
from app.services.operations.backup.archive import is_incoming, receive_backup, restores_folder, send_backup
from app.services.operations.backup.backups import Backup, back_up
from app.services.operations.failure import OperationFailed


@pytest.fixture
def made(with_defaults: Runtime) -> Backup:
    return back_up(with_defaults.settings, reason="test")


def sent(backup: Backup) -> bytes:
    stream = io.BytesIO()
    send_backup(backup, stream)
    return stream.getvalue()


def tar(members: dict[str, bytes], **changes: object) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in changes.items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(content) if member.isfile() else None)
    return stream.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_sent_comes_back_whole(with_defaults: Runtime, made: Backup) -> None:
    received = receive_backup(with_defaults.settings, io.BytesIO(sent(made)))
    assert contents(received.path) == contents(made.path)
    assert received.manifest == made.manifest
    assert is_incoming(with_defaults.settings, received.path)
    assert not is_incoming(with_defaults.settings, made.path)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_tar_of_the_folder_made_by_hand_is_taken(with_defaults: Runtime, made: Backup, mode: str) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        archive.add(made.path, ".")
    received = receive_backup(with_defaults.settings, io.BytesIO(stream.getvalue()))
    assert contents(received.path) == contents(made.path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.97])
def test_a_truncated_archive_is_refused(with_defaults: Runtime, made: Backup, share: float) -> None:
    whole = sent(made).rstrip(b"\0")
    with pytest.raises(OperationFailed):
        receive_backup(with_defaults.settings, io.BytesIO(whole[: int(len(whole) * share)]))
    assert not list(restores_folder(with_defaults.settings).iterdir())


@pytest.mark.parametrize(
    "stream",
    [
        tar({"../../escape": b"x"}),
        tar({"/etc/passwd": b"x"}),
        tar({"a/b/manifest.json": b"{}"}),
        tar({".hidden": b"x"}),
        tar({"manifest.json": b""}, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        tar({"manifest.json": b""}, type=tarfile.FIFOTYPE),
        tar({"one/manifest.json": b"{}", "two/manifest.json": b"{}"}),
        tar({f"file{number}": b"" for number in range(20)}),
        tar({"scheduler.db": b"x"}),
        tar({"manifest.json": b"{}"}),
        b"no tar at all",
        b"",
    ],
)
def test_anything_but_one_backup_is_refused(with_defaults: Runtime, stream: bytes) -> None:
    with pytest.raises(OperationFailed) as refused:
        receive_backup(with_defaults.settings, io.BytesIO(stream))
    assert "\n" not in str(refused.value)
    assert not list(restores_folder(with_defaults.settings).iterdir())


def test_a_damaged_backup_is_not_taken_in(with_defaults: Runtime, made: Backup, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made.path, copy)
    content = bytearray((copy / "scheduler.db").read_bytes())
    content[len(content) // 2] ^= 4
    (copy / "scheduler.db").write_bytes(content)
    with pytest.raises(OperationFailed, match="sha256"):
        receive_backup(with_defaults.settings, io.BytesIO(sent(Backup(copy, made.manifest))))
    assert not list(restores_folder(with_defaults.settings).iterdir())
