"""What imported photos are called, whose hands they show, and the hashes they are known by."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from nailcore.data.importing.found import FoundImage
from nailcore.errors import DataError, NailtoolError
from nailcore.storage import hash_file

BY_FOLDER = "folder"
# Folders that are named for what lies in them, not for a person.
_GENERAL = {
    "images",
    "image",
    "img",
    "imgs",
    "photos",
    "train",
    "training",
    "val",
    "valid",
    "validation",
    "test",
}


def name_photos(keys: Sequence[str]) -> list[str]:
    """A file stem for each path in the source: its own where that is unique, else its path's parts joined.

    Names that differ in case alone count as equal: some disks hold them to be.
    """
    own = [PurePosixPath(key).stem for key in keys]
    often = Counter(stem.lower() for stem in own)
    named = [
        stem if often[stem.lower()] == 1 else join_path(key) for stem, key in zip(own, keys, strict=True)
    ]
    taken: Counter[str] = Counter()
    unique = []
    for stem in named:
        taken[stem.lower()] += 1
        count = taken[stem.lower()]
        unique.append(stem if count == 1 else f"{stem}-{count}")
    if len({stem.lower() for stem in unique}) != len(unique):
        raise DataError("The photos' names cannot be told apart in one folder; rename some of them.")
    return unique


def join_path(key: str) -> str:
    """A path's folders and stem as one name, without folders that are named for what lies in them."""
    parts = PurePosixPath(key).with_suffix("").parts
    return "-".join([*(part for part in parts[:-1] if part.lower() not in _GENERAL), parts[-1]])


def find_subject(rule: str, image: FoundImage) -> str | None:
    """The person of a photo: by ``folder``, by a regular expression, or as the source says.

    An expression is searched in the file's name; one with a ``/`` in the path, where folders of a tool's own
    split (``train/``) must not become part of a person's name.

    Raises:
        NailtoolError: not a regular expression; DataError: it finds nothing there.
    """
    if not rule:
        return image.subject
    if rule == BY_FOLDER:
        own = [p for p in PurePosixPath(image.key).parent.parts if p.lower() not in _GENERAL]
        if not own:
            raise DataError(
                f"{image.key}: lies in no folder that could be named for a person.",
                hint="Sort the photos by person, give --subject an expression, or leave it out.",
            )
        return own[-1]
    text = image.key if "/" in rule else PurePosixPath(image.key).name
    try:
        match = re.search(rule, text)
    except re.error as error:
        raise NailtoolError(f"--subject '{rule}': not a regular expression: {error}.") from error
    person = match and (match.group(1) if match.re.groups else match.group(0))
    if not person:
        raise DataError(
            f"{image.key}: --subject '{rule}' finds nothing in '{text}'.",
            hint="Every photo needs its person, or people may stand on both sides of a split. "
            "An expression with a / sees the whole path.",
        )
    return person


class Hashes:
    """SHA-256 of files; one label file often belongs to many photos."""

    def __init__(self) -> None:
        self._known: dict[Path, str] = {}

    def of(self, path: Path) -> str:
        """The hash of a file, computed once; raises DataError when it cannot be read."""
        if path not in self._known:
            try:
                self._known[path] = hash_file(path)
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
        return self._known[path]
