"""Reports read line by line, raise for failures, and depend on the seed."""

from __future__ import annotations

import dataclasses

import pytest

import segproof.testing as testing
from segproof.testing import (
    Check,
    Report,
    check_method,
)
from segproof.testing.toys import LAYERS, toy_model


def test_a_report_reads_line_by_line() -> None:
    report = Report(
        (Check("a", "passed", "fine"), Check("b", "failed", "by 0.3"), Check("c", "skipped"))
    )
    assert str(report) == "passed  a: fine\nfailed  b: by 0.3\nskipped c: "
    assert not report.ok
    assert report.failed == (report.checks[1],)
    with pytest.raises(AssertionError, match=r"1 of 3 failed\nb: by 0\.3"):
        report.raise_for_failures()
    good = Report(report.checks[::2])
    assert good.ok
    good.raise_for_failures()
    assert dataclasses.is_dataclass(Check)


def test_cases_depend_on_the_seed() -> None:
    first, second = (
        [check.detail for check in check_method("grad_cam", cases=2, seed=seed).checks]
        for seed in (0, 1)
    )
    assert first != second
    assert first == [check.detail for check in check_method("grad_cam", cases=2).checks]


def test_public_names_exist_and_are_documented() -> None:
    assert len(set(testing.__all__)) == len(testing.__all__)
    for name in testing.__all__:
        value = getattr(testing, name)
        if callable(value):
            assert value.__doc__, name
    assert all(layer in dict(toy_model().net.named_modules()) for layer in LAYERS)
