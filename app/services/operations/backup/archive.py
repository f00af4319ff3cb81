"""A backup as one stream: a tar of its few files, to leave this volume and to come back.

A backup that came from outside is kept apart from those of this volume, in userdata/restores/, until it was restored:
the retention does not know it.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import IO

from app.services.operations.backup.backups import MANIFEST, SUMS, Backup, verify_backup
from app.services.operations.failure import OperationFailed
from app.services.operations.stores.files import new_folder, stamp, utc_now
from app.settings import Settings

_INCOMING = "incoming-"
_MOST_FILES = 10
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}")
_STALE_AFTER = timedelta(days=1)
_PIECE = 1 << 20


def restores_folder(settings: Settings) -> Path:
    """Where restores keep what is theirs: backups that came from outside, and the record of the last restore."""
    return settings.userdata_dir / "restores"


def send_backup(backup: Backup, stream: IO[bytes]) -> None:
    """Writes the backup as a tar, the manifest first; BrokenPipeError when nobody reads to the end."""
    names = [MANIFEST, SUMS, *(store.file for store in backup.manifest.stores.values())]
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            if (backup.path / name).exists():  # a backup of the first release has no sums
                archive.add(backup.path / name, f"{backup.path.name}/{name}", recursive=False, filter=_anonymous)


def receive_backup(settings: Settings, stream: IO[bytes], *, check: Callable[[Path], Backup] = verify_backup) -> Backup:
    """Takes a backup from a tar, compressed or not, into a folder of its own below `restores_folder`, and checks it.

    OperationFailed, with nothing kept, for anything that is not one whole backup, and what `check` raises. Only plain
    files of one folder are taken; no name leads out of it.
    """
    folder = restores_folder(settings)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    forget_stale(settings)
    target = new_folder(folder, _INCOMING + stamp(utc_now()))
    try:
        try:
            _unpack(stream, target)
        except (tarfile.TarError, EOFError) as error:
            raise OperationFailed(f"what came in is no whole tar archive: {error}") from error
        return check(target)
    except BaseException as error:
        shutil.rmtree(target, ignore_errors=True)  # the first error is the one to tell
        if isinstance(error, OSError):
            raise OperationFailed(f"the backup could not be taken in at {folder}: {error}") from error
        raise


def is_incoming(settings: Settings, path: Path) -> bool:
    """Whether the backup at `path` came from outside for a restore."""
    return path.parent == restores_folder(settings) and path.name.startswith(_INCOMING)


def forget_received(settings: Settings, path: Path) -> None:
    """Removes a backup that came in for a restore; OperationFailed for any other folder."""
    if not is_incoming(settings, path):
        raise OperationFailed(f"{path} is no backup that was taken in for a restore; nothing was removed")
    shutil.rmtree(path, ignore_errors=True)


def forget_stale(settings: Settings) -> None:
    """Removes what came in for a restore that never took place, some time ago."""
    oldest = (utc_now() - _STALE_AFTER).timestamp()
    for path in restores_folder(settings).glob(f"{_INCOMING}*"):
        if path.stat().st_mtime < oldest:
            shutil.rmtree(path, ignore_errors=True)  # another restore may be removing it at the same time


def _unpack(stream: IO[bytes], target: Path) -> None:
    taken: set[str] = set()
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        for member in archive:
            if member.isdir():
                continue
            path = PurePosixPath(member.name)
            if not member.isfile() or len(path.parts) > 2 or not _FILE_NAME.fullmatch(path.name):
                raise OperationFailed(f"the archive holds {member.name!r}, which belongs to no backup")
            if path.name in taken or len(taken) == _MOST_FILES:
                raise OperationFailed(f"the archive holds more than one backup ({member.name!r})")
            taken.add(path.name)
            _take(archive, member, target / path.name)
    if MANIFEST not in taken:
        raise OperationFailed(f"the archive is no backup: it holds no {MANIFEST}")


def _take(archive: tarfile.TarFile, member: tarfile.TarInfo, file: Path) -> None:
    source = archive.extractfile(member)
    if source is None:
        raise OperationFailed(f"the archive holds {member.name!r}, which belongs to no backup")
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        shutil.copyfileobj(source, out, _PIECE)
        out.flush()
        os.fsync(out.fileno())


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the container's user, whose number means somebody else on the host."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
