"""`nailtool parity-check`: does every artefact still compute what the trained network computes?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
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
    RecipesOption,
    TargetsOption,
    VariantsOption,
    find_units,
    load_registry,
    note_data,
    show_failures,
)
from nailtool.defaults import DEFAULT_JOBS, DEFAULT_OUT
from nailtool.terminal import Terminal

if TYPE_CHECKING:
    from nailcore.facts import ParityResult

EnginesOption = Annotated[
    str | None,
    typer.Option(
        "--engines",
        metavar="A,B|all",
        help="Execute with these engines, e.g. chromium-wasm,firefox-webgl; else the usual ones.",
    ),
]
StagesOption = Annotated[
    bool,
    typer.Option("--stages", help="Also compare each step of the conversions, and pre- and post-processing."),
]
GoldenOption = Annotated[
    list[Path] | None,
    typer.Option("--golden", metavar="FILE", help="Core ML's answers recorded on a Mac; may be repeated."),
]
IosDumpOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--ios-dump", metavar="FILE", help="Recorded by the iOS app, for --stages; may be repeated."
    ),
]
BisectOption = Annotated[
    Path | None,
    typer.Option("--bisect", metavar="ARTIFACT", help="Only find this file's first layer that diverges."),
]


@guarded
def parity_check(
    *,
    data: DataOption = None,
    variants: VariantsOption = None,
    targets: TargetsOption = None,
    recipes: RecipesOption = None,
    engines: EnginesOption = None,
    stages: StagesOption = False,
    golden: GoldenOption = None,
    ios_dump: IosDumpOption = None,
    bisect: BisectOption = None,
    out: OutOption = DEFAULT_OUT,
    jobs: JobsOption = DEFAULT_JOBS,
    force: ForceOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare every built artefact with the trained network on held-out images.

    Exit code 1 when an artefact fails or --bisect finds a layer; 3 when nothing could be executed here, or
    not what was asked for by name. Unchanged artefacts keep the verdict they have.

    Example: nailtool parity-check --data photos --targets onnx
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailcore.errors import ArtifactError, MissingToolError
    from nailtool.checks import add_goldens, list_checks, read_conversions, read_parity, read_surroundings
    from nailtool.commands.parity_bisect import run_bisection
    from nailtool.commands.parity_table import show_parity
    from nailtool.commands.stages_table import (
        complain_of_surroundings,
        show_conversions,
        show_surroundings,
    )
    from nailtool.pipeline import Order, check_data, check_parity, describe_results, find_built

    order = Order(load_registry(), out_dir=out, jobs=jobs, force=force, watch=terminal.watch)
    folder = check_data(data)
    if bisect is not None:
        note_data(terminal, folder)
        run_bisection(terminal, order, bisect, folder, engines)
        return
    units = find_units(order, variants, targets, recipes)
    built = find_built(units)
    checks = add_goldens(order.plan, list_checks(order.plan, built, engines), golden or [])
    note_data(terminal, folder)
    results = check_parity(
        order, built, folder, engines, goldens=golden or [], stages=stages, ios_dumps=ios_dump or []
    )
    ended = {result.stage.name: result.status for result in results}
    facts = read_parity(
        order.plan, [check for check in checks if ended[check.stage_name] in ("built", "cached")]
    )
    show_parity(terminal, facts)
    around = read_surroundings(order.plan, checks) if stages else []
    conversions = read_conversions(order.plan, checks) if stages else []
    show_conversions(terminal, conversions)
    show_surroundings(terminal, around)
    missing = [unit.name for unit in units if unit not in built]
    if missing:
        terminal.note(f"Not built, hence not checked: {', '.join(missing)}.")
    failed = [fact for fact in facts if fact.status == "failed"]
    terminal.emit(
        {
            "passed": sum(fact.status == "passed" for fact in facts),
            "failed": len(failed),
            "not_executed": sum(fact.status == "not executed" for fact in facts),
            "not_built": missing,
            "parity": [fact.model_dump(mode="json") for fact in facts],
            "conversions": [fact.model_dump(mode="json") for fact in conversions],
            "around_the_network": [fact.model_dump(mode="json") for fact in around],
            "stages": describe_results(results),
        }
    )
    code = show_failures(terminal, results)
    failing = complain_of_surroundings(terminal, around)
    for fact in failed:
        label = fact.artifact.label
        sentences = " ".join(failure.removeprefix(f"{label}: ") for failure in fact.failures)
        terminal.complain(f"{label} failed in {fact.engine}:", sentences)
    # A file that is not the one its manifest describes is a negative verdict, too.
    unusable = any(isinstance(result.error, ArtifactError) for result in results)
    lacking = _complain_of_gaps(terminal, facts, targets, engines)
    if failed or failing or code:
        raise typer.Exit(1 if failed or failing or unusable else code)
    if lacking:
        raise typer.Exit(MissingToolError.exit_code)


def _complain_of_gaps(
    terminal: Terminal, facts: Sequence[ParityResult], targets: str | None, engines: str | None
) -> bool:
    """Say what was not executed; True when the command did not do what it was asked for by name."""
    gaps = [fact for fact in facts if fact.status == "not executed"]
    if not gaps:
        return False
    named = {name.strip() for names in (targets, engines) if names for name in names.split(",")}
    lacking = len(gaps) == len(facts) or any({fact.artifact.kind, fact.engine} & named for fact in gaps)
    where = ", ".join(sorted({fact.engine for fact in gaps}))
    message = f"{len(gaps)} of {len(facts)} checks ({where}): their figures are not known."
    if lacking:
        notes = dict.fromkeys(fact.note.replace("\n", " ") for fact in gaps if fact.note)
        terminal.complain("Not executed:", message, " ".join(notes))
    else:
        terminal.note(f"Not executed: {message}")
    return lacking
