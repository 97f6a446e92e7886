"""Reads reports of checks by the names of the checks."""

from __future__ import annotations

from segproof.testing import Report


def statuses(report: Report) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}


def failures(report: Report) -> set[str]:
    return {check.name for check in report.failed}
