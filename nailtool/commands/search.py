"""`nailtool search`: the layers that have to stay in float for a promise about nail IoU, as a recipe."""

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
    from quantize.search import SearchResult

RECIPE_HELP = "An integer recipe to begin with."
DROP_HELP = "Points of nail IoU that may be lost: the upper end of the paired 95 % interval."


@guarded
def search(
    *,
    data: DataOption = None,
    variants: VariantsOption = None,
    recipe: Annotated[str, typer.Option("--recipe", help=RECIPE_HELP)] = "int8-per-channel",
    max_drop: Annotated[float, typer.Option("--max-drop", min=0.0, help=DROP_HELP)] = 0.5,
    out: OutOption = DEFAULT_OUT,
    jobs: JobsOption = DEFAULT_JOBS,
    force: ForceOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find the cheapest layers to leave in float so that an integer file keeps a promise.

    Looks at the training part, through the simulation: the gate of build-variants judges the file itself,
    on held-out images. Writes what was tried and a recipe to OUT/search; copied to quantize/recipes, that
    recipe can be built.

    Example: nailtool search --variants nail55-480 --max-drop 0.5 --data photos
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailcore.errors import CheckFailedError
    from nailcore.facts import read_fact
    from nailtool.pipeline import Order, check_data, describe_results
    from nailtool.rooms import select_names
    from nailtool.sensitivity import SensitivityRequest, recipe_path, search_layers, search_path
    from quantize.search import SearchResult

    folder = check_data(data)
    order = Order(load_registry(), out_dir=out, jobs=jobs, force=force, watch=terminal.watch, data=folder)
    chosen = select_names("variant", variants, order.registry.variants)
    (base,) = select_names("recipe", recipe, order.registry.recipes).values()
    request = SensitivityRequest(tuple(chosen.values()), base, folder)
    note_data(terminal, folder)
    results = search_layers(order, request, max_drop)
    done = {result.stage.name for result in results if result.status in ("built", "cached")}
    facts = {}
    for variant in request.variants:
        if f"search {variant.name} {base.name}" in done:
            fact = read_fact(search_path(order.plan, request, variant, max_drop), SearchResult)
            facts[variant.name] = fact
            _show_trials(terminal, variant.name, fact)
            terminal.show(f"Written: {recipe_path(order.plan, request, variant)}")
    terminal.emit(
        {
            "search": {name: fact.model_dump(mode="json") for name, fact in facts.items()},
            "stages": describe_results(results),
        }
    )
    code = show_failures(terminal, results)
    if code:
        raise typer.Exit(code)
    failed = [name for name, fact in facts.items() if not fact.kept]
    if failed:
        raise CheckFailedError(
            f"No mix that was tried keeps the drop of {', '.join(failed)} below {max_drop:g} points.",
            hint="Allow more with --max-drop, or fine-tune: see the recipe int8-qat.",
        )


def _show_trials(terminal: Terminal, variant: str, fact: SearchResult) -> None:
    terminal.table(
        f"{variant}: mixes tried for a drop of at most {fact.max_drop_points:g} points (simulated)",
        ("layers in float", "share of the work", "drop, points", "flipped ‰", "kept"),
        (
            (
                _name_layers(trial.float_layers),
                f"{100 * trial.cost_share:.1f} %",
                trial.drop_points.tell(2),
                f"{trial.flipped_permille:.2f}",
                "yes" if trial.kept else "no",
            )
            for trial in fact.trials
        ),
    )
    words = _name_layers(fact.float_layers) if fact.float_layers else "none"
    terminal.show(f"{variant}: layers to leave in float: {words}")


def _name_layers(layers: tuple[str, ...]) -> str:
    shown = ", ".join(name.removeprefix("network.") for name in layers[:4])
    more = f" and {len(layers) - 4} more" if len(layers) > 4 else ""
    return f"{len(layers)}: {shown}{more}" if layers else "0"
