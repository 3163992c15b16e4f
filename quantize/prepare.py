"""Prepares what a recipe needs, in order: calibration images, passes on the float network, training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nailcore.data.folder import Dataset
from nailcore.storage import hash_file, replacing, write_text
from nailcore.variant import Variant
from quantize.calibration import choose_samples, describe_samples, load_samples
from quantize.prepared import CALIBRATION, CARD, NETWORK, PreparedCard
from quantize.recipe import Recipe

if TYPE_CHECKING:
    from nailcore.nets.export_form import ExportForm

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
        images: npt.NDArray[np.uint8] | None = None
        card = PreparedCard(variant=variant.name, recipe=recipe.name, weights_sha256=hash_file(weights))
        if recipe.calibration is not None:
            samples = choose_samples(dataset, recipe.calibration)
            images = load_samples(samples, variant)
            np.savez_compressed(scratch / CALIBRATION, images=images)
            card = card.model_copy(
                update={
                    "images": describe_samples(dataset, samples),
                    "image_names": tuple(sample.name for sample in samples),
                }
            )
        if recipe.finetune is not None or recipe.search is not None:
            card = _train(card, variant, recipe, weights, dataset, images, out, scratch, progress)
        write_text(scratch / CARD, card.model_dump_json(indent=1) + "\n")
    return card


def _train(  # noqa: PLR0917 - the order of the pipeline
    card: PreparedCard,
    variant: Variant,
    recipe: Recipe,
    weights: Path,
    dataset: Dataset,
    images: npt.NDArray[np.uint8] | None,
    out: Path,
    scratch: Path,
    progress: Progress,
) -> PreparedCard:
    """Fine-tune, then choose layers to keep in float; a killed fine-tuning goes on beside ``out``."""
    from nailcore.nets import load_network
    from quantize.training import find_float_layers, finetune_network

    network, notes = load_network(variant, weights), dict(card.notes)
    if recipe.finetune is not None:
        checkpoint = out.with_name(f"{out.name}.checkpoint.pt")
        network, notes["finetune"] = finetune_network(
            network, variant, recipe, dataset, images, checkpoint, progress
        )
        save_network(network, scratch / NETWORK)
        card = card.model_copy(update={"network_changed": True})
    if recipe.search is not None and images is not None:
        layers, notes["search"] = find_float_layers(network, variant, recipe, dataset, images, progress)
        card = card.model_copy(update={"float_layers": layers})
    return card.model_copy(update={"notes": notes})


def save_network(network: ExportForm, path: Path) -> None:
    """Write the state of an export form for ``Prepared.load_network``."""
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
