"""`nailtool sensitivity` and `search` as stages; the former per image, so that a killed run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy import TARGETS
from nailcore.data.folder import PARTS, Dataset, Sample, Split, open_dataset
from nailcore.errors import DataError, NailtoolError, UnknownNameError
from nailcore.variant import Variant
from nailtool.inputs import SPLITS, TOOLS, config_node, list_resources, sources_node, tools_node
from nailtool.nodes import FileNode, ValueNode
from nailtool.pipeline import Order, run_plan
from nailtool.served import keep_layers
from nailtool.stage import Stage, StageResult
from nailtool.stages import Plan
from quantize import Recipe

FOLDER, SEARCH_FOLDER = "sensitivity", "search"


@dataclass(frozen=True)
class SensitivityRequest:
    """What is to be measured."""

    variants: tuple[Variant, ...]
    recipe: Recipe
    data: Path | None  # None: the embedded set
    part: str = "train"
    images: int = 0  # only the first of the part; 0: all


def result_path(plan: Plan, request: SensitivityRequest, variant: Variant) -> Path:
    """Where the pooled result of a variant is written; the plot has the same name with .svg."""
    more = "" if request.part == "train" else f".{request.part}"
    return plan.out_dir / FOLDER / f"{variant.name}.{request.recipe.name}{more}.json"


def measure_sensitivity(order: Order, request: SensitivityRequest) -> list[StageResult]:
    """Prepare, measure image by image what is not measured yet, pool.

    Raises:
        NailtoolError: the recipe computes in float, so there is nothing to simulate.
        UnknownNameError: no such part.
        DataError: the part is empty, or photographs have no written split.
        BusyError: another command works in the output folder.
    """
    plan = order.plan
    if request.part not in PARTS:
        raise UnknownNameError("part", request.part, PARTS)
    results = _prepare(order, request)
    if any(result.status not in ("built", "cached") for result in results):
        return results
    dataset = open_dataset(plan.data_node(request.data).location)
    samples = choose_samples(dataset, request)
    stages: list[Stage] = []
    for variant in request.variants:
        own = [_image_stage(plan, request, variant, sample) for sample in samples]
        stages += [*own, _pool_stage(plan, request, variant, own, dataset)]
    return results + run_plan(order, stages, request.data)


def search_layers(order: Order, request: SensitivityRequest, max_drop_points: float) -> list[StageResult]:
    """Prepare, then look for the layers that have to stay in float; writes the result and a recipe.

    Raises:
        NailtoolError: the recipe computes in float, or none of its targets leaves single layers in float.
        BusyError: another command works in the output folder.
    """
    if not keep_layers(request.recipe.targets):
        raise NailtoolError(
            f"Recipe '{request.recipe.name}' is for {', '.join(request.recipe.targets)}, which rounds every "
            "layer: a mix could not be built.",
            hint=f"Begin with an integer recipe for {' or '.join(keep_layers(TARGETS))}.",
        )
    plan = order.plan
    results = _prepare(order, request)
    if any(result.status not in ("built", "cached") for result in results):
        return results
    stages = [_search_stage(plan, request, variant, max_drop_points) for variant in request.variants]
    return results + run_plan(order, stages, request.data)


def search_path(plan: Plan, request: SensitivityRequest, variant: Variant, max_drop_points: float) -> Path:
    """Where a search is written; the recipe it recommends lies beside it under its own name."""
    name = f"{variant.name}.{request.recipe.name}.{max_drop_points:g}.json"
    return plan.out_dir / SEARCH_FOLDER / name


def recipe_path(plan: Plan, request: SensitivityRequest, variant: Variant) -> Path:
    """Where the recommended recipe is written."""
    return plan.out_dir / SEARCH_FOLDER / f"{request.recipe.name}-{variant.name}.toml"


def _search_stage(plan: Plan, request: SensitivityRequest, variant: Variant, max_drop_points: float) -> Stage:
    weights, prepared = plan.weights_nodes(variant), _prepared(plan, request, variant)
    data = plan.data_node(request.data)
    out, recipe = search_path(plan, request, variant, max_drop_points), recipe_path(plan, request, variant)
    return Stage(
        name=f"search {variant.name} {request.recipe.name}",
        family="torch",
        job="nailtool.jobs:search_float_layers",
        arguments={
            "variant": variant,
            "recipe": request.recipe,
            "weights": weights[0].location,
            "prepared": prepared,
            "data": data.location,
            "max_drop_points": max_drop_points,
            "out": out,
            "recipe_out": recipe,
        },
        inputs=(
            *weights,
            data,
            plan.file_node(prepared),
            ValueNode("max drop", f"{max_drop_points:g}"),
            config_node(variant, "variant"),
            config_node(request.recipe, "recipe"),
            tools_node(*TOOLS["prepare"]),
            sources_node(["quantize.training"], list_resources(SPLITS)),
        ),
        products=(plan.file_node(out), plan.file_node(recipe)),
        affinity=variant.name,
    )


def _prepare(order: Order, request: SensitivityRequest) -> list[StageResult]:
    if request.recipe.activations is None:
        raise NailtoolError(
            f"Recipe '{request.recipe.name}' computes in float: no layer is rounded.",
            hint="Choose a recipe whose compute_dtype is int8: see `nailtool recipes`.",
        )
    first = [order.plan.embedded_stage()] if request.data is None else []
    return run_plan(order, [*first, *_preparation_stages(order.plan, request)], request.data)


def choose_samples(dataset: Dataset, request: SensitivityRequest) -> tuple[Sample, ...]:
    """The images to look at; of rendered hands without a written split, all are the training part."""
    part: Split = PARTS[request.part]
    if part == "train" and dataset.card.synthetic and dataset.split is None:
        part = "all"
    samples = dataset.part(part)
    if not samples:
        raise DataError(f"{dataset.root}: its {request.part} part is empty.")
    return samples[: request.images] if request.images else samples


def _preparation_stages(plan: Plan, request: SensitivityRequest) -> list[Stage]:
    units = plan.list_units(request.variants, request.recipe.targets[:1], [request.recipe])
    return [stage for stage in plan.build_stages(units) if stage.job == "nailtool.jobs:prepare_recipe"]


def _prepared(plan: Plan, request: SensitivityRequest, variant: Variant) -> Path:
    (unit,) = plan.list_units([variant], request.recipe.targets[:1], [request.recipe])
    return plan.prepared_folder(unit)


def _image_stage(plan: Plan, request: SensitivityRequest, variant: Variant, sample: Sample) -> Stage:
    weights, prepared = plan.weights_nodes(variant), _prepared(plan, request, variant)
    folder = plan.out_dir / FOLDER / f"{variant.name}.{request.recipe.name}"
    return Stage(
        name=f"sensitivity {variant.name} {request.recipe.name} {sample.name}",
        family="torch",
        job="nailtool.jobs:measure_image_sensitivity",
        arguments={
            "variant": variant,
            "recipe": request.recipe,
            "weights": weights[0].location,
            "prepared": prepared,
            "sample": sample,
            "out": folder / f"{sample.name}.json",
        },
        inputs=(
            *weights,
            plan.file_node(prepared),
            FileNode(f"image {sample.name}", sample.image),
            ValueNode(f"labels of {sample.name}", sample.hash_labels()),
            config_node(variant, "variant"),
            config_node(request.recipe, "recipe"),
            tools_node(*TOOLS["prepare"]),
            sources_node(["quantize.sensitivity"]),
        ),
        products=(plan.file_node(folder / f"{sample.name}.json"),),
        affinity=variant.name,
    )


def _pool_stage(
    plan: Plan,
    request: SensitivityRequest,
    variant: Variant,
    before: Sequence[Stage],
    dataset: Dataset,
) -> Stage:
    weights, prepared = plan.weights_nodes(variant), _prepared(plan, request, variant)
    out = result_path(plan, request, variant)
    return Stage(
        name=f"sensitivity {variant.name} {request.recipe.name}",
        family="torch",
        job="nailtool.jobs:pool_sensitivity",
        arguments={
            "variant": variant,
            "recipe": request.recipe,
            "weights": weights[0].location,
            "prepared": prepared,
            "part": request.part,
            "data": dataset.root,
            "effects": [stage.products[0].location for stage in before],
            "out": out,
        },
        inputs=(
            *weights,
            plan.file_node(prepared),
            *(stage.products[0] for stage in before),
            ValueNode("part", f"{request.part}, {dataset.card.name}"),
            config_node(variant, "variant"),
            config_node(request.recipe, "recipe"),
            tools_node(*TOOLS["prepare"]),
            sources_node(["quantize.sensitivity_plot"]),
        ),
        products=(plan.file_node(out), plan.file_node(out.with_suffix(".svg"))),
        affinity=variant.name,
    )
