"""One photo of an import: read, turned upright, checked, written; its part marks it as done."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from nailcore.data.coco import LabelledImage
from nailcore.data.importing.found import FoundImage, FoundLabels, FoundNail
from nailcore.data.importing.naming import Hashes
from nailcore.data.importing.photo import (
    PhotoInfo,
    check_pixels,
    inspect_photo,
    turn_point,
    turn_shape,
    write_photo,
)
from nailcore.data.labels import MAX_NAILS, ImageRecord, NailRecord, carried_labels
from nailcore.data.shapes import fill_shape
from nailcore.errors import DataError
from nailcore.storage import write_text

STATE = ".import"  # finished photos, until all of them are


class ImportedPhoto(BaseModel):
    """Where one photo came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str  # below images/
    came_from: str  # path in the source
    sha256: str  # of the source's photo
    labels_from: str
    labels_sha256: str
    done: str  # copied, metadata removed, turned upright, ...
    nails: int
    notes: tuple[str, ...] = ()
    subject: str | None = None  # whose hands


class Part(BaseModel):
    """What an import keeps of a finished photo until all are."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    photo: ImportedPhoto
    image: LabelledImage


def is_usable(image: FoundImage, min_area_px: int) -> bool:
    """Whether a photo that was left out could be taken over today."""
    try:
        info, *_ = _read(image, min_area_px)
        check_pixels(info)
    except DataError:
        return False
    return not image.problem


def _read(
    image: FoundImage, min_area_px: int
) -> tuple[PhotoInfo, FoundLabels, list[NailRecord], list[FoundNail], list[str]]:
    """A photo's header, its labels in the upright frame and what is kept of them; raises DataError."""
    info = inspect_photo(image.photo)
    labels = turn_labels(image.read(info.upright), info)
    return info, labels, *_check_nails(image, labels, info, min_area_px)


def import_photo(
    out: Path, image: FoundImage, stem: str, subject: str | None, *, hashes: Hashes, min_area_px: int
) -> Part:
    """Import one photo; its part is written last and marks it as done."""
    if image.problem:
        raise DataError(image.problem, hint="--skip-bad leaves such photos out and lists them.")
    path = out / STATE / f"{hashlib.sha256(image.key.encode()).hexdigest()[:16]}.json"
    source = (hashes.of(image.photo), hashes.of(image.label_file))
    part = _read_part(path, out)
    if part is not None and (part.photo.sha256, part.photo.labels_sha256) == source:
        return part
    info, labels, records, labelled, notes = _read(image, min_area_px)
    file_name, done = write_photo(info, out / "images", stem)
    record = ImageRecord(
        labels=labels.labels if labels.labels is not None else carried_labels(records),
        subject=subject,
        nails=tuple(records),
    )
    width, height = info.upright
    part = Part(
        photo=ImportedPhoto(
            file=file_name,
            came_from=image.key,
            sha256=source[0],
            labels_from=image.label_file.name,
            labels_sha256=source[1],
            done=done,
            nails=len(records),
            notes=(*labels.notes, *notes),
            subject=subject,
        ),
        image=LabelledImage(
            file_name=file_name,
            width=width,
            height=height,
            record=record,
            shapes=tuple(nail.shape for nail in labelled),
        ),
    )
    write_text(path, part.model_dump_json() + "\n")
    return part


def _read_part(path: Path, out: Path) -> Part | None:
    try:
        part = Part.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return part if (out / "images" / part.photo.file).is_file() else None


def turn_labels(labels: FoundLabels, info: PhotoInfo) -> FoundLabels:
    """Labels in the frame of the upright photo; those drawn on the photo as stored are turned with it.

    Raises:
        DataError: they are for a photo of another size.
    """
    if labels.size == info.upright:
        return labels
    if labels.size != info.stored:
        wanted, found = "×".join(map(str, info.upright)), "×".join(map(str, labels.size))
        raise DataError(
            f"{info.path}: is {wanted} px but its labels are for {found} px.",
            hint="Labels must cover their image pixel for pixel.",
        )

    def turn(nail: FoundNail) -> FoundNail:
        return replace(
            nail,
            shape=turn_shape(nail.shape, info.stored, info.orientation),
            base=turn_point(nail.base, info.stored, info.orientation) if nail.base else None,
            tip=turn_point(nail.tip, info.stored, info.orientation) if nail.tip else None,
        )

    note = "labels turned with the photo"
    return replace(
        labels, nails=tuple(map(turn, labels.nails)), size=info.upright, notes=(*labels.notes, note)
    )


def _check_nails(
    image: FoundImage, labels: FoundLabels, info: PhotoInfo, min_area_px: int
) -> tuple[list[NailRecord], list[FoundNail], list[str]]:
    """Nails that cover some pixels, and what was left out; raises DataError for shapes that cannot be."""
    width, height = info.upright
    records, kept, notes, tiny = [], [], [], 0
    for nail in labels.nails:
        where = f"{image.label_file}: {image.photo.name}: {nail.where}"
        try:
            area = int(np.count_nonzero(fill_shape(nail.shape, height, width)))
        except ValueError as error:
            raise DataError(f"{where}: {error}.") from error
        if not area:
            raise DataError(
                f"{where}: covers no pixel of the image of {width}×{height} px.",
                hint="Mend it, or leave the photo out with --skip-bad.",
            )
        if area < min_area_px:
            tiny += 1
            continue
        records.append(
            NailRecord(
                finger=nail.finger,
                base=nail.base,
                tip=nail.tip,
                area_px=area,
                hidden=nail.hidden,
                machine=nail.machine,
            )
        )
        kept.append(nail)
    if tiny:
        notes.append(f"{tiny} nail(s) of less than {min_area_px} px left out")
    if len(records) > MAX_NAILS:
        raise DataError(f"{image.photo}: {len(records)} nails, at most {MAX_NAILS} are possible.")
    return records, kept, notes
