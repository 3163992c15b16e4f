"""What a person says of nails, photo by photo in a text file, put into ``annotations.json``."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from nailcore.data.coco import (
    UNKNOWN_ID,
    CocoFile,
    describe_direction,
    describe_nails,
    find_annotations,
    group_nails,
    rasterise,
    read_coco,
    write_entries,
)
from nailcore.data.importing.naming import join_path
from nailcore.data.labels import Label, carried_labels
from nailcore.data.shapes import Mask
from nailcore.errors import DataError
from nailcore.variant import FINGER_CLASSES

UNKNOWN, RIGHT = "?", "ok"  # nobody can tell; the machine's guess is right
LETTERS = {f"{name[0]}{name.split()[1][0]}".upper(): name for name in FINGER_CLASSES}  # LT: left thumb
_TOKEN = re.compile(rf"(\d+)=({'|'.join(LETTERS)}|ok|\?)?(?:@(\?|-?\d+(?:\.\d+)?))?", re.IGNORECASE)
_FIRST = re.compile(r"(?<=\s)\d+=")  # where the photo's name, which may hold spaces, is over
_COMMENT = re.compile(r"(^|\s)#.*")  # a name may hold a # too
HOW = "Expected NUMBER=FINGER@DEGREES, such as 3=LI@90, 3=LI, 3=@90, 3=?@? or 3=ok (docs/data.md)"


@dataclass(frozen=True)
class Said:
    """What is said of one nail; None: nothing about it."""

    number: int  # counted from 1 in the order of the file, as ``data show --numbers`` shows it
    finger: str | None = None  # one of FINGER_CLASSES, UNKNOWN or RIGHT
    direction: float | str | None = None  # degrees clockwise from upwards, or UNKNOWN


@dataclass(frozen=True)
class Named:
    """What was put into a folder."""

    photos: int
    fingers: int
    directions: int
    confirmed: int  # nails whose guesses were found right
    unknown: int  # labels taken out because nobody can tell


def parse_line(line: str) -> tuple[str, tuple[Said, ...]] | None:
    """Photo and what is said of its nails; None for an empty line or a comment (``#``).

    Raises ValueError saying what is wrong.
    """
    line = _COMMENT.sub("", line).strip()
    if not line:
        return None
    start = _FIRST.search(line)
    name, words = (line[: start.start()].rstrip(), line[start.start() :].split()) if start else (line, [])
    said: list[Said] = []
    for word in words:
        found = _TOKEN.fullmatch(word)
        if found is None or word.endswith("="):
            raise ValueError(f"'{word}' is not understood. {HOW}")
        number, finger, angle = int(found[1]), found[2], found[3]
        if number in [one.number for one in said]:
            raise ValueError(f"nail {number} is named twice")
        finger = finger and (LETTERS.get(finger.upper()) or finger.lower())
        if finger == RIGHT and angle is not None:
            raise ValueError(f"'{word}': a guess that is right has its direction already")
        said.append(Said(number, finger, angle if angle in (None, UNKNOWN) else float(angle)))
    if not said:
        raise ValueError(f"nothing is said of '{name}'. {HOW}")
    return name, tuple(said)


def name_nails(root: Path, text: str, source: str) -> Named:
    """Put what ``text`` says into the folder's ``annotations.json``: all of it, or nothing.

    A label that a person gave is no guess any more; which labels an image carries is found anew.

    Args:
        root: data folder.
        text: a photo a line, see ``parse_line``.
        source: where the text comes from, for messages.

    Raises:
        DataError: a line cannot be read, names no photo or nail of the folder, or confirms no guess; the
            line is named, and nothing is written.
    """
    path = find_annotations(root)
    book = _Book(path)
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            found = parse_line(line)
            if found is not None:
                book.take(*found)
        except ValueError as error:
            raise DataError(f"{source}, line {number}: {error}.", hint="Nothing was written.") from error
    _declare(path, book.data)
    write_entries(path, book.data)
    return Named(photos=len(book.seen), **book.counts)


class _Book:
    """An ``annotations.json`` in hand, with other tools' keys."""

    def __init__(self, path: Path) -> None:
        self.path, file = path, read_coco(path)
        self.data: dict[str, Any] = json.loads(path.read_bytes())
        self.images = {PurePosixPath(image.file_name).stem: image for image in file.images}
        self.nails = group_nails(file)
        self.entries: dict[int, dict[str, Any]] = {int(e["id"]): e for e in self.data["annotations"]}
        self.seen: set[str] = set()
        self.counts = dict.fromkeys(("fingers", "directions", "confirmed", "unknown"), 0)

    def take(self, name: str, said: Sequence[Said]) -> None:
        """Put what is said of one photo into its entries; raises ValueError for what cannot be."""
        tries = (name, PurePosixPath(name).stem, join_path(name))
        image = next((self.images[stem] for stem in tries if stem in self.images), None)
        if image is None:
            near = difflib.get_close_matches(tries[-1], self.images, n=3)
            meant = f"; did you mean {', '.join(near)}?" if near else ""
            raise ValueError(f"there is no photo '{name}'{meant}")
        if image.file_name in self.seen:
            raise ValueError(f"'{name}' is named twice")
        self.seen.add(image.file_name)
        nails = self.nails[image.id]
        index = rasterise(self.path, image, nails)
        for one in said:
            if not 1 <= one.number <= len(nails):
                raise ValueError(f"'{name}' has {len(nails)} nails, and no {one.number}")
            mask = np.asarray(index == one.number)
            _put(self.entries[nails[one.number - 1].id], one, mask, self.counts)


def _put(entry: dict[str, Any], said: Said, mask: Mask, counts: dict[str, int]) -> None:
    if said.finger == RIGHT:
        if not entry.get("machine"):
            raise ValueError(f"nail {said.number} carries no guess that could be confirmed")
        entry["machine"]["confirmed"] = True
        counts["confirmed"] += 1
        return
    if said.finger is not None:
        known = said.finger != UNKNOWN
        entry["category_id"] = FINGER_CLASSES.index(said.finger) + 1 if known else UNKNOWN_ID
        counts["fingers" if known else "unknown"] += 1
        _forget_guess(entry, "finger")
    if said.direction is not None:
        direction = None
        if not isinstance(said.direction, str):
            angle = math.radians(said.direction)
            direction = (math.sin(angle), -math.cos(angle))
        entry |= describe_direction(mask, direction)
        counts["unknown" if direction is None else "directions"] += 1
        _forget_guess(entry, "direction")


def _forget_guess(entry: dict[str, Any], label: Label) -> None:
    machine = entry.get("machine")
    if machine:
        machine["labels"].pop(label, None)
        if not machine["labels"]:
            del entry["machine"]


def _declare(path: Path, data: Mapping[str, Any]) -> None:
    """Let every image say which labels its nails carry now."""
    file = CocoFile.model_validate(data)
    nails = group_nails(file)
    entries: Sequence[dict[str, Any]] = data["images"]
    for entry, image in zip(entries, file.images, strict=True):
        carried = carried_labels(describe_nails(path, image, nails[image.id]).nails)
        entry["labels"] = [label for label in carried if label != "mask" or "mask" in image.labels]
