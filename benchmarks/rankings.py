"""Whether bfloat16 ranks as float32 does: one study at both, table by table.

    python benchmarks/rankings.py [--tiles N] [--quick]

The shared network on the tiles of WHU's test part that show the class; five methods, two layers,
three thresholds, two areas, the fill that is valid for this network. Counted are pairs whose means
over the tiles stand in another order, in every cell of task 1, in the IoU drop of task 2 and, of
layers, in task 3. Asked: none. Beside it, how near in float32 those stood that changed places, and
whether any rank with its ties differs.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench import Figure, options, parsed, report
from segproof import FolderDataset, Results, Study, load_model
from segproof.models.precision import keep_blocks
from subjects import LITE0, first

LAYERS = ("decoder.blocks.3", "decoder.blocks.4")
SWEPT = ["layer", "binarisation", "level", "strategy", "reference", "fill"]
RANKED = ["binarisation", "reference", "fill"]


def swapped(exact: pd.DataFrame, fast: pd.DataFrame, cell: list[str]) -> tuple[int, int, float]:
    """Pairs of lines in one cell whose means change places, all pairs, and the greatest difference
    in `exact` of one that does. A tie in one table alone counts as a change.
    """
    key = [*cell, *(name for name in ("layer", "method") if name not in cell)]
    both = exact[[*key, "mean"]].merge(fast[[*key, "mean"]], on=key, suffixes=("", "_fast"))
    changed = pairs = 0
    gap = 0.0
    for _, group in both.dropna().groupby(cell, sort=False):
        lines = group[["mean", "mean_fast"]].to_numpy(float)
        for one, other in itertools.combinations(lines, 2):
            pairs += 1
            before, after = np.sign(one - other)
            if before != after:
                changed += 1
                gap = max(gap, abs(float(one[0] - other[0])))
    return changed, pairs, gap


def by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """Task 3 as lines of one layer each, so that a pair is two layers of one method."""
    sides: list[pd.DataFrame] = []
    keys = ["measure", "reference", "fill", "method"]
    for side in ("a", "b"):
        named = {f"layer_{side}": "layer", f"mean_{side}": "mean"}
        sides.append(table[[*keys, *named]].rename(columns=named))
    return pd.concat(sides, ignore_index=True).drop_duplicates([*keys, "layer"])


def methods(table: pd.DataFrame) -> pd.DataFrame:
    """Without the controls."""
    return table[table["layer"] != ""]


def figures(exact: Results, fast: Results) -> list[Figure]:
    """A claim for each task."""
    tables = {
        "1": (methods(exact.sweep()), methods(fast.sweep()), SWEPT),
        "2": (methods(exact.faithfulness()), methods(fast.faithfulness()), RANKED),
        "3": (
            by_layer(exact.layers()), by_layer(fast.layers()),
            ["measure", "reference", "fill", "method"],
        ),
    }  # fmt: skip
    same = {
        "1": agree(exact.best(), fast.best(), SWEPT, best_group),
        "2": agree(tables["2"][0], tables["2"][1], [*RANKED, "layer", "method"], "rank"),
        "3": agree(
            exact.layers(), fast.layers(),
            ["measure", "reference", "fill", "method", "layer_a", "layer_b"], "better",
        ),
    }  # fmt: skip
    found = []
    for task, (ours, other, cell) in tables.items():
        changed, pairs, gap = swapped(ours, other, cell)
        notes: dict[str, Any] = {"pairs": pairs, "greatest difference of such a pair": gap}
        notes["ranks with their ties that differ"] = same[task]
        notes["tiles"] = int((exact.tiles["status"] == "ok").sum())
        notes["kernels"] = fast.manifest["kernels"]["taken"]
        found.append(Figure(f"rankings-{task}", [changed], notes=notes))
    return found


def best_group(line: Any) -> frozenset[str]:
    """The best method of a cell and those that are not distinguishable from it."""
    return frozenset([line["best"], *str(line["tied"]).split(", ")])


def agree(exact: pd.DataFrame, fast: pd.DataFrame, key: list[str], value: Any) -> int:
    """In how many lines of two tables a value, a column or a function of the line, differs."""

    def read(table: pd.DataFrame) -> dict[tuple[Any, ...], Any]:
        return {
            tuple(line[name] for name in key): value(line) if callable(value) else line[value]
            for line in table.to_dict("records")
        }

    ours, other = read(exact), read(fast)
    return sum(ours[k] != other.get(k) and ours[k] == ours[k] for k in ours)  # NaN: not ranked


def main() -> None:
    """Measure, print and write."""
    parser = options(__doc__, repeats=1)
    parser.set_defaults(tiles=7)
    given = parsed(parser)
    if not (given.shared / LITE0).is_dir():
        raise SystemExit(f"no {given.shared / LITE0}; this needs the shared network: --shared DIR")
    keep_blocks()
    model = load_model(f"smp:{given.shared / LITE0}")
    tiles = first(FolderDataset(given.shared / "whu" / "test"), 2 if given.quick else given.tiles)
    found: dict[str, Results] = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("float32", "bfloat16"):
            study = Study.of(
                **{"model": "lite0", "data": "tiles", "class": "building"}, layers=LAYERS,
                thresholds=(0.1, 0.3, 0.5), areas=(0.1, 0.2), fills=("background_texture",),
                controls=(), precision=precision,
            )  # fmt: skip
            print(f"{precision}, {len(tiles)} tiles")
            out = Path(folder) / precision
            found[precision] = study.run(out, model=model, data=tiles, progress=told)
        report("rankings", figures(found["float32"], found["bfloat16"]), given)


def told(done: int, tiles: int, forwards: int) -> None:
    """One line, renewed."""
    print(f"\r{done} of {tiles} tiles, {forwards} forwards", end="\n" if done == tiles else "")


if __name__ == "__main__":
    main()
