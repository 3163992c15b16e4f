"""`nailtool ablate`: what Loss Max-Pooling and the cascade are worth, trained with the same budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nailtool.boundary import guarded
from nailtool.commands.options import JsonOption, QuietOption
from nailtool.terminal import Terminal, format_interval

DATA_HELP = "Data folder with a written split, or FOLDER:SHARE; repeat it to mix."
PHASE_HELP = "STEPS:SHARE,SHARE with one share per --data; repeat it for phases. Replaces --steps."
INIT_HELP = "MobileNetV2 1.00 (.npz, Keras layer names) for the encoders."


@guarded
def ablate(
    *,
    data: Annotated[list[str], typer.Option("--data", metavar="FOLDER[:SHARE]", help=DATA_HELP)],
    phase: Annotated[
        list[str] | None, typer.Option("--phase", metavar="STEPS:SHARES", help=PHASE_HELP)
    ] = None,
    init: Annotated[str | None, typer.Option("--init", metavar="FILE", help=INIT_HELP)] = None,
    variant: Annotated[str, typer.Option("--variant", help="Whose encoder and input size.")] = "nail55-480",
    out: Annotated[Path, typer.Option("--out", help="Checkpoints, facts and the table.")] = Path(
        "runs/ablation"
    ),
    steps: Annotated[int, typer.Option("--steps", min=1, help="The same for every cell.")] = 1000,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Trainings of each cell.")] = 2,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Crops per step.")] = 8,
    crop: Annotated[int, typer.Option("--crop", help="Crop side in px, a multiple of 32.")] = 320,
    fold: Annotated[str, typer.Option("--fold", metavar="K/N", help="Hold out this fold.")] = "",
    plain_steps: Annotated[
        int, typer.Option("--plain-steps", min=0, help="Cross-entropy + Dice before the mask loss.")
    ] = 0,
    frozen_stages: Annotated[int, typer.Option("--frozen-stages", min=0, help="With --init.")] = 3,
    lr_encoder: Annotated[float, typer.Option("--lr-encoder", help="Peak learning rate.")] = 5e-4,
    lr_decoder: Annotated[float, typer.Option("--lr-decoder", help="Peak learning rate.")] = 2e-3,
    threads: Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0: as torch likes.")] = 0,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that make crops.")] = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train {LMP, 20 ×} × {cascade, single branch} on the same data and measure held-out photographs.

    Interrupted, the same command goes on. Writes OUT/ablation.json and OUT/ablation.md.

    Example: nailtool ablate --data photos --init mobilenet_v2.npz --steps 1000 --seeds 2
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailtool.ablation import AblationRequest, run_request

    request = AblationRequest(
        data=tuple(data),
        init=init,
        variant=variant,
        out=out,
        seeds=seeds,
        fold=fold,
        phases=tuple(phase or ()),
        settings={
            "steps": steps,
            "batch": batch,
            "crop_px": crop,
            "plain_steps": plain_steps,
            "frozen_stages": frozen_stages,
            "lr_encoder": lr_encoder,
            "lr_decoder": lr_decoder,
            "threads": threads,
            "workers": workers,
        },
    )
    result = run_request(request, terminal.console() if not quiet else None)
    terminal.table(
        f"{result.variant}, {result.steps} steps per cell, on {result.images.count} held-out images",
        ("network", "loss", "mIoU", "nail IoU", "boundary F"),
        (
            (c.network, c.loss, *map(format_interval, (c.miou, c.nail_iou, c.boundary_f)))
            for c in result.cells
        ),
    )
    terminal.table(
        "What each choice gains",
        ("gain", "given", "mIoU", "nail IoU"),
        (
            (f"{g.better} over {g.worse}", g.given, format_interval(g.miou), format_interval(g.nail_iou))
            for g in result.gains
        ),
    )
    terminal.show(f"Written: {out / 'ablation.json'} and {out / 'ablation.md'}")
    terminal.emit(result.model_dump(mode="json"))
