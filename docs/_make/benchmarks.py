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
    entries: dict[str, Entry] = {}
    for path in sorted(folder.glob("*.json")):
        entries |= json.loads(path.read_text(encoding="utf-8"))
    return entries


def tables(entries: Mapping[str, Entry]) -> dict[str, str]:
    """The text between the page's marks."""
    return {"figures": figures(entries), "details": details(entries), "machines": machines(entries)}


def figures(entries: Mapping[str, Entry]) -> str:
    rows = ["| what | measured | script |", "|---|---|---|"]
    for name, claim in CLAIMS.items():
        entry = entries.get(name)
        measured = Spread(**entry["figure"]).text(claim.unit) if entry else NOTHING
        rows.append(f"| {claim.text} | {measured} | `{claim.script}.py` |")
    return "\n".join(rows)


def details(entries: Mapping[str, Entry]) -> str:
    parts = [part for name, claim in CLAIMS.items() for part in _details(claim, entries.get(name))]
    return "\n".join(parts) or NOTHING


def _details(claim: Claim, entry: Entry | None) -> Iterator[str]:
    if entry is None or not (entry["seconds"] or entry["notes"]):
        return
    yield f"- {claim.text}"
    for what, seconds in entry["seconds"].items():
        yield f"  - {what}: {Spread(**seconds).text('s')}"
    for what, value in entry["notes"].items():
        yield f"  - {what}: {value:.3g}" if isinstance(value, float) else f"  - {what}: {value}"


def machines(entries: Mapping[str, Entry]) -> str:
    rows = ["| taken | command | processor | threads | load before | torch | allocator |"]
    rows.append("|---|---|---|---|---|---|---|")
    lines: list[str] = []
    for entry in entries.values():
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
