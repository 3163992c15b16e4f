"""`nailtool sensitivity`: what each layer's rounding costs, and what leaving it in float saves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nailtool.boundary import guarded
from nailtool.commands.options import (
    DataOption,
    ForceOption,
    JobsOption,
    JsonOption,
    OutOption,
    QuietOption,
    VariantsOption,
    load_registry,
    note_data,
    show_failures,
)
from nailtool.defaults import DEFAULT_JOBS, DEFAULT_OUT
from nailtool.terminal import Terminal

if TYPE_CHECKING:
    from quantize.sensitivity_facts import SensitivityResult

RECIPE_HELP = "An integer recipe: what rounds, and what the ranges are calibrated on."
PART_HELP = "Images to look at; choosing layers by held-out ones would be peeking."
IMAGES_HELP = "Only the first images of the part; 0: all."


@guarded
def sensitivity(
    *,
    data: DataOption = None,
    variants: VariantsOption = None,
    recipe: Annotated[str, typer.Option("--recipe", help=RECIPE_HELP)] = "int8-per-channel",
    part: Annotated[str, typer.Option("--part", help=PART_HELP)] = "train",
    images: Annotated[int, typer.Option("--images", min=0, help=IMAGES_HELP)] = 0,
    top: Annotated[int, typer.Option("--top", min=1, help="Rows of the table.")] = 10,
    out: OutOption = DEFAULT_OUT,
    jobs: JobsOption = DEFAULT_JOBS,
    force: ForceOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Round each layer alone, and leave each alone in float, in a simulation of the integer file.

    Writes OUT/sensitivity/VARIANT.RECIPE.json and a plot beside it. Results are kept image by image:
    interrupted, the same command goes on.

    Example: nailtool sensitivity --variants nail55-480 --data photos
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailcore.facts import read_fact
    from nailtool.pipeline import Order, check_data, describe_results
    from nailtool.rooms import select_names
    from nailtool.sensitivity import SensitivityRequest, measure_sensitivity, result_path
    from quantize.sensitivity_facts import SensitivityResult

    folder = check_data(data)
    order = Order(load_registry(), out_dir=out, jobs=jobs, force=force, watch=terminal.watch, data=folder)
    chosen = select_names("variant", variants, order.registry.variants)
    (chosen_recipe,) = select_names("recipe", recipe, order.registry.recipes).values()
    request = SensitivityRequest(tuple(chosen.values()), chosen_recipe, folder, part, images)
    note_data(terminal, folder)
    results = measure_sensitivity(order, request)
    done = {result.stage.name for result in results if result.status in ("built", "cached")}
    facts = []
    for variant in request.variants:
        path = result_path(order.plan, request, variant)
        if f"sensitivity {variant.name} {recipe}" in done:
            facts.append(read_fact(path, SensitivityResult))
            _show_layers(terminal, facts[-1], top)
            terminal.show(f"Written: {path} and {path.with_suffix('.svg').name}")
    terminal.emit(
        {
            "sensitivity": [fact.model_dump(mode="json") for fact in facts],
            "stages": describe_results(results),
        }
    )
    code = show_failures(terminal, results)
    if code:
        raise typer.Exit(code)


def _show_layers(terminal: Terminal, fact: SensitivityResult, top: int) -> None:
    drop = fact.drop_points
    kind = "synthetic images" if fact.images.synthetic else "photographs"
    terminal.table(
        f"{fact.variant} {fact.recipe}, simulated on {fact.images.count} {kind} ({fact.part}): everything "
        f"rounded flips {fact.flipped_permille:.2f} ‰ and drops {drop.tell(2)} points of nail IoU. "
        f"The {min(top, len(fact.layers))} layers that cause most of the margin's error when rounded alone:",
        (
            "layer",
            "MMAC",
            "alone: % of error",
            "flips ‰",
            "drops points",
            "in float: saves % of error",
            "saves ‰",
            "saves points",
        ),
        (
            (
                layer.layer,
                f"{layer.macs / 1e6:.1f}",
                f"{100 * layer.only_share:.1f}",
                f"{layer.only_flipped_permille:.3f}",
                layer.only_drop_points.tell(2),
                f"{100 * layer.saved_share:.1f}",
                f"{layer.saved_permille:.3f}",
                layer.saved_points.tell(2),
            )
            for layer in fact.rank()[:top]
        ),
        right=("MMAC", "alone: % of error", "flips ‰", "in float: saves % of error", "saves ‰"),
    )
