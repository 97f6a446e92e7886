"""Whether ratios got worse: a quick run now beside the committed figures.

    python benchmarks/regression.py [SCRIPT ...]     # heatmaps, floor and scale unless named

Ratios of times taken in the same minute are compared, never times. One is worse where it misses the
committed median by more than 10 %, or by more than three times the distance of the committed
quartiles, whichever is wider. Exit code 1 with a line for each that is; a figure that was never
committed is named and passes. For a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import RESULTS
from claims import CLAIMS
from processes import alone

USUAL = ("heatmaps", "floor", "scale")
LEAST, QUARTILES = 0.10, 3  # share of the median; widths of the middle half


def tolerance(committed: Mapping[str, Any]) -> float:
    """Share of the committed median that a fresh one may be worse by."""
    figure = committed["figure"]
    width: float = (figure["upper"] - figure["lower"]) / abs(figure["median"])
    return max(LEAST, QUARTILES * width)


def verdicts(
    committed: Mapping[str, Mapping[str, Any]], fresh: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], list[str]]:
    """A line for each claim that holds or cannot be compared, and for each that got worse."""
    fine: list[str] = []
    bad: list[str] = []
    for name, entry in fresh.items():
        claim = CLAIMS[name]
        if not claim.timed:
            continue
        now = entry["figure"]["median"]
        if name not in committed:
            fine.append(f"{name}: {now:.3g}, nothing committed to compare with")
            continue
        before = committed[name]["figure"]["median"]
        worse, allowed = claim.worse(now, before), tolerance(committed[name])
        line = (
            f"{name}: {now:.3g}, committed {before:.3g}; {worse:+.0%} worse, allowed {allowed:.0%}"
        )
        (bad if not worse <= allowed else fine).append(line)
    return fine, bad


def load(folder: Path, script: str) -> dict[str, Any]:
    """Figures of a script in a folder, by claim; none where there is no file."""
    path = folder / f"{script}.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found


def main() -> None:
    """Run, compare, say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = sorted({claim.script for claim in CLAIMS.values() if claim.timed})
    parser.add_argument("scripts", nargs="*", choices=[*known, []], default=[])
    given = parser.parse_args()
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for script in given.scripts or USUAL:
            print(f"{script}: a quick run", flush=True)
            alone(str(Path(__file__).with_name(f"{script}.py")), "--quick", "--out", folder)
            fine, worse = verdicts(load(RESULTS, script), load(Path(folder), script))
            print("\n".join([*fine, *(f"WORSE {line}" for line in worse)]), flush=True)
            bad += worse
    if bad:
        sys.exit(f"{len(bad)} of the ratios got worse: {'; '.join(bad)}")


if __name__ == "__main__":
    main()
