"""Importer of other people's COCO files: foreign categories, polygons or run lengths, several files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from nailcore.data.coco import KEYPOINTS
from nailcore.data.importing.found import (
    FoundImage,
    FoundLabels,
    FoundNail,
    FoundSet,
    Wishes,
    as_point,
    as_polygon,
)
from nailcore.data.importing.names import Dictionary
from nailcore.data.labels import LABELS, Label, MachineMade, Point
from nailcore.data.shapes import Rle, Shape
from nailcore.errors import DataError

Entry = Mapping[str, Any]


def suits(source: Path) -> bool:
    """Whether it is a COCO file, or a folder with one."""
    return bool(_find_files(source))


def _find_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix == ".json" and _looks_like_coco(source) else []
    places = ("*.json", "annotations/*.json", "*/*.json")
    found = {p for place in places for p in source.glob(place) if not p.name.startswith(".")}
    return sorted(p for p in found if _looks_like_coco(p))


def _looks_like_coco(path: Path) -> bool:
    """By its text: a damaged file is still recognised, and then named."""
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError:
        return False
    return '"images"' in text and '"annotations"' in text


def find(source: Path, wishes: Wishes) -> FoundSet:
    """Every image of every COCO file.

    Raises:
        DataError: a file is damaged or names a photo that is not there.
        NailtoolError: no category means a nail.
    """
    root = source.parent if source.is_file() else source
    files = [(path, _load(path)) for path in _find_files(source)]
    if not files:
        raise DataError(
            f"{source}: no COCO file in it.", hint="Expected a .json with images and annotations."
        )
    names = [_need(c, "name", path) for path, data in files for c in data.get("categories", ())]
    words = Dictionary(map(str, names), wishes.meanings, str(source))
    images: list[FoundImage] = []
    left_out = [(f"category '{name}'", "names no nail") for name in words.skipped]
    for path, data in files:
        images += _find_images(root, path, data, words, left_out)
    info = files[0][1].get("info")
    info = info if isinstance(info, dict) else {}
    return FoundSet(
        tuple(images),
        tuple(left_out),
        str(info.get("description") or ""),
        str(info.get("licence") or ""),
        meanings=words.meanings,
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not readable JSON: {error}.") from error
    for key in ("images", "annotations"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise DataError(f"{path}: not a COCO file: it has no list of {key}.")
    return dict(data)


def _need(entry: Any, key: str, path: Path) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise DataError(f"{path}: an entry lacks '{key}': {str(entry)[:80]}.")
    return entry[key]


def _find_images(
    root: Path, path: Path, data: dict[str, Any], words: Dictionary, left_out: list[tuple[str, str]]
) -> list[FoundImage]:
    categories = {_need(c, "id", path): c for c in data.get("categories", ())}
    by_image: dict[Any, list[Entry]] = {_need(image, "id", path): [] for image in data["images"]}
    for entry in data["annotations"]:
        where = _need(entry, "image_id", path)
        if where not in by_image:
            raise DataError(f"{path}: annotation {entry.get('id')} belongs to image {where}, not listed.")
        by_image[where].append(entry)
    found = []
    for image in data["images"]:
        name = str(_need(image, "file_name", path))
        photo, problem = _find_photo(root, path, name)
        crowds = sum(bool(e.get("iscrowd")) for e in by_image[image["id"]])
        if crowds:
            left_out.append((f"{name}: {crowds} crowd region(s)", "not single nails"))
        found.append(
            FoundImage(
                photo=photo,
                key=photo.relative_to(root).as_posix() if photo.is_relative_to(root) else photo.name,
                label_file=path,
                read=partial(_read, path, image, by_image[image["id"]], categories, words),
                subject=str(image["subject"]) if image.get("subject") else None,
                problem=problem,
            )
        )
    return found


def _find_photo(root: Path, path: Path, name: str) -> tuple[Path, str]:
    """A photo as COCO files name it: beside the file, in an images folder, or by its name alone.

    By its name alone where its path leads nowhere, and to one file only. The second value says why there
    is none.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        name = Path(name).name
    split = path.stem.removeprefix("instances_")
    folders = [path.parent, path.parent / "images", root / "images", root, root / split, path.parent / split]
    folders.append(root / "images" / split)
    for folder in folders:
        if (folder / name).is_file():
            return folder / name, ""
    bare = {(folder / Path(name).name).resolve(): folder / Path(name).name for folder in folders}
    there = [place for place in bare.values() if place.is_file()]
    if len(there) == 1:
        return there[0], ""
    if there:
        return path.parent / name, f"{path}: lists {name}, which may be {there[0]} or {there[1]}."
    places = ", ".join(sorted({str(folder) for folder in folders}))
    return path.parent / name, f"{path}: lists {name}, which is in none of {places}."


def _read(  # noqa: PLR0917 - bound by partial
    path: Path,
    image: Entry,
    entries: Sequence[Entry],
    categories: Mapping[Any, Entry],
    words: Dictionary,
    size: tuple[int, int],
) -> FoundLabels:
    name = image["file_name"]
    frame = (int(image.get("width") or size[0]), int(image.get("height") or size[1]))
    nails = []
    for entry in entries:
        where = f"{path}: {name}: annotation {entry.get('id')}"
        category = categories.get(entry.get("category_id"))
        if category is None:
            raise DataError(f"{where}: its category {entry.get('category_id')} is not listed.")
        attributes = entry.get("attributes")
        more = " ".join(map(str, attributes.values())) if isinstance(attributes, dict) else ""
        meaning = words.find(str(category["name"]), more)
        if not meaning.is_nail or entry.get("iscrowd"):
            continue
        points, hidden = _read_points(entry, category, where)
        nails.append(
            FoundNail(
                shape=_read_shape(entry.get("segmentation"), where),
                finger=meaning.finger,
                base=points["base"],
                tip=points["tip"],
                hidden=hidden,
                machine=_read_machine(entry, where),
                where=f"annotation {entry.get('id')}",
            )
        )
    return FoundLabels(tuple(nails), frame, _read_labels(image))


def _read_labels(image: Entry) -> tuple[Label, ...] | None:
    """Only files in our own format say which labels an image carries."""
    declared = image.get("labels")
    if not isinstance(declared, list) or not set(declared) <= set(LABELS):
        return None
    return tuple(label for label in LABELS if label in declared)


def _read_shape(segmentation: Any, where: str) -> Shape:
    if isinstance(segmentation, dict):
        try:
            return Rle.model_validate(segmentation)
        except ValidationError as error:
            raise DataError(f"{where}: damaged run lengths: {error.errors()[0]['msg']}.") from error
    if not segmentation or not isinstance(segmentation, list):
        raise DataError(f"{where}: has no polygon or run lengths, only a box at best.")
    if all(isinstance(value, int | float) for value in segmentation):
        segmentation = [segmentation]  # one polygon without the list around it
    return [as_polygon(polygon, where) for polygon in segmentation]


def _read_points(
    entry: Entry, category: Entry, where: str
) -> tuple[dict[str, Point | None], tuple[Literal["base", "tip"], ...]]:
    """Base and tip, where the category's keypoints have these names, and which of them are hidden."""
    points: dict[str, Point | None] = {"base": None, "tip": None}
    hidden: list[Literal["base", "tip"]] = []
    names = category.get("keypoints")
    values = entry.get("keypoints")
    if not isinstance(names, list) or not {"base", "tip"} <= set(names) or not values:
        return points, ()
    if len(values) != 3 * len(names):
        raise DataError(f"{where}: {len(values)} keypoint values for {len(names)} keypoints of three each.")
    for name in KEYPOINTS:
        x, y, visibility = values[3 * names.index(name) :][:3]
        points[name] = as_point((x, y), where) if visibility else None
        hidden += [name] if visibility == 1 else []
    return points, tuple(hidden)


def _read_machine(entry: Entry, where: str) -> MachineMade | None:
    if entry.get("machine") is None:
        return None
    try:
        return MachineMade.model_validate(entry["machine"])
    except ValidationError as error:
        raise DataError(f"{where}: machine: {error.errors()[0]['msg']}.") from error
