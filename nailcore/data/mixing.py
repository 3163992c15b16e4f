"""Batches from several data sets: shares by phase, shuffled epochs, each batch a function of its number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, field_validator

from nailcore.data.augment import AugmentConfig, LabelledPhoto, draw_crop
from nailcore.data.folder import Dataset, Sample, check_size
from nailcore.data.labels import Label, NailRecord, Point
from nailcore.errors import DataError

LIMIT_PX = 800  # long side of a photo kept for training: crops never need more


class Phase(BaseModel):
    """A stretch of training and how its batches are mixed."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    steps: int = Field(gt=0)
    shares: tuple[float, ...] = Field(min_length=1)  # one per data set, in any unit

    @field_validator("shares")
    @classmethod
    def _some(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if min(shares) < 0 or not np.isfinite(shares).all() or sum(shares) <= 0:
            raise ValueError("shares must be 0 or more, and not all 0")
        return shares


def count_shares(phases: Sequence[Phase], batch: int) -> npt.NDArray[np.int64]:
    """(steps, data sets) images of each data set in each batch; rounding errors are carried on."""
    rows = []
    for phase in phases:
        shares = np.asarray(phase.shares) / sum(phase.shares)
        due = np.zeros(len(shares))
        for _ in range(phase.steps):
            due += batch * shares
            counts = np.maximum(np.floor(due + 1e-9), 0).astype(np.int64)
            while counts.sum() > batch:  # one was given too much before
                counts[int(np.argmin(np.where(counts > 0, due - counts, np.inf)))] -= 1
            while counts.sum() < batch:
                counts[int(np.argmax(due - counts))] += 1
            due -= counts
            rows.append(counts)
    return np.stack(rows)


@dataclass(frozen=True)
class _Kept:
    """A photo as it is kept in memory: encoded unless it had to be scaled down."""

    name: str
    image: bytes | npt.NDArray[np.uint8]
    index_png: bytes
    nails: tuple[NailRecord, ...]
    labels: frozenset[Label]


class PhotoStore:
    """The training part of a data set in memory, long sides at most ``LIMIT_PX``.

    Opening it decodes every image once, so that a damaged one is found before the training starts.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.kept = [_keep(sample) for sample in dataset.part("train") if sample.record.labels]
        if not self.kept:
            raise DataError(f"{dataset.root}: no training image carries a label.")
        self.labels = frozenset(label for kept in self.kept for label in kept.labels)

    def __len__(self) -> int:
        return len(self.kept)

    def load(self, number: int) -> LabelledPhoto:
        """Decode one photo."""
        import cv2

        kept = self.kept[number]
        image = kept.image
        if isinstance(image, bytes):
            image = np.asarray(cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB), np.uint8)
        index = cv2.imdecode(np.frombuffer(kept.index_png, np.uint8), cv2.IMREAD_GRAYSCALE)
        return LabelledPhoto(image, np.asarray(index, np.uint8), kept.nails, kept.labels)


def _keep(sample: Sample) -> _Kept:
    import cv2

    image, labels = sample.load_image(), sample.load_labels()
    check_size(sample, image)
    height, width = image.shape[:2]
    index, nails = labels.nail_index, labels.nails
    scale = LIMIT_PX / max(height, width)
    kept: bytes | npt.NDArray[np.uint8] = sample.image.read_bytes()
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        kept = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
        index = _shrink_index(index, size)
        nails = _scale_nails(nails, size[0] / width, size[1] / height)
    png = cv2.imencode(".png", index, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
    return _Kept(sample.name, kept, png, nails, labels.labels)


def _shrink_index(index: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Half of a new pixel's area decides what is nail, its centre which one."""
    import cv2

    nails = np.where(index > 0, np.uint8(255), np.uint8(0))
    soft = np.asarray(cv2.resize(nails, size, interpolation=cv2.INTER_AREA)) > 127
    near = np.asarray(cv2.resize(index, size, interpolation=cv2.INTER_NEAREST_EXACT))
    # Where the centre just misses its nail, the largest index around does.
    around = np.asarray(cv2.dilate(near, np.ones((3, 3), np.uint8)))
    return np.asarray(np.where(soft, np.where(near > 0, near, around), 0), np.uint8)


def _scale_nails(nails: tuple[NailRecord, ...], x: float, y: float) -> tuple[NailRecord, ...]:
    def scaled(point: Point | None) -> Point | None:
        return None if point is None else (point[0] * x, point[1] * y)

    return tuple(n.model_copy(update={"base": scaled(n.base), "tip": scaled(n.tip)}) for n in nails)


@dataclass(frozen=True)
class Batch:
    """A batch as the loader hands it over; still on the CPU and in bytes."""

    images: npt.NDArray[np.uint8]  # (N, S, S, 3) RGB
    masks: npt.NDArray[np.uint8]  # (N, S, S) in {0, 1, IGNORE}
    fingers: npt.NDArray[np.int8]  # (N, S, S)
    directions: npt.NDArray[np.float32]  # (N, 2, S, S)


class MixedBatches:
    """All batches of a training by their number: a pure function of the seed and that number.

    With several processes each takes every ``world``-th image of the same batch.
    """

    def __init__(  # noqa: PLR0917 - named at its one call
        self,
        stores: Sequence[PhotoStore],
        phases: Sequence[Phase],
        batch: int,
        augment: AugmentConfig,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        for number, phase in enumerate(phases, start=1):
            if len(phase.shares) != len(stores):
                raise DataError(
                    f"Phase {number} names {len(phase.shares)} shares for {len(stores)} data sets.",
                    hint="Give one share per --data, in their order.",
                )
        self.stores, self.augment, self.seed = tuple(stores), augment, seed
        self.rank, self.world = rank, world
        self.counts = count_shares(phases, batch)
        self.starts = np.cumsum(self.counts, axis=0) - self.counts

    def __len__(self) -> int:
        return len(self.counts)

    def list_photos(self, step: int) -> list[tuple[int, int]]:
        """(data set, photo) of every image of a batch; each data set is walked in shuffled epochs."""
        found = []
        for source, store in enumerate(self.stores):
            for position in range(
                int(self.starts[step, source]), int((self.starts + self.counts)[step, source])
            ):
                epoch, place = divmod(position, len(store))
                order = np.random.default_rng((self.seed, 1 << 20, source, epoch)).permutation(len(store))
                found.append((source, int(order[place])))
        return found

    def __getitem__(self, step: int) -> Batch:
        crops = []
        for i, (source, number) in enumerate(self.list_photos(step)):
            if i % self.world == self.rank:
                rng = np.random.default_rng((self.seed, step, i))
                crops.append(draw_crop(self.stores[source].load(number), self.augment, rng))
        return Batch(
            np.stack([c.image for c in crops]),
            np.stack([c.mask for c in crops]),
            np.stack([c.finger for c in crops]),
            np.stack([c.direction for c in crops]),
        )
