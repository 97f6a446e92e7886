"""How much of a finished study would have been enough: `--until-decided` on its own rows.

    python benchmarks/decided.py RUN [--orders 20]

RUN is a folder of a whole study. For each question and margin: in how many of the random orders it
was decided before the last tile, after how many tiles and with what share of the forwards (medians
of all orders; undecided ones need all), and how often a `best` was named that the whole study puts
behind another one by the margin or more.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

from segproof import Results, StopRule
from segproof.analysis import Analysis
from segproof.choices import ASKED
from segproof.study.early_stop import EarlyStop, shuffled

MARGINS = (0.02, 0.05, 0.1)


def main() -> None:
    """Follow the run in random orders and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--orders", type=int, default=20)
    given = parser.parse_args()
    run = Results.load(given.run).finished()
    parts = dict(iter(run.rows.groupby("sample", sort=False)))
    nothing = run.rows.iloc[:0]
    rows = [parts.get(name, nothing) for name in run.tiles["sample"]]
    forwards = run.tiles["forwards"].to_numpy()
    means = Analysis(run.rows, run.preset).ranking.set_index(["layer", "method"])["mean"]
    print(f"{len(rows)} tiles, {forwards.sum()} forwards, {len(means)} candidates")
    for asked in ASKED:
        for margin in MARGINS:
            seen, shares, decided, wrong = [], [], 0, 0
            for seed in range(given.orders):
                order = shuffled(len(rows), seed)
                watch = EarlyStop(StopRule(asked, margin), order, run.preset)
                for position in order:
                    if watch.decided:
                        break
                    watch.add(position, rows[position])
                leader = tuple(watch.record()["leader"].values())
                seen.append(watch.seen)
                shares.append(float(forwards[watch.beginning].sum() / forwards.sum()))
                decided += watch.decided
                wrong += watch.decided and bool(means.max() - means[leader] >= margin)
            text = f"{asked}, margin {margin:g}: decided in {decided} of {given.orders} orders"
            text += f", {median(seen):g} tiles, {median(shares):.0%} of the forwards"
            print(text + (f", {wrong} wrong" if asked == "best" else ""))


if __name__ == "__main__":
    main()
