"""Calibration images: a sample of the training part, through the preprocessing that ships."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nailcore.data.folder import Dataset, Sample
from nailcore.errors import DataError
from nailcore.facts import ImageSet
from nailcore.preprocess import letterbox
from nailcore.variant import Variant
from quantize.recipe import Calibration


def choose_samples(dataset: Dataset, calibration: Calibration) -> tuple[Sample, ...]:
    """Images of the training part; of rendered hands without a written split, of all.

    Raises:
        DataError: photographs without a written split, or an empty training part.
    """
    rendered = dataset.card.synthetic and dataset.split is None
    samples = dataset.part("all" if rendered else "train")
    if not samples:
        raise DataError(f"{dataset.root}: its training part is empty, so there is nothing to calibrate on.")

    def order(sample: Sample) -> str:
        return hashlib.sha256(f"{calibration.seed} {sample.name}".encode()).hexdigest()

    return tuple(sorted(samples, key=order)[: calibration.images])


def load_samples(samples: tuple[Sample, ...], variant: Variant) -> npt.NDArray[np.uint8]:
    """(N, H, W, 3) RGB, letterboxed exactly as parity-check and the shipped front-ends do it."""
    return np.stack([letterbox(s.load_image(), variant.height_px, variant.width_px) for s in samples])


def describe_samples(dataset: Dataset, samples: tuple[Sample, ...]) -> ImageSet:
    """The chosen images by content."""
    chosen = replace(dataset, samples=tuple(sorted(samples, key=lambda s: s.name)), split=None).describe(
        "all"
    )
    return chosen.model_copy(update={"name": f"{chosen.name} calibration"})
