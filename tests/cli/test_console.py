"""How loud the command line is, and what its first messages say."""

from __future__ import annotations

import logging

import pytest

from segproof.cli import app as cli
from segproof.cli.console import log, progress, set_loudness
from segproof.cli.loading import say_loading
from segproof.cli.renamed import renamed


@pytest.mark.parametrize(
    ("options", "printed"),
    [([], "ab"), (["-q"], "b"), (["--quiet"], "b"), (["-v"], "abc"), (["--verbose"], "abc")],
)
def test_loudness_chooses_what_the_log_prints(
    options: list[str], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["measures", "contrast", *options]) == cli.OK
    capsys.readouterr()
    for text, level in (("a", logging.INFO), ("b", logging.WARNING), ("c", logging.DEBUG)):
        log.log(level, text)
    assert capsys.readouterr().err.split() == list(printed)


def test_an_error_is_printed_however_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-q", "layers"]) == cli.WRONG_INPUT
    said = capsys.readouterr().err
    assert said.startswith("error: found no network; expected --model NETWORK\n")
    assert "name a folder or a file of weights" in said.splitlines()[1]
    assert cli.main(["-v", "layers"]) == cli.WRONG_INPUT
    assert "Traceback" in capsys.readouterr().err


def test_no_progress_line_where_the_log_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    set_loudness(quiet=True)
    with progress("tiles") as advance:
        advance(1, 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["doctor", "--model", "net"], "loading the network net ...\n"),
        (["doctor", "--model=net"], "loading the network net ...\n"),
        (["init", "net", "tiles"], "loading the network net ...\n"),
        (["demo"], "loading the network of the demo ...\n"),
        (["verify", "run"], "loading the network of the run ...\n"),
        (["doctor", "--model", "net", "--help"], ""),
        (["status", "run"], ""),
        (["study", "/nowhere.toml"], ""),
        ([], ""),
    ],
)
def test_the_first_message_names_the_network(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    set_loudness()
    say_loading(words)
    assert capsys.readouterr().err == message


def test_old_options_become_new_ones_with_a_notice(capsys: pytest.CaptureFixture[str]) -> None:
    set_loudness()
    words = ["explain", "a.png", "--method", "grad_cam", "--layer=decoder:1", "--methods", "x"]
    new = ["explain", "a.png", "--methods", "grad_cam", "--layers=decoder:1", "--methods", "x"]
    assert renamed(words) == new
    said = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0] for line in said] == [
        "--method is now called --methods",
        "--layer is now called --layers",
    ]
    assert renamed(["study", "--method", "a"]) == ["study", "--method", "a"]
    assert renamed([]) == []
