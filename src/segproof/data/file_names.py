"""Reads what the names of folders and files say: picture, image, mask, split; matches globs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal, NamedTuple

from segproof.errors import DataError

__all__ = ["Entry", "Word", "globbed", "is_picture", "pictures_of", "read_tree"]

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
DEPTH: Final = 6  # folders below the root that are looked into
MAX_FOLDERS: Final = 20_000
Role = Literal["image", "mask", ""]


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


IMAGES: Final = _listed(
    "image images img imgs im ims picture pictures photo photos rgb rgbs irrg rgbir irrgb nir "
    "ortho orthos sat satellite aerial input inputs scene scenes tile tiles top tops stills x "
    "pansharpen chip chips frame frames leftimg8bit"
)
MASKS: Final = _listed(
    "mask masks msk msks label labels lbl lbls lab labs gt gts groundtruth truth truths annotation "
    "annotations ann anns annot annots seg segs segmentation segmentations semantic semantics map "
    "maps target targets y output outputs instance instances labeledapproved"
)
# said at the end of a file's name only: elsewhere these letters are parts of names
MASK_ENDS: Final = _listed("m l color colour id ids")
SPLITS: Final = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "ts"), "test"),
}
FORMATS: Final = _listed("png jpg jpeg tif tiff dir dirs folder folders files")
_TOKENS: Final = re.compile(r"[^\W_]+")
_HUMPS: Final = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_]+")


class Word(NamedTuple):
    """A part of a name: its letters, where it stands, what it says, what is left of it."""

    start: int
    end: int
    role: Role
    rest: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Entry:
    """A picture file of the folder: what its folders and its stem say about it."""

    path: Path
    folders: tuple[str, ...]
    role: Role  # by the folders
    places: tuple[str, ...]  # what is left of the folders without the words of roles
    outer: tuple[str, ...]  # the folders that say no role, without the last where none does
    said: tuple[str, ...]  # the words of roles

    @property
    def stem(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem


def is_picture(path: Path) -> bool:
    """A file of a kind that is read, by its name; hidden files are not looked at."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def pictures_of(folder: Path) -> list[Path]:
    """The pictures that lie in a folder, sorted by name."""
    return [path for path in sorted(folder.iterdir()) if is_picture(path)]


def read_tree(root: Path) -> list[Path]:
    """All pictures below a folder, sorted; links to folders are followed once.

    Raises:
        DataError: more than 20,000 folders.
    """
    found: list[Path] = []
    seen: set[str] = set()
    waiting = [(root, 0)]
    while waiting:
        folder, depth = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        if len(seen) > MAX_FOLDERS:
            raise DataError(
                f"more than {MAX_FOLDERS} folders below {root}",
                "a folder of tiles",
                "name the data set's own folder with --data",
            )
        with os.scandir(folder) as entries:
            for entry in entries:
                path = folder / entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    if depth < DEPTH:
                        waiting.append((path, depth + 1))
                elif is_picture(path):
                    found.append(path)
    return sorted(found)


# --- words ----------------------------------------------------------------------------------------
@lru_cache(maxsize=65_536)
def words_of(text: str) -> tuple[Word, ...]:
    """The parts of a name between its separators, with the role that each one says."""
    return tuple(
        Word(match.start(), match.end(), *said(match[0])) for match in _TOKENS.finditer(text)
    )


def said(token: str) -> tuple[Role, tuple[str, ...]]:
    """The role of one part, and what is left of it: `imagesTr` is an image and says train."""
    low = token.casefold()
    if low in MASKS:
        return "mask", ()
    if low in IMAGES:
        return "image", ()
    for split in SPLITS:  # trainannot
        if low.startswith(split) and len(split) > 2 and low[len(split) :] in MASKS | IMAGES:
            return said(low[len(split) :])[0], (split,)
    humps = [hump.casefold() for hump in _HUMPS.findall(token)]
    letters = [hump for hump in humps if not hump.isdigit()]
    roles = {said(hump)[0] for hump in letters if len(hump) > 1} if len(letters) > 1 else set()
    numbered = len(humps) == 2 and len(letters) == 1 and humps[1].isdigit()
    if numbered and len(letters[0]) > 1 and (role := said(letters[0])[0]):
        return role, (humps[1],)  # img001
    rest = tuple(hump for hump in humps if hump in SPLITS)
    if "mask" in roles:
        return "mask", rest
    if "image" in roles:
        return "image", rest
    return "", (low,)


def entry_of(root: Path, path: Path) -> Entry:
    folders = path.relative_to(root).parts[:-1]
    roles: list[Role] = []
    places: list[str] = []
    said: list[str] = []
    outer: list[str] = []
    for folder in folders:
        before = len(roles)
        words = words_of(folder)
        single = len(words) == 1
        left: list[str] = []
        for word in words:
            text = folder[word.start : word.end].casefold()
            # single letters and the word tile say something only where they stand alone
            if word.role and (single or (len(text) > 1 and text not in ("tile", "top", "scene"))):
                roles.append(word.role)
                said.append(text)
                left += word.rest
            elif text not in FORMATS:
                left += word.rest or (text,)
        if left:
            places.append(" ".join(SPLITS.get(part, part) for part in left))
        if len(roles) == before:
            outer.append(folder.casefold())
    if not roles:
        outer = outer[:-1]
    return Entry(path, folders, decide_role(roles), tuple(places), tuple(outer), tuple(said))


def decide_role(roles: Iterable[Role]) -> Role:
    found = set(roles)
    return "mask" if "mask" in found else "image" if "image" in found else ""


@lru_cache(maxsize=65_536)
def core_of(stem: str) -> tuple[str, str, str, Role]:
    """A stem without the words of roles at its ends: what is left, the words before and behind it
    with their separators, and the role that they say.
    """
    words = words_of(stem)
    if not words:
        return stem, "", "", ""
    roles: list[Role] = []
    last = len(words)
    while last > 0:
        word = words[last - 1]
        text = stem[word.start : word.end].casefold()
        if last > 1 and (text in MASK_ENDS or (text.endswith("ids") and word.role == "mask")):
            roles.append("mask")
        elif word.role and not word.rest and len(text) > 1:
            roles.append(word.role)
        else:
            break
        last -= 1
    first, start = 0, 0
    while first < last:
        word = words[first]
        if not word.role or word.end - word.start < 2:
            break
        digits = re.search(r"\d+$", stem[word.start : word.end])
        if word.rest and not digits:
            break
        roles.append(word.role)
        if digits:  # img001: the number stays
            start = word.start + digits.start()
            break
        first += 1
    if first >= last:
        return "", stem, "", decide_role(roles)
    start, end = max(start, words[first].start), words[last - 1].end
    return stem[start:end], stem[:start], stem[end:], decide_role(roles)


# --- keys -----------------------------------------------------------------------------------------


def globbed(root: Path, glob: str) -> list[Path]:
    """Pictures below `root` that one of the globs, separated by |, matches.

    Raises:
        DataError: a glob that leads out of the folder.
    """
    for part in (piece.strip().removeprefix("!") for piece in glob.split("|")):
        if not part or part.startswith("/") or ".." in Path(part).parts:
            raise DataError(
                f"glob {part!r}", "a glob below the folder of the data", "write it relative to it"
            )
    matches = path_test(glob)
    return [path for path in read_tree(root) if matches(path.relative_to(root).as_posix())]


@lru_cache(maxsize=256)
def path_test(glob: str) -> Callable[[str], bool]:
    """A test for relative paths: * and ? stop at /, ** does not, | separates globs, and a glob
    that begins with ! takes files out again.
    """
    parts = [piece.strip() for piece in glob.split("|")]
    taken = _compiled([part for part in parts if not part.startswith("!")], glob)
    out = _compiled([part[1:] for part in parts if part.startswith("!")], glob)
    return lambda path: bool(taken.fullmatch(path)) and not out.fullmatch(path)


def _compiled(parts: Sequence[str], glob: str) -> re.Pattern[str]:
    pieces = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    found = []
    for part in parts:
        text = ""
        for token in re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", part, flags=re.DOTALL):
            if token.startswith("[") and len(token) > 2:
                inner = token[1:-1].replace("\\", r"\\").replace("[", r"\[")
                text += f"[^{inner[1:]}]" if inner[0] == "!" and len(inner) > 1 else f"[{inner}]"
            else:
                text += pieces.get(token) or re.escape(token)
        found.append(f"(?:{text})")
    try:
        return re.compile("|".join(found) or "(?!)", re.DOTALL)
    except re.error as error:
        raise DataError(f"glob {glob!r} ({error})", "*, **, ? and [abc]", "check it") from error
