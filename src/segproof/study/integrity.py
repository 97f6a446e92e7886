"""Looking without working: tiles before a study, a run while it runs, and whether one is whole."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from segproof.data import IGNORE, Raster, Reading, Surveyed, find_pairs, surveyed
from segproof.errors import DataError, StudyError
from segproof.models import SegmentationModel
from segproof.study.results import COLUMNS, Results, checksum, in_use, reading
from segproof.study.run import Study
from segproof.study.tile import digest_or_none, study_tile
from segproof.study.workers import digest_of_names, with_threads

__all__ = [
    "DataReport",
    "IntegrityReport",
    "Problem",
    "Status",
    "ValueShare",
    "check",
    "status",
    "survey_data",
    "verify",
]

EXAMPLES: Final = 3  # pairs and names that a report shows
MOST_VALUES: Final = 512  # different mask values that are counted
MOST_KINDS: Final = 64  # different sizes of pictures, and different problems
CLOSE: Final = 2e-5  # what a row may differ by when it is computed again


def check(
    data: str | Path,
    *,
    model: SegmentationModel | None = None,
    ignore_index: int | None = None,
    classes: int = 2,
    pad: bool = False,
    **how: Any,
) -> Iterator[tuple[Path, str]]:
    """Every image of a folder of tiles with the reason why it cannot be studied, "" where it can.

    Images and masks are read whole, no network is run; with a `model` its bands, its mask values,
    the sizes that it takes and the range of its normalisation are compared too. `how`: images,
    masks, values, reading and names, as FolderDataset takes them.

    Raises:
        DataError: images and masks that cannot be told apart or paired, or no image at all.
    """
    how |= {"ignore_index": ignore_index, "classes": classes}
    for found in _surveyed(data, model, how, pad=pad):
        yield found.path, found.reason


def _surveyed(
    data: str | Path, model: SegmentationModel | None, how: dict[str, Any], *, pad: bool
) -> Iterator[Surveyed]:
    """Every image with its mask as they are read, compared with the network."""
    if model is not None:
        chosen = how.get("reading") or Reading()
        wanted = chosen.wanted or model.input_bands
        # a caller whose masks hold class + 1 says so with more classes than the network has
        classes = max(how["classes"], model.mask_values)
        how = {**how, "classes": classes, "reading": replace(chosen, wanted=wanted)}
    for found in surveyed(data, **how):
        if found.sample is None or model is None:
            yield found
            continue
        try:
            _check_fit(model, found.sample["image"].shape, pad=pad)
            model.check_units(found.sample["image"])
        except DataError as error:
            yield found._replace(reason=str(error), error=error)
        else:
            yield found


@dataclass(frozen=True)
class Problem:
    """What keeps some tiles from being studied: an example in words, how many tiles, the first
    names, and what mends it.
    """

    found: str
    expected: str
    fix: str
    count: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class ValueShare:
    """A value or colour of the masks, what it is read as, and its share of all their pixels."""

    value: str
    meaning: str
    pixels: int
    share: float


@dataclass(frozen=True)
class DataReport:
    """What a folder of tiles holds: how images and masks were paired, what the mask values mean,
    what the pictures are, and what is wrong, alike problems once.
    """

    rule: str
    examples: tuple[tuple[str, str], ...]
    good: int
    bad: int
    values: tuple[ValueShare, ...]
    pictures: tuple[tuple[str, int], ...]
    low: float | None
    high: float | None
    problems: tuple[Problem, ...]
    unused_images: int = 0
    unused_masks: int = 0
    more_values: int = 0

    @property
    def tiles(self) -> int:
        """Images that were looked at."""
        return self.good + self.bad


def survey_data(
    data: str | Path,
    *,
    model: SegmentationModel | None = None,
    ignore_index: int | None = None,
    classes: int = 2,
    pad: bool = False,
    names: Sequence[str] | None = None,
    tick: Callable[[int], None] = lambda tiles: None,
    **how: Any,
) -> DataReport:
    """Read every image and mask of a folder and say what it holds; memory does not grow with it.

    `names[i]` is the class of mask value i (those of the `model` where one is given). `how`:
    images, masks, values and reading, as FolderDataset takes them. `tick` is called per tile.

    Raises:
        DataError: images and masks that cannot be told apart or paired, or no image at all.
    """
    root = Path(data)
    made = find_pairs(root, how.get("images"), how.get("masks"))
    if model is not None:
        classes = max(classes, model.mask_values)
        names = model.mask_names if names is None else names
    names = names or [str(index) for index in range(classes)]
    how |= {"ignore_index": ignore_index, "classes": classes, "made": made, "names": names}
    tally = _Tally(root)
    for number, found in enumerate(_surveyed(data, model, how, pad=pad), 1):
        tally.add(found)
        tick(number)
    pairs = made.pairs[:EXAMPLES]
    return DataReport(
        made.rule,
        tuple((_below(root, image), _below(root, mask)) for image, mask in pairs),
        tally.good,
        tally.bad,
        tally.shares(names, ignore_index),
        tuple(sorted(tally.pictures.items(), key=lambda item: (-item[1], item[0]))),
        tally.low,
        tally.high,
        tally.problems(),
        len(made.unused_images),
        len(made.unused_masks),
        tally.more,
    )


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


class _Tally:
    """Counts over the tiles, of bounded size."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.good, self.bad, self.more = 0, 0, 0
        self.values: Counter[tuple[str, int | None]] = Counter()
        self.pictures: Counter[str] = Counter()
        self.low: float | None = None
        self.high: float | None = None
        self._problems: dict[tuple[str, str], tuple[DataError, list[str], list[int]]] = {}

    def add(self, found: Surveyed) -> None:
        """Count one tile."""
        self.good, self.bad = self.good + (not found.reason), self.bad + bool(found.reason)
        if found.picture is not None:
            self._add_picture(found.picture)
        if found.meanings is not None:
            self._add_values({(value, index): n for value, (index, n) in found.meanings.items()})
        elif found.mask is not None:
            self._add_values({(value, None): n for value, n in found.mask.shares().items()})
        if found.error is not None:
            self._add_problem(found.path, found.error)

    def _add_picture(self, picture: Raster) -> None:
        count, height, width = picture.values.shape
        kind = f"{count} x {height} x {width} {picture.values.dtype}"
        # pictures of any size would make a list as long as the set
        if kind not in self.pictures and len(self.pictures) >= MOST_KINDS:
            kind = "other sizes"
        self.pictures[kind] += 1
        values = picture.values
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)]
        if values.size:
            low, high = float(values.min()), float(values.max())
            self.low = low if self.low is None else min(low, self.low)
            self.high = high if self.high is None else max(high, self.high)

    def _add_values(self, pixels: Mapping[tuple[str, int | None], int]) -> None:
        for key, number in pixels.items():
            if key in self.values or len(self.values) < MOST_VALUES:
                self.values[key] += number
            else:
                self.more += number

    def _add_problem(self, path: Path, error: Exception) -> None:
        if not isinstance(error, DataError):
            error = DataError(
                str(error) or type(error).__name__, "a file that can be read", "check the file"
            )
        # what differs from file to file: its name and the numbers in the sentence
        said = re.sub(rf"{re.escape(str(self.root))}/?[^\s:;,()]*", "FILE", error.found)
        said = said.replace(path.name, "FILE").replace(path.stem, "FILE")
        said = re.sub(r"#[0-9a-f]{6}|\d+(?:\.\d+)?", "N", said)
        key = said, re.sub(r"\d+", "N", error.expected)
        if key not in self._problems and len(self._problems) >= MOST_KINDS:
            key = "", ""
            error = DataError("other problems", "files that can be read", "mend the others first")
        _, names, count = self._problems.setdefault(key, (error, [], [0]))
        count[0] += 1
        if len(names) < EXAMPLES:
            names.append(_below(self.root, path))

    def problems(self) -> tuple[Problem, ...]:
        """Alike problems once, the most frequent first."""
        ordered = sorted(self._problems.values(), key=lambda entry: -entry[2][0])
        return tuple(
            Problem(error.found, error.expected, error.fix, count[0], tuple(names))
            for error, names, count in ordered
        )

    def shares(self, names: Sequence[str], ignore_index: int | None) -> tuple[ValueShare, ...]:
        """Value, class and share, in the order of the classes; classes without a pixel too."""
        total = sum(self.values.values()) + self.more
        lines = []
        for (value, index), pixels in self.values.items():
            if index is None:
                order, meaning = len(names) + 1, "refused"
            elif index == IGNORE:
                order, meaning = len(names), "does not count"
            else:
                order, meaning = index, names[index] if index < len(names) else str(index)
            lines.append((order, value, ValueShare(value, meaning, pixels, pixels / total)))
        seen = {index for _, index in self.values}
        lines += [
            (index, "", ValueShare("", name, 0, 0.0))
            for index, name in enumerate(names)
            if index not in seen and index != ignore_index
        ]
        return tuple(line for *_, line in sorted(lines, key=lambda line: line[:2]))


def _check_fit(model: SegmentationModel, shape: Sequence[int], *, pad: bool) -> None:
    bands, height, width = shape
    if model.input_bands != bands:
        raise DataError(
            f"{bands} bands", f"{model.input_bands}, as the network was trained", "select the bands"
        )
    strict = bool(getattr(model.net, "requires_divisible_input_shape", False))
    if strict and not pad and model.padding((height, width)) != (0, 0):
        raise DataError(
            f"{height} x {width} px", f"multiples of {model.stride} px", "pass --pad, or cut them"
        )


@dataclass(frozen=True)
class Status:
    """How far a run is. `rate` in tiles per second since it last began, `left` in seconds; None
    where nothing can be said yet. `decided`: what a run found that stopped for it.
    """

    running: bool
    count: int | None
    ok: int
    skipped: int
    failed: int
    reasons: dict[str, int]
    rate: float | None
    left: float | None
    decided: str = ""

    @property
    def done(self) -> int:
        """Finished tiles."""
        return self.ok + self.skipped + self.failed


def status(run: str | Path, *, now: float | None = None) -> Status:
    """Progress of a run folder, read beside the process that writes it, which is not held up.

    Raises:
        StudyError: no run there.
    """
    folder = Results.load(run).folder
    with reading(folder / "run.db") as db:
        meta = _meta(db)
        counts: dict[str, int] = dict(
            db.execute("SELECT status, COUNT(*) FROM tiles GROUP BY status")
        )
        reasons: dict[str, int] = dict(
            db.execute(
                "SELECT reason, COUNT(*) FROM tiles WHERE status != 'ok'"
                " GROUP BY reason ORDER BY COUNT(*) DESC, reason"
            )
        )
        began = meta.get("began") or 0.0
        since, last = db.execute(
            "SELECT COUNT(*), MAX(ended) FROM tiles WHERE ended > ?", (began,)
        ).fetchone()
    running = in_use(folder)
    end = (time.time() if now is None else now) if running else (last or began)
    rate = since / (end - began) if since and end > began else None
    count = meta.get("count")
    left = (count - sum(counts.values())) / rate if rate and count is not None else None
    found = meta.get("decided") or {}
    decided = found["sentence"] if found.get("decided") and not running else ""
    ok, skipped, failed = (counts.get(name, 0) for name in ("ok", "skipped", "failed"))
    left = None if decided else left
    return Status(running, count, ok, skipped, failed, reasons, rate, left, decided)


@dataclass(frozen=True)
class IntegrityReport:
    """What was found wrong with a run ([] = nothing), and how much was looked at: tiles, rows,
    tiles computed again and the greatest difference to their rows.
    """

    problems: list[str]
    tiles: int
    rows: int
    again: int
    difference: float


def verify(
    run: str | Path,
    *,
    again: int = 3,
    seed: int = 0,
    model: str | None = None,
    data: str | None = None,
    allow_code: bool = False,
    tick: Callable[[int], None] = lambda tiles: None,
) -> IntegrityReport:
    """Is a run whole? Integrity of run.db; the rows of every finished tile against the checksum
    written with them and against the plan; results.csv against run.db; and `again` tiles, chosen by
    `seed`, computed again and compared to 2e-5. `model` and `data` say where they are now.

    Raises:
        StudyError: no run there, or another network than that of the run.
    """
    results = Results.load(run)
    with reading(results.folder / "run.db") as db:
        found = [str(line) for (line,) in db.execute("PRAGMA integrity_check(10)")]
        problems = [] if found == ["ok"] else [f"run.db: {line}" for line in found]
        meta = _meta(db)
        tiles: list[tuple[str, int, str, str, str]] = db.execute(
            "SELECT sample, position, status, digest, checksum FROM tiles ORDER BY position"
        ).fetchall()
        counts: dict[str, int] = dict(
            db.execute("SELECT sample, COUNT(*) FROM rows GROUP BY sample")
        )
        for name, _, state, _, written in tiles:
            rows = counts.pop(name, 0)
            wanted = meta.get("shown", rows) if state == "ok" else 0
            if rows != wanted:
                problems.append(f"{name}: {rows} rows of a tile that is {state}, not {wanted}")
            if checksum(db, name) != written:
                problems.append(f"{name}: rows that are not those that were written")
        problems += [f"{name}: {rows} rows without a tile" for name, rows in counts.items()]
    ended = len(tiles) == meta.get("count") or (meta.get("decided") or {}).get("decided", False)
    if results.manifest and not in_use(results.folder) and ended:
        problems += _check_exports(results)
    chosen = [tile for tile in tiles if tile[2] == "ok"]
    picks = np.random.default_rng(seed).permutation(len(chosen))[:again]
    worst = 0.0
    if len(picks):
        # other sums inside torch could cut a map elsewhere
        here = torch.get_num_threads()
        with with_threads(min(results.manifest.get("machine", {}).get("threads", here), here)):
            study = Study.of(**{**meta["settings"], **_given(model=model, data=data)})
            network = study.open_model(allow_code=allow_code)
            source = study.open_data(network)
            _same(meta["identity"], network, source.ids)
            plan = study.replanned(network, source, meta)
            for pick in sorted(picks.tolist()):
                name, position, _, digest, _ = chosen[pick]
                if digest_or_none(source, position) != digest:
                    problems.append(f"{name}: its files changed since it was studied")
                    continue
                made = study_tile(plan, network, source, position)
                stored = _rows(results, name)
                off = _difference(made.rows, stored)
                worst = max(worst, off)
                if off > CLOSE:
                    problems.append(f"{name}: computed again it differs by {off:.1e}")
                tick(1)
    total = len(results.rows)
    return IntegrityReport(problems, len(tiles), total, len(picks), worst)


def _given(**values: str | None) -> dict[str, str]:
    return {key: value for key, value in values.items() if value is not None}


def _same(identity: dict[str, Any], network: SegmentationModel, names: Sequence[str]) -> None:
    for what, found, wanted in (
        ("weights", network.fingerprint(), identity["weights"]),
        ("tiles", digest_of_names(names), identity["tiles"]),
    ):
        if found != wanted:
            raise StudyError(
                f"other {what} ({found[:12]})", f"{wanted[:12]}, those of the run",
                "say where they are with --model and --data",
            )  # fmt: skip


def _meta(db: Any) -> dict[str, Any]:
    return {key: json.loads(value) for key, value in db.execute("SELECT key, value FROM meta")}


def _rows(results: Results, name: str) -> list[tuple[Any, ...]]:
    names = ", ".join(f'"{column}"' for column in COLUMNS)
    query = f"SELECT {names} FROM rows WHERE sample = ? ORDER BY place"  # noqa: S608 - our names
    with reading(results.folder / "run.db") as db:
        return db.execute(query, (name,)).fetchall()


def _difference(made: Sequence[tuple[Any, ...]], stored: Sequence[tuple[Any, ...]]) -> float:
    """The greatest difference of two tiles' numbers; infinite where anything else differs."""
    if len(made) != len(stored):
        return float("inf")
    worst = 0.0
    for one, two in zip(made, stored, strict=True):
        for a, b in zip(one, two, strict=True):
            if isinstance(a, int | float) and isinstance(b, int | float):
                worst = max(worst, abs(a - b))
            elif a != b:
                return float("inf")
    return worst


def _check_exports(results: Results) -> Iterator[str]:
    """results.csv against what run.db would export now."""
    path = results.folder / "results.csv"
    digest = hashlib.sha256()
    for part in results.csv_parts():
        digest.update(part)
    if not path.is_file():
        yield "results.csv is missing"
        return
    with path.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != digest.hexdigest():
            yield "results.csv is not what run.db exports"
