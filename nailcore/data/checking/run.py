"""The check of a whole folder: everything that is wrong with it at once, not the first thing alone."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from nailcore.data.checking.findings import CheckReport, Finding, sort_findings
from nailcore.data.checking.nails import check_keypoints, check_shapes, check_touching
from nailcore.data.coco import ANNOTATIONS, CocoFile, CocoImage, CocoNail, describe_nails, group_nails
from nailcore.data.copies import find_copies, hash_photo
from nailcore.data.dividing import find_learnt
from nailcore.data.folder import (
    IMAGE_SUFFIXES,
    SPLIT_FILE,
    DatasetCard,
    Part,
    SplitFile,
    decode_mask,
    find_split,
    open_dataset,
    read_image,
)
from nailcore.data.importing.photo import check_pixels, inspect_photo
from nailcore.data.labels import ImageRecord, NailRecord, match_nails
from nailcore.data.shapes import Shape, encode_rle
from nailcore.errors import DataError

Progress = Callable[[int, int], None]
ModelT = TypeVar("ModelT", bound=BaseModel)
Named = list[tuple[str, Shape, NailRecord]]  # a nail's name in messages, its shape and what is known of it


@dataclass(frozen=True)
class _Listed:
    """One photo as the folder lists it: where it lies, its size if declared, and its nails."""

    path: Path
    name: str
    subject: str | None
    size: tuple[int, int] | None  # width, height
    nails: Callable[[tuple[int, int]], tuple[list[Finding], Named]]  # given the photo's (width, height)


def check_folder(root: Path, *, progress: Progress | None = None) -> CheckReport:
    """Look at every photo, mask and entry of a data folder.

    Raises:
        DataError: there is no such folder, or its annotations.json cannot be read at all.
    """
    if not (root / "images").is_dir():
        raise DataError(
            f"{root / 'images'}: no such folder.", hint=f"A data folder holds images/ and {ANNOTATIONS}."
        )
    findings: list[Finding] = []
    listed = _list_entries(root, findings) if (root / ANNOTATIONS).is_file() else _list_masks(root, findings)
    if not listed and not findings:
        raise DataError(f"{root}: holds no photos.")
    hashes: dict[str, int] = {}
    nails = 0
    for number, entry in enumerate(listed):
        if progress is not None:
            progress(number, len(listed))
        found, count, code = _check_entry(entry)
        findings += found
        nails += count
        if code is not None:
            hashes[entry.path.stem] = code
    findings += _find_unlisted(root, {entry.path for entry in listed})
    split = _read_split(root, {entry.path.stem for entry in listed}, findings)
    parts = split.parts() if split is not None else {}
    findings += _check_people(listed, parts)
    findings += _find_learnt(listed, parts)
    if split is None or (root / SPLIT_FILE).is_file():  # the split of a public set was made by eye
        findings += _find_nameless(root, listed)
    findings += _check_copies(hashes, {entry.path.stem: entry.name for entry in listed}, parts)
    if not any(finding.level == "problem" for finding in findings):
        findings += _try_opening(root)
    if progress is not None:
        progress(len(listed), len(listed))
    counts: dict[str, int] = defaultdict(int)
    for part in parts.values():
        counts[part] += 1
    people = len({entry.subject for entry in listed} - {None})
    return CheckReport(
        photos=len(listed), nails=nails, people=people, parts=dict(counts), findings=sort_findings(findings)
    )


# -- what the folder lists -----------------------------------------------------------------------------
def _list_entries(root: Path, findings: list[Finding]) -> list[_Listed]:
    """The entries of annotations.json that can be used; what is wrong with the others becomes findings."""
    path = root / ANNOTATIONS
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not readable JSON: {error}.") from error
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        raise DataError(f"{path}: not a COCO file: it has no list of images.")
    images = _keep_valid(CocoImage, data["images"], {}, findings)
    names = {image.id: image.file_name for image in images}
    entries = data.get("annotations")
    nails = _keep_valid(CocoNail, entries if isinstance(entries, list) else [], names, findings)
    strangers = [nail for nail in nails if nail.image_id not in names]
    for nail in strangers:
        what = f"annotation {nail.id} belongs to image {nail.image_id}, which is not listed"
        findings.append(Finding(kind="entry not valid", file=ANNOTATIONS, what=what))
    nails = [nail for nail in nails if nail.image_id in names]
    try:
        CocoFile.model_validate({"categories": data.get("categories", ()), "images": ()})
        CocoFile(images=tuple(images), annotations=tuple(nails))
    except ValidationError as error:
        what = error.errors()[0]["msg"].removeprefix("Value error, ")
        findings.append(Finding(kind="entry not valid", file=ANNOTATIONS, what=what))
    groups = group_nails(CocoFile.model_construct(images=tuple(images), annotations=tuple(nails)))

    def list_nails(image: CocoImage, _size: tuple[int, int]) -> tuple[list[Finding], Named]:
        mine = groups[image.id]
        records = describe_nails(path, image, mine).nails
        return [], [
            (f"annotation {nail.id}", nail.segmentation, record)
            for nail, record in zip(mine, records, strict=True)
        ]

    return [
        _Listed(
            path=root / "images" / image.file_name,
            name=image.file_name,
            subject=image.subject,
            size=(image.width, image.height),
            nails=partial(list_nails, image),
        )
        for image in images
    ]


def _keep_valid(
    kind: type[ModelT], entries: Sequence[Any], names: dict[int, str], findings: list[Finding]
) -> list[ModelT]:
    kept = []
    for number, entry in enumerate(entries, start=1):
        try:
            kept.append(kind.model_validate(entry))
        except ValidationError as error:
            first = max(error.errors(), key=lambda e: len(e["loc"]))
            place = ".".join(map(str, first["loc"]))
            known = entry if isinstance(entry, dict) else {}
            called = f"{'image' if kind is CocoImage else 'annotation'} {known.get('id', f'no. {number}')}"
            image = known.get("image_id")
            file = (names.get(image) if isinstance(image, int) else None) or str(
                known.get("file_name") or ANNOTATIONS
            )
            points = bool(first["loc"]) and first["loc"][0] == "keypoints"
            what = f"{called}: {place}: {first['msg']} (found {str(first['input'])[:40]})"
            findings.append(
                Finding(kind="keypoints not valid" if points else "entry not valid", file=file, what=what)
            )
    return kept


def _list_masks(root: Path, findings: list[Finding]) -> list[_Listed]:
    """Every photo of a folder in the older form, with masks/."""
    card = DatasetCard(name=root.name)
    if (root / "dataset.json").is_file():
        try:
            card = DatasetCard.model_validate_json((root / "dataset.json").read_bytes())
        except ValidationError as error:
            findings.append(
                Finding(kind="entry not valid", file="dataset.json", what=error.errors()[0]["msg"])
            )
    photos = sorted(p for p in (root / "images").iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    records = {photo: card.images.get(photo.stem, ImageRecord()) for photo in photos}
    return [
        _Listed(
            path=photo,
            name=photo.name,
            subject=record.subject,
            size=None,
            nails=partial(_read_mask, photo, root / "masks" / f"{photo.stem}.png", record.nails),
        )
        for photo, record in records.items()
    ]


def _read_mask(
    photo: Path, path: Path, records: tuple[NailRecord, ...], size: tuple[int, int]
) -> tuple[list[Finding], Named]:
    if not path.is_file():
        return [Finding(kind="mask missing", file=photo.name, what=f"expected {path.name}")], []
    try:
        mask = decode_mask(path)
    except DataError as error:
        return [Finding(kind="mask unreadable", file=path.name, what=error.message.partition(": ")[2])], []
    if mask.shape[::-1] != size:
        what = f"{size[0]}×{size[1]} px, its mask {mask.shape[1]}×{mask.shape[0]} px"
        return [Finding(kind="size differs", file=photo.name, what=what)], []
    index = match_nails(mask, records)
    count = int(index.max(initial=0))
    unknown = NailRecord(finger=None, base=None, tip=None, area_px=0)
    return [], [
        (f"nail {k}", encode_rle(np.asarray(index == k)), records[k - 1] if k <= len(records) else unknown)
        for k in range(1, count + 1)
        if (index == k).any()
    ]


# -- one photo -----------------------------------------------------------------------------------------
def _check_entry(entry: _Listed) -> tuple[list[Finding], int, int | None]:
    """Findings on one photo and its nails, the number of nails, and the photo's perceptual hash."""
    if not entry.path.is_file():
        return [Finding(kind="photo missing", file=entry.name, what=f"expected {entry.path.name}")], 0, None
    try:
        info = inspect_photo(entry.path)
        check_pixels(info)
        image = read_image(entry.path)
    except DataError as error:
        what = error.message.removeprefix(f"{entry.path}: ")
        return [Finding(kind="photo unreadable", file=entry.name, what=what)], 0, None
    findings = []
    if info.mode != "RGB":
        findings.append(Finding(kind="unusual photo", file=entry.name, what=describe_mode(info.mode)))
    if info.orientation != 1:
        what = f"EXIF orientation {info.orientation}"
        findings.append(Finding(kind="turned by EXIF", file=entry.name, what=what))
    height, width = image.shape[:2]
    if entry.size not in (None, (width, height)):
        what = f"{width}×{height} px, declared as {'×'.join(map(str, entry.size or ()))} px"
        findings.append(Finding(kind="size differs", file=entry.name, what=what))
        return findings, 0, hash_photo(image)
    found, named = entry.nails((width, height))
    findings += found
    shapes, masks = check_shapes(entry.name, [(name, shape) for name, shape, _ in named], height, width)
    findings += shapes
    known = [(name, record) for name, _, record in named]
    findings += check_keypoints(entry.name, known, masks)
    findings += check_touching(entry.name, known, masks)
    if not named:
        findings.append(Finding(kind="no nail", file=entry.name, what="its labels say that it shows none"))
    guesses = [r.machine for _, _, r in named if r.machine is not None and not r.machine.confirmed]
    if guesses:
        what = f"{len(guesses)} of {len(named)} nails carry labels by {guesses[0].by or 'a machine'}"
        findings.append(Finding(kind="machine-made", file=entry.name, what=what))
    return findings, len(named), hash_photo(image)


def describe_mode(mode: str) -> str:
    """What becomes of a photo that is not 8-bit RGB."""
    if mode.endswith(";16") or mode.startswith("I;16") or mode == "I":
        return f"{mode}: 16 bits a channel, the upper 8 are read"
    if mode in ("RGBA", "LA", "PA"):
        return f"{mode}: transparency is ignored"
    if mode == "CMYK":
        return "CMYK: printing colours, converted without a colour profile"
    if mode in ("L", "1"):
        return f"{mode}: greyscale, repeated in three channels"
    return f"{mode}: converted to 8-bit RGB"


# -- the whole folder ----------------------------------------------------------------------------------
def _try_opening(root: Path) -> list[Finding]:
    """What no check above looks for, and every other command would stop at."""
    try:
        open_dataset(root, with_split=False)
    except DataError as error:
        return [Finding(kind="folder not readable", file=root.name, what=error.message)]
    return []


def _find_unlisted(root: Path, listed: set[Path]) -> list[Finding]:
    return [
        Finding(kind="photo not listed", file=path.name, what="in images/, but in no entry")
        for path in sorted((root / "images").iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES and path not in listed
    ]


def _read_split(root: Path, stems: set[str], findings: list[Finding]) -> SplitFile | None:
    try:
        split = find_split(root, stems)
    except DataError as error:
        what = error.message.removeprefix(f"{root / SPLIT_FILE}: ")
        findings.append(Finding(kind="split does not fit", file=SPLIT_FILE, what=what))
        return None
    if split is None:
        findings.append(Finding(kind="no split", file=SPLIT_FILE, what="there is none"))
    return split


def _check_people(listed: Sequence[_Listed], parts: dict[str, Part]) -> list[Finding]:
    where: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for entry in listed:
        if entry.subject is not None and entry.path.stem in parts:
            where[entry.subject][parts[entry.path.stem]].append(entry.name)
    return [
        Finding(
            kind="person in two parts",
            file=next(iter(found.values()))[0],
            what=f"{person}: "
            + ", ".join(f"{len(names)} in {part}" for part, names in sorted(found.items())),
        )
        for person, found in where.items()
        if len(found) > 1
    ]


def _find_learnt(listed: Sequence[_Listed], parts: dict[str, Part]) -> list[Finding]:
    learnt = set(find_learnt(parts))
    what = "is held out here, and was learnt from in a public set"
    return [
        Finding(kind="learnt by what ships", file=entry.name, what=what)
        for entry in listed
        if entry.path.stem in learnt
    ]


def _find_nameless(root: Path, listed: Sequence[_Listed]) -> list[Finding]:
    nameless = [entry.name for entry in listed if entry.subject is None]
    if not nameless:
        return []
    what = f"{len(nameless)} of {len(listed)} photos name nobody"
    return [Finding(kind="no person named", file=nameless[0] if len(nameless) == 1 else root.name, what=what)]


def _check_copies(hashes: dict[str, int], names: dict[str, str], parts: dict[str, Part]) -> list[Finding]:
    found = []
    for a, b, bits in find_copies(hashes):
        across = bool(parts) and parts.get(a) != parts.get(b)
        where = f" ({parts.get(a)} and {parts.get(b)})" if across else ""
        what = f"and {names[b]}: {bits} of 64 bits differ{where}"
        kind = "same photo across parts" if across else "same photo twice"
        found.append(Finding(kind=kind, file=names[a], what=what))
    return found
