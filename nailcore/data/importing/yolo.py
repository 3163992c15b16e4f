"""Importer of YOLO-seg folders: a text file a photo, each line a class and a normalised polygon."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nailcore.data.importing.found import (
    FoundImage,
    FoundLabels,
    FoundNail,
    FoundSet,
    Wishes,
    as_polygon,
    list_photos,
)
from nailcore.data.importing.names import Dictionary
from nailcore.errors import DataError

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml")
_CLASS_LISTS = ("classes.txt", "obj.names")
_OUTSIDE = 0.05  # of the image's side: what a polygon may stand out, as hand-drawn ones do


def suits(source: Path) -> bool:
    """Whether a folder holds text files of polygons beside its photos."""
    return source.is_dir() and (_find_yaml(source) is not None or bool(_find_label_files(source)))


def _find_yaml(source: Path) -> Path | None:
    return next((source / name for name in YAML_NAMES if (source / name).is_file()), None)


def _find_label_files(source: Path) -> list[Path]:
    return sorted(p for p in source.rglob("*.txt") if "labels" in p.relative_to(source).parts[:-1])


def find(source: Path, wishes: Wishes) -> FoundSet:
    """Every photo with a label file; an empty one says that there is no nail.

    Raises:
        DataError: damaged ``data.yaml``, no photos, or no label files.
        NailtoolError: no class means a nail.
    """
    names = _read_names(source)
    words = Dictionary(names, wishes.meanings, str(source))
    images, left_out = [], [(f"class '{name}'", "names no nail") for name in words.skipped]
    for photo in list_photos(source):
        label_file = _label_file(photo, source)
        key = photo.relative_to(source).as_posix()
        if label_file is None:
            left_out.append((key, "no label file: not labelled"))
            continue
        images.append(FoundImage(photo, key, label_file, partial(_read, label_file, names, words)))
    used = {image.label_file for image in images}
    for path in sorted(source.rglob("*.txt")):
        if path not in used and "labels" in path.relative_to(source).parts:
            left_out.append((path.relative_to(source).as_posix(), "a label file without a photo"))
    if not images:
        raise DataError(
            f"{source}: holds no photo with a label file.",
            hint="Expected images/NAME.jpg and labels/NAME.txt, or both below train/, valid/ and test/.",
        )
    return FoundSet(tuple(images), tuple(left_out), meanings=words.meanings)


def _label_file(photo: Path, source: Path) -> Path | None:
    """The last folder called images replaced by labels, as YOLO has it; or a text file beside the photo."""
    parts = list(photo.relative_to(source).with_suffix(".txt").parts)
    for at in range(len(parts) - 2, -1, -1):
        if parts[at] == "images":
            place = source.joinpath(*parts[:at], "labels", *parts[at + 1 :])
            if place.is_file():
                return place
    beside = photo.with_suffix(".txt")
    return beside if beside.is_file() else None


def _read_names(source: Path) -> list[str]:
    import yaml

    path = _find_yaml(source)
    if path is None:
        path = next((source / n for n in _CLASS_LISTS if (source / n).is_file()), None)
        if path is None:
            return ["nail"]  # a folder without names: its one class
        return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    try:
        data: Any = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable YAML: {str(error).splitlines()[0]}.") from error
    names = data.get("names") if isinstance(data, dict) else None
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names)] if sorted(names) == list(range(len(names))) else None
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: expected 'names', a list of classes or a map from 0, 1, ... to them.")
    return [str(name) for name in names]


def parse_line(line: str, where: str) -> tuple[int, list[float]]:
    """Class and normalised x, y values of one line; raises DataError saying where."""
    words = line.split()
    try:
        number, values = int(words[0]), [float(word) for word in words[1:]]
    except ValueError as error:
        raise DataError(f"{where}: expected a class and numbers, found '{line[:60]}'.") from error
    if len(values) == 4:
        raise DataError(f"{where}: holds a box, not a polygon.", hint="Boxes have no outline to learn from.")
    if not np.isfinite(values).all():
        raise DataError(f"{where}: holds a value that is no finite number.")
    if len(values) % 2 or len(values) < 6:
        raise DataError(f"{where}: expected three or more x, y pairs, found {len(values)} values.")
    if min(values) < -_OUTSIDE or max(values) > 1 + _OUTSIDE:
        raise DataError(
            f"{where}: its values run from {min(values):g} to {max(values):g}, expected 0 to 1.",
            hint="YOLO's polygons are in shares of the image's width and height, not in pixels.",
        )
    return number, values


def _read(path: Path, names: Sequence[str], words: Dictionary, size: tuple[int, int]) -> FoundLabels:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text: {error}.") from error
    nails = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        kind, values = parse_line(line, where)
        if not 0 <= kind < len(names):
            raise DataError(f"{where}: class {kind}, but there are {len(names)}: {', '.join(names[:8])}.")
        meaning = words.find(names[kind])
        if meaning.is_nail:
            polygon = as_polygon(np.asarray(values).reshape(-1, 2) * size, where)
            nails.append(FoundNail([polygon], meaning.finger, where=f"line {number}"))
    return FoundLabels(tuple(nails), size)
