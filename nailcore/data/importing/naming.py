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
        stem if often[stem.lower()] == 1 else "-".join(PurePosixPath(key).with_suffix("").parts)
        for stem, key in zip(own, keys, strict=True)
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


def find_subject(rule: str, image: FoundImage) -> str | None:
    """The person of a photo: by ``folder``, by a regular expression on its path, or as the source says.

    Raises:
        NailtoolError: not a regular expression; DataError: it finds nothing in the path.
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
    try:
        match = re.search(rule, image.key)
    except re.error as error:
        raise NailtoolError(f"--subject '{rule}': not a regular expression: {error}.") from error
    if match is None:
        raise DataError(
            f"{image.key}: --subject '{rule}' finds nothing in this path.",
            hint="Every photo needs its person, or people may stand on both sides of a split.",
        )
    return match.group(1) if match.re.groups else match.group(0)


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
