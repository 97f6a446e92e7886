"""Which pixels are explained: how regions are written, and what they find, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from segproof.errors import DataError, StudyError, UnknownNameError
from segproof.explain.api import explain, explain_all, explain_objects
from segproof.explain.target import Region, Target, objects
from segproof.measures.records import MEASURES
from segproof.models.contract import SegmentationModel, probabilities
from segproof.perturb.regions import dilate
from segproof.study.settings import Settings
from toys import toy_images, toy_model


def mask(*rows: str) -> Tensor:
    """A mask drawn with # for the class."""
    return torch.tensor([[letter == "#" for letter in row] for row in rows])


# Sizes 4, 3 and 3 px: the last two tie, the upper one comes first; a corner joins.
PARTS = mask(
    "###....",
    ".......",
    "....##.",
    "...#..#",
    "#......",
    "##.....",
)
EVERYWHERE = torch.ones(1, 6, 7, dtype=torch.bool)


def found(text: str, prediction: Tensor = PARTS, truth: Tensor | None = None) -> Tensor:
    given_truth = None if truth is None else truth[None]
    return Region.of(text).find(prediction[None], given_truth, EVERYWHERE)[0]


def logits_of(prediction: Tensor) -> Tensor:
    """Two classes whose argmax is the mask."""
    other = torch.zeros(prediction.shape, dtype=torch.float64)
    return torch.stack([other, torch.where(prediction, 1.0, -1.0).double()])[None]


class Names:
    activation = "softmax"

    def class_index(self, name: int | str) -> int:
        return int(name)


def test_objects_are_numbered_by_size() -> None:
    expected = torch.zeros(6, 7, dtype=torch.long)
    expected[2, 4] = expected[2, 5] = expected[3, 3] = expected[3, 6] = 1
    expected[0, :3] = 2
    expected[4, 0] = expected[5, 0] = expected[5, 1] = 3
    assert torch.equal(objects(PARTS), expected)
    assert objects(torch.zeros(3, 4, dtype=torch.bool)).max() == 0


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("prediction", None),
        ("object:2", ("###....", *["......."] * 5)),
        ("object:0,4", (*["......."] * 4, "#......", "##.....")),
        ("object:6,3", ("", "", "....##.", "...#..#")),
        ("box:1,0,4,3", (".###", ".###", ".###")),
        ("points:6,5;0,1", ("", "#", "", "", "", "......#")),
    ],
)
def test_regions_of_a_prediction(text: str, rows: tuple[str, ...] | None) -> None:
    wanted = PARTS
    if rows is not None:
        wanted = mask(*(row.ljust(7, ".") for row in (*rows, *[""] * (6 - len(rows)))))
    assert torch.equal(found(text), wanted)


def test_right_and_wrong_of_a_prediction() -> None:
    truth = mask("##.....", "##.....", *["......."] * 4)
    assert torch.equal(found("truth", truth=truth), truth)
    wrong = found("fp", truth=truth)
    assert wrong.sum() == PARTS.sum() - 2
    assert not (wrong & truth).any()
    assert torch.equal(found("fn", truth=truth), mask(".......", "##.....", *["......."] * 4))
    assert torch.equal(found("object:1@truth", truth=truth), truth)


def test_a_ring_lies_on_both_sides_of_the_outline() -> None:
    whole = torch.zeros(9, 9, dtype=torch.bool)
    whole[2:7, 2:7] = True
    ring = Region.of("ring:1").find(whole[None], None, torch.ones(1, 9, 9, dtype=torch.bool))[0]
    expected = torch.zeros(9, 9, dtype=torch.bool)
    expected[1:8, 1:8] = True
    expected[3:6, 3:6] = False
    assert torch.equal(ring, expected)
    # a roof that the picture cuts has no outline there
    corner = torch.zeros(1, 6, 7, dtype=torch.bool)
    corner[:, :3] = True
    cut = Region.of("ring:1").find(corner, None, EVERYWHERE)[0]
    assert torch.equal(cut[:, 0], torch.tensor([False, False, True, True, False, False]))


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_properties_of_regions(seed: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    prediction, truth, valid = (
        torch.rand(1, 12, 10, generator=generator) < share for share in (0.4, 0.4, 0.8)
    )
    prediction &= valid

    def of(text: str) -> Tensor:
        return Region.of(text).find(prediction, truth, valid)

    texts = ("prediction", "truth", "fp", "fn", f"ring:{width}", f"ring:{width}@truth")
    for text in (*texts, "box:0,0,10,12", "points:3,4", "object:1", "object:1@truth"):
        assert not (of(text) & ~valid).any(), text
    assert torch.equal(of("fp") | (prediction & truth), prediction)
    assert torch.equal(of("fn") | (prediction & truth & valid), truth & valid)
    labels = objects(prediction[0])
    sizes = labels.flatten().bincount()[1:]
    assert torch.equal(labels > 0, prediction[0])
    assert (sizes.diff() <= 0).all()
    for number in range(1, int(labels.max()) + 1):
        part = labels == number
        # nothing else of the mask touches it
        assert torch.equal(dilate(part, 1) & prediction[0], part)
    assert (of(f"ring:{width}") <= of(f"ring:{width + 1}")).all()


NONE = """
box:1,2,3  box:3,0,3,4  box:0,4,2,4  box:a,0,1,1  box:-1,0,3,3  box:1.5,0,3,3  box:0,0,1,1@truth
points:  points:1  points:1,2;3  points:1,2,3,4  object:  object:0  object:1,2,3  object:1@
ring:  ring:0  ring:1,2  ring:3@both  ring:99999999999  prediction:1  truth:2  truth@truth
"""


@pytest.mark.parametrize("text", NONE.split())
def test_regions_that_are_none(text: str) -> None:
    kind = text.split(":", maxsplit=1)[0].split("@", maxsplit=1)[0]
    with pytest.raises(DataError, match=f"region {text}; expected {kind}"):
        Region.of(text)
    with pytest.raises(DataError):
        Target("roof", text)


def test_a_kind_of_region_that_does_not_exist() -> None:
    with pytest.raises(UnknownNameError, match="did you mean object"):
        Target("roof", "objects:3")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("object:4", "object:4 of a mask with 3 objects; expected a number from 1 .* to 3"),
        ("object:3,0", "the nearest one is at 2,0"),
        ("object:7,0", "the nearest one is at 5,2"),
        ("object:0,6", "the nearest one is at 0,5"),
        ("box:0,0,8,2", "7 x 6 px"),
        ("box:0,0,2,7", "7 x 6 px"),
        ("points:7,0", "X goes right and Y down"),
        ("points:0,6", "X goes right and Y down"),
        ("fp", "no truth mask for region fp"),
        ("fn", "no truth mask for region fn"),
        ("object:1@truth", "no truth mask for region object@truth"),
    ],
)
def test_places_that_a_picture_does_not_have(text: str, word: str) -> None:
    with pytest.raises(DataError, match=word):
        found(text)


def test_nothing_to_click_on() -> None:
    empty = torch.zeros(6, 7, dtype=torch.bool)
    with pytest.raises(DataError, match="the mask is empty"):
        found("object:1,1", empty)
    with pytest.raises(DataError, match="0 objects; expected an object"):
        found("object:1", empty)


def test_the_scalar_is_read_from_the_region() -> None:
    """Mean logit of a box; a margin to a rival, and to the strongest."""
    logits = torch.randn(1, 3, 6, 7, generator=torch.Generator().manual_seed(1)).double()
    bound = Target(1, "box:1,2,3,5").bind(logits, model=Names())  # type: ignore[arg-type]
    assert float(bound.score(logits)) == pytest.approx(float(logits[0, 1, 2:5, 1:3].mean()))
    box = logits[0, :, 2:5, 1:3]
    for rival, other in ((0, box[0]), (2, box[2]), (None, torch.maximum(box[0], box[2]))):
        target = Target(1, "box:1,2,3,5", "margin", rival=rival)
        margin = target.bind(logits, model=Names())  # type: ignore[arg-type]
        assert float(margin.score(logits)) == pytest.approx(float((box[1] - other).mean()))


def test_rivals_that_are_none() -> None:
    with pytest.raises(StudyError, match="space margin"):
        Target(1, rival=2)
    with pytest.raises(DataError, match="the class that is explained"):
        Target(1, space="margin", rival=1).bind(logits_of(PARTS), model=Names())  # type: ignore[arg-type]
    model = toy_model(3)
    with pytest.raises(UnknownNameError, match="did you mean roof"):
        explain(model, toy_images(3)[0], target=Target(0, space="margin", rival="rof"))


def test_measures_read_the_region() -> None:
    """Confidence over a box is the mean of p there, whatever the prediction."""
    logits = torch.randn(1, 3, 6, 7, generator=torch.Generator().manual_seed(1)).double()
    bound = Target(1, "box:1,2,3,5").bind(logits, model=Names())  # type: ignore[arg-type]
    p = probabilities(logits, "softmax")
    value = float(MEASURES["confidence"].function(p, bound, None))
    assert value == pytest.approx(float(p[0, 1, 2:5, 1:3].mean()))


# --- objects one by one ---------------------------------------------------------------------------
def several() -> tuple[SegmentationModel, Tensor]:
    """A network and a picture of 24 px whose prediction has five parts of 12 px and more."""
    model, image = toy_model(8), toy_images(3, side=24)[0]
    with torch.no_grad():
        decided = model(image[None]).argmax(dim=1)[0] == 1
    sizes = objects(decided).flatten().bincount()[1:]
    assert sizes[:6].tolist() == [81, 80, 55, 48, 12, 2]
    return model, image


@pytest.mark.parametrize("region", ["prediction", "truth"])
def test_objects_one_by_one_are_the_regions_alone(region: str) -> None:
    model, image = several()
    with torch.no_grad():
        truth = model(image.flip(-1)[None]).argmax(dim=1)[0] == 1
    target = Target("roof", region)
    methods = ["grad_cam", "hires_cam", "score_cam"]
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model.evidence((24, 24))  # runs of its own, once for a network
    handle = model.net.register_forward_pre_hook(count)
    fast = explain_objects(
        model,
        image,
        methods=methods[:2],
        layers=["decoder.blocks.0"],
        target=target,
        truth=truth,
        min_area=3,
    )
    cheap = list(fast)
    handle.remove()
    assert calls == 1  # one forward, whatever the number of objects
    assert len(cheap) >= 5
    seen = torch.zeros(24, 24, dtype=torch.bool)
    every = explain_objects(
        model, image, methods=methods, layers=["decoder:1"], target=target, truth=truth, min_area=3
    )
    for number, made in enumerate(every, start=1):
        name = f"object:{number}" + ("@truth" if region == "truth" else "")
        alone = explain_all(
            model,
            image,
            methods=methods,
            layers=["decoder:1"],
            target=replace(target, region=name),
            truth=truth,
        )
        for one, other in zip(made, alone, strict=True):
            assert one.target.region == name
            assert torch.equal(one.raw, other.raw)
            assert one.value == other.value
            assert one.raw.any() or one.method == "score_cam"
            assert one.explained is not None
            assert int(one.explained.sum()) >= 3
        assert made[0].explained is not None
        assert not (seen & made[0].explained).any()
        seen |= made[0].explained
        assert torch.equal(made[0].raw, cheap[number - 1][0].raw)


def test_objects_of_what() -> None:
    model, image = several()
    with pytest.raises(DataError, match="region prediction or truth"):
        next(explain_objects(model, image, methods=["grad_cam"], layers=[], target=Target(1, "fp")))
    big = explain_objects(
        model, image, methods=["grad_cam"], layers=["decoder:1"], target=Target(1), min_area=82
    )
    assert list(big) == []
    # parts of 81, 80, 55, ... px: the smallest size counts
    two = explain_objects(
        model, image, methods=["grad_cam"], layers=["decoder:1"], target=Target(1), min_area=80
    )
    assert len(list(two)) == 2


def test_places_of_one_picture_are_no_region_of_a_study() -> None:
    how = {"model": "smp:x", "data": "y", "class": "roof"}
    for region in ("fp", "fn", "ring:3", "ring:3@truth", "prediction", "truth"):
        assert Settings.of(**how, region=region).target.region == region
    for region in ("box:0,0,3,3", "points:1,1", "object:1", "object:2,2"):
        with pytest.raises(StudyError, match="for a set of tiles"):
            Settings.of(**how, region=region)
    with pytest.raises(StudyError, match="preset paper with region fp"):
        Settings.of(**how, region="fp", preset="paper")
    with pytest.raises(StudyError, match="preset paper with space margin"):
        Settings.of(**how, space="margin", preset="paper")
    with pytest.raises(StudyError, match="preset paper with grow 4"):
        Settings.of(**how, grow=4, preset="paper")
    with pytest.raises(StudyError, match="preset paper with roughen 4"):
        Settings.of(**how, roughen=4, preset="paper")
    with pytest.raises(StudyError, match="preset paper with soft True"):
        Settings.of(**how, soft=True, preset="paper")
    with pytest.raises(StudyError, match="preset paper with references"):
        Settings.of(**how, references=("prediction",), preset="paper")
    with pytest.raises(StudyError, match="space margin"):
        Settings.of(**how, rival="road")
    made = Settings.of(**how, space="margin", rival="road", reduce="sum").target
    assert (made.space, made.reduce, made.rival) == ("margin", "sum", "road")
