"""What an importer finds: photographs, their nails in the labels' own frame, and what was left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from nailcore.data.known_labels import KnownLabels
from nailcore.data.labels import Label, MachineMade, Point
from nailcore.data.shapes import Shape
from nailcore.errors import DataError

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# Photographs as well, which are not read: listed, so that none vanishes in silence.
OTHER_SUFFIXES = (".heic", ".heif", ".avif", ".jfif", ".gif", ".jp2", ".dng", ".cr2", ".nef", ".arw")


@dataclass(frozen=True)
class FoundNail:
    """One nail; shape and points in pixels of the frame that its labels were drawn in."""

    shape: Shape
    finger: str | None = None
    base: Point | None = None
    tip: Point | None = None
    hidden: tuple[Literal["base", "tip"], ...] = ()
    machine: MachineMade | None = None
    where: str = ""  # "annotation 7", "shape 2", "line 3": for messages


@dataclass(frozen=True)
class FoundLabels:
    """All nails of one photo and the size (width, height) of the frame they are drawn in."""

    nails: tuple[FoundNail, ...]
    size: tuple[int, int]
    labels: tuple[Label, ...] | None = None  # as the source declares them; None: what the nails carry
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoundImage:
    """One photo and how its labels are read, given the photo's upright (width, height)."""

    photo: Path
    key: str  # relative POSIX path in the source
    label_file: Path
    read: Callable[[tuple[int, int]], FoundLabels]
    subject: str | None = None
    problem: str = ""  # why it cannot be used, where that is known already


@dataclass(frozen=True)
class FoundSet:
    """A source as its importer understands it."""

    images: tuple[FoundImage, ...]
    left_out: tuple[tuple[str, str], ...] = ()  # (what, why)
    name: str = ""
    licence: str = ""
    known_labels: KnownLabels | None = None  # fingers and directions that were taken over
    meanings: tuple[tuple[str, str], ...] = ()  # label -> what it was taken for


@dataclass(frozen=True)
class Wishes:
    """What the person who imports says about the labels."""

    meanings: Mapping[str, str] = field(default_factory=dict)  # label -> finger, "nail" or "skip"
    auto_labels: bool = False  # take over what a machine guessed, marked as such
    known_labels: bool = True  # take over what ships with nailtool for a public set
    min_area_px: int = 12


def list_photos(folder: Path) -> list[Path]:
    """Every photo below a folder, sorted; hidden files and folders are passed over."""
    return _list_files(folder, PHOTO_SUFFIXES)


def list_others(folder: Path) -> list[Path]:
    """Photos below a folder of formats that are not read, sorted."""
    return _list_files(folder, OTHER_SUFFIXES)


def _list_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def as_polygon(values: object, where: str) -> list[float]:
    """A flat list of finite x, y values with at least three points; raises DataError saying where."""
    try:
        numbers = np.asarray(values, np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: a polygon is a list of numbers, found {str(values)[:60]}.") from error
    if not np.isfinite(numbers).all():
        raise DataError(f"{where}: a polygon holds a value that is no finite number.")
    if len(numbers) % 2 or len(numbers) < 6:
        raise DataError(f"{where}: a polygon needs three or more x, y pairs, found {len(numbers)} values.")
    return [round(float(v), 2) for v in numbers]


def as_point(values: object, where: str) -> Point:
    """A pair of finite numbers; raises DataError saying where."""
    try:
        x, y = (float(v) for v in values)  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: a point is two numbers, found {str(values)[:60]}.") from error
    if not np.isfinite([x, y]).all():
        raise DataError(f"{where}: a point holds a value that is no finite number.")
    return (x, y)
