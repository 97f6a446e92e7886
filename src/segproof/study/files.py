"""Guards the files of a run folder: one writer at a time, whole files, a disk with room."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from filelock import lock_descriptor

from segproof.errors import DiskError, StudyError

__all__ = [
    "check_folder",
    "check_writable",
    "disk_errors",
    "in_use",
    "lock_folder",
    "write_atomic",
]

LOCK: Final = ".lock"
TRIAL: Final = 1 << 20  # bytes that a folder has to take before anything is computed
PATIENCE: Final = 0.5  # s that a writer waits: `status` holds the lock for a moment
PAUSE: Final = 0.05  # s between two attempts


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all: temporary file, fsync, replace, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if os.name != "posix":
        return  # Windows opens no folder; NTFS keeps a journal of names itself
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def check_writable(folder: str | Path) -> None:
    """Refuse a run folder that cannot take a run, before any work; nothing is left behind.

    Raises:
        StudyError: a file, a folder of other things, or one that another process writes.
        DiskError: a MiB cannot be written there.
    """
    folder = Path(folder)
    check_folder(folder)
    if in_use(folder):
        raise _busy(folder)
    base = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    with disk_errors(folder), tempfile.TemporaryFile(dir=base) as stream:
        stream.write(bytes(TRIAL))
        stream.flush()
        os.fsync(stream.fileno())


def check_folder(folder: Path) -> None:
    """Refuse a folder that is neither new nor empty nor that of a run.

    Raises:
        StudyError: a file, or a folder with other files in it.
    """
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"a file at {folder}", "a folder", "choose another --out")
    usable = not folder.is_dir() or (folder / "run.db").exists()
    # a run that was killed while it began leaves its lock
    if not usable and any(path.name != LOCK for path in folder.iterdir()):
        raise StudyError(
            f"{folder} with other files in it",
            "a new or empty folder, or a run to resume",
            "choose another --out",
        )


def in_use(folder: str | Path) -> bool:
    """Whether a process writes this run folder now."""
    path = Path(folder) / LOCK
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        if lock_descriptor(stream.fileno(), blocking=False):
            return False  # closing the file gives the lock back
        time.sleep(PAUSE)  # another reader lets go within a moment, a writer does not
        return not lock_descriptor(stream.fileno(), blocking=False)


def lock_folder(folder: Path) -> BinaryIO:
    """Take the lock of a run folder; closing the file, or the end of the process, gives it back.

    Raises:
        StudyError: another process holds it.
    """
    stream = (folder / LOCK).open("wb")
    end = time.monotonic() + PATIENCE
    while not lock_descriptor(stream.fileno(), blocking=False):
        if time.monotonic() > end:
            stream.close()
            raise _busy(folder)
        time.sleep(PAUSE)
    return stream


def _busy(folder: Path) -> StudyError:
    return StudyError(
        f"{folder} in use by another process", "one writer", "wait, or choose another --out"
    )


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what a full, failing or read-only disk answers into one error.

    Raises:
        DiskError: the folder cannot be written.
    """
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        code = getattr(error, "sqlite_errorname", "SQLITE_FULL")
        if not code.startswith(
            ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN")
        ):
            raise
        raise DiskError(
            f"{folder} that cannot be written ({error})",
            "a folder with room for the run",
            "make room or choose another --out; what is finished is stored, and the same command"
            " continues from there",
        ) from error
