"""`nailtool train`: from photographs to a weights file, its facts and its model card."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nailtool.boundary import guarded
from nailtool.commands.options import JsonOption, MachineLabelsOption, QuietOption
from nailtool.terminal import Terminal, format_interval

if TYPE_CHECKING:
    from nailcore.facts import WeightsFacts

DATA_HELP = (
    "Data folder with a written split, or FOLDER:SHARE; repeat it to mix. Train parts are learnt, "
    "held-out parts measured."
)
PHASE_HELP = "STEPS:SHARE,SHARE with one share per --data; repeat it for phases. Replaces --steps."
INIT_HELP = (
    "Pretrained encoder (MobileNetV2: .npz with Keras layer names; EfficientNet-Lite0: .pth), or trained "
    "weights: a .safetensors file or a shipped name such as nail55-480. Without it, random initialisation."
)
ENCODER_HELP = "mobilenetv2 (the paper's) or efficientnet-lite0."
SHIP_HELP = "With --input-px: put the result into model_zoo/weights if it beats what lies there (nail IoU)."
INPUT_HELP = "Fine-tune for one input size; writes nail55-288 and the like. 0: for all sizes of the depth."
FOLD_HELP = "k/n, such as 1/5: hold out one of n folds of the photographs; groups stay whole."
MINUTES_HELP = "Stop with a checkpoint after so many minutes; the same command goes on. 0: no limit."
FROZEN_HELP = "Encoder stages kept as initialised, with --init."


@guarded
def train(
    *,
    data: Annotated[list[str], typer.Option("--data", metavar="FOLDER[:SHARE]", help=DATA_HELP)],
    phase: Annotated[
        list[str] | None, typer.Option("--phase", metavar="STEPS:SHARES", help=PHASE_HELP)
    ] = None,
    depth: Annotated[int, typer.Option("--depth", help="Encoder layers: 55 or 43.")] = 55,
    encoder: Annotated[str, typer.Option("--encoder", help=ENCODER_HELP)] = "mobilenetv2",
    init: Annotated[str | None, typer.Option("--init", metavar="FILE|NAME", help=INIT_HELP)] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for checkpoint, weights, card.")] = Path("runs"),
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimiser steps.")] = 3400,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Crops per step.")] = 8,
    crop: Annotated[int, typer.Option("--crop", help="Crop side in px, a multiple of 32.")] = 320,
    input_px: Annotated[int, typer.Option("--input-px", help=INPUT_HELP)] = 0,
    fold: Annotated[str, typer.Option("--fold", metavar="K/N", help=FOLD_HELP)] = "",
    machine_labels: MachineLabelsOption = None,
    mask_loss: Annotated[str, typer.Option("--mask-loss", help="lmp, weighted (20 ×) or plain.")] = "lmp",
    direction_loss: Annotated[str, typer.Option("--direction-loss", help="l2, l1 or huber.")] = "l2",
    finger_weight: Annotated[
        float, typer.Option("--finger-weight", min=0, help="Of the finger loss; the mask loss has 1.")
    ] = 1.0,
    direction_weight: Annotated[
        float, typer.Option("--direction-weight", min=0, help="Of the direction loss.")
    ] = 1.0,
    plain_steps: Annotated[
        int, typer.Option("--plain-steps", min=0, help="Cross-entropy + Dice before the mask loss.")
    ] = 0,
    frozen_stages: Annotated[int, typer.Option("--frozen-stages", min=0, help=FROZEN_HELP)] = 3,
    lr_encoder: Annotated[float, typer.Option("--lr-encoder", help="Peak learning rate.")] = 5e-4,
    lr_decoder: Annotated[float, typer.Option("--lr-decoder", help="Peak learning rate.")] = 2e-3,
    whole_share: Annotated[
        float,
        typer.Option(
            "--whole-share",
            min=0,
            max=1,
            help="Of the crops show the whole photo, where its fingers are known.",
        ),
    ] = 0.0,
    weight_decay: Annotated[float, typer.Option("--weight-decay", help="Of AdamW.")] = 0.01,
    warmup_steps: Annotated[int, typer.Option("--warmup-steps", min=0, help="Of the learning rates.")] = 60,
    ema_decay: Annotated[float, typer.Option("--ema-decay", help="Of the averaged weights.")] = 0.997,
    level_weights: Annotated[
        str, typer.Option("--level-weights", help="Of the losses at the strides 4, 8 and 16.")
    ] = "1,0.4,0.4",
    crops: Annotated[str, typer.Option("--crops", help="opencv, or kornia (slower on CPUs).")] = "opencv",
    precision: Annotated[str, typer.Option("--precision", help="auto, fp32 or bf16.")] = "auto",
    seed: Annotated[int, typer.Option("--seed", help="Decides crops and initialisation.")] = 0,
    threads: Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0: as torch likes.")] = 0,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that make crops.")] = 0,
    max_minutes: Annotated[float, typer.Option("--max-minutes", min=0, help=MINUTES_HELP)] = 0,
    checkpoint_every: Annotated[
        int, typer.Option("--checkpoint-every", min=1, help="Steps between checkpoints.")
    ] = 100,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log below OUT/tensorboard.")] = False,
    ship: Annotated[bool, typer.Option("--ship", help=SHIP_HELP)] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train one depth on photographs and rendered hands; interrupted, the same command resumes.

    Example: nailtool train --data photos --init mobilenet_v2.npz --depth 43 --out runs/nail43

    Mixed: nailtool train --data hands --data photos --phase 4000:1,0 --phase 4000:0.4,0.6 --init nail55-480
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    from nailtool.shipping import check_shippable, ship_weights
    from nailtool.training import TrainOrder, parse_levels, train_depth

    order = TrainOrder(
        data=tuple(data),
        depth=depth,
        encoder=encoder,
        init=init,
        out=out,
        phases=tuple(phase or ()),
        input_px=input_px,
        fold=fold,
        max_minutes=max_minutes,
        tensorboard=tensorboard,
        machine_labels=machine_labels,
        settings={
            "steps": steps,
            "batch": batch,
            "crop_px": crop,
            "seed": seed,
            "threads": threads,
            "workers": workers,
            "checkpoint_every": checkpoint_every,
            "mask_loss": mask_loss,
            "direction_loss": direction_loss,
            "finger_weight": finger_weight,
            "direction_weight": direction_weight,
            "plain_steps": plain_steps,
            "frozen_stages": frozen_stages,
            "lr_encoder": lr_encoder,
            "lr_decoder": lr_decoder,
            "precision": precision,
            "crops": crops,
            "whole_share": whole_share,
            "weight_decay": weight_decay,
            "warmup_steps": warmup_steps,
            "ema_decay": ema_decay,
            "level_weights": parse_levels(level_weights),
        },
    )
    if ship:
        check_shippable(order)  # before hours of training
    facts = train_depth(order, terminal.console() if not quiet else None)
    if facts is None and int(os.environ.get("RANK", "0")):
        return  # one of several processes: the first one speaks for all
    if facts is None:
        terminal.show(f"Stopped with a checkpoint in {out}; the same command goes on.")
        terminal.emit({"weights": None, "shipped": ""})
        return
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
                f"{a.images.count} of {a.images.name}{', synthetic' if a.images.synthetic else ''}",
            )
            for a in (*facts.accuracy, *facts.accuracy_synthetic)
        ),
    )
