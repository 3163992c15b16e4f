"""Options that several commands share, and how their results are shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nailtool.boundary import EXIT_CRASH
from nailtool.terminal import Terminal

if TYPE_CHECKING:
    from nailtool.pipeline import Order
    from nailtool.rooms import Registry
    from nailtool.stage import StageResult
    from nailtool.stages import Unit

OutOption = Annotated[Path, typer.Option("--out", help="Output folder.", show_default=True)]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Data folder (images/ and masks/); without it, rendered synthetic hands."),
]
VariantsOption = Annotated[
    str | None, typer.Option("--variants", metavar="A,B", help="Only these variants, e.g. nail55-480.")
]
TargetsOption = Annotated[
    str | None,
    typer.Option(
        "--targets", metavar="A,B", help="Only these targets, e.g. onnx,tfjs (all: `build-variants --list`)."
    ),
]
RecipesOption = Annotated[
    str | None,
    typer.Option(
        "--recipes", metavar="A,B|all", help="These recipes, e.g. fp32 (without it, the default ones)."
    ),
]
JobsOption = Annotated[int, typer.Option("--jobs", min=1, max=64, help="Worker processes at once.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Run again although nothing changed.")]
MachineLabelsOption = Annotated[
    float | None,
    typer.Option(
        "--machine-labels",
        min=0,
        max=1,
        metavar="CONFIDENCE",
        help="Learn also from machine-made fingers and directions of this confidence; measured never.",
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Write one JSON document to stdout.")]


def find_units(
    order: Order, variants: str | None, targets: str | None = None, recipes: str | None = None
) -> list[Unit]:
    """The artefacts a selection names; without recipes, the default ones and what is there already.

    Raises:
        UnknownNameError: with the nearest names.
        NailtoolError: the selection is empty, e.g. ``--targets onnx --recipes fp16``.
    """
    from nailcore.errors import NailtoolError
    from nailtool.rooms import select_names

    registry = order.registry
    chosen = (
        select_names("variant", variants, registry.variants),
        select_names("target", targets, registry.targets),
        select_names("recipe", None if recipes == "all" else recipes, registry.recipes),
    )
    units = order.plan.list_units(chosen[0].values(), chosen[1], chosen[2].values())
    if recipes is None:
        units = [unit for unit in units if unit.recipe.default or unit.manifest.exists()]
    if not units:
        raise NailtoolError(
            f"No artefact matches: targets {', '.join(chosen[1])} do not serve "
            f"recipes {', '.join(chosen[2])}.",
            hint="`nailtool build-variants --list` shows what there is.",
        )
    return units


def load_registry() -> Registry:
    """The registry of the rooms; one place for tests to replace it."""
    from nailtool import rooms

    return rooms.find_registry()


def show_failures(terminal: Terminal, results: Sequence[StageResult]) -> int:
    """Say what went wrong in each stage; returns the command's exit code, 0 when nothing did."""
    from nailcore.errors import NailtoolError

    failed = [result for result in results if result.status == "failed"]
    blocked = [result for result in results if result.status == "blocked"]
    for result in failed:
        error = result.error
        terminal.complain(
            f"{result.stage.name} failed:",
            error.message if isinstance(error, NailtoolError) else str(error),
            error.hint if isinstance(error, NailtoolError) else "",
        )
    if blocked:
        names = ", ".join(result.stage.name for result in blocked)
        terminal.complain("Not run", f"because something before them failed: {names}.")
    if not failed:
        return 0
    first = failed[0].error
    return first.exit_code if isinstance(first, NailtoolError) else EXIT_CRASH


def show_explanation(terminal: Terminal, results: Sequence[StageResult]) -> None:
    """The table of ``--explain``."""
    from nailtool.pipeline import describe_results

    terminal.table(
        "What would run, and why",
        ("stage", "would run", "why"),
        (
            (
                result.stage.name,
                "yes" if result.status != "cached" else "up to date",
                "; ".join(_shorten(result.reasons)),
            )
            for result in results
        ),
    )
    stale = sum(result.status != "cached" for result in results)
    terminal.show(f"{stale} of {len(results)} stages would run.")
    terminal.emit({"would_run": stale, "stages": describe_results(results)})


def _shorten(reasons: Sequence[str], limit: int = 4) -> list[str]:
    more = len(reasons) - limit
    return [*reasons[:limit], *([f"and {more} more"] if more > 0 else [])]


def note_data(terminal: Terminal, data: Path | None) -> None:
    """Say which images are used; synthetic ones are never passed off as photographs."""
    if data is None:
        terminal.note(
            "No --data given: using the embedded set of rendered hands. "
            "Its figures are about SYNTHETIC images, not photographs."
        )
    else:
        terminal.note(f"Data folder: {data}")


def note_warnings(terminal: Terminal, order: Order, units: Iterable[Unit]) -> None:
    """Say what preparing a recipe warned about, in this run or in the one whose work is still used."""
    from nailcore.errors import ArtifactError
    from quantize.prepared import open_prepared

    for folder in dict.fromkeys(order.plan.prepared_folder(unit) for unit in units):
        try:
            warning = open_prepared(folder).card.notes.get("warning")
        except ArtifactError:  # its own stage has said so
            continue
        if warning:
            terminal.note(f"Warning: {folder.name}: {warning}")
