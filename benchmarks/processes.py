"""Memory of processes of their own: peaks and what is resident, bytes (Linux)."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["MB", "alone", "high_water", "own_peak", "peak_of", "reset_high_water", "resident"]

MB: Final = 1_000_000
KIB: Final = 1024
SELF: Final = Path("/proc/self")


def alone(script: str, *arguments: str) -> str:
    """What a script prints in a new process.

    Raises:
        SystemExit: it failed; its messages are shown.
    """
    made = subprocess.run(  # noqa: S603 - a script of this folder
        [sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    if made.returncode:
        raise SystemExit(f"{Path(script).name} {' '.join(arguments)} failed, {made.returncode}")
    return made.stdout.strip()


def peak_of(command: Sequence[str]) -> int:
    """Peak resident memory of a command, its children left out.

    Raises:
        SystemExit: it failed.
    """
    made = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 - our own command
    _, status, used = os.wait4(made.pid, 0)
    made.returncode = os.waitstatus_to_exitcode(status)
    if made.returncode:
        raise SystemExit(f"{' '.join(command)} failed, {made.returncode}")
    return used.ru_maxrss * KIB


def own_peak() -> int:
    """Greatest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


def reset_high_water() -> None:
    """Let `high_water` count anew, from what is in use: free blocks go back first."""
    ctypes.CDLL(None).malloc_trim(0)
    (SELF / "clear_refs").write_text("5", encoding="ascii")


def high_water() -> int:
    """Greatest resident memory of this process since `reset_high_water`."""
    return _status("VmHWM")


def resident() -> int:
    """Resident memory of this process now, free blocks handed back."""
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in (SELF / "status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * KIB
    raise SystemExit(f"no {name} in {SELF / 'status'}; this needs Linux")
