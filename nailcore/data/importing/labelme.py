"""Importer of LabelMe files: one JSON a photo; polygons, groups, and points called base and tip."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nailcore.data.importing.found import (
    PHOTO_SUFFIXES,
    FoundImage,
    FoundLabels,
    FoundNail,
    FoundSet,
    Wishes,
    as_point,
    as_polygon,
    list_photos,
)
from nailcore.data.importing.names import Dictionary
from nailcore.data.labels import Point
from nailcore.data.shapes import encode_rle
from nailcore.errors import DataError

_POINTS = ("base", "tip")
_CIRCLE_CORNERS = 64
Group = list[dict[str, Any]]


def suits(source: Path) -> bool:
    """Whether it is a LabelMe file, or a folder with some."""
    return bool(_find_files(source))


def _find_files(source: Path) -> list[Path]:
    files = [source] if source.is_file() else sorted(source.rglob("*.json"))
    return [path for path in files if path.suffix == ".json" and _looks_like_labelme(path)]


def _looks_like_labelme(path: Path) -> bool:
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError:
        return False
    return '"shapes"' in text and '"imagePath"' in text


def find(source: Path, wishes: Wishes) -> FoundSet:
    """Every LabelMe file with its photo; photos without one are not labelled, and left out.

    Raises:
        DataError: a file is damaged, or its photo is not there.
        NailtoolError: no label means a nail.
    """
    root = source.parent if source.is_file() else source
    files = [(path, _load(path)) for path in _find_files(source)]
    if not files:
        raise DataError(f"{source}: no LabelMe file in it.", hint="Expected .json files with shapes.")
    names = [s["label"] for _, data in files for s in data["shapes"] if s["label"].lower() not in _POINTS]
    words = Dictionary(sorted(set(names)), wishes.meanings, str(source))
    images = []
    for path, data in files:
        photo = _find_photo(path, data)
        images.append(
            FoundImage(
                photo=photo,
                key=photo.relative_to(root).as_posix() if photo.is_relative_to(root) else photo.name,
                label_file=path,
                read=partial(_read, path, data, words),
            )
        )
    left_out = [(f"label '{name}'", "names no nail") for name in words.skipped]
    if source.is_dir():
        used = {image.photo.resolve() for image in images}
        unlabelled = [photo for photo in list_photos(root) if photo.resolve() not in used]
        left_out += [(p.relative_to(root).as_posix(), "no LabelMe file: not labelled") for p in unlabelled]
    return FoundSet(tuple(images), tuple(left_out), meanings=words.meanings)


def _load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not readable JSON: {error}.") from error
    shapes = data.get("shapes") if isinstance(data, dict) else None
    if not isinstance(shapes, list):
        raise DataError(f"{path}: not a LabelMe file: it has no list of shapes.")
    for number, shape in enumerate(shapes, start=1):
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
            raise DataError(f"{path}: shape {number} has no label.")
    return dict(data)


def _find_photo(path: Path, data: dict[str, Any]) -> Path:
    """``imagePath`` is relative to the file, often from another machine; its name beside the file will do."""
    stated = str(data.get("imagePath") or "").replace("\\", "/")
    places = [path.parent / stated] if stated and not Path(stated).is_absolute() else []
    places += [path.parent / Path(stated).name] if stated else []
    places += [path.with_suffix(suffix) for suffix in PHOTO_SUFFIXES]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        embedded = " (an embedded imageData is not read)" if data.get("imageData") else ""
        raise DataError(f"{path}: its photo '{stated}' is not there{embedded}.")
    return found


def _read(path: Path, data: dict[str, Any], words: Dictionary, size: tuple[int, int]) -> FoundLabels:
    frame = (int(data.get("imageWidth") or size[0]), int(data.get("imageHeight") or size[1]))
    shapes = [shape | {"number": n} for n, shape in enumerate(data["shapes"], start=1)]
    flags = _true_flags(data)
    nails, marks, placed = [], [], 0
    groups: dict[tuple[str, Any], Group] = {}
    for shape in shapes:
        if shape["label"].lower() in _POINTS:
            marks.append(shape)
        elif words.find(shape["label"]).is_nail:
            # Pieces of one nail share a group; a shape without one is a nail of its own.
            group = shape.get("group_id")
            key = (shape["label"], group if group is not None else f"shape {shape['number']}")
            groups.setdefault(key, []).append(shape)
    for (label, _), pieces in groups.items():
        where = f"{path}: shape {pieces[0]['number']} ('{label}')"
        more = " ".join([_true_flags(pieces[0]), flags])
        shape = _read_pieces(pieces, frame, where)
        base, tip = (_find_mark(marks, name, pieces, groups, where) for name in _POINTS)
        placed += (base is not None) + (tip is not None)
        finger = words.find(label, more).finger
        nails.append(FoundNail(shape, finger, base, tip, where=f"shape {pieces[0]['number']}"))
    lone = len(marks) - placed
    notes = (f"{lone} point(s) called base or tip left out: no nail shares their group",) if lone else ()
    return FoundLabels(tuple(nails), frame, notes=notes)


def _true_flags(entry: dict[str, Any]) -> str:
    flags = entry.get("flags")
    return " ".join(str(k) for k, v in flags.items() if v is True) if isinstance(flags, dict) else ""


def _read_pieces(pieces: Group, frame: tuple[int, int], where: str) -> Any:
    """Polygons of all pieces, or run lengths where one of them is a painted mask."""
    if any(piece.get("shape_type") == "mask" for piece in pieces):
        if len(pieces) > 1:
            raise DataError(f"{where}: a painted mask cannot share its group with other pieces of a nail.")
        return encode_rle(_decode_painted(pieces[0], frame, where))
    return [_outline(piece, where) for piece in pieces]


def _outline(piece: dict[str, Any], where: str) -> list[float]:
    points = piece.get("points")
    kind = piece.get("shape_type") or "polygon"
    if not isinstance(points, list):
        raise DataError(f"{where}: has no points.")
    pairs = [as_point(point, where) for point in points]
    if kind == "polygon":
        return as_polygon([v for pair in pairs for v in pair], where)
    if kind in ("rectangle", "circle") and len(pairs) == 2:
        (x0, y0), (x1, y1) = pairs
        if kind == "rectangle":
            return as_polygon([x0, y0, x1, y0, x1, y1, x0, y1], where)
        radius = math.hypot(x1 - x0, y1 - y0)
        angles = np.linspace(0, 2 * np.pi, _CIRCLE_CORNERS, endpoint=False)
        corners = [(x0 + radius * math.cos(a), y0 + radius * math.sin(a)) for a in angles]
        return as_polygon([v for corner in corners for v in corner], where)
    raise DataError(
        f"{where}: a {kind} with {len(pairs)} points encloses no nail.",
        hint="Draw nails as polygons; points are for 'base' and 'tip'.",
    )


def _decode_painted(piece: dict[str, Any], frame: tuple[int, int], where: str) -> Any:
    """(H, W) mask of LabelMe's shape type ``mask``: a PNG in base64 between two corners."""
    import base64
    import binascii

    import cv2

    try:
        data = np.frombuffer(base64.b64decode(str(piece.get("mask"))), np.uint8)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where}: its painted mask is no base64: {error}.") from error
    small = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if data.size else None
    if small is None or not piece.get("points"):
        raise DataError(f"{where}: its painted mask cannot be decoded.")
    left, top = (round(v) for v in as_point(piece["points"][0], where))
    mask = np.zeros((frame[1], frame[0]), bool)
    height, width = small.shape[:2]
    if left < 0 or top < 0 or left + width > frame[0] or top + height > frame[1]:
        raise DataError(f"{where}: its painted mask lies outside the image of {frame[0]}×{frame[1]} px.")
    mask[top : top + height, left : left + width] = np.asarray(small) > 0
    return mask


def _find_mark(
    marks: Sequence[dict[str, Any]], name: str, pieces: Group, groups: dict[Any, Group], where: str
) -> Point | None:
    """The point called base or tip of a nail: of the same group or, without groups, the one nearest to it."""
    group = pieces[0].get("group_id")
    mine = [m for m in marks if m["label"].lower() == name and m.get("group_id") == group]
    if group is None:
        loose = [nail for nail in groups.values() if nail[0].get("group_id") is None]
        mine = [m for m in mine if min(loose, key=lambda nail: _distance(nail, m, where)) is pieces]
    if len(mine) > 1:
        raise DataError(f"{where}: has {len(mine)} points called '{name}'.", hint="Give nails a group each.")
    return as_point(mine[0].get("points", [None])[0], where) if mine else None


def _distance(pieces: Group, mark: dict[str, Any], where: str) -> float:
    """Pixels from a point to the hull of a nail's nearest piece; 0 inside."""
    import shapely

    point = shapely.Point(as_point((mark.get("points") or [None])[0], where))
    return min(float(shapely.distance(_hull(piece, where), point)) for piece in pieces)


def _hull(piece: dict[str, Any], where: str) -> Any:
    import shapely

    if piece.get("shape_type") == "mask":  # two corners
        corners = [as_point(p, where) for p in piece["points"]]
    else:
        outline = _outline(piece, where)
        corners = list(zip(outline[::2], outline[1::2], strict=True))
    return shapely.MultiPoint(corners).convex_hull
