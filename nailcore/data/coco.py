"""The one label format: COCO JSON plus fingers, base and tip of nails, subjects, and declared labels."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nailcore.data.labels import MAX_NAILS, ImageRecord, IndexMap, Label, NailRecord, Point
from nailcore.errors import DataError
from nailcore.storage import write_text
from nailcore.variant import FINGER_CLASSES

ANNOTATIONS = "annotations.json"
UNKNOWN_ID = len(FINGER_CLASSES) + 1  # categories 1..10 are FINGER_CLASSES in their order
KEYPOINTS = ("base", "tip")
_SUPERSAMPLING = 4  # polygons are filled at this resolution: 1/8 px is the worst error of an edge

Mask = npt.NDArray[np.bool_]
Polygon = Annotated[list[float], Field(min_length=6)]  # x0, y0, x1, y1, ...


class _Model(BaseModel):
    # Other tools' keys (licences, dates, scores) are no error; ours are checked.
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Rle(_Model):
    """Run lengths down the columns, starting with background; counts as numbers or COCO's text form."""

    size: tuple[int, int]  # height, width
    counts: str | list[Annotated[int, Field(ge=0)]]


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
    """One nail: shape, finger and keypoints (visibility 0: unknown)."""

    id: int
    image_id: int
    category_id: int = Field(ge=1, le=UNKNOWN_ID)
    segmentation: Rle | list[Polygon]
    area: float = 0.0
    bbox: tuple[float, float, float, float] | None = None
    iscrowd: Literal[0, 1] = 0
    keypoints: Annotated[list[float], Field(min_length=6, max_length=6)] | None = None
    num_keypoints: int | None = None

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


# -- run lengths ---------------------------------------------------------------------------------
def encode_rle(mask: Mask) -> Rle:
    """Run lengths of an (H, W) mask, in COCO's compressed text form."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=False))
    bounds = [0, *edges.tolist()]
    if bounds[-1] != flat.size:
        bounds.append(flat.size)
    counts = np.diff(bounds).tolist()
    return Rle(size=(mask.shape[0], mask.shape[1]), counts=_compress(counts))


def decode_rle(rle: Rle) -> Mask:
    """(H, W) mask; raises ValueError when the runs do not fill the declared size."""
    counts = _decompress(rle.counts) if isinstance(rle.counts, str) else rle.counts
    height, width = rle.size
    if sum(counts) != height * width or min(counts, default=0) < 0:
        raise ValueError(f"its runs cover {sum(counts)} pixels of {height}×{width}")
    values = np.arange(len(counts)) % 2 == 1
    return np.asarray(np.repeat(values, counts).reshape((width, height)).T)


def _compress(counts: Sequence[int]) -> str:
    """COCO's text form: 5 bits a character, from the third run on as differences two runs back."""
    text = []
    for i, count in enumerate(counts):
        x = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits = x & 0x1F
            x >>= 5
            more = x != -1 if bits & 0x10 else x != 0
            text.append(chr((bits | 0x20 if more else bits) + 48))
    return "".join(text)


def _decompress(text: str) -> list[int]:
    counts: list[int] = []
    x = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"'{character}' does not occur in COCO's run lengths")
        x |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            if code & 0x10:
                x -= 1 << shift
            counts.append(x + counts[-2] if len(counts) > 2 else x)
            x = shift = 0
    if shift:
        raise ValueError("the run lengths end in the middle of a number")
    return counts


def fill_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> Mask:
    """(H, W) pixels at least half inside the polygons (union; pixel (x, y) covers [x, x+1)×[y, y+1))."""
    import cv2

    mask = np.zeros((height, width), bool)
    for polygon in polygons:
        points = np.asarray(polygon, np.float64).reshape(-1, 2)
        low = np.maximum(np.floor(points.min(0)).astype(int), 0)
        high = np.minimum(np.ceil(points.max(0)).astype(int), (width, height))
        if (high <= low).any():
            continue
        size = (high - low) * _SUPERSAMPLING
        canvas = np.zeros((size[1], size[0]), np.uint8)
        # fillPoly's integer coordinates are pixel centres.
        fine = np.round(((points - low) * _SUPERSAMPLING - 0.5) * 256).astype(np.int32)
        cv2.fillPoly(canvas, [fine], 255, lineType=cv2.LINE_8, shift=8)
        small = cv2.resize(canvas, tuple(int(v) for v in high - low), interpolation=cv2.INTER_AREA)
        mask[low[1] : high[1], low[0] : high[0]] |= np.asarray(small) >= 128
    return mask


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


def rasterise(path: Path, image: CocoImage, nails: Sequence[CocoNail]) -> IndexMap:
    """(H, W) nail index: 0 background, k the k-th nail; where nails overlap, the later one is seen.

    Raises:
        DataError: a shape is empty, outside the image, or of another size.
    """
    index = np.zeros((image.height, image.width), np.uint8)
    for k, nail in enumerate(nails, start=1):
        where = f"{path}: {image.file_name}: annotation {nail.id}"
        if isinstance(nail.segmentation, Rle):
            if nail.segmentation.size != (image.height, image.width):
                h, w = nail.segmentation.size
                raise DataError(
                    f"{where}: its run lengths are for {w}×{h} px, "
                    f"the image is {image.width}×{image.height} px."
                )
            try:
                mask = decode_rle(nail.segmentation)
            except ValueError as error:
                raise DataError(f"{where}: damaged run lengths: {error}.") from error
        else:
            mask = fill_polygons(nail.segmentation, image.height, image.width)
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
    """One image for the writer: file name, size, record and the run lengths of its nails in their order."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file_name: str
    width: int
    height: int
    record: ImageRecord
    shapes: tuple[Rle, ...]

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
    points = (nail.base, nail.tip)
    return list(
        itertools.chain.from_iterable((0.0, 0.0, 0) if p is None else (*np.round(p, 2), 2) for p in points)
    )


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
            mask = decode_rle(shape)
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
                )
            )
    return CocoFile(
        info=info, categories=standard_categories(), images=tuple(entries), annotations=tuple(nails)
    )


def write_coco(path: Path, file: CocoFile) -> None:
    """Write ``annotations.json`` atomically, one image or nail a line, so that differences can be read."""
    data = file.model_dump(mode="json")
    parts = []
    for key, value in data.items():
        if isinstance(value, list):
            lines = ",\n  ".join(json.dumps(entry, ensure_ascii=False) for entry in value)
            parts.append(f' "{key}": [\n  {lines}\n ]')
        else:
            parts.append(f' "{key}": {json.dumps(value, ensure_ascii=False)}')
    write_text(path, "{\n" + ",\n".join(parts) + "\n}\n")
