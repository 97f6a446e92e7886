"""Kernels of perturbed pictures: what they change, and by how much."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from segproof.cli.announce import say_kernels
from segproof.data.scenes import write_scenes
from segproof.models.contract import SegmentationModel, running
from segproof.models.loaders.load import demo_model_spec
from segproof.models.precision import EXACT, Kernels, keep_blocks
from segproof.study.run import Study
from segproof.study.speed import (
    COMPARED,
    RANKED,
    TOLERANCE,
    choose_kernels,
    forward_seconds,
    orders,
)
from segproof.study.store import Row
from toys import toy_images, toy_model

BF16 = Kernels("bfloat16", channels_last=True)


class Watched(nn.Module):
    """A network that notes the format and layout of what its second convolution is given."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 2, 1)
        self.scale = scale
        self.seen: list[tuple[torch.dtype, bool]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        inner = self.first(images)
        layout = inner.is_contiguous(memory_format=torch.channels_last)
        self.seen.append((inner.dtype, layout))
        result: torch.Tensor = self.last(inner)
        return result * self.scale


def watched(scale: float = 1.0) -> SegmentationModel:
    return SegmentationModel(Watched(scale), classes=["ground", "roof"]).eval()


def test_kernels_reach_perturbed_pictures_and_nothing_else() -> None:
    model = watched()
    pictures = torch.rand(2, 3, 8, 8)
    plain = model(pictures)
    with running(model, BF16), torch.no_grad():
        fast, exact = model.shown(pictures), model(pictures)
    assert model.kernels == EXACT
    assert model.net.seen == [
        (torch.float32, False),
        (torch.bfloat16, True),
        (torch.float32, False),
    ]
    assert fast.dtype == torch.float32
    assert torch.equal(exact, plain)
    assert 0 < (fast - plain).abs().max() < 0.02


def test_kernels_are_the_old_ones_again_after_an_error() -> None:
    model = watched()
    with pytest.raises(ZeroDivisionError), running(model, BF16):
        raise ZeroDivisionError
    assert model.kernels == EXACT


def test_without_kernels_shown_is_forward_bit_for_bit() -> None:
    model = toy_model()
    images = toy_images()
    assert torch.equal(model.shown(images), model(images))


def test_numbers_beyond_a_format_are_taken_from_the_network_itself() -> None:
    model = watched(scale=1e6)  # beyond float16's 65504
    pictures = torch.rand(1, 3, 8, 8)
    with running(model, Kernels("float16")), torch.no_grad():
        half = Kernels("float16").run(model.returned, pictures)
        shown = model.shown(pictures)
    assert not torch.isfinite(half).all()
    assert torch.equal(shown, model(pictures))


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    write_scenes(folder, 2, size=128, seed=5)
    return folder


def study(tiles: Path, **settings: object) -> Study:
    return Study.of(
        **{
            "model": demo_model_spec(),
            "data": str(tiles),
            "class": "building",
            "methods": ("grad_cam",),
            "layers": ("decoder:1",),
            "thresholds": (),
            "areas": (0.1, 0.2),
            "fills": ("black",),
            **settings,
        }
    )


def test_auto_takes_the_fastest_kernels_that_agree(
    tiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = study(tiles, precision="auto")
    network = chosen.open_model()
    data = chosen.open_data(network)
    speed = {"float32": 3.0, "float32, channels last": 2.9, "bfloat16, channels last": 1.0}
    monkeypatch.setattr(
        "segproof.study.speed.forward_seconds", lambda _m, kernels, _p, **_: speed[kernels.name]
    )
    plan = choose_kernels(chosen.plan(network, data), network, data)
    found = plan.pace["differences"]["bfloat16, channels last"]
    assert set(found) == set(COMPARED)
    assert 0 < max(found.values()) <= TOLERANCE
    assert plan.kernels == BF16
    assert plan.pace["seconds"] == speed
    # one that is faster but differs is left
    monkeypatch.setattr("segproof.study.speed.TOLERANCE", max(found.values()) / 2)
    plan = choose_kernels(chosen.plan(network, data), network, data)
    assert plan.kernels == EXACT
    # and one that agrees but gains nothing too
    monkeypatch.setattr("segproof.study.speed.TOLERANCE", 1.0)
    speed["bfloat16, channels last"] = 2.9
    plan = choose_kernels(chosen.plan(network, data), network, data)
    assert plan.kernels == EXACT
    assert plan.pace["differences"] == {}  # what gains nothing is not compared


def test_what_is_hopelessly_slow_is_timed_once(tiles: Path) -> None:
    network = study(tiles).open_model()
    pictures, shown = torch.zeros(2, 3, 64, 64), list[int]()
    network.net.register_forward_hook(lambda *_: shown.append(1))
    assert forward_seconds(network, EXACT, pictures) > 0
    assert len(shown) == 3
    assert forward_seconds(network, EXACT, pictures, hopeless=0.0) > 0
    assert len(shown) == 4


def test_a_named_format_that_is_slower_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    pace = {
        "seconds": {"float32": 0.1, "bfloat16, channels last": 1.2},
        "differences": {}, "failed": {}, "taken": "bfloat16, channels last",
    }  # fmt: skip
    say_kernels(pace)
    assert "12.0 times as slow as float32" in " ".join(capsys.readouterr().err.split())
    say_kernels(pace | {"taken": "float32"})
    assert capsys.readouterr().err == ""


def rows_of(**confidences: list[float | None]) -> list[Row]:
    """Rows of M1 of some methods at one layer, a level each."""
    return [
        Row("t", method, "a", "area", 0.1, "background_only", "truth", "black", confidence=value)
        for method, values in confidences.items()
        for value in values
    ]


def test_orders_count_pairs_that_float32_tells_apart() -> None:
    """Means .5, .3, .30005 and .1: one pair is tied; x and z change places, y meets z."""
    before = rows_of(w=[0.4, 0.6], x=[0.3], y=[0.30005, None], z=[0.1, float("nan")])
    assert orders(before, before)["M1"] == {
        "pairs": 6, "tied": 1, "reversed": 0, "difference": 0.0,
    }  # fmt: skip
    turned = orders(before, rows_of(w=[0.5], x=[0.30005], y=[0.3], z=[0.1]))["M1"]
    assert turned["reversed"] == 0  # within what float32 itself is exact to
    after = rows_of(w=[0.5], x=[0.1], y=[0.2], z=[0.2])
    found = orders(before, after)
    assert set(found) == set(RANKED)
    assert found["M1"]["reversed"] == 2
    assert found["M1"]["difference"] == pytest.approx(0.2)
    assert found["M2"] == {"pairs": 0, "tied": 0, "reversed": 0, "difference": 0.0}


def test_auto_takes_no_format_that_turns_an_order_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path, 2, seed=2, size=96)
    chosen = study(tmp_path, precision="auto", methods=("grad_cam", "eigen_cam"))
    network = chosen.open_model()
    data = chosen.open_data(network)
    speed = {"float32": 3.0, "float32, channels last": 2.0, "bfloat16, channels last": 1.0}
    monkeypatch.setattr(
        "segproof.study.speed.forward_seconds", lambda _m, kernels, _p, **_: speed[kernels.name]
    )
    monkeypatch.setattr("segproof.study.speed.TOLERANCE", 1.0)
    plan = chosen.plan(network, data)
    [(name, found)] = choose_kernels(plan, network, data).pace["orders"].items()
    assert name == BF16.name
    assert {order["pairs"] for order in found.values()} == {1.0}
    assert 0 < max(order["difference"] for order in found.values()) < 0.05
    # the same maps, but one measure lands on the other side of the other map's
    turned = {"M1": {"pairs": 1, "tied": 0, "reversed": 1, "difference": 0.1}}
    monkeypatch.setattr("segproof.study.speed.orders", lambda _before, _after: turned)
    made = choose_kernels(plan, network, data)
    assert made.kernels == Kernels("float32", channels_last=True)
    assert made.pace["orders"] == {BF16.name: turned}
    speed["float32, channels last"] = 2.95
    assert choose_kernels(plan, network, data).kernels == EXACT


def test_kernels_that_fail_are_named_and_left(tiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = study(tiles, precision="bfloat16")
    network = chosen.open_model()
    data = chosen.open_data(network)

    def broken(_self: Kernels, _network: object, _images: object) -> object:
        raise RuntimeError("no such kernel\nand a trace")

    monkeypatch.setattr(Kernels, "run", broken)
    plan = choose_kernels(chosen.plan(network, data), network, data)
    assert plan.kernels == EXACT
    assert plan.pace["failed"] == dict.fromkeys(
        ("bfloat16, channels last", "bfloat16"), "no such kernel"
    )


def test_a_study_keeps_its_kernels_and_says_what_they_change(tiles: Path, tmp_path: Path) -> None:
    exact = study(tiles, limit=1).run(tmp_path / "exact")
    fast = study(tiles, limit=1, precision="bfloat16").run(tmp_path / "fast")
    assert exact.manifest["kernels"]["taken"] == "float32"
    assert fast.manifest["kernels"]["taken"].startswith("bfloat16")
    assert fast.manifest["kernels"]["asked"] == "bfloat16"
    gap = (exact.rows["confidence"] - fast.rows["confidence"]).abs()
    assert 0 < gap.mean() <= TOLERANCE  # of one picture it can be more
    # maps are those of float32: the same pixels are cut out
    assert (exact.rows["area"].dropna() == fast.rows["area"].dropna()).all()
    assert (exact.rows["coverage"].dropna() == fast.rows["coverage"].dropna()).all()
    again = study(tiles, limit=1, precision="bfloat16").run(tmp_path / "fast")
    assert again.manifest["kernels"] == fast.manifest["kernels"]


def test_one_forward_takes_time() -> None:
    assert 0 < forward_seconds(toy_model().float(), EXACT, torch.rand(2, 3, 32, 32)) < 10


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_blocks_are_kept() -> None:
    """In a process of its own: page faults of a block that is made again and again."""
    code = (
        "import resource, torch\n"
        "from segproof.models import keep_blocks\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(8): torch.ones(16_000_000)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "given_back = faults()\n"
        "assert keep_blocks()\n"
        "faults()\n"
        "print(given_back, faults())\n"
    )
    shown = subprocess.check_output([sys.executable, "-c", code], text=True)
    given_back, kept = (int(word) for word in shown.split())
    assert kept < given_back / 10


def test_other_systems_go_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert not keep_blocks()
