"""The report: complete, self-contained, honest about controls and fills, and safe."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rows import METHODS, make_manifest, make_pictures, make_rows, make_tiles
from segproof.analysis import HEADLINE_MEASURES, Analysis
from segproof.measures.track_record import evidence_of
from segproof.report import drawing
from segproof.report.page import render

SMALL = make_rows(2, areas=(), fills=("black",), methods=METHODS[:2])
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Reads a page: tags, attributes, text, and whether tags are closed in order."""

    def __init__(self, html: Any) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[Any] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: Any, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: Any) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: Any) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> Any:
        return re.sub(r"\s+", " ", " ".join(self.text))

    def values(self, name: Any) -> Any:
        return [value for _, attribute, value in self.attributes if attribute == name]


@pytest.fixture
def undrawn(monkeypatch: Any) -> None:
    """Figures are built but not drawn, which takes most of the time."""
    monkeypatch.setattr(drawing, "svg", lambda figure: b"<svg/>")
    monkeypatch.setattr(drawing, "webp", lambda figure, dpi=0: b"RIFF")


@pytest.fixture(scope="module")
def html() -> Any:
    return render(make_rows(20), make_tiles(20), make_manifest(), make_pictures(2, 64))


@pytest.fixture(scope="module")
def page(html: Any) -> Any:
    return Page(html)


def test_page_is_well_formed_and_verdict_comes_first(page: Any) -> None:
    assert page.open == []
    assert page.tags.count("h1") == 1
    order = [page.words.index(text) for text in ("For this model on these 20 tiles", "Gallery")]
    order += [page.words.rindex(f"Task {number}:") for number in (1, 2, 3)]
    order.append(page.words.rindex("How the numbers are made"))
    assert order == sorted(order)


def test_every_measure_shows_how_it_did_where_the_truth_is_known(page: Any) -> None:
    for name, key in (("M1 confidence", "m1_confidence"), ("contrast", "contrast")):
        [first, second] = sorted(evidence_of(key), key=lambda card: str(card["tier"]))
        assert f"{name} {first['tau']:.2f} ({first['low']:.2f} to " in page.words
        assert f"{second['tau']:.2f} ({second['low']:.2f} to " in page.words


def test_the_ranking_goes_by_the_measure_that_judges(page: Any) -> None:
    made = Analysis(make_rows(20))
    assert "Ranked by contrast, the measure of the verdict" in page.words
    for frame in (made.ranking, made.by_iou_drop):
        for mean in frame["mean"]:
            assert f"{mean:.3f}".replace("-", "\N{MINUS SIGN}") in page.words
    assert page.words.rindex("The same by IoU drop") < page.words.rindex("Task 1:")
    assert "contrast by layer and method" in page.values("alt")


def test_navigation_leads_to_sections(page: Any) -> None:
    ids = set(page.values("id"))
    links = page.values("href")
    assert len(links) == 12
    assert all(link[1:] in ids for link in links)


def test_page_asks_for_nothing(html: Any, page: Any) -> None:
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(value.startswith("data:image/") for value in page.values("src"))
    assert all(value.startswith("#") for value in page.values("href"))
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in html


def test_every_picture_says_what_it_shows(page: Any) -> None:
    assert page.tags.count("img") == len([alt for alt in page.values("alt") if alt])
    assert page.tags.count("img") >= 12


def test_tiles_fills_and_failures_are_counted(page: Any) -> None:
    assert "20 ok, 1 skipped, 1 failed" in page.words
    assert "image is truncated 1 9002" in page.words
    assert "2 of 3 fills valid for this model" in page.words
    assert "decoder:1 Grad-CAM++ 20 18 2" in page.words
    assert "decoder.blocks.0" in page.words


def test_losers_are_marked_and_invalid_fills_struck(html: Any, page: Any) -> None:
    assert re.search(r'Eigen-CAM<sup class="mark">\u2020\u2021?</sup>', html)
    assert not re.search(r'XGrad-CAM<sup class="mark">\u2020', html)
    assert "<s>neutral</s>" in html
    assert html.count("<s>") > 50
    assert "not shown to beat random blobs" in page.words


@pytest.mark.usefixtures("undrawn")
def test_without_controls_nothing_is_marked() -> None:
    html = render(make_rows(4, controls=False), make_tiles(4), make_manifest())
    assert 'class="mark"' not in html
    words = Page(html).words
    assert "were not run, so no method is marked" in words
    assert "Not tested" in words
    assert "No pictures were kept" in words


@pytest.mark.usefixtures("undrawn")
def test_paper_preset_lists_the_published_faults() -> None:
    rows = make_rows(3, fills=("neutral",), preset="paper")
    page = Page(render(rows, make_tiles(3), make_manifest("paper", 3)))
    assert "repeats the published protocol, its faults included" in page.words
    assert "lowest entropy" in page.words
    assert "Ranked by IoU drop, the measure of the verdict" in page.words
    assert "M3 is won" not in Page(render(SMALL, make_tiles(2), make_manifest())).words


@pytest.mark.usefixtures("undrawn")
def test_it_can_be_repeated() -> None:
    first, second = (render(SMALL, make_tiles(2), make_manifest()) for _ in range(2))
    assert first == second


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>$x_1$"


@pytest.mark.usefixtures("undrawn")
def test_hostile_strings_stay_text() -> None:
    rows = make_rows(3, layers=(HOSTILE,), methods=METHODS[:2])
    rows["sample"] = rows["sample"] + HOSTILE
    rows["method"] = rows["method"].replace("grad_cam", HOSTILE)
    tiles = make_tiles(3)
    tiles["sample"] += HOSTILE
    tiles["reason"] = HOSTILE
    manifest = make_manifest()
    manifest["command"] = manifest["version"] = manifest["created"] = HOSTILE
    manifest["model"] |= {"spec": HOSTILE, "classes": [HOSTILE]}
    manifest["study"] = {"class": HOSTILE, HOSTILE: [HOSTILE]}
    manifest["machine"] = {HOSTILE: HOSTILE}
    manifest["layers"] = [{"alias": HOSTILE, "path": HOSTILE, "stride": HOSTILE}]
    manifest["warnings"] = [HOSTILE]
    pictures = make_pictures(1, 32, layers=(HOSTILE,))
    pictures[0]["sample"] = HOSTILE
    page = Page(render(rows, tiles, manifest, pictures))
    assert page.open == []
    assert "script" not in page.tags
    assert all(value.startswith("data:") for value in page.values("src"))
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert "<script>alert(1)</script>" in page.words


@pytest.mark.usefixtures("undrawn")
def test_names_that_are_not_utf8_can_be_written() -> None:
    tiles = make_tiles(2)
    tiles["sample"] = tiles["sample"].astype(object)
    tiles.loc[2, "sample"] = "roof\udcff"
    html = render(SMALL, tiles, make_manifest())
    assert "roof\\udcff" in html
    html.encode("utf-8")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "options",
    [
        {"tiles": 1},
        {"tiles": 2, "methods": ("grad_cam",), "layers": ("decoder:1",)},
        {"tiles": 2, "thresholds": ()},
        {"tiles": 2, "areas": ()},
    ],
)
def test_small_studies_make_a_page(options: Any) -> None:
    page = Page(render(make_rows(**options), make_tiles(2), {}))
    assert page.open == []
    assert "nan" not in re.findall(r"\w+", page.words.lower())


@pytest.mark.usefixtures("undrawn")
def test_nothing_measured_still_makes_a_page() -> None:
    tiles = pd.DataFrame({"sample": ["a"], "status": ["failed"], "reason": ["unreadable"]})
    page = Page(render(make_rows(2).iloc[:0], tiles, make_manifest()))
    assert "No verdict" in page.words
    assert "unreadable" in page.words


def test_numbers_of_the_tables_stand_in_the_page(page: Any) -> None:
    made = Analysis(make_rows(20)).faithfulness
    part = made[(made["binarisation"] == "area") & (made["fill"] == "background_texture")]
    assert len(part) == 12
    for mean in part["mean"]:
        assert f"{mean:.3f}" in page.words
    assert np.isfinite(part["mean"]).all()


def test_the_page_says_how_firm_the_order_is(page: Any) -> None:
    made = Analysis(make_rows(20))
    assert "How firm is the order?" in page.words
    across: Any = made.agreement.set_index("factor")
    assert f"tiles contrast {across.loc['images', 'w']:.2f} 18 10 < 0.001" in page.words
    assert f"0.05, 0.1, 0.2, 0.3 contrast {across.loc['areas', 'w']:.2f} 4 10" in page.words
    ranks = made.mean_ranks[made.mean_ranks["measure"] == "contrast"]
    for rank in ranks["mean_rank"]:
        assert f"{rank:.2f}" in page.words
    assert {f"mean ranks by {m}" for m in HEADLINE_MEASURES} <= set(page.values("alt"))
    second = made.precision[made.precision["runner_up"]].iloc[0]
    assert "To tell apart the two best, Score-CAM at decoder:2 and XGrad-CAM at decoder:2" in (
        page.words
    )
    assert f"{int(second['tiles_apart']):,} {int(second['tiles_apart_all']):,}" in page.words
    assert "control probability map" in page.words


@pytest.mark.usefixtures("undrawn")
def test_a_page_of_one_tile_names_no_number_of_tiles() -> None:
    words = Page(render(make_rows(1), make_tiles(1), make_manifest())).words
    assert "No number of tiles can be named" in words
    assert "Too few tiles or candidates for a Friedman test" in words
