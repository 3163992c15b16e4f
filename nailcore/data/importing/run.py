"""The import itself: photo by photo, resumable, with a written record of where everything came from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

from pydantic import BaseModel, ConfigDict, ValidationError

from nailcore.data.coco import ANNOTATIONS, CocoInfo, build_coco, write_coco
from nailcore.data.importing import foreign_coco, labelme, masks, yolo
from nailcore.data.importing.found import (
    FoundImage,
    FoundSet,
    Wishes,
    list_others,
)
from nailcore.data.importing.naming import Hashes, find_subject, name_photos
from nailcore.data.importing.one_photo import STATE, ImportedPhoto, import_photo, is_usable
from nailcore.data.known_labels import KnownLabels
from nailcore.errors import DataError, UnknownNameError
from nailcore.storage import write_text

FORMATS: dict[str, ModuleType] = {
    "masks": masks,
    "coco": foreign_coco,
    "labelme": labelme,
    "yolo-seg": yolo,
}
RECORD = "import.json"


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


class ImportRecord(BaseModel):
    """``import.json``: everything that was taken over, and everything that was not."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    settings: dict[str, str]
    photos: tuple[ImportedPhoto, ...]
    left_out: tuple[tuple[str, str], ...]  # (what, why)
    meanings: tuple[tuple[str, str], ...] = ()  # label -> what it was taken for, where its name says so


def count_known(record: ImportRecord) -> int:
    """Photos whose fingers and directions were taken over from what ships for a public set."""
    if "known_labels" not in record.settings:
        return 0
    return sum(not any(note.startswith(masks.NOT_KNOWN) for note in photo.notes) for photo in record.photos)


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
    found = _drop_twins(found, skip=order.skip_bad)
    settings = order.describe(chosen, found.known_labels)
    stems = name_photos([image.key for image in found.images])
    subjects = [find_subject(order.subject, image) for image in found.images]
    finished = _claim(order.out, settings)
    hashes = Hashes()
    if finished is not None:
        _compare(order, finished, found, hashes)
        return finished, False
    parts, left_out = [], list(found.left_out)
    if order.source.is_dir():
        others = [path.relative_to(order.source).as_posix() for path in list_others(order.source)]
        left_out += [(name, "of a format that is not read: convert it to JPEG") for name in others]
    for number, (image, stem, subject) in enumerate(zip(found.images, stems, subjects, strict=True)):
        if progress is not None:
            progress(number, len(found.images))
        try:
            parts.append(
                import_photo(
                    order.out, image, stem, subject, hashes=hashes, min_area_px=order.wishes.min_area_px
                )
            )
        except DataError as error:
            if not order.skip_bad:
                raise
            left_out.append((image.key, error.message))
    if not parts:
        raise DataError(f"{order.source}: no photo of {len(found.images)} could be used: {left_out[-1][1]}")
    record = ImportRecord(
        settings=settings,
        photos=tuple(part.photo for part in parts),
        left_out=tuple(left_out),
        meanings=found.meanings,
    )
    info = CocoInfo(
        description=order.name or found.name or order.source.resolve().stem,
        licence=order.licence or found.licence or "unknown",
        note=" ".join(
            [f"Imported from {settings['source']} ({chosen}); {RECORD} says more."]
            + ([found.known_labels.note] if found.known_labels and count_known(record) else [])
        ),
    )
    write_coco(order.out / ANNOTATIONS, build_coco(info, [part.image for part in parts]))
    _forget_strangers(order.out / "images", {part.photo.file for part in parts})
    write_text(order.out / RECORD, record.model_dump_json(indent=1) + "\n")
    shutil.rmtree(order.out / STATE, ignore_errors=True)
    if progress is not None:
        progress(len(found.images), len(found.images))
    return record, True


# -- the output folder -------------------------------------------------------------------------------
def _claim(out: Path, settings: dict[str, str]) -> ImportRecord | None:
    """Say what is being imported here; returns the record where it was finished before."""
    text = json.dumps(settings, indent=1, ensure_ascii=False) + "\n"
    note, done = out / STATE / "order.json", out / RECORD
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


def _drop_twins(found: FoundSet, *, skip: bool) -> FoundSet:
    """A photo that is listed twice, under two sets of labels, is refused, or left out the second time."""
    seen: dict[Path, FoundImage] = {}
    left_out = list(found.left_out)
    for image in found.images:
        first = seen.setdefault(image.photo.resolve(), image)
        if first is image:
            continue
        why = f"is labelled twice, by {first.label_file.name} and by {image.label_file.name}"
        if not skip:
            raise DataError(
                f"{image.photo}: {why}.",
                hint="Keep one of the two; --skip-bad keeps the first and lists the other.",
            )
        left_out.append((f"{image.key} of {image.label_file.name}", why))
    return replace(found, images=tuple(seen.values()), left_out=tuple(left_out))


def _compare(order: ImportOrder, record: ImportRecord, found: FoundSet, hashes: Hashes) -> None:
    """Raises DataError when a finished import is not whole, or no longer that of its source."""
    out = order.out
    lost = [p.file for p in record.photos if not (out / "images" / p.file).is_file()]
    lost += [] if (out / ANNOTATIONS).is_file() else [ANNOTATIONS]
    if lost:
        raise DataError(
            f"{out}: is an import that lacks {lost[0]}{f' and {len(lost) - 1} more' if lost[1:] else ''}.",
            hint="Import into a new folder with --out, or remove this one first.",
        )
    then = {p.came_from: (p.sha256, p.labels_sha256) for p in record.photos}
    skipped = {what for what, _ in record.left_out}
    for image in found.images:
        if image.key in skipped and not is_usable(image, order.wishes.min_area_px):
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
