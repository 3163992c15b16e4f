"""`nailtool retrain`: a whole training plan, from rendered hands to measured weights, with one command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nailtool.boundary import guarded
from nailtool.commands.options import JsonOption, MachineLabelsOption, QuietOption
from nailtool.terminal import Terminal, format_interval

if TYPE_CHECKING:
    from nailtool.retraining_facts import RetrainingResult

PLAN_HELP = "A shipped plan (nail55, nail43) or a TOML file (docs/training.md)."
PHOTOS_HELP = "Photographs with a written split; their held-out part is measured and never learnt."
INIT_HELP = "Pretrained encoder for the first stage, or trained weights; without it, random initialisation."
HANDS_HELP = "A rendered set that exists already, instead of rendering OUT/hands."
FOLDS_HELP = "Cross-validate: so many folds of the photographs, pooled; stages before photographs are shared."
SIZES_HELP = "Only these input sizes of the plan, such as 480 or 480,288; none: no fine-tuning."
UNTIL_HELP = "Only the plan's stages up to this one, without fine-tuning: to cross-validate in less time."
SMOKE_HELP = "Two steps a stage on a dozen hands: to see every step work. The weights are worth nothing."
MINUTES_HELP = (
    "Stop between training steps, with a checkpoint, after so many minutes; the same command goes on. "
    "Rendering and measuring are finished first. 0: no limit."
)
BLENDER_HELP = "The Python that has bpy, for a plan with photoreal hands (docs/data.md)."


@guarded
def retrain(
    *,
    photos: Annotated[Path, typer.Option("--photos", metavar="FOLDER", help=PHOTOS_HELP)],
    plan: Annotated[str, typer.Option("--plan", metavar="NAME|FILE", help=PLAN_HELP)] = "nail55",
    init: Annotated[str | None, typer.Option("--init", metavar="FILE|NAME", help=INIT_HELP)] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for everything.")] = Path("runs/retraining"),
    hands: Annotated[Path | None, typer.Option("--hands", metavar="FOLDER", help=HANDS_HELP)] = None,
    folds: Annotated[int, typer.Option("--folds", min=0, help=FOLDS_HELP)] = 0,
    sizes: Annotated[str | None, typer.Option("--sizes", metavar="PX,PX", help=SIZES_HELP)] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="STAGE", help=UNTIL_HELP)] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help=SMOKE_HELP)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the trainings, do nothing.")] = False,
    machine_labels: MachineLabelsOption = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=64, help="Processes that render.")] = 1,
    threads: Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0: as torch likes.")] = 0,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that make crops.")] = 0,
    precision: Annotated[str, typer.Option("--precision", help="auto, fp32 or bf16.")] = "auto",
    checkpoint_every: Annotated[
        int, typer.Option("--checkpoint-every", min=1, help="Steps between checkpoints.")
    ] = 100,
    max_minutes: Annotated[float, typer.Option("--max-minutes", min=0, help=MINUTES_HELP)] = 0,
    blender_python: Annotated[
        Path | None, typer.Option("--blender-python", metavar="PATH", help=BLENDER_HELP)
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train by a plan from the beginning: rendered hands, then photographs, then each input size.

    Interrupted, the same command goes on. Writes weights, facts and cards to OUT/weights, and a table of
    all stages to OUT/retraining.md; with --folds the pooled table to OUT/cross-validation.md.

    Example: nailtool retrain --plan nail55 --photos photos --init mobilenet_v2.npz --out runs/nail55

    Cross-validation: nailtool retrain --plan nail55 --photos photos --init mobilenet_v2.npz --folds 5
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailcore.errors import NailtoolError
    from nailtool.plan import load_plan
    from nailtool.retraining import RetrainOrder, describe_plan, run_plan

    if folds == 1:
        raise NailtoolError("--folds 1: expected 2 or more, or 0 for one training by the written split.")
    chosen = load_plan(plan)
    if until is not None and sizes is not None:
        raise NailtoolError("--until and --sizes: a plan that stops after a stage fine-tunes for no size.")
    if until is not None:
        chosen = chosen.stop_after(until)
    if sizes is not None:
        chosen = chosen.choose_sizes(_read_sizes(sizes))
    order = RetrainOrder(
        plan=chosen.shrink() if smoke else chosen,
        photos=photos,
        init=init,
        out=out,
        hands=hands,
        folds=folds,
        smoke=smoke,
        jobs=jobs,
        max_minutes=max_minutes,
        blender_python=blender_python,
        machine_labels=machine_labels,
        free=(
            ("threads", threads),
            ("workers", workers),
            ("precision", precision),
            ("checkpoint_every", checkpoint_every),
        ),
    )
    if dry_run:
        rows = list(describe_plan(order))
        terminal.table(f"{chosen.name}: trainings", ("folder", "steps", "data", "starts from"), rows)
        keys = ("folder", "steps", "data", "init")
        terminal.emit({"trainings": [dict(zip(keys, row, strict=True)) for row in rows]})
        return
    result = run_plan(order, terminal)
    if result is None:
        terminal.show(f"Stopped with a checkpoint in {out}; the same command goes on.")
        terminal.emit({"retraining": None})
        return
    _show(terminal, result, out)


def _read_sizes(text: str) -> tuple[int, ...]:
    from nailcore.errors import NailtoolError

    if text == "none":
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise NailtoolError(f"--sizes {text}: expected sizes in px such as 480,288, or none.") from error


def _show(terminal: Terminal, result: RetrainingResult, out: Path) -> None:
    rows = [(s.folder, f) for s in result.stages for f in s.figures]
    rows += [(f"{result.folds} folds pooled", f) for f in result.pooled]
    terminal.table(
        "Held-out images by stage (95 % intervals over images)",
        ("stage", "variant", "mIoU", "nail IoU", "images"),
        (
            (
                stage,
                f.variant,
                *map(format_interval, (f.miou, f.nail_iou)),
                f"{f.images.count} {'synthetic' if f.images.synthetic else 'photographs'}",
            )
            for stage, f in rows
        ),
    )
    table = out / ("cross-validation.md" if result.folds else "retraining.md")
    terminal.show(f"Written: {table}" + ("" if result.folds else f" and {out / 'weights'}"))
    terminal.emit({"retraining": result.model_dump(mode="json")})
