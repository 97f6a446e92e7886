"""Renew the tables of benchmarks.md from benchmarks/results/*.json.

python docs/_make/benchmarks.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from page import renew

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from bench import RESULTS, Spread  # noqa: E402
from claims import CLAIMS, Claim  # noqa: E402

PAGE = Path(__file__).resolve().parents[1] / "evidence" / "benchmarks.md"
NOTHING = "not measured yet"
Entry = Mapping[str, Any]


def committed(folder: Path = RESULTS) -> dict[str, Entry]:
    """Every figure there is, by claim."""
    found: dict[str, Entry] = {}
    for path in sorted(folder.glob("*.json")):
        found |= json.loads(path.read_text(encoding="utf-8"))
    return found


def tables(found: Mapping[str, Entry]) -> dict[str, str]:
    """The text between the page's marks."""
    return {"asked": asked(found), "beside": beside(found), "machines": machines(found)}


def asked(found: Mapping[str, Entry]) -> str:
    rows = ["| | asked | found | |", "|---|---|---|---|"]
    for name, claim in CLAIMS.items():
        figure, verdict = NOTHING, ""
        if name in found:
            figure = Spread(**found[name]["figure"]).text(claim.unit)
            verdict = "reached" if found[name]["reached"] else "**not reached**"
        rows.append(f"| {claim.text} | {claim.asked} | {figure} | {verdict} |")
    return "\n".join(rows)


def beside(found: Mapping[str, Entry]) -> str:
    parts = [part for name, claim in CLAIMS.items() for part in _beside(claim, found.get(name))]
    return "\n".join(parts) or NOTHING


def _beside(claim: Claim, entry: Entry | None) -> Iterator[str]:
    if entry is None or not (entry["seconds"] or entry["notes"]):
        return
    yield f"- {claim.text}"
    for what, seconds in entry["seconds"].items():
        yield f"  - {what}: {Spread(**seconds).text('s')}"
    for what, value in entry["notes"].items():
        yield f"  - {what}: {value:.3g}" if isinstance(value, float) else f"  - {what}: {value}"


def machines(found: Mapping[str, Entry]) -> str:
    rows = ["| taken | command | processor | threads | load before | torch | allocator |"]
    rows.append("|---|---|---|---|---|---|---|")
    lines: list[str] = []
    for entry in found.values():
        at = entry["machine"]
        cells = [
            entry["taken"][:10],
            f"`{entry['command']}`",
            at["processor"],
            f"{at['threads']} of {at['cores']} cores",
            f"{at['load']:.1f}",
            at["versions"]["torch"],
            at["allocator"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*rows, *dict.fromkeys(lines)]) if lines else NOTHING


def main() -> None:
    renew(PAGE, tables(committed()))


if __name__ == "__main__":
    main()
