"""Long runs: killed at any moment, on full disks, with damaged stores and too little memory."""

from __future__ import annotations

import errno
import io
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import tiny
from run_folders import IDENTITY, exports, run, study_of, tile
from segproof import DiskError, FolderDataset, Results, StudyError, TooManyFailedError
from segproof.cli import app as cli
from segproof.models.contract import SegmentationModel
from segproof.models.memory import OutOfMemoryError, halving, is_out_of_memory
from segproof.study import (
    files as files_module,
    integrity as audit,
    store as store_module,
    tile as tile_module,
)
from segproof.study.files import check_writable
from segproof.study.store import RunStore, TileResult
from segproof.study.tile import study_tile
from segproof.study.workers import with_threads

KILLED = 100  # exit code of a child that had a message


def child(work: Callable[[], object]) -> int:
    """A forked process that does `work`, and nothing of what pytest would do at its end."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - a device
            sys.stdout = sys.stderr = nowhere
            work()
            code = 0
    except (DiskError, StudyError):
        code = KILLED
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Its exit code, -9 where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiles(tmp_path_factory.mktemp("runs") / "data", 30)


@pytest.fixture(scope="module")
def whole(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The run that nothing disturbed."""
    made = run(tiles, tmp_path_factory.mktemp("whole") / "run")
    assert made.manifest["tiles"] == {
        "ok": 27, "skipped": 3, "failed": 0, "reasons": {"no building in the truth": 3},
    }  # fmt: skip
    return made


# --- kills ----------------------------------------------------------------------------------------
def kill_again_and_again(data: Path, out: Path, kills: int, count: int) -> int:
    """Kill a study at random moments, look at what it left each time, then let it end. Returns how
    many kills met a run in work.

    So that the kills are spread over all tiles, on a quick machine and on a slow one, a run that
    is ahead of them waits for its own.
    """
    draw = random.Random(0)  # noqa: S311 - moments, not secrets
    known: set[str] = set()
    met, longest = 0, 0.1
    waits = out.with_name("waits")
    for number in range(kills):
        waits.unlink(missing_ok=True)
        most = min(count - 1, count * (number + 1) // kills + 8)

        def ahead(done: int, _: int, __: int, most: int = most) -> None:
            if done >= most:
                waits.touch()
                signal.pause()

        pid = child(partial(run, data, out, progress=ahead))
        time.sleep(draw.uniform(0, longest))
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
        longest *= 0.7 if waits.exists() else 1.2
        met += not waits.exists()
        if not (out / "run.db").exists() or not (out / "run.db").stat().st_size:
            assert not known
            continue
        with store_module.reading(out / "run.db") as db:
            if not db.has_tables():
                assert not known
                continue
            now = {tile.sample for tile in db.tiles()}
            rows = db.row_counts()
        assert known <= now, "lost"
        assert set(rows) <= now, "partial"
        assert len(set(rows.values())) <= 1, "partial or double"
        known = now
    assert len(run(data, out).tiles) == count
    return met


def test_kills_lose_nothing(tiles: Path, whole: Results, tmp_path: Path) -> None:
    assert kill_again_and_again(tiles, tmp_path / "run", 12, 30) >= 4
    assert exports(tmp_path / "run") == exports(whole.folder)
    assert audit.verify(tmp_path / "run", again=0).problems == []


@pytest.mark.slow
def test_200_kills_over_400_tiles(tmp_path: Path) -> None:
    data = tiny.write_tiles(tmp_path / "data", 400)
    wanted = run(data, tmp_path / "whole")
    met = kill_again_and_again(data, tmp_path / "run", 200, 400)
    assert met >= 80
    assert exports(tmp_path / "run") == exports(wanted.folder)
    found = audit.verify(tmp_path / "run", allow_code=True)
    assert (found.problems, found.tiles, found.difference) == ([], 400, 0.0)
    moments: list[float] = []
    started = time.perf_counter()
    run(data, tmp_path / "run", planned=lambda _: moments.append(time.perf_counter()))
    print(f"{met} of 200 kills met a run; restart over 400 tiles: {moments[0] - started:.2f} s")


def test_a_kill_before_the_first_transaction_is_no_loss(
    tiles: Path, whole: Results, tmp_path: Path
) -> None:
    """What a run leaves that is killed while it makes its folder: a lock, then an empty file."""
    for names in ((".lock",), (".lock", "run.db")):
        out = tmp_path / str(len(names))
        out.mkdir()
        for name in names:
            (out / name).touch()
        run(tiles, out)
        assert exports(out) == exports(whole.folder)


class Counted(io.FileIO):
    """Counts each write(2), of which every one takes 2 KiB."""

    step: ClassVar[Callable[[], None]] = staticmethod(lambda: None)

    def write(self, data: Any) -> int:
        type(self).step()
        return super().write(memoryview(data)[:2048])


def test_an_export_killed_between_any_two_system_calls_is_old_or_new(
    whole: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """open, write, fsync, close, replace, fsync of the folder: killed before each of them."""
    names = ("results.parquet", "results.csv", "manifest.json")
    shutil.copytree(whole.folder, tmp_path / "run")
    target = Results.load(tmp_path / "run")
    new = {name: (target.folder / name).read_bytes() for name in names}
    old = {name: b"old " + name.encode() for name in names}
    calls = 0
    last = -1

    def step() -> None:
        nonlocal calls
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1

    def before(function: Any) -> Any:
        def wrapped(*given: Any, **how: Any) -> Any:
            step()
            return function(*given, **how)

        return wrapped

    def opened(path: Path, mode: str = "r", **how: Any) -> Any:
        if mode != "wb":
            return io.open(path, mode, **how)  # noqa: UP020 - Path.open is what is replaced
        step()
        return io.BufferedWriter(Counted(path, "wb"), buffer_size=512)

    def export() -> None:
        monkeypatch.setattr(Counted, "step", staticmethod(step))
        monkeypatch.setattr(Path, "open", opened)
        monkeypatch.setattr(Path, "replace", before(Path.replace))
        for name in ("fsync", "open", "close"):
            monkeypatch.setattr(os, name, before(getattr(os, name)))
        target.export(target.manifest)

    states = set()
    for last in range(10_000):
        for name, content in old.items():
            (target.folder / name).write_bytes(content)
        code = ended(child(export))
        found = {name: (target.folder / name).read_bytes() for name in names}
        for name in names:
            assert found[name] in (old[name], new[name]), (last, name)
        states.add(tuple(found[name] == new[name] for name in names))
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert found == new
    assert last > 40
    assert len(states) == 4  # none, one, two, three are new


# --- the store ------------------------------------------------------------------------------------
def test_fifty_truncations_are_a_message_or_the_whole_content(
    whole: Results, tmp_path: Path
) -> None:
    content = (whole.folder / "run.db").read_bytes()
    out = tmp_path / "run"
    out.mkdir()
    told = 0
    for length in np.linspace(0, len(content), 50, dtype=int).tolist():
        (out / "run.db").write_bytes(content[:length])
        for extra in out.glob("run.db-*"):
            extra.unlink()
        try:
            found = Results.load(out)
            assert found.rows.equals(whole.rows), length
            assert found.tiles.equals(whole.tiles), length
        except StudyError as error:
            assert "cannot be read" in str(error)  # noqa: PT017
            told += 1
        if 0 < length < len(content):
            with pytest.raises(StudyError, match="cannot be read"):
                RunStore(out, {})
    assert told == 49


def test_a_changed_number_in_the_store_is_found(whole: Results, tmp_path: Path) -> None:
    shutil.copytree(whole.folder, tmp_path / "run")

    def problems() -> list[str]:
        return audit.verify(tmp_path / "run", again=0).problems

    assert problems() == []
    db = sqlite3.connect(tmp_path / "run" / "run.db", isolation_level=None)
    db.execute("UPDATE rows SET confidence = confidence + 1e-9 WHERE sample = 't001' AND place = 2")
    assert problems() == [
        "t001: rows that are not those that were written",
        "results.csv is not what run.db exports",
    ]
    db.execute("DELETE FROM rows WHERE sample = 't001' AND place = 2")
    assert "rows of a tile that is ok" in problems()[0]
    db.execute("DELETE FROM tiles WHERE sample = 't001'")
    assert "rows without a tile" in problems()[0]
    db.close()


def test_tiles_computed_again_are_compared(
    whole: Results, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = audit.verify(whole.folder, again=4, allow_code=True)
    assert (found.problems, found.tiles, found.rows) == ([], 30, len(whole.rows))
    assert (found.again, found.difference) == (4, 0.0)
    shutil.copytree(tiles, tmp_path / "moved")
    moved = audit.verify(whole.folder, data=str(tmp_path / "moved"), allow_code=True)
    assert moved.problems == []
    (tmp_path / "moved" / "image" / "t000.png").unlink()
    (tmp_path / "moved" / "label" / "t000.png").unlink()
    with pytest.raises(StudyError, match="other tiles"):
        audit.verify(whole.folder, data=str(tmp_path / "moved"), allow_code=True)

    def brighter(*given: Any) -> TileResult:
        made = study_tile(*given)
        rows = list(made.rows)
        assert rows[3].confidence is not None
        rows[3] = replace(rows[3], confidence=rows[3].confidence + 3e-5)
        return TileResult(made.sample, made.position, made.status, rows=rows)

    monkeypatch.setattr(tile_module, "study_tile", brighter)
    found = audit.verify(whole.folder, again=2, allow_code=True)
    assert found.difference == pytest.approx(3e-5, rel=1e-3)
    assert len(found.problems) == 2
    assert "computed again it differs by 3.0e-05" in found.problems[0]


def test_tiles_are_computed_again_with_the_threads_of_the_run(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiles, tmp_path / "run", threads=1)
    threads: list[int] = []

    def watched(*given: Any) -> TileResult:
        threads.append(torch.get_num_threads())
        return study_tile(*given)

    monkeypatch.setattr(tile_module, "study_tile", watched)
    with with_threads(2):
        found = audit.verify(tmp_path / "run", again=1, allow_code=True)
        assert torch.get_num_threads() == 2
    assert (found.problems, found.difference, threads) == ([], 0.0, [1])


def test_a_second_run_is_refused_before_the_model_is_opened(tiles: Path, tmp_path: Path) -> None:
    with RunStore(tmp_path / "run", IDENTITY), pytest.raises(StudyError, match="in use"):
        study_of(tiles, model="smp:/nowhere").run(tmp_path / "run")
    with pytest.raises(StudyError, match="another study"):
        run(tiles, tmp_path / "run")


def test_reading_does_not_hold_up_the_writer(tmp_path: Path) -> None:
    with RunStore(tmp_path, IDENTITY) as store:
        store.put(count=4, began=time.time() - 10)
        store.write(tile("z", 2))
        with store_module.reading(tmp_path / "run.db") as db:
            halfway = db.blocks()
            next(halfway)
            store.write(tile("a", 0))
            store.write(TileResult("b", 1, "failed", "no mask"))
            now = audit.status(tmp_path)
        assert (now.running, now.count, now.ok, now.failed, now.done) == (True, 4, 2, 1, 3)
        assert now.reasons == {"no mask": 1}
        assert now.rate is not None
        assert now.rate == pytest.approx(0.2, rel=0.2)
        assert now.left == pytest.approx(1 / now.rate)
    assert not audit.status(tmp_path).running
    with RunStore(tmp_path, IDENTITY) as store:
        assert set(store.done()) == {"a", "b", "z"}


# --- failures -------------------------------------------------------------------------------------
def damaged(folder: Path, bad: int) -> Path:
    """20 tiles, the first `bad` of which are cut short."""
    tiny.write_tiles(folder, 20)
    for number in range(bad):
        path = folder / "image" / f"t{number:03}.png"
        path.write_bytes(path.read_bytes()[:100])
    return folder


def test_more_than_five_in_a_hundred_failures_stop(tmp_path: Path) -> None:
    one = damaged(tmp_path / "one", 1)  # 1 of 20 is 5 %, not more
    assert run(one, tmp_path / "a").manifest["tiles"]["failed"] == 1
    two = damaged(tmp_path / "two", 2)
    with pytest.raises(TooManyFailedError, match=r"2 of 20 tiles failed, 2 studied.*damaged file"):
        run(two, tmp_path / "b")
    with pytest.raises(TooManyFailedError):  # and nothing more is done
        run(two, tmp_path / "b")
    stopped = Results.load(tmp_path / "b")
    assert len(stopped.tiles) == 2
    ended = run(two, tmp_path / "b", keep_going=True)
    assert ended.manifest["tiles"]["failed"] == 2
    assert len(ended.tiles) == 20


def test_exit_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = damaged(tmp_path / "data", 2)
    arguments = [
        "study", "--model", "python:tiny:network", "--allow-code", "--data", str(data),
        "--class", "building", "--preset", "paper", "--methods", "grad_cam", "--layers",
        "decoder.blocks.0", "--thresholds", "0.3", "--controls", "none", "--out",
    ]  # fmt: skip
    assert cli.main([*arguments, str(tmp_path / "a")]) == cli.SOME_FAILED
    assert "--keep-going" in capsys.readouterr().err
    assert cli.main([*arguments, str(tmp_path / "a"), "--keep-going"]) == cli.SOME_FAILED
    assert "2 failed" in capsys.readouterr().out
    assert cli.main(["status", str(tmp_path / "a")]) == cli.OK
    said = capsys.readouterr().out
    assert "20 of 20 tiles done (100%), not running" in said
    assert "damaged file" in said
    assert cli.main(["verify", str(tmp_path / "a"), "--allow-code"]) == cli.OK
    assert "3 tiles recomputed, largest difference 0.0e+00; 0 problems" in (capsys.readouterr().out)
    (tmp_path / "a" / "results.csv").write_text("mine")
    assert cli.main(["verify", str(tmp_path / "a"), "--tiles", "0"]) == cli.SOME_FAILED
    assert cli.main(["check", str(data)]) == cli.SOME_FAILED
    assert "18 good, 2 bad" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(files_module, "TRIAL", 1 << 62)
        patch.setattr(tempfile, "TemporaryFile", full)
        assert cli.main([*arguments, str(tmp_path / "b")]) == cli.DISK
    assert "make room" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def full(**_: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_mended_tiles_and_failures_of_the_machine_are_tried_again(tmp_path: Path) -> None:
    data = damaged(tmp_path / "data", 1)
    out = tmp_path / "run"
    assert run(data, out).manifest["tiles"]["failed"] == 1
    whole = tiny.write_tiles(tmp_path / "whole", 20)
    before = (out / "run.db").read_bytes()
    assert run(data, out).manifest["tiles"]["failed"] == 1  # not tried: nothing changed
    assert len(Results.load(out).tiles) == 20
    shutil.copy(whole / "image" / "t000.png", data / "image" / "t000.png")
    assert run(data, out).manifest["tiles"]["failed"] == 0
    assert (out / "run.db").read_bytes() != before
    assert exports(out) == exports(run(whole, tmp_path / "other").folder)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: not enough memory"),
        RuntimeError("you tried to allocate 1 bytes: can't allocate memory"),
    ],
)
def test_the_batch_is_halved_until_it_fits(error: Exception) -> None:
    tried: list[int] = []

    def work(batch: int) -> str:
        tried.append(batch)
        if batch > 3:
            raise ValueError("wrapped") from error
        return f"with {batch}"

    assert halving(work, 16) == "with 2"
    assert tried == [16, 8, 4, 2]
    with pytest.raises(OutOfMemoryError, match="no memory for one picture"):
        halving(lambda batch: work(9), 4)
    assert tried[4:] == [9, 9, 9]
    assert not is_out_of_memory(RuntimeError("sizes of tensors must match"))
    with pytest.raises(ZeroDivisionError):
        halving(lambda batch: 1 // 0, 4)


def test_out_of_memory_gives_the_same_numbers_or_a_reason(tiles: Path, tmp_path: Path) -> None:
    class Hungry(tiny.Tiny):
        most = 2

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(images) > self.most:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
            result: torch.Tensor = super().forward(images)
            return result

    hungry = Hungry()
    model = SegmentationModel(hungry, classes=["building"]).eval()
    settings = {"limit": 3, "batch": 8, "layers": ("decoder.blocks.0", "decoder.blocks.1")}
    study = study_of(tiles, **settings)
    how: dict[str, Any] = {"model": model, "data": FolderDataset(tiles)}
    wanted = study.run(tmp_path / "whole", allow_code=True)
    made = study.run(tmp_path / "small", **how)
    assert set(made.tiles["status"]) == {"ok"}
    columns = ["confidence", "entropy", "kept", "certainty", "iou", "area"]
    np.testing.assert_allclose(made.rows[columns], wanted.rows[columns], atol=2e-5)
    hungry.most = 0
    how["model"] = SegmentationModel(hungry, classes=["building"]).eval()  # knows no layers yet
    with pytest.raises(OutOfMemoryError, match="no memory for one picture"):
        study.run(tmp_path / "none", **how)
    assert not (tmp_path / "none").exists()
    hungry.most = 9
    how["planned"] = lambda _: setattr(hungry, "most", 0)
    none = study_of(tiles, limit=2).run(tmp_path / "none", keep_going=True, **how)
    assert none.tiles["reason"].str.startswith("oom: found no memory for one picture").all()
    how["planned"] = lambda _: setattr(hungry, "most", 9)
    hungry.most = 9  # a machine with more memory goes on, and tries them again
    again = study_of(tiles, limit=2).run(tmp_path / "none", **how)
    assert set(again.tiles["status"]) == {"ok"}


def test_whatever_a_network_raises_is_the_tiles_reason(tiles: Path, tmp_path: Path) -> None:
    class Wrong(tiny.Tiny):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if bool((images[:, :, 0, 0] == 1).all()):
                raise KeyError("a bug \x1b[31m in here")
            result: torch.Tensor = super().forward(images)
            return result

    model = SegmentationModel(Wrong(), classes=["building"]).eval()
    made = study_of(tiles).run(tmp_path / "run", model=model, data=FolderDataset(tiles))
    [reason] = set(made.tiles["reason"]) - {"", "no building in the truth"}
    assert r"a network that ends in KeyError: 'a bug \x1b[31m in here'" in reason
    assert "float32 [1, 3, 32, 32]" in reason
    assert made.manifest["tiles"]["ok"] == 26


# --- disks ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("room", [0, 70_000, 150_000])
def test_a_full_disk_is_a_message_and_the_run_goes_on(
    tiles: Path, whole: Results, tmp_path: Path, room: int
) -> None:
    """RLIMIT_FSIZE stands for the disk: no file grows beyond it."""
    out = tmp_path / "run"
    if room:
        run(tiles, out, stop=lambda: True)

    def cramped() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        files_module.TRIAL = room // 2  # type: ignore[misc]
        run(tiles, out)

    assert ended(child(cramped)) == KILLED
    with store_module.reading(out / "run.db") as db:
        assert db.integrity_problems() == []
    run(tiles, out)
    assert exports(out) == exports(whole.folder)


def test_a_probe_tells_before_any_work_and_leaves_nothing(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(tmp_path / "a" / "new" / "run")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    study = study_of(tiles, model="smp:/nowhere")
    with pytest.raises(DiskError, match=r"cannot be written.*No space left.*continues from there"):
        study.run(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_folder_is_told_and_its_results_can_be_read(whole: Results) -> None:
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        shutil.copytree(whole.folder, base / "run")
        for path in (base / "run").iterdir():
            path.chmod(0o444)
        (base / "run").chmod(0o555)
        base.chmod(0o755)

        def as_nobody() -> None:
            if os.getuid() == 0:
                os.setuid(65534)
            assert len(Results.load(base / "run").rows) == len(whole.rows)
            try:
                check_writable(base / "run")
            except DiskError:
                return
            os._exit(3)

        assert ended(child(as_nobody)) == 0
        (base / "run").chmod(0o755)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


TMPFS = """
import sys; sys.path[:0] = {path!r}
import subprocess, shutil
from pathlib import Path
import tiny
from segproof import DiskError, Study
from segproof.study import files
study = Study.of(data={data!r}, **tiny.QUICK)
out = Path({disk!r}) / "run"
files.TRIAL = 1000
try:
    study.run(out, allow_code=True)
except DiskError as error:
    print("told:", error)
else:
    sys.exit("the disk was large enough")
subprocess.run(["mount", "-o", "remount,size=50m", {disk!r}], check=True)
study.run(out, allow_code=True)
shutil.copy(out / "results.csv", {copy!r})
"""


@pytest.mark.slow
def test_a_small_tmpfs_that_fills(tiles: Path, whole: Results, tmp_path: Path) -> None:
    """A real file system of its own, in a mount name space of its own."""
    disk, script = tmp_path / "disk", tmp_path / "fill.py"
    disk.mkdir()
    names = {"path": sys.path, "data": str(tiles), "disk": str(disk)}
    script.write_text(TMPFS.format(copy=str(tmp_path / "results.csv"), **names))
    mount = f'mount -t tmpfs -o size=100k none "{disk}"'
    apart = [shutil.which("unshare") or "false", "-rm", "sh", "-c"]
    if subprocess.run([*apart, mount], check=False, capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a tmpfs in a name space of his own")
    command = f'{mount} && "{sys.executable}" "{script}"'
    done = subprocess.run([*apart, command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "told: found" in done.stdout
    assert (tmp_path / "results.csv").read_bytes() == exports(whole.folder)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "kind"), [((), signal.SIGTERM), (("--workers", "2"), signal.SIGINT)]
)
def test_a_stop_by_hand_ends_the_tile_and_leaves_no_process(
    tiles: Path, whole: Results, tmp_path: Path, how: tuple[str, ...], kind: signal.Signals
) -> None:
    """A real process group that gets the signal as a terminal sends it."""
    out = tmp_path / "run"
    command = study_of(tiles).command(out).split()[1:]
    process = subprocess.Popen(
        [sys.executable, "-m", "segproof", *command, "--allow-code", *how],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "forward passes a tile" in line:
            break
    while not audit.status(out).done:
        time.sleep(0.01)
    os.killpg(process.pid, kind)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == cli.INTERRUPTED, said
    assert "Traceback" not in said
    end = time.monotonic() + 20
    while alive(process.pid):
        assert time.monotonic() < end, "a process was left behind"
        time.sleep(0.05)
    assert 0 < len(Results.load(out).tiles) < 30
    run(tiles, out)
    assert exports(out) == exports(whole.folder)
