"""The golden net: what the demo's first tiles give, as numbers, columns, files and texts.

Numbers are compared with the tolerance that other processors need. SEGPROOF_EXACT=1 compares every
byte; that holds on the kind of machine that wrote the goldens. Only public names are used here.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from cyclopts import App

import segproof
import segproof.cli.app

GOLDEN: Final = Path(__file__).resolve().parent / "golden"
RENEW: Final = "SEGPROOF_RENEW=1 .venv/bin/python -m pytest tests/test_golden.py"
RENEWING: Final = os.environ.get("SEGPROOF_RENEW") == "1"
EXACT: Final = os.environ.get("SEGPROOF_EXACT") == "1"

TILES: Final = 2
KEYS: Final = [
    "sample", "method", "layer", "binarisation", "level", "strategy", "reference", "fill", "seed",
]  # fmt: skip
# A pixel whose probability lies on the threshold moves a count by one in about a thousand.
COUNTED: Final = ("kept", "certainty", "iou", "iou_delta", "dice", "iou_prediction", "coverage")
TOLERANCE: Final = 2e-4
TOLERANCE_OF_COUNTS: Final = 3e-3
# On other processors a heatmap's last bits decide which pixels lie just above a cut: with plain
# SSE arithmetic 5 of 1,760 rows, all of one map, differ by up to 0.008.
JUMP: Final = 0.02
JUMPS: Final = 0.01  # share of a column, or of a text's numbers, that may differ by up to JUMP
DIGITS: Final = 5
EVERY: Final = 97  # rows; a prime, so that the sample meets all fills, levels and methods
TABLES: Final = ("sweep", "best", "faithfulness", "layers", "validity", "judged")
COMMANDS: Final = {
    "status": ("status", "RUN"),
    "verify": ("verify", "RUN", "--limit", "0"),
    "compare": ("compare", "RUN", "RUN"),
    "measures": ("measures",),
}

NUMBER: Final = re.compile(r"[+\-−]?\d[\d,]*(?:\.\d+)?")
INLINE: Final = frozenset((
    "a", "abbr", "b", "bdi", "br", "code", "dd", "del", "em", "i", "ins", "kbd", "mark", "s",
    "small", "span", "strong", "sub", "sup", "td", "th", "u", "var", "wbr",
))  # fmt: skip
STRUCK: Final = ("s", "del")
SILENT: Final = ("script", "style", "svg")


@dataclass(frozen=True)
class GoldenRun:
    """A finished demo: the folder it was started in, the run folder, and its terminal text."""

    home: Path
    folder: Path
    terminal: str


def terminal_of(home: Path, *arguments: str, columns: int = 120) -> tuple[int, str]:
    """Exit code and standard output of one command, run inside `home` without colour."""
    text = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(text), redirect_stderr(StringIO()):
        # relative paths on the command line: line breaks must not depend on the temporary folder
        patch.chdir(home)
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("NO_COLOR", "1")
        code = segproof.cli.app.main(list(arguments))
    return code, text.getvalue()


@pytest.fixture(scope="module")
def golden_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GoldenRun]:
    """The demo on its first tiles, computed with one thread."""
    home = tmp_path_factory.mktemp("golden")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    code, text = terminal_of(home, "demo", "--out", "demo", "--tiles", str(TILES))
    assert code == 0, text
    yield GoldenRun(home, home / "demo" / "run", text)
    torch.set_num_threads(threads)


# Numbers


def sorted_rows(folder: Path) -> pd.DataFrame:
    """All rows of a run in the order of their keys, which are unique."""
    rows = segproof.Results.load(folder).rows.sort_values(KEYS, na_position="first")
    assert not rows.duplicated(KEYS).any()
    return rows.reset_index(drop=True)


def rounded(value: object) -> str:
    """A cell of the golden table: floats with DIGITS significant digits, no minus zero."""
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value + 0.0:.{DIGITS}g}"
    return str(value)


def as_csv(rows: pd.DataFrame) -> str:
    text = StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(rows.columns)
    lines.writerows([rounded(value) for value in row] for row in rows.itertuples(index=False))
    return text.getvalue()


def measured(rows: pd.DataFrame) -> list[str]:
    """The columns that are compared with a tolerance."""
    return [str(name) for name in rows.select_dtypes("float64") if name not in KEYS]


def from_csv(text: str) -> pd.DataFrame:
    return pd.read_csv(StringIO(text), dtype=str, keep_default_na=False)


def differences(rows: pd.DataFrame, golden: pd.DataFrame, numeric: list[str]) -> list[str]:
    """What differs between two tables of `as_csv`; numbers may differ by the tolerances."""
    if list(rows) != list(golden) or len(rows) != len(golden):
        return [f"{len(rows)} rows of {list(rows)}, not {len(golden)} of {list(golden)}"]
    messages = []
    for name in golden:
        here, there = rows[name], golden[name]
        if name in numeric:
            new, old = (pd.to_numeric(column).to_numpy(float) for column in (here, there))
            allowed = TOLERANCE_OF_COUNTS if name in COUNTED else TOLERANCE
            # effective_channels is a number of about 30: there the tolerance is a relative one
            close = np.isclose(new, old, rtol=TOLERANCE, atol=allowed, equal_nan=True)
            equal = np.isclose(new, old, rtol=0, atol=JUMP, equal_nan=True) | close
            if (~close).mean() > JUMPS:
                equal = close
        else:
            equal = (here == there).to_numpy()
        if not equal.all():
            place = int(np.argmin(equal))
            keys = " ".join(golden[KEYS].iloc[place])
            messages.append(
                f"{name}: {int((~equal).sum())} of {len(equal)} differ, first at {keys}:"
                f" {here.iloc[place]!r}, not {there.iloc[place]!r}"
            )
    return messages


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_rows_are_the_golden_ones(golden_run: GoldenRun) -> None:
    rows = sorted_rows(golden_run.folder)
    text = as_csv(rows)
    path = GOLDEN / "rows.csv.gz"
    if RENEWING:
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
    golden = gzip.decompress(path.read_bytes()).decode()
    messages = differences(from_csv(text), from_csv(golden), measured(rows))
    assert not messages, "\n".join([*messages, f"if that is meant, renew: {RENEW}"])


def test_a_sample_of_rows_reads_as_before(golden_run: GoldenRun) -> None:
    rows = sorted_rows(golden_run.folder).iloc[::EVERY]
    text = as_csv(rows)
    path = GOLDEN / "rows_sample.csv"
    golden = path.read_text(encoding="utf-8") if path.exists() else "no golden\n"
    if RENEWING or differences(from_csv(text), from_csv(golden), measured(rows)):
        check_text(path.name, text, numbers_exact=True)  # shows the lines


@pytest.mark.skipif(not (EXACT or RENEWING), reason="SEGPROOF_EXACT=1 compares every byte")
def test_bytes_are_the_golden_ones(golden_run: GoldenRun) -> None:
    hashes = {
        "results.csv": sha256((golden_run.folder / "results.csv").read_bytes()),
        f"rows, sorted, {DIGITS} digits": sha256(as_csv(sorted_rows(golden_run.folder)).encode()),
    }
    check_json("hashes.json", hashes)


def test_other_numbers_would_be_noticed() -> None:
    row = dict.fromkeys(KEYS, "a") | {"confidence": "0.5", "iou": "0.5", "status": "ok"}
    golden = pd.DataFrame([row, row])

    def messages(**change: str) -> list[str]:
        return differences(pd.DataFrame([row, row | change]), golden, numeric=["confidence", "iou"])

    assert messages() == []
    assert messages(confidence="0.5001") == []
    assert messages(confidence="0.5004")
    assert messages(confidence="")
    assert messages(iou="0.502") == []
    assert messages(iou="0.504")
    assert messages(status="flat")
    assert messages(fill="b")
    assert differences(golden.iloc[:1], golden, ["confidence"])

    many = pd.DataFrame([row] * 200)
    for jumps, by, allowed in ((2, "0.51", True), (1, "0.53", False), (3, "0.51", False)):
        new = many.copy()
        new.loc[: jumps - 1, "confidence"] = by
        assert (differences(new, many, ["confidence"]) == []) is allowed
    assert [rounded(value) for value in (-0.0, 1 / 3, float("nan"), 7, "x")] == [
        "0", "0.33333", "", "7", "x",
    ]  # fmt: skip


# Columns, keys, schema, file names


def key_paths(value: Any, prefix: str = "") -> set[str]:
    """Every key of nested dictionaries as a.b.c; the items of a list share the name []."""
    if isinstance(value, dict):
        inner = [
            key_paths(item, f"{prefix}.{key}" if prefix else key) for key, item in value.items()
        ]
    elif isinstance(value, list):
        inner = [key_paths(item, f"{prefix}[]") for item in value]
    else:
        inner = []
    return {prefix}.union(*inner) - {""}


def columns_of(frame: pd.DataFrame) -> list[str]:
    # pandas 2 calls a column of texts object, pandas 3 str
    return [f"{name}: {kind}".replace(": object", ": str") for name, kind in frame.dtypes.items()]


def test_columns_are_the_golden_ones(golden_run: GoldenRun) -> None:
    results = segproof.Results.load(golden_run.folder)
    with (golden_run.folder / "results.csv").open(encoding="utf-8") as stream:
        header = next(csv.reader(stream))
    found = {
        "Results.rows": columns_of(results.rows),
        "Results.scores": columns_of(results.scores),
        "Results.tiles": columns_of(results.tiles),
        "Results.mean": columns_of(results.mean("iou")),
        **{f"Results.{name}": columns_of(getattr(results, name)()) for name in TABLES},
        "results.csv": header,
        "results.parquet": [
            f"{field.name}: {field.type}"
            for field in pq.read_schema(golden_run.folder / "results.parquet")
        ],
    }
    check_json("columns.json", found)


def test_files_and_keys_are_the_golden_ones(golden_run: GoldenRun) -> None:
    manifest = json.loads((golden_run.folder / "manifest.json").read_text(encoding="utf-8"))
    with closing(sqlite3.connect(f"file:{golden_run.folder / 'run.db'}?mode=ro", uri=True)) as db:
        schema = db.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL ORDER BY name")
        statements = [statement for (statement,) in schema]
        stored = [key for (key,) in db.execute("SELECT key FROM meta ORDER BY key")]
    names = {
        path.relative_to(golden_run.home / "demo").as_posix()
        for path in (golden_run.home / "demo").rglob("*")
    }
    found = {
        # SQLite's own files come and go with the connections
        "files": sorted(name for name in names if not name.endswith(("-wal", "-shm"))),
        "manifest.json": sorted(key_paths(manifest)),
        "run.db": statements,
        "run.db, meta": stored,
    }
    check_json("run_folder.json", found)


def test_key_paths_are_recursive() -> None:
    nested = {"a": {"b": 1, "c": [{"d": 2}, {"e": {}}]}, "f": None}
    assert key_paths(nested) == {"a", "a.b", "a.c", "a.c[]", "a.c[].d", "a.c[].e", "f"}


# Texts


class Text(HTMLParser):
    """The words of a page: a line a block, bars between the cells of a row, ~ around what is struck
    out.
    """

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._silent += tag in SILENT
        self._parts.append(" | " if tag in ("td", "th", "dd") else " " if tag in INLINE else "\n")
        self._parts.append("~" if tag in STRUCK else "")
        if tag == "img":
            self._parts.append(f"[picture: {dict(attributes).get('alt')}]\n")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in SILENT
        self._parts.append("~" if tag in STRUCK else "" if tag in INLINE else "\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self._parts.append(data)

    @classmethod
    def of(cls, page: str) -> str:
        parser = cls()
        parser.feed(page)
        parser.close()
        lines = (" ".join(line.split()) for line in "".join(parser._parts).splitlines())
        return "\n".join(line for line in lines if line) + "\n"


def masked(text: str, run: GoldenRun) -> str:
    """The text without what differs between machines and days: paths, versions, dates, times."""
    machine = json.loads((run.folder / "manifest.json").read_text(encoding="utf-8"))["machine"]
    package = Path(segproof.__file__).resolve().parent
    for path, name in ((run.home, "HOME"), (package, "PACKAGE")):
        text = text.replace(str(path), name)
    for fact in ("system", "python", "torch"):
        text = text.replace(str(machine[fact]), fact.upper())
    text = re.sub(rf"(?<![\d.]){re.escape(version('segproof'))}(?![\d.])", "VERSION", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+(?:[+-]\d\d:\d\d|Z)?", "DATE", text)
    text = re.sub(r"\b[\d,.]+(?= ms\b| min at\b| tiles/min\b)", "N", text)
    return re.sub(r"(?m)^(\| Time \| )[\d,.]+ s$", r"\1N s", text)


def as_number(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-"))


def numbers_agree(new: str, old: str) -> bool:
    """Two numbers as printed: at most a unit of the last decimal apart; whole numbers 1 %."""
    here, there = as_number(new), as_number(old)
    decimals = len(old.partition(".")[2])
    allowed = 1.01 * 10.0**-decimals if decimals else 0.01 * abs(there)
    return abs(here - there) <= allowed


def texts_agree(new: str, old: str) -> bool:
    """Equal words and blanks; numbers as in `numbers_agree`, but for a few that jump."""
    if NUMBER.sub("#", new) != NUMBER.sub("#", old):
        return False
    pairs = list(zip(NUMBER.findall(new), NUMBER.findall(old), strict=True))
    others = [pair for pair in pairs if not numbers_agree(*pair)]
    near = all(abs(as_number(here) - as_number(there)) <= JUMP for here, there in others)
    return near and len(others) <= JUMPS * len(pairs)


def check_text(name: str, text: str, *, numbers_exact: bool = EXACT) -> None:
    """Compare with the golden file of that name, or renew it."""
    path = GOLDEN / name
    if RENEWING:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    golden = path.read_text(encoding="utf-8") if path.exists() else ""
    if text == golden or (not numbers_exact and texts_agree(text, golden)):
        return
    lines = difflib.unified_diff(
        golden.splitlines(), text.splitlines(), f"tests/golden/{name}", "now", lineterm="", n=1
    )
    diff = list(lines)
    shown = "\n".join(diff[:80])
    pytest.fail(f"{shown}\n{len(diff)} lines differ; if that is meant, renew: {RENEW}", False)


def check_json(name: str, value: object) -> None:
    check_text(name, json.dumps(value, indent=1, ensure_ascii=False) + "\n", numbers_exact=True)


def test_demo_says_what_it_said(golden_run: GoldenRun) -> None:
    check_text("demo.txt", masked(golden_run.terminal, golden_run))


def test_report_reads_as_before(golden_run: GoldenRun) -> None:
    page = golden_run.folder / "report.html"
    written = Text.of(page.read_text(encoding="utf-8"))
    check_text("report.txt", masked(written, golden_run))
    code, text = terminal_of(golden_run.home, "report", "demo/run")
    assert code == 0
    check_text("report_command.txt", masked(text, golden_run))
    again = Text.of(page.read_text(encoding="utf-8"))
    assert again == written, "the report of one run differs from one rendering to the next"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_commands_say_what_they_said(name: str, golden_run: GoldenRun) -> None:
    words = [word.replace("RUN", "demo/run") for word in COMMANDS[name]]
    code, text = terminal_of(golden_run.home, *words)
    assert code == 0
    check_text(f"{name}.txt", masked(text, golden_run))


def commands_of(app: App, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command that the application has, as words; the empty tuple is the application."""
    found = [path]
    for name in app:
        if not name.startswith("-"):
            found += commands_of(app[name], (*path, name))
    return found


def application() -> App:
    """The one cyclopts application of the command line, whatever name it has there."""
    apps = [value for value in vars(segproof.cli.app).values() if isinstance(value, App)]
    assert apps, "segproof.cli.app holds no cyclopts App: its commands cannot be listed"
    return max(apps, key=lambda app: len(commands_of(app)))


def test_help_texts_are_the_golden_ones(tmp_path: Path) -> None:
    folder = GOLDEN / "help"
    helps = {}
    for words in commands_of(application()):
        code, text = terminal_of(tmp_path, *words, "--help", columns=100)
        assert code == 0
        assert "\x1b" not in text
        assert max(map(len, text.splitlines())) <= 100
        helps["_".join(("segproof", *words)) + ".txt"] = text
    assert len(helps) > 10
    if RENEWING:
        for path in folder.glob("*.txt"):
            path.unlink()
    stored = {path.name for path in folder.glob("*.txt")}
    if not RENEWING:
        added, gone = sorted(set(helps) - stored), sorted(stored - set(helps))
        assert stored == set(helps), f"commands added {added}, gone {gone}; renew: {RENEW}"
    for name, text in helps.items():
        check_text(f"help/{name}", text, numbers_exact=True)


def test_other_words_would_be_noticed() -> None:
    assert texts_agree("M1 0.501, 2 tiles", "M1 0.500, 2 tiles")
    assert not texts_agree("M1 0.503, 2 tiles", "M1 0.500, 2 tiles")
    assert not texts_agree("M1 0.500, 3 tiles", "M1 0.500, 2 tiles")
    assert not texts_agree("M1 0.500,  2 tiles", "M1 0.500, 2 tiles")
    assert not texts_agree("M1 −0.500", "M1 0.500")
    assert not texts_agree("no tiles", "2 tiles")
    assert texts_agree("0.51" + " 0.5" * 100, "0.50" + " 0.5" * 100)
    assert not texts_agree("0.53" + " 0.5" * 100, "0.50" + " 0.5" * 100)
    assert not texts_agree("3" + " 0.5" * 100, "2" + " 0.5" * 100)
    page = "<h1>A&amp;B</h1><style>x{}</style><table><tr><td>a <b>1</b><td>2</tr></table><p>c"
    assert Text.of(page) == "A&B\n| a 1 | 2\nc\n"
