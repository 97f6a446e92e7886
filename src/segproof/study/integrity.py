"""Checks runs without changing them: progress while one runs, integrity after it has ended.

Importing this module loads neither torch nor pandas, so that progress is told at once. Only
`verify`, which computes tiles again, needs them and imports them itself.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from segproof.errors import StudyError
from segproof.study.files import in_use
from segproof.study.settings import command_of
from segproof.study.store import Row, RunReader, StoredTile, read_manifest, reading

if TYPE_CHECKING:
    from segproof.models import SegmentationModel
    from segproof.study.results import Results

__all__ = ["IntegrityReport", "Status", "status", "verify"]

CLOSE: Final = 2e-5  # what a row may differ by when it is computed again


@dataclass(frozen=True)
class Status:
    """How far a run is.

    `rate` is studied tiles per second since the run last began (skipped and failed tiles take no
    time and say nothing of it), `left` the seconds that remain if all others are studied; None
    where nothing can be said yet. `decided` is what a run found that stopped for it, `command` the
    command line that resumes the run.
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
    command: str = ""

    @property
    def done(self) -> int:
        """Finished tiles."""
        return self.ok + self.skipped + self.failed


def status(run: str | Path, *, now: float | None = None) -> Status:
    """Progress of a run folder, read beside the process that writes it, which is not held up.

    Raises:
        StudyError: no run there.
    """
    folder = Path(run)
    read_manifest(folder)  # it refuses what is no run
    with reading(folder / "run.db") as db:
        if not db.has_tables():  # it begins, or was killed while it began
            return Status(in_use(folder), None, 0, 0, 0, {}, None, None)
        meta, counts, reasons = db.meta(), db.counts(), db.reasons()
        began = meta.get("began") or 0.0
        studied, last = db.studied_since(began)
    running = in_use(folder)
    end = (time.time() if now is None else now) if running else (last or began)
    rate = studied / (end - began) if studied and end > began else None
    count = meta.get("count")
    left = (count - sum(counts.values())) / rate if rate and count is not None else None
    record = meta.get("decided") or {}
    decided = record["sentence"] if record.get("decided") and not running else ""
    settings = meta.get("settings")
    return Status(
        running=running,
        count=count,
        ok=counts.get("ok", 0),
        skipped=counts.get("skipped", 0),
        failed=counts.get("failed", 0),
        reasons=reasons,
        rate=rate,
        left=None if decided else left,
        decided=decided,
        command=command_of(settings, folder, meta.get("until") or ()) if settings else "",
    )


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
    """Check that a run is whole: integrity of run.db; the rows of every finished tile against the
    checksum written with them and against the plan; results.csv against run.db; and `again` tiles,
    chosen by `seed`, computed again and compared to 2e-5. `model` and `data` say where they are.

    Raises:
        StudyError: no run there, or another network than that of the run.
    """
    import numpy as np

    from segproof.study.results import Results

    results = Results.load(run)
    with reading(results.folder / "run.db") as db:
        problems = [f"run.db: {line}" for line in db.integrity_problems()]
        meta, tiles = db.meta(), db.tiles()
        problems += _check_rows(db, tiles, meta.get("shown"))
        rows = sum(db.row_counts().values())
    ended = len(tiles) == meta.get("count") or (meta.get("decided") or {}).get("decided", False)
    if results.manifest and not in_use(results.folder) and ended:
        problems += _check_exports(results)
    studied = [tile for tile in tiles if tile.status == "ok"]
    picks = np.random.default_rng(seed).permutation(len(studied))[:again]
    worst = 0.0
    if len(picks):
        chosen = [studied[pick] for pick in sorted(picks.tolist())]
        moved = {name: at for name, at in (("model", model), ("data", data)) if at is not None}
        more, worst = _compute_again(results, meta, chosen, moved, allow_code, tick)
        problems += more
    return IntegrityReport(problems, len(tiles), rows, len(picks), worst)


def _check_rows(db: RunReader, tiles: Sequence[StoredTile], planned: int | None) -> list[str]:
    """Tiles with other rows than those that were written, or with more or fewer than planned."""
    problems = []
    counts = db.row_counts()
    for tile in tiles:
        rows = counts.pop(tile.sample, 0)
        wanted = (rows if planned is None else planned) if tile.status == "ok" else 0
        if rows != wanted:
            problems.append(
                f"{tile.sample}: {rows} rows of a tile that is {tile.status}, not {wanted}"
            )
        if db.checksum(tile.sample) != tile.checksum:
            problems.append(f"{tile.sample}: rows that are not those that were written")
    return problems + [f"{name}: {rows} rows without a tile" for name, rows in counts.items()]


def _compute_again(
    results: Results,
    meta: dict[str, Any],
    tiles: Sequence[StoredTile],
    moved: dict[str, str],
    allow_code: bool,
    tick: Callable[[int], None],
) -> tuple[list[str], float]:
    """Study some tiles once more: what differs from their stored rows, and the greatest difference
    of a number. `moved` says where model and data are now.
    """
    import torch

    from segproof.study.run import Study
    from segproof.study.tile import digest_or_none, study_tile
    from segproof.study.workers import with_threads

    problems, worst = [], 0.0
    # other sums inside torch could cut a map elsewhere
    here = torch.get_num_threads()
    with with_threads(min(results.manifest.get("machine", {}).get("threads", here), here)):
        study = Study.of(**{**meta["settings"], **moved})
        network = study.open_model(allow_code=allow_code)
        source = study.open_data(network)
        _check_same(meta["identity"], network, source.ids)
        plan = study.replanned(network, source, meta)
        for tile in tiles:
            if digest_or_none(source, tile.position) != tile.digest:
                problems.append(f"{tile.sample}: its files changed since it was studied")
                continue
            computed = study_tile(plan, network, source, tile.position).rows
            with reading(results.folder / "run.db") as db:
                stored = db.rows_of(tile.sample)
            difference = _difference(computed, stored)
            worst = max(worst, difference)
            if difference > CLOSE:
                problems.append(f"{tile.sample}: computed again it differs by {difference:.1e}")
            tick(1)
    return problems, worst


def _check_same(identity: dict[str, Any], network: SegmentationModel, names: Sequence[str]) -> None:
    from segproof.study.workers import digest_of_names

    for what, here, wanted in (
        ("weights", network.fingerprint(), identity["weights"]),
        ("tiles", digest_of_names(names), identity["tiles"]),
    ):
        if here != wanted:
            raise StudyError(
                f"other {what} ({here[:12]})", f"{wanted[:12]}, those of the run",
                "say where they are with --model and --data",
            )  # fmt: skip


def _difference(computed: Sequence[Row], stored: Sequence[Row]) -> float:
    """The greatest difference of two tiles' numbers; infinite where anything else differs."""
    if len(computed) != len(stored):
        return float("inf")
    worst = 0.0
    for one, other in zip(computed, stored, strict=True):
        for a, b in zip(one.values(), other.values(), strict=True):
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
