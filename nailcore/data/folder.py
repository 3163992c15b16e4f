"""A data folder: ``images/`` with ``annotations.json`` (or plain ``masks/``), and an optional split."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nailcore.data.coco import (
    ANNOTATIONS,
    CocoImage,
    CocoNail,
    describe_nails,
    group_nails,
    rasterise,
    read_coco,
)
from nailcore.data.labels import ImageRecord, Label, Labels, NailRecord, match_nails
from nailcore.errors import DataError, tell_problems
from nailcore.facts import ImageSet
from nailcore.storage import hash_file

__all__ = ["Dataset", "ImageRecord", "Label", "Labels", "NailRecord", "Sample", "open_dataset", "read_image"]

Part = Literal["train", "validation", "test"]
Split = Literal["train", "held-out", "validation", "test", "all"]
PARTS: dict[str, Split] = {
    "test": "test",
    "validation": "validation",
    "held-out": "held-out",
    "train": "train",
    "all": "all",
}
SPLIT_FILE = "split.json"
SPLITS_DIR = Path(__file__).parent / "splits"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class DatasetCard(BaseModel):
    """``dataset.json``: who made the images and which labels each carries."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    synthetic: bool = False
    licence: str = "unknown"
    note: str = ""
    images: dict[str, ImageRecord] = {}  # by stem; an image not listed carries a mask alone


class SplitFile(BaseModel):
    """A fixed, written split: groups of images that show one person or photo shoot stay in one part.

    ``held_out`` is never trained on. Of it, ``validation`` is there to choose by while one works, and
    the rest, the test part, to report figures on; a file without ``validation`` has two parts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    dataset: str
    note: str
    groups: dict[str, tuple[str, ...]]  # group -> stems
    held_out: tuple[str, ...] = Field(min_length=1)  # names of groups
    validation: tuple[str, ...] = ()  # names of groups, each of them in held_out as well

    @model_validator(mode="after")
    def _consistent(self) -> SplitFile:
        unknown = set(self.held_out) - set(self.groups)
        if unknown:
            raise ValueError(f"held_out names no group: {', '.join(sorted(unknown))}")
        learnt = set(self.validation) - set(self.held_out)
        if learnt:
            raise ValueError(f"validation names groups that are not in held_out: {', '.join(sorted(learnt))}")
        stems = [stem for group in self.groups.values() for stem in group]
        twice = sorted(stem for stem, count in Counter(stems).items() if count > 1)
        if twice:
            raise ValueError(f"images in several groups: {', '.join(twice)}")
        return self

    def part_of(self, group: str) -> Part:
        """The part a group belongs to."""
        if group not in self.held_out:
            return "train"
        return "validation" if group in self.validation else "test"

    def parts(self) -> dict[str, Part]:
        """Stem -> part, for every image."""
        return {stem: self.part_of(group) for group, stems in self.groups.items() for stem in stems}


@dataclass(frozen=True)
class Shapes:
    """The nails of one image as ``annotations.json`` gives them."""

    file: Path
    image: CocoImage
    nails: tuple[CocoNail, ...]


@dataclass(frozen=True)
class Sample:
    """One labelled image on disk; its labels lie in a mask image or in ``shapes``."""

    name: str
    image: Path
    mask: Path | None
    record: ImageRecord
    shapes: Shapes | None = None

    def load_image(self) -> npt.NDArray[np.uint8]:
        """(H, W, 3) RGB, EXIF orientation applied; raises DataError naming the file."""
        return read_image(self.image)

    def load_mask(self) -> npt.NDArray[np.bool_]:
        """(H, W) nail mask; raises DataError when unreadable or of another size than declared."""
        return self.load_labels().mask if self.mask is None else decode_mask(self.mask)

    def load_labels(self) -> Labels:
        """The ground truth at the image's own size: what only a machine says of a nail counts as unknown.

        Raises DataError as ``load_mask`` does.
        """
        known = frozenset(self.record.labels)
        if self.shapes is not None:
            index = rasterise(self.shapes.file, self.shapes.image, self.shapes.nails)
        else:
            index = match_nails(self.load_mask(), self.record.nails)
        return Labels(index, tuple(nail.without_guesses() for nail in self.record.nails), known)

    def hash_labels(self) -> str:
        """SHA-256 over everything that is said of the nails."""
        if self.shapes is None:
            mask = hash_file(self.mask) if self.mask is not None else ""
            if not self.record.nails:  # then the mask says it all
                return mask
            return hashlib.sha256(f"{mask}\n{self.record.model_dump_json()}".encode()).hexdigest()
        lines = [self.shapes.image.model_dump_json(exclude={"id"})]
        lines += [nail.model_dump_json(exclude={"id", "image_id"}) for nail in self.shapes.nails]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """Decode one photograph to (H, W, 3) RGB uint8 with its EXIF orientation applied.

    Raises:
        DataError: the file is missing, empty, truncated or no image.
    """
    import cv2

    return _decode(path, cv2.IMREAD_COLOR_RGB, "image")


def decode_mask(path: Path) -> npt.NDArray[np.bool_]:
    """(H, W) nail where a mask image is above 127; raises DataError naming the file."""
    import cv2

    return np.asarray(_decode(path, cv2.IMREAD_GRAYSCALE, "mask image") > 127)


def _decode(path: Path, flags: int, what: str) -> npt.NDArray[np.uint8]:
    import cv2

    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    pixels = cv2.imdecode(data, flags) if data.size else None
    if pixels is None:
        raise DataError(
            f"{path}: not a readable {what} ({data.size} bytes).",
            hint="Remove it from the folder or replace it with a JPEG or PNG.",
        )
    return np.asarray(pixels, dtype=np.uint8)


@dataclass(frozen=True)
class Dataset:
    """An opened data folder; samples are sorted by name."""

    root: Path
    card: DatasetCard
    samples: tuple[Sample, ...]
    split: SplitFile | None
    # Guesses of machines, of at least this confidence, count as truth in the training part; None: none do.
    learn_guesses: float | None = None

    def part(self, which: Split) -> tuple[Sample, ...]:
        """The samples of one part; a folder without a split is all held-out, never trained on.

        Held-out is validation and test together. Where nothing was set aside for validation, all that
        is held out is the test part.

        Raises:
            DataError: the training or the validation part of a folder without a split.
        """
        if which == "all" or (self.split is None and which in ("held-out", "test")):
            return self.samples
        if self.split is None:
            if which == "validation":
                raise DataError(
                    f"{self.root}: has no written split, so it has no validation part.",
                    hint="`nailtool data split` writes one.",
                )
            raise DataError(
                f"{self.root}: has no written split, so nothing in it may be trained on.",
                hint="`nailtool data split` writes a split.json into the folder (see docs/data.md).",
            )
        wanted = ("validation", "test") if which == "held-out" else (which,)
        parts = self.split.parts()
        samples = tuple(s for s in self.samples if parts.get(s.name) in wanted)
        if which != "train" or self.learn_guesses is None:
            return samples
        least = self.learn_guesses
        return tuple(replace(s, record=s.record.accepting_guesses(least)) for s in samples)

    def describe(self, which: Split) -> ImageSet:
        """Name, size and content hash of one part."""
        samples = self.part(which)
        digest = hashlib.sha256()
        for sample in samples:
            line = f"{sample.name} {hash_file(sample.image)} {sample.hash_labels()}\n"
            digest.update(line.encode())
        if which == "test" and not (self.split and self.split.validation):
            which = "held-out"  # the same images under the name that two parts give them
        suffix = f" {which}" if self.split is not None else ""
        return ImageSet(
            name=self.card.name + suffix,
            sha256=digest.hexdigest(),
            count=len(samples),
            synthetic=self.card.synthetic,
        )


ModelT = TypeVar("ModelT", bound=BaseModel)


def _read_model(path: Path, kind: type[ModelT]) -> ModelT:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (ValidationError, UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"{path}: not a valid {path.stem} file: {tell_problems(error, most=3)}",
            hint="docs/data.md shows what stands in it; `nailtool data split` writes split.json anew.",
        ) from error


def find_split(root: Path, stems: set[str]) -> SplitFile | None:
    """A folder's own split.json, or the written split of a known public set with the same stems.

    Raises:
        DataError: its own one is damaged, or does not name exactly the images of the folder.
    """
    own = root / SPLIT_FILE
    candidates = [own] if own.is_file() else sorted(SPLITS_DIR.glob("*.json"))
    for path in candidates:
        split = _read_model(path, SplitFile)
        named = {stem for group in split.groups.values() for stem in group}
        if named == stems:
            return split
        if path == own:
            raise DataError(
                f"{own}: does not name exactly the images of this folder "
                f"(only in the split: {sorted(named - stems)[:3]}, "
                f"only in images/: {sorted(stems - named)[:3]})."
            )
    return None


def open_dataset(root: Path, *, with_split: bool = True) -> Dataset:
    """Open a data folder; in the form with masks, check that every image has one of its own size.

    Without its split, for one that is to be written anew, all of it counts as held out.

    Raises:
        DataError: the folder, an image or its labels are missing, unreadable, or of another size; or a
            person is in two parts of the split.
    """
    for folder in (root, root / "images"):
        if not folder.is_dir():
            raise DataError(
                f"{folder}: no such folder.",
                hint=f"A data folder holds images/ with {ANNOTATIONS}, or images/*.jpg and masks/*.png "
                "with equal file stems.",
            )
    dataset = _open_annotations(root) if (root / ANNOTATIONS).is_file() else _open_masks(root)
    stems = {sample.name for sample in dataset.samples}
    if not with_split:
        return dataset
    split = find_split(root, stems)
    if split is not None:
        _check_people(root, dataset.samples, split)
    return replace(dataset, split=split)


def _check_people(root: Path, samples: tuple[Sample, ...], split: SplitFile) -> None:
    """Raises DataError for a person in two parts of a split: figures would be of hands that were learnt."""
    parts, places = split.parts(), dict[str, str]()
    for sample in samples:
        person = sample.record.subject
        if person is None:
            continue
        part = parts[sample.name]
        if places.setdefault(person, part) != part:
            raise DataError(
                f"{root}: its split has {person} in two parts, "
                f"{places[person]} and {part} ({sample.image.name}).",
                hint="Give a person one group of split.json; `nailtool data split --force` writes one anew.",
            )


def _open_annotations(root: Path) -> Dataset:
    path = root / ANNOTATIONS
    file = read_coco(path)
    if not file.images:
        raise DataError(f"{path}: lists no images.")
    nails = group_nails(file)
    samples = []
    for image in file.images:
        place = root / "images" / image.file_name
        if not place.is_file():
            raise DataError(f"{path}: lists {image.file_name}, but there is no {place}.")
        record = describe_nails(path, image, nails[image.id]).with_true_labels()
        samples.append(Sample(place.stem, place, None, record, Shapes(path, image, nails[image.id])))
    card = DatasetCard(
        name=file.info.description,
        synthetic=file.info.synthetic,
        licence=file.info.licence,
        note=file.info.note,
    )
    return Dataset(root, card, tuple(sorted(samples, key=lambda s: s.name)), None)


def _open_masks(root: Path) -> Dataset:
    images_dir, masks_dir = root / "images", root / "masks"
    if not masks_dir.is_dir():
        raise DataError(
            f"{masks_dir}: no such folder.",
            hint=f"A data folder without {ANNOTATIONS} holds masks/*.png with the stems of its images.",
        )
    card_path = root / "dataset.json"
    card = (
        _read_model(card_path, DatasetCard) if card_path.is_file() else DatasetCard(name=root.resolve().name)
    )
    images = sorted(p for p in images_dir.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise DataError(f"{images_dir}: holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    samples = []
    for image in images:
        mask = masks_dir / f"{image.stem}.png"
        if not mask.is_file():
            raise DataError(f"{image.name}: has no mask; expected {mask}.")
        record = card.images.get(image.stem, ImageRecord()).with_true_labels()
        samples.append(Sample(image.stem, image, mask, record))
    stems = [s.name for s in samples]
    unlisted = sorted(set(card.images) - set(stems))
    if unlisted:
        raise DataError(f"{card_path}: describes images that do not exist: {', '.join(unlisted[:3])}.")
    if len(set(stems)) != len(stems):
        twice = sorted(s for s, count in Counter(stems).items() if count > 1)
        raise DataError(f"{images_dir}: several images share one stem: {', '.join(twice)}.")
    for sample in samples:
        check_size(sample, sample.load_image())
    return Dataset(root, card, tuple(samples), None)


def check_size(sample: Sample, image: npt.NDArray[np.uint8]) -> None:
    """Raises DataError when the labels are for another size than the decoded image (H, W, 3) has."""
    height, width = image.shape[:2]
    if sample.shapes is not None:
        wanted, where = (sample.shapes.image.height, sample.shapes.image.width), ANNOTATIONS
        what = "is declared as"
    else:
        shape = sample.load_mask().shape
        wanted, where = (shape[0], shape[1]), sample.mask.name if sample.mask else ""
        what = "is"
    if (height, width) != wanted:
        raise DataError(
            f"{sample.image}: is {width}×{height} px but its mask {where} {what} {wanted[1]}×{wanted[0]} px.",
            hint="Labels must cover their image pixel for pixel (after EXIF rotation).",
        )
