"""`nailtool train`: from photographs to a weights file, its facts and its model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nailtool.boundary import guarded
from nailtool.commands.options import JsonOption, QuietOption
from nailtool.terminal import Terminal, format_interval

if TYPE_CHECKING:
    from nailcore.facts import WeightsFacts

DATA_HELP = "Data folder with a written split; its train part is learnt, its held-out part measured."
INIT_HELP = "MobileNetV2 1.00 weights (.npz, Keras layer names); without it, random initialisation."
SHIP_HELP = "Put the result into model_zoo/weights if it beats what lies there (nail IoU, largest input)."


@guarded
def train(
    *,
    data: Annotated[Path, typer.Option("--data", help=DATA_HELP)],
    depth: Annotated[int, typer.Option("--depth", help="Encoder layers: 55 or 43.")] = 55,
    init: Annotated[Path | None, typer.Option("--init", help=INIT_HELP)] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for checkpoint, weights, card.")] = Path("runs"),
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimiser steps.")] = 3400,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Crops per step.")] = 8,
    crop: Annotated[int, typer.Option("--crop", help="Crop side in px, a multiple of 32.")] = 320,
    seed: Annotated[int, typer.Option("--seed", help="Decides crops and initialisation.")] = 0,
    threads: Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0: as torch likes.")] = 0,
    ship: Annotated[bool, typer.Option("--ship", help=SHIP_HELP)] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train one depth on photographs; interrupted, the same command resumes.

    Example: nailtool train --data photos --init mobilenet.npz --depth 43 --out runs/nail43
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailtool.training import TrainOrder, ship_weights, train_depth

    order = TrainOrder(
        data=data,
        depth=depth,
        init=init,
        out=out,
        settings={"steps": steps, "batch": batch, "crop_px": crop, "seed": seed, "threads": threads},
    )
    facts = train_depth(order, terminal.console() if not quiet else None)
    _show(terminal, facts)
    shipped = ""
    if ship:
        shipped = ship_weights(out, facts)
        terminal.show(shipped)
    terminal.emit({"weights": facts.model_dump(mode="json"), "shipped": shipped})


def _show(terminal: Terminal, facts: WeightsFacts) -> None:
    terminal.table(
        f"{facts.weights} on images held out of the training (95 % intervals over images)",
        ("variant", "mIoU", "nail IoU", "boundary F", "images"),
        (
            (
                a.variant,
                *map(format_interval, (a.miou, a.nail_iou, a.boundary_f)),
                f"{a.images.count} {'synthetic' if a.images.synthetic else 'photographs'}",
            )
            for a in facts.accuracy
        ),
    )
