"""Looking without working: tiles before a study, a run while it runs, and whether one is whole."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from segproof.data import survey
from segproof.errors import DataError, StudyError
from segproof.model import SegmentationModel
from segproof.results import COLUMNS, Results, checksum, in_use, reading
from segproof.spread import digest_of_names, with_threads
from segproof.study import Study
from segproof.trial import check_units, digest_or_none, study_tile

__all__ = ["Status", "Verified", "check", "status", "verify"]

CLOSE: Final = 2e-5  # what a row may differ by when it is computed again


def check(
    data: str | Path,
    *,
    model: SegmentationModel | None = None,
    ignore_index: int | None = None,
    classes: int = 2,
    pad: bool = False,
) -> Iterator[tuple[Path, str]]:
    """Every image of a folder of tiles with the reason why it cannot be studied, "" where it can.

    Images and masks are read whole, no network is run; with a `model` its bands, its mask values,
    the sizes that it takes and the range of its normalisation are compared too.

    Raises:
        DataError: no known layout, or no image at all.
    """
    values = classes if model is None else model.mask_values
    for path, reason, sample in survey(data, classes=values, ignore_index=ignore_index):
        if sample is None or model is None:
            yield path, reason
            continue
        try:
            _check_fit(model, sample["image"].shape, pad=pad)
            check_units(model, sample["image"])
        except DataError as error:
            reason = str(error)
        yield path, reason


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
class Verified:
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
) -> Verified:
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
    return Verified(problems, len(tiles), total, len(picks), worst)


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
