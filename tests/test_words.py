"""Texts are whole sentences in the field's nouns: phrases that had to be decoded stay out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src" / "segproof").rglob("*.py"))
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
MENTIONS_THE_PAST = {"CHANGELOG.md"}  # it says what a release changed, old names included

# what stood in help texts, messages and pages once -> what to write
DECODED = {
    r"gone on with": "resumed",
    r"goes? on where": "resumes",
    r"so many (px|pixels|channels|deviations|of them)": "N pixels, N channels",
    r"stand for the others": "N representative channels",
    r"asked for twice": "identical pictures are run once",
    r"shown once; how much": "identical pictures are run once",
    r"outlines say less": "its outline gives away less of the shape",
    r"whole and right": "database integrity, the checksum of every tile ...",
    r"[Ll]ooking without working": "read-only checks",
    r"is said before anything": "is printed before the study starts",
    r"found no data; expected": "No data set given.",
}
# pages speak of what holds, not of what developers were asked to reach
OF_DEVELOPERS = (
    r"\basked\b",
    r"\bdemanded\b",
    r"\bnot reached\b(?! here)",
    r"\bissue #?\d",
    r"\bacceptance criteri",
)
# first words of module docstrings; a module says with a verb what is in it
VERBS = (
    "accepts adds answers averages binds builds calls captures checks chooses collects "
    "compares computes continues converts copies counts creates cuts decides defines derives "
    "describes diagnoses draws estimates evaluates explains exports fills finds fits follows "
    "formats generates gives groups guards halves hands holds joins keeps lays limits lists "
    "loads looks makes maps marks measures merges moves names normalises offers opens orders "
    "outlives packs paints parses perturbs plans prepares prints puts raises ranks reads "
    "records registers removes renders replaces reports resolves runs samples saves says "
    "seeds selects sends serves sets shares shows solves sorts splits spreads starts stops "
    "stores studies styles summarises surveys takes tells tests times traces tracks trains "
    "translates tries turns validates warns watches weighs wraps writes"
)


def lines_with(pattern: str, path: Path) -> list[str]:
    """`path:line: text` of each match; a phrase may break over two lines."""
    text = path.read_text(encoding="utf-8")
    spaced = pattern.replace(" ", r"(?:\s|#|\"|'|\*)+")
    return [
        f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}"
        for match in re.finditer(spaced, text)
    ]


@pytest.mark.parametrize("pattern", DECODED)
def test_phrases_that_had_to_be_decoded_stay_out(pattern: str) -> None:
    pages = [page for page in PAGES if page.name not in MENTIONS_THE_PAST]
    places = [line for path in [*SOURCES, *pages] for line in lines_with(pattern, path)]
    assert places == [], f"write: {DECODED[pattern]}"


@pytest.mark.parametrize("pattern", OF_DEVELOPERS)
def test_pages_speak_of_what_holds(pattern: str) -> None:
    pages = [page for page in PAGES if page.name not in MENTIONS_THE_PAST]
    assert [line for page in pages for line in lines_with(pattern, page)] == []


@pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(ROOT)) for p in SOURCES])
def test_a_module_says_with_a_verb_what_is_in_it(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text, "a module without a docstring"
    first = re.split(r"\W", text, maxsplit=1)[0]
    assert first.lower() in VERBS.split() or text.startswith(
        ("segproof explains", "`python -m segproof`")
    )


def test_the_rules_would_notice(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("A stopped run is gone\non with. What was asked of us.\n", encoding="utf-8")
    assert lines_with("gone on with", page) == [f"{page}:1: 'gone\\non with'"]
    assert lines_with(r"\basked\b", page) == [f"{page}:2: 'asked'"]
