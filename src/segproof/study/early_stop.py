"""Decides when enough tiles were studied: compares candidates, valid whenever one stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from segproof.analysis import (
    ALPHA,
    candidates,
    headline,
    headline_measure,
    higher_is_better,
    measure_label,
    method_label,
)
from segproof.choices import ASKED, LEAST, MARGIN, Asked
from segproof.errors import StudyError, UnknownNameError
from segproof.perturb import CONTROLS, control_name

if TYPE_CHECKING:
    from segproof.explain import Preset

__all__ = ["NOTE", "EarlyStop", "Race", "StopRule", "shuffled"]

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Places = npt.NDArray[np.intp]
RIVALS: Final = tuple(control.id for control in CONTROLS.values() if control.rival)
PROCEDURE: Final = (
    "e-process of symmetric paired differences after each tile (vovk2024symmetry, ville1939)"
)
NOTE: Final = (
    "Tiles were drawn until this was decided. The 95 % intervals and p values of the tables are"
    " made for a number of tiles that is fixed beforehand: here they are too narrow and too small."
)


@dataclass(frozen=True)
class StopRule:
    """What a run goes on for: the `best` candidate, the `ranking` of all, or all against the
    `controls`. Differences below `margin` (in the measure's unit) do not count; nothing is
    decided before `least` tiles.

    Raises:
        StudyError, UnknownNameError: values out of range, no such question.
    """

    asked: Asked
    margin: float = MARGIN
    least: int = LEAST

    def __post_init__(self) -> None:
        if self.asked not in ASKED:
            raise UnknownNameError.of("question", self.asked, ASKED)
        if not 0 <= self.margin < 1:
            raise StudyError(f"margin {self.margin:g}", "0 or more, below 1", "pass e.g. 0.02")
        if self.least < 2:
            raise StudyError(f"least {self.least}", "2 tiles or more", "pass e.g. 10")

    def flags(self) -> list[str]:
        """The options of the command line, as far as they are not the default."""
        words = ["--until-decided", self.asked]
        words += [] if self.margin == MARGIN else ["--margin", f"{self.margin:g}"]
        return words + ([] if self.least == LEAST else ["--least", f"{self.least}"])

    def check(self, candidates: int, controls: Sequence[str]) -> None:
        """Refuse a study in which there is nothing to decide.

        Raises:
            StudyError: one candidate alone, or no control to compare with.
        """
        rivals = [control_name(rival) for rival in RIVALS]
        if self.asked == "controls" and not set(rivals) & set(controls):
            raise StudyError(
                "until decided: controls, without one", " or ".join(rivals), "add it to --controls"
            )
        if self.asked != "controls" and candidates < 2:
            raise StudyError(
                f"until decided: {self.asked}, of one candidate",
                "two methods or layers at least",
                "name more",
            )


def shuffled(count: int, seed: int) -> list[int]:
    """The order in which `count` tiles are studied: random, the same for the same seed."""
    order: list[int] = np.random.default_rng([seed, count]).permutation(count).tolist()
    return order


class Race:
    """Claims "candidate i is better than candidate j, or worse by less than a shift", tile by tile.

    The claim c = (i, j, shift) is tested on y_t = x_i - x_j + shift of each tile t that has both:

        E_n = prod_t (1 + tanh(b_t y_t)),  b_t = max(0, sum y) / sum y² · m / (m + 1)

    with the sums over the m tiles before t. Where the claim is false, y symmetric about 0 or a
    number below, no tile makes E grow on average (tanh is odd, b_t known before t), so that E ever
    reaches 1 / a with a probability of at most a: a claim is shown once it did.
    Source: vovk2024symmetry, ville1939.
    """

    def __init__(
        self, first: npt.ArrayLike, second: npt.ArrayLike, shift: npt.ArrayLike, needed: float
    ) -> None:
        self.first: Places = np.asarray(first, dtype=np.intp)
        self.second: Places = np.asarray(second, dtype=np.intp)
        self.shift: Array = np.broadcast_to(
            np.asarray(shift, dtype=np.float64), self.first.shape
        ).copy()
        self.needed = float(np.log(needed))
        self.log_e = np.zeros(len(self.first))
        self.shown: Bools = np.zeros(len(self.first), dtype=np.bool_)
        self._sum, self._squares, self._seen = np.zeros((3, len(self.first)))

    def see(self, values: npt.ArrayLike) -> None:
        """Take in one tile: a value for each candidate, higher is better, NaN: it has none."""
        x = np.asarray(values, dtype=np.float64)
        # Rounding keeps float noise from making equal candidates differ.
        y = np.round(x[self.first] - x[self.second], 12) + self.shift
        there = np.isfinite(y)
        y = np.where(there, y, 0.0)
        bet = np.maximum(self._sum, 0) / np.where(self._squares > 0, self._squares, 1)
        bet *= self._seen / (self._seen + 1)
        self.log_e += np.log(2) - np.logaddexp(0, -2 * bet * y)  # log(1 + tanh(bet y))
        self.shown |= self.log_e >= self.needed
        self._sum += y
        self._squares += y**2
        self._seen += there


class _Best:
    """Who is best: nobody is better than the leader by the margin or more.

    1 / a = k / alpha for k candidates: each of them may come out as the leader, and where that is
    wrong, one of its claims, that against a better candidate, is false.
    """

    def __init__(self, candidates: int, margin: float) -> None:
        self.size = candidates - 1
        first, second = np.nonzero(~np.eye(candidates, dtype=np.bool_))
        self.race = Race(first, second, margin, candidates / ALPHA)

    def open(self, takes_part: Bools, score: Array) -> tuple[int, int]:
        """How many others the leader is not settled against, and which one leads."""
        race = self.race
        unsettled = ~race.shown & takes_part[race.second]
        counts = np.bincount(race.first[unsettled], minlength=len(score))
        counts = np.where(takes_part, counts, len(score))
        leader = int(np.lexsort((-score, counts))[0])
        return int(counts[leader]), leader


class _Pairs:
    """Pairs (i, j) of candidates, each settled once one of its two claims is shown: i against j
    with the first of two shifts, or j against i with the second one. 1 / a = claims / alpha.
    """

    def __init__(self, pairs: Sequence[tuple[int, int]], shifts: tuple[float, float]) -> None:
        i, j = np.asarray(pairs, dtype=np.intp).T
        self.size = len(pairs)
        self.race = Race(
            np.concatenate([i, j]),
            np.concatenate([j, i]),
            np.repeat(shifts, self.size),
            2 * self.size / ALPHA,
        )

    def open(self, takes_part: Bools, score: Array) -> tuple[int, int]:
        """How many pairs are not settled, and the candidate with the best mean."""
        race, half = self.race, slice(self.size)
        settled = race.shown[half] | race.shown[self.size :]
        there = takes_part[race.first[half]] & takes_part[race.second[half]]
        return int((there & ~settled).sum()), int(np.argmax(np.where(takes_part, score, -np.inf)))


class _Contest:
    """What is compared, where and by which measure: fixed on the first tiles, then carried on."""

    def __init__(self, until: StopRule, preset: Preset, rows: pd.DataFrame) -> None:
        self.until, self.preset = until, preset
        self.at = headline(rows)
        self.measure = headline_measure(rows, preset, at=self.at)
        self.names = list(self._found(rows))
        rivals = [k for k, (_, method) in enumerate(self.names) if method in RIVALS]
        self.ours = [k for k in range(len(self.names)) if k not in rivals]
        self.question: _Best | _Pairs
        if until.asked == "best":
            self.question = _Best(len(self.ours), until.margin)
        elif until.asked == "ranking":
            both = (until.margin, until.margin)
            self.question = _Pairs(list(combinations(self.ours, 2)), both)
        else:
            pairs = [(i, j) for j in rivals for i in self.ours]
            self.question = _Pairs(pairs, (0.0, until.margin))
        self._sum, self._count = np.zeros((2, len(self.names)))
        self.see(rows)

    def _found(self, rows: pd.DataFrame) -> dict[tuple[str, str], Array]:
        """Values of the measure by layer and method, one for each tile of `rows`."""
        rivals = RIVALS if self.until.asked == "controls" else ()
        samples = pd.Index(rows["sample"].unique(), dtype=object)
        return candidates(rows, self.measure, self.preset, self.at, samples, rivals)

    def see(self, rows: pd.DataFrame) -> None:
        """Take in the tiles of `rows`, in their order."""
        sign = 1.0 if higher_is_better(self.measure, self.preset) else -1.0
        by_name = self._found(rows)
        missing = np.full(rows["sample"].nunique(), np.nan)
        values = np.stack([by_name.get(name, missing) for name in self.names], axis=1)
        for tile in sign * values:
            self.question.race.see(tile)
            there = np.isfinite(tile)
            self._sum[there] += tile[there]
            self._count += there

    def open(self) -> tuple[int, int]:
        """How much is not settled (others, or pairs), and which candidate leads.

        A candidate with fewer than half of the tiles that the fullest has takes no part.
        """
        takes_part = (2 * self._count >= self._count.max()) & (self._count > 0)
        mean = self._sum / np.maximum(self._count, 1)
        candidate = np.zeros(len(mean), dtype=np.bool_)
        candidate[self.ours] = True
        score = np.where(takes_part & candidate, mean, -np.inf)
        return self.question.open(takes_part, score)

    def name(self, place: int) -> str:
        """A candidate as people write it."""
        layer, method = self.names[place]
        several = len({self.names[k][0] for k in self.ours}) > 1
        return method_label(method) + (f" at {layer}" if several and layer else "")

    def answer(self) -> str:
        """What is decided, in words, where everything is settled."""
        margin, count = f"{self.until.margin:g}", len(self.ours)
        if self.until.asked == "best":
            leader = self.name(self.open()[1])
            if not self.until.margin:
                return f"{leader} is better than the {count - 1} other candidates"
            return f"no candidate is better than {leader} by {margin} or more"
        if self.until.asked == "ranking":
            if not self.until.margin:
                return f"the order of the {count} candidates is settled"
            return (
                f"of each two of the {count} candidates it is known which one is not worse by"
                f" {margin} or more"
            )
        parts = [
            f"{len(names)} of {count} candidates beat {method_label(rival)}"
            for rival, names in self.beaten().items()
        ]
        return f"{' and '.join(parts)}; the others do not by {margin} or more"

    def left(self) -> str:
        """What is not settled, in words."""
        (number, leader), size = self.open(), self.question.size
        if self.until.asked == "best":
            return (
                f"{self.name(leader)} leads, and for {number} of the {size} others it is open"
                f" whether they are better by {self.until.margin:g} or more"
            )
        pairs = "pairs of candidates" if self.until.asked == "ranking" else "comparisons"
        return f"{number} of {size} {pairs} are open"

    def beaten(self) -> dict[str, list[str]]:
        """Which candidates are shown to beat each control."""
        race = self.question.race
        beaten: dict[str, list[str]] = {}
        for i, j, shown in zip(race.first, race.second, race.shown, strict=True):
            if self.names[j][1] in RIVALS:
                beaten.setdefault(self.names[j][1], [])
                if shown:
                    beaten[self.names[j][1]].append(self.name(int(i)))
        return beaten


class EarlyStop:
    """Follows a run in its order and says when what was asked for is decided.

    Tiles may be added as they are finished: complete beginnings of the order alone count, so that
    workers change nothing. Where the headline is read (measure, fill, region) is fixed on the first
    `least` tiles that could be judged, by the controls alone.
    """

    def __init__(self, until: StopRule, order: Sequence[int], preset: Preset) -> None:
        self.until, self.order, self.preset = until, list(order), preset
        self.seen = 0  # tiles at the beginning of the order, judged or not
        self.decided = False
        self._waiting: dict[int, pd.DataFrame] = {}
        self._early: list[pd.DataFrame] = []
        self._contest: _Contest | None = None

    @property
    def beginning(self) -> list[int]:
        """Positions of the tiles on which the decision rests."""
        return self.order[: self.seen]

    def add(self, position: int, rows: pd.DataFrame) -> None:
        """A finished tile with its rows, none where it could not be judged."""
        self._waiting[position] = rows
        while not self.decided and self.seen < len(self.order):
            following = self.order[self.seen]
            if following not in self._waiting:
                return
            rows_of_tile = self._waiting.pop(following)
            self.seen += 1
            if len(rows_of_tile):
                self._judge(rows_of_tile)

    def _judge(self, rows: pd.DataFrame) -> None:
        if self._contest is not None:
            self._contest.see(rows)
        else:
            self._early.append(rows)
            if len(self._early) < self.until.least:
                return
            early = pd.concat(self._early, ignore_index=True)
            self._contest = _Contest(self.until, self.preset, early)
        self.decided = self._contest.open()[0] == 0

    def standing(self) -> str:
        """How much is undecided now, in a few words."""
        if self._contest is None:
            return f"undecided before {self.until.least} tiles"
        return f"{self._contest.open()[0]} undecided"

    def record(self) -> dict[str, Any]:
        """What the manifest says: the question, the procedure, and the answer in a sentence."""
        contest, until = self._contest, self.until
        record: dict[str, Any] = {
            "asked": until.asked,
            "decided": self.decided,
            "tiles": self.seen,
            "of": len(self.order),
            "margin": until.margin,
            "least": until.least,
            "alpha": ALPHA,
            "procedure": PROCEDURE,
            "sentence": self._sentence(),
            "note": NOTE if self.decided and self.seen < len(self.order) else "",
        }
        if contest is None:
            return record
        number, leader = contest.open()
        at = contest.at
        record |= {
            "measure": contest.measure,
            "binarisation": at.binarisation,
            "reference": at.reference,
            "fill": at.fill,
            "candidates": len(contest.ours),
            "open": number,
            "leader": dict(zip(("layer", "method"), contest.names[leader], strict=True)),
        }
        return record | ({"beaten": contest.beaten()} if until.asked == "controls" else {})

    def _sentence(self) -> str:
        contest, total = self._contest, len(self.order)
        all_of = f"all {total}" if self.seen == total else f"{self.seen} of {total}"
        if contest is None:
            return (
                f"Not decided after {all_of} tiles: fewer than the {self.until.least} that have to"
                " be judged before anything is said."
            )
        measure = measure_label(contest.measure, self.preset).partition(" (")[0]
        kind = "at matched area" if contest.at.binarisation == "area" else "at fixed thresholds"
        where = f"{measure}, {kind}, fill {contest.at.fill}"
        if not self.decided:
            return f"Not decided after {all_of} tiles: {contest.left()} ({where})."
        return (
            f"Decided after {all_of} tiles in random order: {contest.answer()} ({where};"
            f" family-wise error {100 * ALPHA:g} %)."
        )
