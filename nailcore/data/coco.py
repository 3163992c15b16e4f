"""The one label format: COCO JSON plus fingers, base and tip of nails, subjects, and declared labels."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from nailcore.data.labels import MAX_NAILS, ImageRecord, IndexMap, Label, MachineMade, NailRecord, Point
from nailcore.data.shapes import Mask, Shape, encode_rle, fill_shape, span_points
from nailcore.errors import DataError
from nailcore.storage import write_text
from nailcore.variant import FINGER_CLASSES

ANNOTATIONS = "annotations.json"
UNKNOWN_ID = len(FINGER_CLASSES) + 1  # categories 1..10 are FINGER_CLASSES in their order
KEYPOINTS: tuple[Literal["base"], Literal["tip"]] = ("base", "tip")


class _Model(BaseModel):
    # Other tools' keys (licences, dates, scores) are no error; ours are checked.
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class CocoInfo(_Model):
    """Who made the images."""

    description: str = "unnamed"
    synthetic: bool = False
    licence: str = "unknown"
    note: str = ""


class CocoCategory(_Model):
    """One of the ten fingers, or the unknown one."""

    id: int
    name: str
    supercategory: str = "nail"
    keypoints: tuple[str, ...] = KEYPOINTS
    skeleton: tuple[tuple[int, int], ...] = ((1, 2),)


class CocoImage(_Model):
    """One image, its person and the labels that its nails carry."""

    id: int
    file_name: str
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    subject: str | None = None
    labels: tuple[Label, ...] = ("mask",)


class CocoNail(_Model):
    """One nail: shape, finger and keypoints (0: unknown, 1: hidden), and what a machine guessed."""

    id: int
    image_id: int
    category_id: int = Field(ge=1, le=UNKNOWN_ID)
    segmentation: Shape
    area: float = 0.0
    bbox: tuple[float, float, float, float] | None = None
    iscrowd: Literal[0, 1] = 0
    keypoints: Annotated[list[float], Field(min_length=6, max_length=6)] | None = None
    num_keypoints: int | None = None
    machine: MachineMade | None = None

    @model_serializer(mode="wrap")
    def _quiet(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Files and hashes of nails that no machine touched are those of before this key existed.
        data: dict[str, Any] = write(self)
        if self.machine is None:
            data.pop("machine", None)
        return data

    @model_validator(mode="after")
    def _even(self) -> CocoNail:
        if isinstance(self.segmentation, list):
            if not self.segmentation:
                raise ValueError("a segmentation needs at least one polygon")
            if any(len(polygon) % 2 for polygon in self.segmentation):
                raise ValueError("a polygon is a list of x, y pairs, found an odd number of values")
        return self

    def point(self, which: Literal["base", "tip"]) -> Point | None:
        """One keypoint in pixels, None when it is unknown."""
        if self.keypoints is None:
            return None
        x, y, visibility = self.keypoints[3 * KEYPOINTS.index(which) :][:3]
        return (x, y) if visibility > 0 else None

    @property
    def hidden(self) -> tuple[Literal["base", "tip"], ...]:
        """Keypoints of COCO's visibility 1: known, but not to be seen on the nail."""
        return tuple(
            name for name in KEYPOINTS if (self.keypoints or [0] * 6)[KEYPOINTS.index(name) * 3 + 2] == 1
        )


class CocoFile(_Model):
    """``annotations.json``."""

    info: CocoInfo = CocoInfo()
    categories: tuple[CocoCategory, ...] = ()
    images: tuple[CocoImage, ...]
    annotations: tuple[CocoNail, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> CocoFile:
        expected = dict(enumerate((*FINGER_CLASSES, "unknown finger"), start=1))
        for category in self.categories:
            if expected.get(category.id) != category.name:
                raise ValueError(
                    f"category {category.id} is '{category.name}', expected '{expected.get(category.id)}'"
                )
        for what, ids in (
            ("image", [i.id for i in self.images]),
            ("annotation", [a.id for a in self.annotations]),
        ):
            twice = sorted(k for k, n in Counter(ids).items() if n > 1)
            if twice:
                raise ValueError(f"several {what}s have the id {twice[0]}")
        stems = Counter(PurePosixPath(i.file_name).stem for i in self.images)
        if stems and (worst := stems.most_common(1)[0])[1] > 1:
            raise ValueError(f"several images are called '{worst[0]}'")
        known = {i.id for i in self.images}
        for nail in self.annotations:
            if nail.image_id not in known:
                raise ValueError(
                    f"annotation {nail.id} belongs to image {nail.image_id}, which is not listed"
                )
        for image in self.images:
            path = PurePosixPath(image.file_name)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"image {image.id}: '{image.file_name}' leads out of images/")
        return self


def standard_categories() -> tuple[CocoCategory, ...]:
    """Left thumb .. left pinky, right thumb .. right pinky, unknown finger: ids 1 to 11."""
    names = (*FINGER_CLASSES, "unknown finger")
    return tuple(CocoCategory(id=i, name=name) for i, name in enumerate(names, start=1))


# -- reading -------------------------------------------------------------------------------------
def read_coco(path: Path) -> CocoFile:
    """Read and validate ``annotations.json``.

    Raises:
        DataError: not readable, or not valid; names the place, what was found and what was expected.
    """
    try:
        return CocoFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        # Of a union's branches, the one that got furthest into the value is the one that was meant.
        first = max(error.errors(), key=lambda e: len(e["loc"]))
        place = ".".join(map(str, first["loc"])) or "file"
        found = str(first["input"])[:60] if first["loc"] else ""
        raise DataError(
            f"{path}: not valid: {place}: {first['msg']}{f' (found {found})' if found else ''}"
            f"{f'; and {error.error_count() - 1} more' if error.error_count() > 1 else ''}.",
            hint="docs/data.md describes the format.",
        ) from error


def find_annotations(root: Path) -> Path:
    """The folder's ``annotations.json``; raises DataError saying how to get one."""
    path = root / ANNOTATIONS
    if not path.is_file():
        raise DataError(
            f"{path}: no such file.", hint="Bring the folder into our format first: `nailtool data import`."
        )
    return path


def rasterise(path: Path, image: CocoImage, nails: Sequence[CocoNail]) -> IndexMap:
    """(H, W) nail index: 0 background, k the k-th nail; where nails overlap, the later one is seen.

    Raises:
        DataError: a shape is empty, outside the image, or of another size.
    """
    index = np.zeros((image.height, image.width), np.uint8)
    for k, nail in enumerate(nails, start=1):
        where = f"{path}: {image.file_name}: annotation {nail.id}"
        try:
            mask = fill_shape(nail.segmentation, image.height, image.width)
        except ValueError as error:
            raise DataError(f"{where}: {error}.") from error
        if not mask.any():
            raise DataError(f"{where}: covers no pixel of the image.", hint="Remove it, or mend its shape.")
        index[mask] = k
    return index


def describe_nails(path: Path, image: CocoImage, nails: Sequence[CocoNail]) -> ImageRecord:
    """The record of one image; raises DataError for more nails than an index map holds."""
    if len(nails) > MAX_NAILS:
        raise DataError(f"{path}: {image.file_name}: {len(nails)} nails, at most {MAX_NAILS} are possible.")
    return ImageRecord(
        labels=image.labels,
        subject=image.subject,
        nails=tuple(
            NailRecord(
                finger=None if nail.category_id == UNKNOWN_ID else FINGER_CLASSES[nail.category_id - 1],
                base=nail.point("base"),
                tip=nail.point("tip"),
                area_px=round(nail.area),
                hidden=nail.hidden,
                machine=nail.machine,
            )
            for nail in nails
        ),
    )


def group_nails(file: CocoFile) -> dict[int, tuple[CocoNail, ...]]:
    """Image id -> its nails in the order of the file."""
    groups: dict[int, list[CocoNail]] = {image.id: [] for image in file.images}
    for nail in file.annotations:
        groups[nail.image_id].append(nail)
    return {key: tuple(nails) for key, nails in groups.items()}


# -- writing -------------------------------------------------------------------------------------
class LabelledImage(BaseModel):
    """One image for the writer: file name, size, record and the shapes of its nails in their order."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file_name: str
    width: int
    height: int
    record: ImageRecord
    shapes: tuple[Shape, ...]

    @classmethod
    def of(cls, file_name: str, index: IndexMap, record: ImageRecord) -> LabelledImage:
        """From a nail index map (H, W)."""
        shapes = tuple(encode_rle(index == k) for k in range(1, len(record.nails) + 1))
        height, width = index.shape
        return cls(file_name=file_name, width=width, height=height, record=record, shapes=shapes)


def _bound(mask: Mask) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return (0.0, 0.0, 0.0, 0.0)
    top, left = int(rows[0]), int(columns[0])
    return (float(left), float(top), float(columns[-1] - left + 1), float(rows[-1] - top + 1))


def _keypoints(nail: NailRecord) -> list[float]:
    named = (("base", nail.base), ("tip", nail.tip))
    return list(
        itertools.chain.from_iterable(
            (0.0, 0.0, 0) if p is None else (*np.round(p, 2), 1 if name in nail.hidden else 2)
            for name, p in named
        )
    )


def describe_direction(mask: Mask, direction: Sequence[float] | None) -> dict[str, Any]:
    """An annotation's keys for a nail (H, W) whose tip points so (x, y); None: nobody knows where."""
    points: list[float] = [0.0, 0.0, 0] * 2
    if direction is not None:
        base, tip = span_points(mask, np.asarray(direction))
        points = [round(base[0], 2), round(base[1], 2), 2, round(tip[0], 2), round(tip[1], 2), 2]
    return {"keypoints": points, "num_keypoints": 0 if direction is None else 2}


def build_coco(info: CocoInfo, images: Iterable[LabelledImage]) -> CocoFile:
    """A complete file with ids counted from 1."""
    entries: list[CocoImage] = []
    nails: list[CocoNail] = []
    for number, image in enumerate(images, start=1):
        entries.append(
            CocoImage(
                id=number,
                file_name=image.file_name,
                width=image.width,
                height=image.height,
                subject=image.record.subject,
                labels=image.record.labels,
            )
        )
        for nail, shape in zip(image.record.nails, image.shapes, strict=True):
            mask = fill_shape(shape, image.height, image.width)
            keypoints = _keypoints(nail)
            nails.append(
                CocoNail(
                    id=len(nails) + 1,
                    image_id=number,
                    category_id=UNKNOWN_ID if nail.finger is None else nail.finger_class + 1,
                    segmentation=shape,
                    area=float(np.count_nonzero(mask)),
                    bbox=_bound(mask),
                    keypoints=[float(v) for v in keypoints],
                    num_keypoints=(nail.base is not None) + (nail.tip is not None),
                    machine=nail.machine,
                )
            )
    return CocoFile(
        info=info, categories=standard_categories(), images=tuple(entries), annotations=tuple(nails)
    )


def write_coco(path: Path, file: CocoFile) -> None:
    """Write ``annotations.json`` atomically, one image or nail a line, so that differences can be read."""
    write_entries(path, file.model_dump(mode="json"))


def write_entries(path: Path, data: Mapping[str, Any]) -> None:
    """The same for a file in hand, with whatever other tools' keys it has."""
    parts = []
    for key, value in data.items():
        if isinstance(value, list):
            lines = ",\n  ".join(json.dumps(entry, ensure_ascii=False) for entry in value)
            parts.append(f' "{key}": [\n  {lines}\n ]')
        else:
            parts.append(f' "{key}": {json.dumps(value, ensure_ascii=False)}')
    write_text(path, "{\n" + ",\n".join(parts) + "\n}\n")
