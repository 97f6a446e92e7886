"""Finds which mask belongs to which image, by the names of folders and files."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from segproof.data.file_names import (
    MASK_ENDS,
    SPLITS,
    SUFFIXES,
    Entry,
    Role,
    core_of,
    decide_role,
    entry_of,
    globbed,
    path_test,
    read_tree,
    said,
    words_of,
)
from segproof.data.rasters import read_raster
from segproof.errors import DataError

__all__ = ["Matching", "find_pairs"]

LAYOUTS: Final = {
    "WHU": ("image", "label"),
    "Inria": ("images", "gt"),
    "plain": ("images", "masks"),
}
LISTED: Final = 12  # choices that an error names
LOOKED_AT: Final = 3  # files of each side where only their content can tell
FEW_VALUES: Final = 32  # a mask has fewer different pixels than this, a picture more
_CHANNEL: Final = re.compile(r"_0\d{3}$")  # nnU-Net counts the channels of an image


@dataclass(frozen=True)
class Matching:
    """Which masks each image has. `rule` says in a sentence how they were found; `layout` is its
    short name; `images` and `masks` are globs below the root.
    """

    table: dict[Path, list[Path]]
    rule: str
    layout: str
    images: str
    masks: str
    unused_masks: tuple[Path, ...] = ()
    unused_images: tuple[Path, ...] = ()

    @property
    def pairs(self) -> list[tuple[Path, Path]]:
        """Image and mask, of those that have exactly one."""
        return [(image, masks[0]) for image, masks in self.table.items() if len(masks) == 1]


Key = tuple[str, ...]
Keys = Callable[[Sequence[Entry], Role, frozenset[str]], dict[Path, Key]]


def _outer(entry: Entry, kept: frozenset[str]) -> tuple[str, ...]:
    return tuple(name for name in entry.outer if name in kept)


def _exact_place(entries: Sequence[Entry], _: Role, __: frozenset[str]) -> dict[Path, Key]:
    return {e.path: (*e.places, e.stem) for e in entries}


def _exact(entries: Sequence[Entry], _: Role, kept: frozenset[str]) -> dict[Path, Key]:
    return {e.path: (*_outer(e, kept), e.stem) for e in entries}


def _core_place(entries: Sequence[Entry], _: Role, __: frozenset[str]) -> dict[Path, Key]:
    return {e.path: (*e.places, core_of(e.stem)[0].casefold()) for e in entries}


def _core_only(entries: Sequence[Entry], _: Role, kept: frozenset[str]) -> dict[Path, Key]:
    return {e.path: (*_outer(e, kept), core_of(e.stem)[0].casefold()) for e in entries}


def _channel(entries: Sequence[Entry], role: Role, kept: frozenset[str]) -> dict[Path, Key]:
    """nnU-Net: `a_0000.png` is the first channel of the image `a`."""
    if role == "mask":
        return _exact_place(entries, role, kept)
    return {
        e.path: (*e.places, _CHANNEL.sub("", e.stem)) for e in entries if _CHANNEL.search(e.stem)
    }


def _common(names: Sequence[Sequence[str]]) -> list[str]:
    """What all of them begin with."""
    low, high = min(map(list, names)), max(map(list, names))
    same = next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), None)
    return list(low[:same])


def _parts_of(stem: str) -> list[str]:
    return [stem[word.start : word.end].casefold() for word in words_of(stem)]


def _ends(entries: Sequence[Entry]) -> tuple[list[str], list[str]]:
    """The parts that all stems begin with and end with, the latter from behind."""
    names = [_parts_of(entry.stem) for entry in entries]
    if len(names) < 2 or not all(names):
        return [], []
    return _common(names), _common([name[::-1] for name in names])


def _middle(entries: Sequence[Entry], _: Role, kept: frozenset[str]) -> dict[Path, Key]:
    """What differs between the stems of one side, where each side has a name of its own."""
    front, back = _ends(entries)
    return {
        e.path: (*_outer(e, kept), "_".join(_parts_of(e.stem)[len(front) :][: -len(back) or None]))
        for e in entries
    }


def _named_sides(images: Sequence[Entry], masks: Sequence[Entry]) -> bool:
    """What sets the stems of both sides apart are words for images or masks, or their folders'
    names: austin_1 and chicago_1 are no pair.
    """
    ends = [{*front, *back} for front, back in (_ends(images), _ends(masks))]
    for side, own, other in ((images, ends[0], ends[1]), (masks, ends[1], ends[0])):
        folders = {part for folder in side[0].folders for part in _parts_of(folder)}
        known = folders | MASK_ENDS
        if any(not said(part)[0] and part not in known for part in own - other):
            return False
    return True


WAYS: Final[tuple[tuple[Keys, str], ...]] = (
    (_exact_place, "by equal file names in folders that correspond"),
    (_exact, "by equal file names"),
    (_core_place, "by file names without the words for image and mask"),
    (_core_only, "by file names without the words for image and mask"),
    (_channel, "by file names without the channel number _0000"),
    (_middle, "by the part of the file names that differs from file to file"),
)


@dataclass(frozen=True)
class _Match:
    """One way to pair images and masks."""

    images: Sequence[Entry]
    masks: Sequence[Entry]
    table: dict[Path, list[Path]]
    how: str

    @property
    def matched(self) -> int:
        return sum(bool(found) for found in self.table.values())

    @property
    def complete(self) -> bool:
        used = Counter(mask for masks in self.table.values() for mask in masks)
        return (
            bool(self.table)
            and all(len(masks) == 1 for masks in self.table.values())
            and max(used.values()) == 1
        )


def _match(images: Sequence[Entry], masks: Sequence[Entry], *, chosen: bool = False) -> _Match:
    """The first way in which every image has one mask; else the one that pairs most. Where the
    user has `chosen` both sides, folders may differ, and names by any word.
    """
    best: _Match | None = None
    of_each = [{name for e in side for name in e.outer} for side in (images, masks)]
    kept = frozenset(of_each[0] & of_each[1])
    # east/images/1 and west/masks/1 are no pair; one side may lie deeper than the other
    apart = bool(of_each[0] - kept) and bool(of_each[1] - kept)
    for keys, how in WAYS:
        if not chosen and apart and keys in (_exact, _core_only, _middle):
            continue
        if not chosen and keys is _middle and not _named_sides(images, masks):
            continue
        of_images, of_masks = keys(images, "image", kept), keys(masks, "mask", kept)
        by_key: dict[Key, list[Path]] = defaultdict(list)
        for path, key in of_masks.items():
            by_key[key].append(path)
        table = {
            e.path: by_key.get(of_images[e.path], []) if e.path in of_images else [] for e in images
        }
        made = _Match(images, masks, table, how)
        if made.complete:
            return made
        if best is None or made.matched > best.matched:
            best = made
    assert best is not None  # noqa: S101 - WAYS is not empty
    return best


# --- sides ----------------------------------------------------------------------------------------
def _sides(root: Path, entries: Sequence[Entry]) -> Iterator[tuple[list[Entry], list[Entry], str]]:
    """Ways to tell images from masks, the surest first, with what they go by."""
    roles = {e.path: e.role for e in entries}
    yield *_split(entries, roles), "folder names"
    # one word for all folders tells nothing apart: output/a.jpg and output/a_m.png
    plain = len({e.role for e in entries}) == 1
    by_stem = {e.path: decide_role(("" if plain else e.role, core_of(e.stem)[3])) for e in entries}
    yield *_split(entries, by_stem), "file names"
    if by_content := _by_content(entries):
        yield *by_content, "their content: masks have few different values"


def _split(entries: Sequence[Entry], roles: dict[Path, Role]) -> tuple[list[Entry], list[Entry]]:
    """Images and masks by role. Files that say nothing are images where no file says it is one,
    and masks where there are images but no masks.
    """
    parts: dict[Role, list[Entry]] = {"image": [], "mask": [], "": []}
    for entry in entries:
        parts[roles[entry.path]].append(entry)
    return parts["image"] or parts[""], parts["mask"] or (parts[""] if parts["image"] else [])


def _by_content(entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]] | None:
    """Two folders, or two suffixes in one folder, of which one holds few different values."""
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups["/".join(entry.folders)].append(entry)
    if len(groups) == 1:
        [together] = groups.values()
        groups = defaultdict(list)
        for entry in together:
            groups[entry.path.suffix.lower()].append(entry)
    if len(groups) != 2:
        return None
    one, two = groups.values()
    flat = [_looks_like_masks(group) for group in (one, two)]
    if flat[0] == flat[1]:
        return None
    return (two, one) if flat[0] else (one, two)


def _looks_like_masks(entries: Sequence[Entry]) -> bool:
    """Few different pixels in each of the first files."""
    for entry in entries[:LOOKED_AT]:
        try:
            values = read_raster(entry.path).values
        except (DataError, OSError, MemoryError):
            return False
        flat = values.reshape(len(values), -1)
        step = max(1, flat.shape[1] // 65_536)
        if len(np.unique(flat[:, ::step], axis=1).T) >= FEW_VALUES:
            return False
    return True


# --- the answer -----------------------------------------------------------------------------------
def find_pairs(root: Path, images: str | None = None, masks: str | None = None) -> Matching:
    """Pair the pictures below `root`, by two globs or by evidence. Images that have no mask, or
    several files of one stem, stand in the table with what was found for them.

    Raises:
        DataError: no folder, no images, no way to tell images from masks, or several that fit.
    """
    if root.is_file():
        raise DataError(
            f"a file {root}", "a folder of tiles", "unpack an archive yourself: none is opened here"
        )
    if not root.is_dir():
        raise DataError(f"no folder {root}", "a folder of tiles", "check the path")
    if images is not None or masks is not None:
        return _by_globs(root, images, masks)
    entries = [entry_of(root, path) for path in read_tree(root)]
    best: tuple[_Match, str] | None = None
    for pictures, labels, by in _sides(root, entries):
        if not pictures or not labels:
            continue
        made = _match(pictures, labels)
        if best is None or made.matched > best[0].matched or made.complete:
            best = made, by
        if made.complete:
            break
    if best is None or (not best[0].matched and best[1] != "folder names"):
        raise _nothing(root, entries)
    return _checked(root, *best, ["/".join((*e.folders, e.path.name)) for e in entries])


def _by_globs(root: Path, images: str | None, masks: str | None) -> Matching:
    if images is None or masks is None:
        raise DataError(
            "a glob for one side only", "one for the images and one for the masks",
            "give both --images GLOB and --masks GLOB",
        )  # fmt: skip
    sides = []
    for glob, option in ((images, "--images"), (masks, "--masks")):
        found = globbed(root, glob)
        if not found:
            raise DataError(
                f"no picture that {option} {glob!r} matches in {root}",
                f"files {', '.join(SUFFIXES)}",
                "check the glob: it is relative to the data's folder, * stops at /, ** does not",
            )
        sides.append([entry_of(root, path) for path in found])
    both = {e.path for e in sides[0]} & {e.path for e in sides[1]}
    if both:
        raise DataError(
            f"{len(both)} files that both --images and --masks match, {min(both).name} among them",
            "globs that have no file in common",
            "write the folder or the ending of the names into the globs",
        )
    made, left = _without_unlabelled(_match(*sides, chosen=True), splits=False)
    among = ["/".join((*e.folders, e.path.name)) for side in sides for e in side]
    if any(len(found) > 1 and not _doubles(found) for found in made.table.values()):
        raise _several(root, made, among)
    rule = f"Images are {images}, masks are {masks}, paired {made.how}."
    return _left_out(_finished(made, rule, "globs", images, masks), left)


def _checked(root: Path, made: _Match, by: str, among: Sequence[str]) -> Matching:
    """Refuse what can be read in several ways: splits, data sets, sets of masks."""
    made, left = _without_unlabelled(made, splits=True)
    if any(len(found) > 1 and not _doubles(found) for found in made.table.values()):
        raise _several(root, made, among)
    used: dict[Path, list[Path]] = defaultdict(list)
    for image, found in made.table.items():
        for mask in found[:1]:
            used[mask].append(image)
    if any(len(found) > 1 and not _doubles(found) for found in used.values()):
        raise _several(root, made, among)
    parts = _parts(made)
    if len(parts) > 1:
        raise _inside(root, parts, among)
    if _unused_set(made):
        raise _several(root, made, among)
    images, masks = _globs_of(made.images, made.masks, among)
    layout = _layout(made, images, masks)
    rule = f"Images are {images}, masks are {masks}, told apart by {by} and paired {made.how}."
    return _left_out(_finished(made, rule, layout, images, masks), left)


def _left_out(made: Matching, left: Sequence[Path]) -> Matching:
    if not left:
        return made
    number = "1 image that has" if len(left) == 1 else f"{len(left)} images that have"
    rule = f"{made.rule} Left out: {number} no mask by the layout of the data set."
    return replace(made, rule=rule, unused_images=tuple(sorted(left)))


def _unused_set(made: _Match) -> bool:
    """A second folder of masks that pairs with every image as well: masks/ and masks_old/."""
    used = {mask for found in made.table.values() for mask in found}
    return any(
        _match(made.images, masks).complete
        for (folder, *_), masks in _variants(made.masks).items()
        if folder and not used & {entry.path for entry in masks}
    )


def _without_unlabelled(made: _Match, *, splits: bool) -> tuple[_Match, list[Path]]:
    """Leave out what cannot be studied by design: the images of VOC that nobody labelled and, with
    `splits`, a split without any mask where another has them.
    """
    of_split: dict[str, list[Path]] = defaultdict(list)
    for entry in made.images:
        of_split[_split_of(entry)].append(entry.path)
    bare = {
        split: paths
        for split, paths in of_split.items()
        if splits and split and not any(made.table[path] for path in paths)
    }
    left = [path for paths in bare.values() for path in paths] if len(bare) < len(of_split) else []
    if any("JPEGImages" in entry.folders for entry in made.images) and made.matched:
        left += [path for path, found in made.table.items() if not found and path not in set(left)]
    gone = set(left)
    images = [entry for entry in made.images if entry.path not in gone]
    table = {path: found for path, found in made.table.items() if path not in gone}
    return replace(made, images=images, table=table), left


def _split_of(entry: Entry) -> str:
    """train, val or test, where a folder says so as a word of its own."""
    for place in entry.places:
        for word in place.split():
            if word in SPLITS:
                return SPLITS[word]
    return ""


def _parts(made: _Match) -> dict[str, tuple[list[Entry], list[Entry]]]:
    """Splits, or data sets that name their folders differently, with their images and masks."""
    of = {entry.path: entry for entry in (*made.images, *made.masks)}
    pairs = [(of[i], of[m]) for i, found in made.table.items() for m in found[:1]]
    words = {(image.said, mask.said) for image, mask in pairs}
    parts: dict[str, tuple[list[Entry], list[Entry]]] = {}
    for image, mask in pairs:
        name = _split_of(image)
        if len(words) > 1:
            name = f"{name} {image.folders[0] if image.folders else ''}".strip()
        side = parts.setdefault(name, ([], []))
        side[0].append(image)
        side[1].append(mask)
    return parts


def _inside(
    root: Path, parts: dict[str, tuple[list[Entry], list[Entry]]], among: Sequence[str]
) -> DataError:
    tops = {name: _common_folder([*images, *masks]) for name, (images, masks) in parts.items()}
    names = sorted(parts)
    found = f"{root} with several data sets or splits inside: {', '.join(names)}"
    globs = {name: _globs_of(images, masks, among) for name, (images, masks) in parts.items()}
    every = tuple(" | ".join(sorted({globs[name][side] for name in names})) for side in (0, 1))
    together = f"or take all: --images '{every[0]}' --masks '{every[1]}'"
    if all(tops.values()) and len(set(tops.values())) == len(tops):
        listed = ", ".join(sorted(str(root / tops[name]) for name in names))
        return DataError(found, f"one of them; {together}",
                         f"name one of the data sets inside: {listed}")  # fmt: skip
    listed = "; ".join(f"--images '{globs[n][0]}' --masks '{globs[n][1]}'" for n in names[:LISTED])
    return DataError(found, "one of them", f"choose one: {listed}; {together}")


def _common_folder(entries: Sequence[Entry]) -> str:
    """The deepest folder below the root that holds all of them; "" where it is the root."""
    return "/".join(_common([entry.folders for entry in entries]))


def _several(root: Path, made: _Match, among: Sequence[str]) -> DataError:
    """Two masks of one image, or two images of one mask: name every choice that is complete."""
    sides = [_variants(made.images), _variants(made.masks)]
    choices = []
    for images in sides[0].values():
        for masks in sides[1].values():
            match = _match(images, masks)
            if match.complete:
                choices.append(_globs_of(images, masks, among))
    many = max(made.table.items(), key=lambda item: len(item[1]))
    if len(many[1]) > 1:
        what = f"{len(many[1])} masks for {many[0]}: {', '.join(m.name for m in many[1][:4])}"
    else:
        several = len(sides[1]) > 1 and len(sides[0]) == 1
        what = f"{len(sides[1])} masks for each image" if several else "several images for one mask"
        what += f" in {root}"
    listed = "; ".join(f"--images '{i}' --masks '{m}'" for i, m in choices[:LISTED])
    return DataError(
        what, "one mask for each image",
        f"choose one: {listed}" if listed else "choose with --images GLOB --masks GLOB",
    )  # fmt: skip


def _variants(entries: Sequence[Entry]) -> dict[tuple[str, ...], list[Entry]]:
    """Entries by the folder that says their role and the words around their stems."""
    found: dict[tuple[str, ...], list[Entry]] = defaultdict(list)
    for entry in entries:
        first = entry.folders[0] if entry.folders else ""
        folder = next((f for f in entry.folders if any(w.role for w in words_of(f))), first)
        _, before, behind, _ = core_of(entry.stem)
        found[folder, before, behind].append(entry)
    return found


def _doubles(paths: Sequence[Path]) -> bool:
    """Files of one name with other suffixes, which are a mistake and not a choice."""
    return len({path.with_suffix("") for path in paths}) == 1


def _finished(made: _Match, rule: str, layout: str, images: str, masks: str) -> Matching:
    used = {mask for found in made.table.values() for mask in found}
    unused = sorted(e.path for e in made.masks if e.path not in used)
    table = dict(sorted(made.table.items()))
    return Matching(table, rule, layout, images, masks, tuple(unused))


def _layout(made: _Match, images: str, masks: str) -> str:
    """WHU, Inria or plain where it is one of them, else the folders of both sides."""
    folders = [sorted({"/".join(e.folders) for e in side}) for side in (made.images, made.masks)]
    for name, known in LAYOUTS.items():
        if folders == [[known[0]], [known[1]]]:
            return name
    parts = [glob.rpartition("/") for glob in (images, masks)]
    if parts[0][0] == parts[1][0]:
        return f"{parts[0][2]} + {parts[1][2]}"
    return f"{parts[0][0] or '.'}/ + {parts[1][0] or '.'}/"


def _globs_of(
    images: Sequence[Entry], masks: Sequence[Entry], among: Sequence[str]
) -> tuple[str, str]:
    of_masks = _glob_of(masks, among)
    return _glob_of(images, among, of_masks), of_masks


def _glob_of(entries: Sequence[Entry], among: Sequence[str], but: str = "") -> str:
    """A glob that matches these files and no other picture below the root, where there is one;
    `but`: what it may leave out.
    """
    if not entries:
        return ""
    depths = {len(entry.folders) for entry in entries}
    if len(depths) == 1:
        columns = zip(*(entry.folders for entry in entries), strict=True)
        folders = [names[0] if len(set(names)) == 1 else "*" for names in columns]
    else:
        top = _common([entry.folders for entry in entries])
        folders = [*top, "**"]
    base = "".join(f"{_escaped(folder)}/" for folder in folders)
    before = {core_of(entry.stem)[1] for entry in entries}
    behind = {core_of(entry.stem)[2] for entry in entries}
    start = _escaped(before.pop()) if len(before) == 1 else ""
    end = _escaped(behind.pop()) if len(behind) == 1 else ""
    wanted = {"/".join((*entry.folders, entry.path.name)) for entry in entries}
    suffixes = {entry.path.suffix for entry in entries}
    last = suffixes.pop() if len(suffixes) == 1 else ""
    tries = [f"{base}*", f"{base}{start}*{end}.*", f"{base}{start}*{end}{last}", f"{base}*{last}"]
    tries += [f"{base}* | !{but}"] * bool(but)
    for glob in tries:
        matches = path_test(glob)
        if {path for path in among if matches(path)} == wanted:
            return glob
    return tries[1] if start or end else tries[0]


def _escaped(name: str) -> str:
    return name if name in ("*", "**") else re.sub(r"([*?[])", r"[\1]", name)


def _nothing(root: Path, entries: Sequence[Entry]) -> DataError:
    """No images, or no way to tell them from masks."""
    inside = sorted(child.name for child in root.iterdir())
    for images, masks in LAYOUTS.values():
        if (root / images).is_dir() and (root / masks).is_dir():
            return DataError(
                f"no images in {root / images}", f"files {', '.join(SUFFIXES)}", "check --data"
            )
    known = " or ".join(f"{images}/ + {masks}/" for images, masks in LAYOUTS.values())
    few = ", ".join(inside[:5]) + (f", ... ({len(inside)} in all)" if len(inside) > 5 else "")
    what = f"{root} with {few or 'nothing'} inside"
    if entries:
        what += f", {len(entries)} pictures that do not pair as images and masks"
    return DataError(
        what,
        f"images and masks in folders such as {known}, or with names such as a.png + a_mask.png",
        "say which is which with --images GLOB and --masks GLOB, relative to this folder",
    )
