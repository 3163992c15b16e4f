"""Sizes, listings and names: what can be told of a file or folder without opening anything."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from nailcore.errors import ArtifactError

MAX_ARTIFACT_BYTES = 1 << 30  # our largest file is 10 MB; protobuf and flatbuffers end at 2 GiB
MAX_DOCUMENT_BYTES = 64 << 20  # model.json, which becomes some thirty times its size in Python objects
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILES = 1000
MAX_DEPTH = 8  # of folders
MAX_RANK = 8
MAX_ELEMENTS = 1 << 28  # of one tensor: a gibibyte of float32
REBUILD = "Run `nailtool build-variants`, or fetch the file again from where it came."


def refuse(path: Path, reason: str) -> ArtifactError:
    """The error of this package: a path, what is wrong with it, and what to do."""
    return ArtifactError(f"{path}: {reason}", hint=REBUILD)


def check_file(path: Path, limit_bytes: int = MAX_ARTIFACT_BYTES) -> int:
    """A regular, non-empty file within the limit; returns its size, read from the folder entry alone.

    Raises:
        ArtifactError: missing, a link, a device, empty or too large.
    """
    try:
        entry = path.lstat()
    except OSError as error:
        raise refuse(path, f"cannot be read: {error.strerror}.") from error
    if stat.S_ISLNK(entry.st_mode):
        raise refuse(path, "is a symbolic link; expected the file itself.")
    if not stat.S_ISREG(entry.st_mode):
        raise refuse(path, "is not a regular file.")
    if entry.st_size == 0:
        raise refuse(path, "is empty.")
    if entry.st_size > limit_bytes:
        raise refuse(path, f"has {entry.st_size:,} bytes; the limit is {limit_bytes:,}.")
    return int(entry.st_size)


def list_folder(path: Path, limit_bytes: int = MAX_ARTIFACT_BYTES) -> dict[str, int]:
    """All files below a folder by POSIX relative path with their sizes; nothing is opened.

    Raises:
        ArtifactError: no folder, links or special files in it, too many files, too deep or too large.
    """
    if path.is_symlink() or not path.is_dir():
        raise refuse(path, "is not a folder." if path.exists() else "does not exist.")
    found: dict[str, int] = {}
    waiting = [(path, 0)]
    entries = 0
    while waiting:
        folder, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise refuse(path, f"is nested deeper than {MAX_DEPTH} folders.")
        with os.scandir(folder) as listing:
            for entry in listing:
                entries += 1
                if entries > MAX_FILES:
                    raise refuse(path, f"holds more than {MAX_FILES} files and folders.")
                name = Path(entry.path).relative_to(path).as_posix()
                if entry.is_symlink():
                    raise refuse(path, f"holds a symbolic link, {name!r}.")
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((Path(entry.path), depth + 1))
                elif entry.is_file(follow_symlinks=False):
                    found[name] = entry.stat(follow_symlinks=False).st_size
                else:
                    raise refuse(path, f"holds {name!r}, which is no regular file.")
    total = sum(found.values())
    if total > limit_bytes:
        raise refuse(path, f"has {total:,} bytes in all; the limit is {limit_bytes:,}.")
    return found


def check_listing(path: Path, found: Iterable[str], expected: Iterable[str]) -> None:
    """The folder must hold exactly what it declares.

    Raises:
        ArtifactError: naming the first missing, else the first extra file.
    """
    have, want = set(found), set(expected)
    if missing := sorted(want - have):
        raise refuse(path, f"{missing[0]!r} is missing ({len(want & have)} of {len(want)} files are there).")
    if extra := sorted(have - want):
        raise refuse(path, f"holds {extra[0]!r}, which nothing in it refers to.")


def check_relative(path: Path, name: object, what: str) -> PurePosixPath:
    """A path written inside a file must stay inside its folder and mean the same on every system.

    Raises:
        ArtifactError: absolute, climbing, empty, with backslashes, drive letters, schemes or controls.
    """
    if not isinstance(name, str) or not name or len(name) > 255:
        raise refuse(path, f"{what} is {_shorten(name)}, no relative path.")
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or any(mark in name for mark in "\\:%?#"):
        raise refuse(path, f"{what} is {name!r}, which leads or may lead out of its folder.")
    if any(part in ("", ".") for part in parts) or any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise refuse(path, f"{what} is {name!r}, no plain relative path.")
    return PurePosixPath(name)


def check_shape(path: Path, shape: Sequence[object], what: str, *, zero: bool = False) -> int:
    """Elements of a declared shape, every factor checked; ``zero`` permits empty tensors.

    Raises:
        ArtifactError: a negative, fractional or absurd size.
    """
    if len(shape) > MAX_RANK:
        raise refuse(path, f"{what} has {len(shape)} dimensions; the limit is {MAX_RANK}.")
    least = 0 if zero else 1
    sides: list[int] = []
    for side in shape:
        if isinstance(side, bool) or not isinstance(side, int) or not least <= side <= MAX_ELEMENTS:
            raise refuse(path, f"{what} has side {_shorten(side)}; expected {least} to {MAX_ELEMENTS:,}.")
        sides.append(side)
    count = math.prod(sides)
    if count > MAX_ELEMENTS:
        raise refuse(path, f"{what} declares {count:,} elements; the limit is {MAX_ELEMENTS:,}.")
    return count


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
