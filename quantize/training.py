"""What a recipe asks of training and search before a file is written: the network and the layers in float."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nailcore.data.folder import Dataset
from nailcore.errors import CheckFailedError, NailtoolError
from nailcore.variant import Variant
from quantize.calibration import choose_samples
from quantize.recipe import Calibration, Recipe

if TYPE_CHECKING:
    from nailcore.nets.export_form import ExportForm
    from quantize.finetune import FineTuned
    from quantize.search import SearchResult
    from quantize.simulate import Simulation

Progress = Callable[[int, int], None]
SEARCH_IMAGES = 60  # of the training part, at most: every mix that is tried sees all of them


def finetune_network(  # noqa: PLR0917 - the order of the pipeline
    network: ExportForm,
    variant: Variant,
    recipe: Recipe,
    dataset: Dataset,
    images: npt.NDArray[np.uint8] | None,
    checkpoint: Path,
    progress: Progress,
) -> tuple[ExportForm, dict[str, Any]]:
    """The network after the recipe's fine-tuning, and a note about it.

    Args:
        network: float, as earlier passes left it; it is the teacher, and is not changed.
        variant, recipe: what it is trained for; the recipe has [finetune].
        dataset: whose training part it is trained on.
        images: calibration images (N, H, W, 3); None where no activation is rounded.
        checkpoint: where a killed run goes on from.
        progress: told of every step.

    Raises:
        DataError: no usable training part.
        NailtoolError: the recipe's storage cannot be trained, or the loss became NaN.
    """
    from quantize.finetune import finetune_quantized
    from quantize.simulate import Scheme, list_layers, list_steps, observe_ranges

    settings = recipe.finetune
    if settings is None or recipe.weights_dtype != "int8":
        raise NailtoolError(
            f"Recipe '{recipe.name}' stores {recipe.weights_dtype}: only int8 kernels are trained on."
        )
    layers, ranges = list_layers(list_steps(network)), {}
    if images is not None and recipe.activations is not None and recipe.calibration is not None:
        scheme = Scheme.of(recipe, layers)
        ranges = observe_ranges(network, images, recipe.calibration)
    else:
        scheme = Scheme.of_weights(recipe, layers)
    tuned = finetune_quantized(
        network,
        scheme,
        ranges,
        variant=variant,
        dataset=dataset,
        settings=settings,
        checkpoint=checkpoint,
        images=images,
        report=lambda done, total, _loss: progress(done, total),
    )
    return tuned.network, _describe(tuned, dataset)


def finetune_tables(  # noqa: PLR0917 - the order of the pipeline
    teacher: ExportForm,
    network: ExportForm,
    variant: Variant,
    recipe: Recipe,
    dataset: Dataset,
    tables: Path,
    checkpoint: Path,
    progress: Progress,
) -> tuple[ExportForm, dict[str, Any]]:
    """The network after the recipe's fine-tuning of the palettes at ``tables``, which are rewritten; a note.

    Args:
        teacher: the float network; it is not changed.
        network: as it stands with the palettes.
        variant, recipe, dataset, checkpoint, progress: as ``finetune_network``, and raises as it.
        tables: file of ``quantize.palettes.save_tables``.
    """
    from quantize.finetune_palettes import finetune_palettes
    from quantize.palettes import Table, load_tables, save_tables

    settings = recipe.finetune
    if settings is None:
        raise NailtoolError(f"Recipe '{recipe.name}' has no [finetune].")
    kept = load_tables(tables)
    tuned, found = finetune_palettes(
        teacher,
        network,
        {name: table for name, table in kept.items() if isinstance(table, Table)},  # not 8-bit codes
        variant=variant,
        dataset=dataset,
        settings=settings,
        checkpoint=checkpoint,
        report=lambda done, total, _loss: progress(done, total),
    )
    save_tables(tables, {**kept, **found})
    return tuned.network, _describe(tuned, dataset)


def _describe(tuned: FineTuned, dataset: Dataset) -> dict[str, Any]:
    from quantize.finetune import training_part

    return {
        "steps": tuned.steps,
        "first_loss": tuned.first_loss,
        "last_loss": tuned.last_loss,
        "images": training_part(dataset).describe("train").model_dump(mode="json"),
    }


def find_float_layers(  # noqa: PLR0917 - the order of the pipeline
    network: ExportForm,
    variant: Variant,
    recipe: Recipe,
    dataset: Dataset,
    images: npt.NDArray[np.uint8],
    progress: Progress,
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Layers the recipe's [search] leaves in float, and a note of everything it tried.

    It looks at the training part alone: the gate judges by held-out images.

    Raises:
        DataError: no usable training part.
        CheckFailedError: no mix that was tried keeps the promise.
    """
    from quantize.simulate import Scheme, Simulation, list_layers, list_steps, observe_ranges

    search, calibration = recipe.search, recipe.calibration
    if search is None or calibration is None:
        raise NailtoolError(f"Recipe '{recipe.name}' has no [search], or no [calibration] for it.")
    scheme = Scheme.of(recipe, list_layers(list_steps(network)))
    simulation = Simulation(network, scheme, observe_ranges(network, images, calibration))
    found = search_training_part(simulation, variant, dataset, search.max_drop_points, progress)
    if not found.kept:
        best = min(found.trials, key=lambda trial: trial.drop_points.high)
        raise CheckFailedError(
            f"{variant.name} {recipe.name}: none of {len(found.trials)} mixes keeps the drop below "
            f"{search.max_drop_points} points of nail IoU on the training part; the best one, with "
            f"{len(best.float_layers)} layers in float, reaches {best.drop_points.high:.2f}.",
            hint="Raise [search] max_drop_points, or fine-tune: see the recipe int8-qat.",
        )
    return found.float_layers, found.model_dump(mode="json")


def search_training_part(
    simulation: Simulation, variant: Variant, dataset: Dataset, max_drop_points: float, progress: Progress
) -> SearchResult:
    """``choose_float_layers`` on at most ``SEARCH_IMAGES`` images of the training part."""
    from quantize.search import MAX_TRIALS, choose_float_layers

    samples = choose_samples(dataset, Calibration(images=SEARCH_IMAGES))
    done = 0

    def report(_trial: object) -> None:
        nonlocal done
        done += 1
        progress(done, MAX_TRIALS)

    return choose_float_layers(simulation, variant, samples, max_drop_points, report=report)


def write_recipe(base: Recipe, name: str, summary: str, float_layers: Sequence[str]) -> str:
    """The TOML of a recipe with these layers in float beside those of ``base``; not built by default."""
    kept = tuple(dict.fromkeys((*base.weights.keep_float, *float_layers)))
    weights = base.weights.model_copy(update={"keep_float": kept})
    changed = {"name": name, "summary": summary, "default": False, "rung": 0, "weights": weights}
    found = base.model_copy(update={**changed, "search": None}).model_dump(
        mode="json", exclude_none=True, exclude_defaults=True
    )
    flat = {key: value for key, value in found.items() if not isinstance(value, dict)}
    tables = {key: value for key, value in found.items() if isinstance(value, dict)}
    # Integer arithmetic needs the table even where every key has its default.
    if base.activations is not None:
        tables["activations"] = base.activations.model_dump(mode="json")
    if base.calibration is not None:
        tables["calibration"] = base.calibration.model_dump(mode="json")
    lines = [f"# Written by `nailtool search` from {base.name}.", *_write_table(flat)]
    for key, table in tables.items():
        lines += ["", f"[{key}]", *_write_table(table)]
    return "\n".join(lines) + "\n"


def _write_table(table: Mapping[str, Any]) -> list[str]:
    # TOML's strings, numbers, booleans and arrays of these are written as JSON writes them.
    return [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()]
