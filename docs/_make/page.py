"""Tables between the marks of a page of these docs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


def renew(page: Path, tables: Mapping[str, str]) -> None:
    """Put each text between `<!-- name -->` and the next `<!-- end -->`; all of them or none."""
    text = page.read_text(encoding="utf-8")
    for name, made in tables.items():
        text, times = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda at, made=made: f"{at[1]}{made}\n{at[2]}",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
        if times != 1:
            raise SystemExit(f"{page.name} has {times} places for {name}; expected one")
    page.write_text(text, encoding="utf-8")
