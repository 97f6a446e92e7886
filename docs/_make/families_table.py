"""Write the table of reference/families.md: every layer of every family beside its peer.

PYTHONPATH=src:tests/support python docs/_make/families_table.py
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from page import renew

from families import FAMILIES
from gradients import Compared, compare

PAGE = Path(__file__).resolve().parents[1] / "reference" / "families.md"


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of packages, on options of their own
    rows = [
        "| network | size (px) | layers | read as | decided | lowest cosine | calls equal |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, family in FAMILIES.items():
        for size in family.sizes:
            found = compare(name, size)
            rows.append(f"| {name} | {size[0]} x {size[1]} | {len(found)} | {_row(found)} |")
            print(rows[-1], flush=True)
    renew(PAGE, {"families": "\n".join(rows)})


def _row(found: list[Compared]) -> str:
    axes = sorted({one.axes.split(" after")[0].rstrip("0123456789 x") for one in found})
    decided = sorted({one.decided for one in found})
    lowest = min(min(one.cosine, one.maps) for one in found)
    # rounded down: a cosine below 1 is not shown as 1
    shown = f"{min(lowest, 1.0) * 1e8 // 1 / 1e8:.8f}"
    same = "yes" if all(one.same for one in found) else "no"
    return f"{', '.join(axes)} | {', '.join(decided)} | {shown} | {same}"


if __name__ == "__main__":
    main()
