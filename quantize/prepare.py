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
from quantize.calibration import (
    FEW_IMAGES,
    choose_samples,
    describe_samples,
    describe_shortage,
    load_samples,
)
from quantize.kernel_errors import measure_kernel_errors, ranks_kernels
from quantize.prepared import CALIBRATION, CARD, NETWORK, Prepared, PreparedCard
from quantize.recipe import Recipe
from quantize.round_weights import round_weights, rounds_weights

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
            if len(samples) < FEW_IMAGES:
                notes = {**card.notes, "warning": describe_shortage(len(samples))}
                card = card.model_copy(update={"notes": notes})
        if recipe.passes.equalize and images is not None:
            card = _equalize(card, variant, weights, images, scratch)
        if trains_kernels(recipe) or recipe.search is not None:
            card = _train(card, variant, recipe, weights, dataset, images, out, scratch, progress)
        if rounds_weights(recipe) and images is not None:
            card = _round(card, variant, recipe, weights, images, scratch)
        if ranks_kernels(recipe) and images is not None:
            network = Prepared(scratch, card).load_network(variant, weights)
            card = card.model_copy(update={"kernel_errors": measure_kernel_errors(network, images)})
        if recipe.finetune is not None and not trains_kernels(recipe):
            card = _train_tables(card, variant, recipe, weights, dataset, out, scratch, progress)
        write_text(scratch / CARD, card.model_dump_json(indent=1) + "\n")
    return card


def _equalize(
    card: PreparedCard, variant: Variant, weights: Path, images: npt.NDArray[np.uint8], scratch: Path
) -> PreparedCard:
    """Write the equalized network, which computes what the weights' own does."""
    from nailcore.nets import load_network
    from quantize.equalize import equalize_layers

    network = load_network(variant, weights)
    notes = equalize_layers(network, images)
    save_network(network, scratch / NETWORK)
    return card.model_copy(update={"network_changed": True, "notes": {**card.notes, "equalize": notes}})


def _round(  # noqa: PLR0917 - the order of the pipeline
    card: PreparedCard,
    variant: Variant,
    recipe: Recipe,
    weights: Path,
    images: npt.NDArray[np.uint8],
    scratch: Path,
) -> PreparedCard:
    """Write the network with rounded weights, which a target then stores as they are."""
    network = Prepared(scratch, card).load_network(variant, weights)
    notes = round_weights(network, recipe, images, scratch, card.float_layers)
    save_network(network, scratch / NETWORK)
    return card.model_copy(update={"network_changed": True, "notes": {**card.notes, "weights": notes}})


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
    from quantize.training import find_float_layers, finetune_network

    network, notes = Prepared(scratch, card).load_network(variant, weights), dict(card.notes)
    if trains_kernels(recipe):
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


def trains_kernels(recipe: Recipe) -> bool:
    """Whether fine-tuning moves integer kernels; of palettes it moves the tables, once they are fitted."""
    return recipe.finetune is not None and recipe.weights_dtype == "int8"


def _train_tables(  # noqa: PLR0917 - the order of the pipeline
    card: PreparedCard,
    variant: Variant,
    recipe: Recipe,
    weights: Path,
    dataset: Dataset,
    out: Path,
    scratch: Path,
    progress: Progress,
) -> PreparedCard:
    """Fine-tune fitted palettes; a killed run goes on beside ``out``."""
    from nailcore.nets import load_network
    from quantize.palettes import PALETTES
    from quantize.training import finetune_tables

    network, notes = finetune_tables(
        load_network(variant, weights),
        Prepared(scratch, card).load_network(variant, weights),
        variant,
        recipe,
        dataset,
        scratch / PALETTES,
        out.with_name(f"{out.name}.checkpoint.pt"),
        progress,
    )
    save_network(network, scratch / NETWORK)
    return card.model_copy(update={"network_changed": True, "notes": {**card.notes, "finetune": notes}})


def save_network(network: ExportForm, path: Path) -> None:
    """Write the state of an export form for ``Prepared.load_network``."""
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
