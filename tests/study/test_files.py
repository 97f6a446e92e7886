"""The files of a run folder: whole or not at all, and one writer at a time."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from segproof import StudyError
from segproof.study.files import check_writable, in_use, lock_folder, write_atomic

HOLDER = """
import sys, time
from pathlib import Path
from segproof.study.files import lock_folder
held = lock_folder(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("old")

    def broken(stream: BinaryIO) -> None:
        stream.write(b"new")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomic(path, broken)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["results.csv"]


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert in_use(tmp_path)
        with pytest.raises(StudyError, match="in use by another process"):
            check_writable(tmp_path)
        with pytest.raises(StudyError, match="in use by another process"):
            lock_folder(tmp_path)
        holder.kill()
    assert (tmp_path / ".lock").is_file()
    assert not in_use(tmp_path)
    check_writable(tmp_path)
    lock_folder(tmp_path).close()


def test_the_lock_is_waited_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`status` holds it for so long: the writer comes through once it lets go."""
    other = lock_folder(tmp_path)
    waits: list[float] = []

    def let_go(seconds: float) -> None:
        waits.append(seconds)
        other.close()

    monkeypatch.setattr(time, "sleep", let_go)
    lock_folder(tmp_path).close()
    assert len(waits) == 1
