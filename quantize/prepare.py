"""Prepares what a recipe needs, in order: calibration images, passes on the float network, training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from nailcore.data.folder import Dataset
from nailcore.storage import hash_file, replacing, write_text
from nailcore.variant import Variant
from quantize.calibration import choose_samples, describe_samples, load_samples
from quantize.prepared import CALIBRATION, CARD, PreparedCard
from quantize.recipe import Recipe

Progress = Callable[[int, int], None]


def prepare(  # noqa: PLR0917 - the order of the pipeline
    variant: Variant, recipe: Recipe, weights: Path, dataset: Dataset, out: Path, progress: Progress
) -> PreparedCard:
    """Write the prepared folder ``out`` of a recipe and a variant, whole or not at all.

    Raises:
        DataError: the data folder has no usable training part.
        WeightsError: unusable weights.
    """
    with replacing(out) as scratch:
        scratch.mkdir()
        card = PreparedCard(variant=variant.name, recipe=recipe.name, weights_sha256=hash_file(weights))
        if recipe.calibration is not None:
            samples = choose_samples(dataset, recipe.calibration)
            np.savez_compressed(scratch / CALIBRATION, images=load_samples(samples, variant))
            card = card.model_copy(
                update={
                    "images": describe_samples(dataset, samples),
                    "image_names": tuple(sample.name for sample in samples),
                }
            )
        write_text(scratch / CARD, card.model_dump_json(indent=1) + "\n")
    return card
