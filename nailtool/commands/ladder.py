"""`nailtool ladder`: rung by rung, what each precision costs and buys, and which file to ship."""

from __future__ import annotations

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
    note_warnings,
    show_failures,
)
from nailtool.defaults import DEFAULT_JOBS, DEFAULT_OUT
from nailtool.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nailcore.gate_facts import Ladder
    from nailtool.pipeline import Order
    from nailtool.stages import Unit

RunOption = Annotated[
    bool, typer.Option("--run", help="Build, check and time what is missing or stale; else only look.")
]
LadderDeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="A,B|none", help="Where --run times files; without it, wherever it can."
    ),
]
MarkdownOption = Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")]
SaveOption = Annotated[
    Path | None, typer.Option("--save", metavar="FILE", help="Keep the figures in this JSON file.")
]
LoadOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--load",
        metavar="FILE",
        help="Show what --save kept; may be repeated: of two verdicts about one file the later counts.",
    ),
]
UpdateOption = Annotated[
    list[Path] | None,
    typer.Option("--update", metavar="FILE", help="Write this document's blocks anew; may be repeated."),
]


@guarded
def ladder(
    *,
    data: DataOption = None,
    variants: VariantsOption = None,
    targets: TargetsOption = None,
    recipes: RecipesOption = "all",
    run: RunOption = False,
    device: LadderDeviceOption = None,
    markdown: MarkdownOption = False,
    save: SaveOption = None,
    load: LoadOption = None,
    update: UpdateOption = None,
    out: OutOption = DEFAULT_OUT,
    jobs: JobsOption = DEFAULT_JOBS,
    force: ForceOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show every judged precision per variant and target: accuracy, drop, size, speed, label, verdict.

    Without --run it reads the verdicts in the output folder and executes nothing. With it, every recipe
    of the selection is built, checked on the held-out images of --data, and timed against its fp32.

    Example: nailtool ladder --run --variants nail43-288 --targets onnx --data photos
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailcore.errors import NailtoolError
    from nailcore.facts import read_fact, write_fact
    from nailcore.gate_facts import Ladder
    from nailtool.pipeline import Order, check_data

    if force and not run:
        raise NailtoolError("--force makes figures anew, which only --run does: give both.")
    code = 0
    if load:
        if run:
            raise NailtoolError(
                "--load shows figures that were kept, --run makes new ones: give one of them."
            )
        found = _merge([read_fact(path, Ladder) for path in load])
    else:
        registry = load_registry()
        folder = check_data(data)
        order = Order(registry, out_dir=out, jobs=jobs, force=force, watch=terminal.watch, data=folder)
        units = find_units(order, variants, targets, recipes)
        if run:
            code = _run(terminal, order, units, device)
        note_warnings(terminal, order, units)
        found = _read(order, units)
    _show(terminal, found, markdown=markdown)
    if found.missing and not markdown:
        why = "its conversion, check or timing failed." if run else "--run makes it."
        terminal.note(f"No verdict about {', '.join(found.missing)}: {why}")
    if save is not None:
        write_fact(save, found.without_images())
    for document in update or []:
        from benchmark.ladder_text import update_blocks

        terminal.note(f"{document}: wrote {', '.join(update_blocks(document, found))}.")
    terminal.emit(found.model_dump(mode="json"))
    if code:
        raise typer.Exit(code)


def _run(terminal: Terminal, order: Order, units: Sequence[Unit], device: str | None) -> int:
    """Build, check, time and judge; returns what a failed stage makes of the exit code."""
    from nailtool.gate_stages import GateOrder, list_free_devices
    from nailtool.pipeline import build_variants
    from nailtool.rooms import select_names

    note_data(terminal, order.data)
    if device is None:
        devices = list_free_devices(order.plan, units)
    elif device.strip() == "none":
        devices = ()
    else:
        devices = tuple(select_names("device", device, order.registry.devices))
    return show_failures(terminal, build_variants(order, units, GateOrder(tuple(units), devices)))


def _merge(ladders: Sequence[Ladder]) -> Ladder:
    """Several machines or folders side by side; a later verdict about the same kind of file wins."""
    verdicts = {v.artifact.label: v for ladder in ladders for v in ladder.verdicts}
    missing = {name: None for ladder in ladders for name in ladder.missing if name not in verdicts}
    merged = {"verdicts": list(verdicts.values()), "missing": tuple(missing)}
    return ladders[-1].model_copy(update=merged)


def _read(order: Order, units: Sequence[Unit]) -> Ladder:
    from nailcore.errors import ArtifactError
    from nailcore.gate_facts import Ladder
    from nailtool.gate_stages import read_verdicts
    from nailtool.inputs import find_version

    verdicts = read_verdicts(order.plan, units)
    if not verdicts:
        raise ArtifactError(
            f"{order.out_dir}: no verdict about any of the {len(units)} files asked for.",
            hint="Run the same command with --run, or `nailtool build-variants --recipes NAME --gate`.",
        )
    known = {verdict.artifact.label for verdict in verdicts}
    groups = {(verdict.artifact.variant, verdict.artifact.kind) for verdict in verdicts}
    missing = [u.name for u in units if u.name not in known and (u.variant.name, u.kind) in groups]
    return Ladder(verdicts=verdicts, missing=tuple(missing), tool_version=find_version("nailtool"))


def _show(terminal: Terminal, ladder: Ladder, *, markdown: bool) -> None:
    from benchmark.ladder import group_rungs
    from benchmark.ladder_text import (
        SHORT_COLUMNS,
        describe_basis,
        render_answer,
        render_tables,
        write_short_row,
    )

    if markdown:
        terminal.show(render_tables(ladder) + "\n\n" + render_answer(ladder))
        return
    for group in group_rungs(ladder.verdicts):
        title = f"{group.variant} {group.kind}; CPU-ms: {group.device or 'not measured here'}"
        terminal.table(title, SHORT_COLUMNS, map(write_short_row, group.rows), right=SHORT_COLUMNS[1:9])
        best = group.best.artifact.file if group.best else "none of them is shippable"
        terminal.show(f"Ship: {best}")
    terminal.show("mIoU, nail IoU and the drop of nail IoU in points. " + describe_basis(ladder))
