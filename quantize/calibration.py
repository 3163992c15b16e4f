"""Calibration images: a stratified sample of the training part, through the preprocessing that ships."""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nailcore.data.folder import Dataset, Sample
from nailcore.errors import DataError
from nailcore.facts import ImageKind, ImageSet
from nailcore.nail_metrics import SLICES, describe_kind, find_slice
from nailcore.preprocess import letterbox
from nailcore.variant import Variant
from quantize.recipe import Calibration

FEW_IMAGES = 8  # fewer leave ranges to chance
MAX_CANDIDATES = 240  # are looked at; a folder of thousands would be read for a sample of 24
FLAT_DEVIATION = 1.0  # of uint8 code values: what a JPEG makes of one colour stays below


class FewImagesWarning(UserWarning):
    """Ranges of activations rest on very few images."""


def choose_samples(dataset: Dataset, calibration: Calibration) -> tuple[Sample, ...]:
    """Images of the training part, spread over brightness, skin tone and nail size.

    Every cell of these three (as reports slice them) gives one image in turn, in an order that the seed and
    the images' names decide. Of rendered hands without a written split, all images are candidates.

    Raises:
        DataError: photographs without a written split, or an empty training part.
    """
    rendered = dataset.card.synthetic and dataset.split is None
    samples = dataset.part("all" if rendered else "train")
    if not samples:
        raise DataError(
            f"{dataset.root}: its training part is empty, so there is nothing to calibrate on.",
            hint="Ranges of activations must come from images: give a folder whose split leaves some for "
            "training (`nailtool data split`).",
        )

    def order(sample: Sample) -> str:
        return hashlib.sha256(f"{calibration.seed} {sample.name}".encode()).hexdigest()

    ordered = sorted(samples, key=order)[:MAX_CANDIDATES]
    if len(ordered) <= calibration.images:
        return tuple(ordered)
    cells: dict[tuple[str | None, ...], list[Sample]] = defaultdict(list)
    for sample in ordered:
        cells[_find_cell(_describe(sample))].append(sample)
    return tuple(_draw_in_turn(cells.values(), calibration.images))


def _describe(sample: Sample) -> ImageKind:
    return describe_kind(sample.load_image(), sample.load_labels().nail_index)


def _find_cell(kind: ImageKind) -> tuple[str | None, ...]:
    return tuple(find_slice(by, kind) for by in SLICES)


def _draw_in_turn(cells: Iterable[Sequence[Sample]], count: int) -> list[Sample]:
    queues = [list(cell) for cell in cells]
    drawn: list[Sample] = []
    while len(drawn) < count:
        for queue in queues:
            if queue and len(drawn) < count:
                drawn.append(queue.pop(0))
    return drawn


def load_samples(samples: Sequence[Sample], variant: Variant) -> npt.NDArray[np.uint8]:
    """(N, H, W, 3) RGB, letterboxed exactly as parity-check and the shipped front-ends do it.

    Photos of any size are welcome. Warns when there are fewer than ``FEW_IMAGES``.

    Raises:
        DataError: no image at all, or every one of them of a single colour.
    """
    if not samples:
        raise DataError("No calibration images: ranges of activations must come from somewhere.")
    made, flat = [], []
    for sample in samples:
        image = sample.load_image()
        # Of the photo itself: the letterbox' grey bars would hide that it holds nothing else.
        if image.reshape(-1, 3).std(0).max() < FLAT_DEVIATION:
            flat.append(sample.name)
        made.append(letterbox(image, variant.height_px, variant.width_px))
    if len(flat) == len(made):
        raise DataError(
            f"All {len(made)} calibration images are of a single colour ({', '.join(flat[:3])}).",
            hint="No layer would see an edge, every range would be far too small, and the quantized network "
            "would clip whatever a real photo holds: calibrate on photographs.",
        )
    if len(made) - len(flat) < FEW_IMAGES:
        warnings.warn(describe_shortage(len(made), len(flat)), FewImagesWarning, stacklevel=2)
    return np.stack(made)


def describe_shortage(images: int, flat: int = 0) -> str:
    """What the warning and the manifest say about too few images."""
    lack = f", {flat} of them of a single colour" if flat else ""
    plural = "" if images == 1 else "s"
    return (
        f"Calibrated on {images} image{plural}{lack}: ranges rest on chance below {FEW_IMAGES}; 24 or more "
        "are better."
    )


def hash_pixels(images: npt.NDArray[np.uint8]) -> str:
    """SHA-256 of calibration images (N, H, W, 3) as they go into the network."""
    return hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()


def describe_samples(dataset: Dataset, samples: Sequence[Sample]) -> ImageSet:
    """The chosen images by content."""
    chosen = replace(dataset, samples=tuple(sorted(samples, key=lambda s: s.name)), split=None).describe(
        "all"
    )
    return chosen.model_copy(update={"name": f"{chosen.name} calibration"})
