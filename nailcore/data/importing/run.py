"""The import itself: photo by photo, resumable, with a written record of where everything came from."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from nailcore.data.coco import ANNOTATIONS, CocoInfo, LabelledImage, build_coco, write_coco
from nailcore.data.importing import foreign_coco, labelme, masks, yolo
from nailcore.data.importing.found import FoundImage, FoundLabels, FoundNail, FoundSet, Wishes
from nailcore.data.importing.naming import Hashes, find_subject, name_photos
from nailcore.data.importing.photo import (
    PhotoInfo,
    inspect_photo,
    turn_point,
    turn_shape,
    write_photo,
)
from nailcore.data.known_labels import KnownLabels
from nailcore.data.labels import MAX_NAILS, ImageRecord, NailRecord, carried_labels
from nailcore.data.shapes import fill_shape
from nailcore.errors import DataError, UnknownNameError
from nailcore.storage import write_text

FORMATS: dict[str, ModuleType] = {
    "masks": masks,
    "coco": foreign_coco,
    "labelme": labelme,
    "yolo-seg": yolo,
}
RECORD = "import.json"
_STATE = ".import"  # finished photos, until all of them are


@dataclass(frozen=True)
class ImportOrder:
    """What is to be imported and how its labels are read."""

    source: Path
    out: Path
    format: str = "auto"
    subject: str = ""  # "folder", or a regular expression on the photo's path in the source
    name: str = ""
    licence: str = ""
    skip_bad: bool = False
    wishes: Wishes = field(default_factory=Wishes)

    def describe(self, chosen: str, known: KnownLabels | None) -> dict[str, str]:
        """The settings that decide the result, for the record."""
        settings = {
            "source": self.source.resolve().name,
            "format": chosen,
            "subject": self.subject,
            "name": self.name,
            "licence": self.licence,
            "skip_bad": str(self.skip_bad).lower(),
            "auto_labels": str(self.wishes.auto_labels).lower(),
            "min_area_px": str(self.wishes.min_area_px),
            "labels": ", ".join(f"{k}={v}" for k, v in sorted(self.wishes.meanings.items())),
        }
        return settings | (
            {"known_labels": known.dataset, "known_labels_sha256": known.sha256} if known else {}
        )


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


class ImportRecord(BaseModel):
    """``import.json``: everything that was taken over, and everything that was not."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    settings: dict[str, str]
    photos: tuple[ImportedPhoto, ...]
    left_out: tuple[tuple[str, str], ...]  # (what, why)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    photo: ImportedPhoto
    image: LabelledImage


def choose_format(source: Path, wanted: str) -> str:
    """The name of the importer for a source.

    Raises:
        DataError: there is no such source; it suits no importer, or several.
        UnknownNameError: an importer that does not exist.
    """
    if not source.exists():
        raise DataError(f"{source}: no such file or folder.")
    if wanted != "auto":
        if wanted not in FORMATS:
            raise UnknownNameError("format", wanted, ("auto", *FORMATS))
        return wanted
    suited = [name for name, module in FORMATS.items() if module.suits(source)]
    if len(suited) != 1:
        what = f"may be {' or '.join(suited)}" if suited else "is of no format that can be told"
        raise DataError(
            f"{source}: {what}.",
            hint=f"Say which it is: --format {' or '.join(suited or FORMATS)}. Masks are found as "
            f"{masks.LAYOUTS}.",
        )
    return suited[0]


def import_set(
    order: ImportOrder, *, progress: Callable[[int, int], None] | None = None
) -> tuple[ImportRecord, bool]:
    """Write images/, annotations.json and import.json; returns the record and whether there was work to do.

    A stopped import goes on where it was; a finished one is compared with its source and left alone.

    Raises:
        DataError: something in the source cannot be used (the file is named), or ``out`` holds other data.
    """
    chosen = choose_format(order.source, order.format)
    if order.source.is_dir() and order.out.resolve().is_relative_to(order.source.resolve()):
        raise DataError(
            f"{order.out}: lies inside of what is imported.", hint="Name a folder outside of it with --out."
        )
    found: FoundSet = FORMATS[chosen].find(order.source, order.wishes)
    if not found.images:
        raise DataError(f"{order.source}: holds no labelled photos.")
    settings = order.describe(chosen, found.known_labels)
    stems = name_photos([image.key for image in found.images])
    subjects = [find_subject(order.subject, image) for image in found.images]
    finished = _claim(order.out, settings)
    hashes = Hashes()
    if finished is not None:
        _compare(order.out, finished, found, hashes)
        return finished, False
    parts, left_out = [], list(found.left_out)
    for number, (image, stem, subject) in enumerate(zip(found.images, stems, subjects, strict=True)):
        if progress is not None:
            progress(number, len(found.images))
        try:
            parts.append(_import_photo(order, image, stem, subject, hashes))
        except DataError as error:
            if not order.skip_bad:
                raise
            left_out.append((image.key, error.message))
    if not parts:
        raise DataError(f"{order.source}: no photo of {len(found.images)} could be used: {left_out[-1][1]}")
    record = ImportRecord(
        settings=settings, photos=tuple(part.photo for part in parts), left_out=tuple(left_out)
    )
    info = CocoInfo(
        description=order.name or found.name or order.source.resolve().stem,
        licence=order.licence or found.licence or "unknown",
        note=" ".join(
            [f"Imported from {settings['source']} ({chosen}); {RECORD} says more."]
            + ([found.known_labels.note] if found.known_labels else [])
        ),
    )
    write_coco(order.out / ANNOTATIONS, build_coco(info, [part.image for part in parts]))
    _forget_strangers(order.out / "images", {part.photo.file for part in parts})
    write_text(order.out / RECORD, record.model_dump_json(indent=1) + "\n")
    shutil.rmtree(order.out / _STATE, ignore_errors=True)
    if progress is not None:
        progress(len(found.images), len(found.images))
    return record, True


# -- the output folder -------------------------------------------------------------------------------
def _claim(out: Path, settings: dict[str, str]) -> ImportRecord | None:
    """Say what is being imported here; returns the record where it was finished before."""
    text = json.dumps(settings, indent=1, ensure_ascii=False) + "\n"
    note, done = out / _STATE / "order.json", out / RECORD
    if done.is_file():
        try:
            record = ImportRecord.model_validate_json(done.read_bytes())
        except ValidationError as error:
            raise DataError(f"{done}: not a valid import record: {error.errors()[0]['msg']}.") from error
        hint = "Name another folder with --out"
        if "known_labels" in settings and "known_labels" not in record.settings:
            hint += " or, for the same as before, give --no-known-labels"
        _refuse_others(f"{out}: holds an import", record.settings, settings, f"{hint}.")
        return record
    if note.is_file():
        try:
            begun = dict(json.loads(note.read_bytes()))
        except ValueError:  # damaged: nobody can tell what it was
            begun = {}
        hint = "Repeat those settings, or name another folder with --out."
        _refuse_others(f"{out}: holds an unfinished import", begun, settings, hint)
    elif out.exists() and (not out.is_dir() or any(not p.name.startswith(".") for p in out.iterdir())):
        raise DataError(
            f"{out}: exists already and is no import.", hint="Name a folder that does not exist yet."
        )
    (out / "images").mkdir(parents=True, exist_ok=True)
    write_text(note, text)
    return None


def _refuse_others(what: str, then: dict[str, str], now: dict[str, str], hint: str) -> None:
    """Raise DataError when settings differ, but for the one that may change on the way."""
    keys = [*then, *(key for key in now if key not in then)]
    other = [key for key in keys if key != "skip_bad" and then.get(key) != now.get(key)]
    if other:
        told = ", ".join(f"{key} '{then.get(key, '')}'" for key in other)
        raise DataError(f"{what} with other settings: {told}.", hint=hint)


def _compare(out: Path, record: ImportRecord, found: FoundSet, hashes: Hashes) -> None:
    """Whether a finished import is still that of its source; raises DataError naming what changed."""
    then = {p.came_from: (p.sha256, p.labels_sha256) for p in record.photos}
    skipped = {what for what, _ in record.left_out}
    for image in found.images:
        if image.key in skipped:
            continue
        if then.pop(image.key, None) != (hashes.of(image.photo), hashes.of(image.label_file)):
            raise DataError(
                f"{out}: was imported before {image.key} or its labels changed.",
                hint="Import into a new folder with --out.",
            )
    if then:
        raise DataError(
            f"{out}: holds {sorted(then)[0]}, which is no longer in the source.",
            hint="Import into a new folder with --out.",
        )


def _forget_strangers(folder: Path, kept: set[str]) -> None:
    """Photos of a part of the import that was stopped, whose source is gone or was since renamed."""
    for path in folder.iterdir():
        if path.name not in kept and not path.name.startswith("."):
            path.unlink()


# -- one photo ---------------------------------------------------------------------------------------
def _import_photo(
    order: ImportOrder, image: FoundImage, stem: str, subject: str | None, hashes: Hashes
) -> _Part:
    """Import one photo; its part is written last and marks it as done."""
    if image.problem:
        raise DataError(image.problem, hint="--skip-bad leaves such photos out and lists them.")
    path = order.out / _STATE / f"{hashlib.sha256(image.key.encode()).hexdigest()[:16]}.json"
    source = (hashes.of(image.photo), hashes.of(image.label_file))
    part = _read_part(path, order.out)
    if part is not None and (part.photo.sha256, part.photo.labels_sha256) == source:
        return part
    info = inspect_photo(image.photo)
    labels = turn_labels(image.read(info.upright), info)
    records, labelled, notes = _check_nails(image, labels, info, order.wishes.min_area_px)
    file_name, done = write_photo(info, order.out / "images", stem)
    record = ImageRecord(
        labels=labels.labels if labels.labels is not None else carried_labels(records),
        subject=subject,
        nails=tuple(records),
    )
    width, height = info.upright
    part = _Part(
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


def _read_part(path: Path, out: Path) -> _Part | None:
    try:
        part = _Part.model_validate_json(path.read_bytes())
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
