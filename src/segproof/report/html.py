"""Turns sections of tables, pictures and text into one HTML page that asks nothing from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jinja2
from matplotlib.figure import Figure

from segproof.report import drawing
from segproof.report.table import Table

__all__ = ["Picture", "Section", "drawn", "fold", "page_of", "photographed"]


@dataclass(frozen=True)
class Picture:
    """A figure as data URI, with what it shows in words."""

    uri: str
    alt: str
    caption: str = ""


@dataclass
class Section:
    """A part of the page, filled in order."""

    anchor: str
    title: str
    lead: str = ""
    blocks: list[tuple[str, Any]] = field(default_factory=list)

    def add(
        self, kind: Literal["table", "picture", "text", "heading", "code", "fold"], item: Any
    ) -> None:
        """Append a block; a fold is a section that opens on a click."""
        self.blocks.append((kind, item))


def drawn(figure: Figure, alt: str, caption: str = "") -> Picture:
    """A figure of lines and text, sharp at any size."""
    return Picture(drawing.data_uri(drawing.svg(figure)), alt, caption)


def photographed(figure: Figure, alt: str, caption: str = "") -> Picture:
    """A figure of photographs, which need fewer bytes as pixels."""
    return Picture(drawing.data_uri(drawing.webp(figure, dpi=125)), alt, caption)


def fold(title: str, tables: Sequence[Table]) -> Section:
    """Tables that open on a click."""
    folded = Section("", title)
    for table in tables:
        folded.add("table", table)
    return folded


def page_of(values: Mapping[str, Any]) -> str:
    """Fill the template with `values`; every string is escaped."""
    loader = jinja2.PackageLoader("segproof", "report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("template.html").render(values)
    # Names that are not UTF-8 arrive as lone surrogates, which no file can hold.
    return page.encode("utf-8", "backslashreplace").decode("utf-8")
