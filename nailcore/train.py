"""The training loop: one flat, resumable pass from an initialised network to a weights file."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from nailcore.batches import BatchPipeline, load_batches
from nailcore.checkpoint import TrainState, load_checkpoint, save_checkpoint
from nailcore.data.augment import AugmentConfig, Crops
from nailcore.data.folder import Dataset
from nailcore.data.mixing import MixedBatches, Phase, PhotoStore
from nailcore.errors import NailtoolError
from nailcore.losses import DirectionLoss, LossParts, MaskLoss, total_loss
from nailcore.nets.cascade import Cascade, build_cascade
from nailcore.nets.encoder import as_encoder
from nailcore.nets.weights import check_encoder, check_state, init_encoders, read_state, save_weights
from nailcore.storage import hash_file
from nailcore.variant import Variant

CHECKPOINT = "checkpoint.pt"
PARTIAL = ".partial.safetensors"  # the averaged weights so far, rewritten with every checkpoint


class TrainConfig(BaseModel):
    """Everything that decides the trained weights, besides the data and the initialisation."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    steps: int = Field(default=3400, gt=0)
    # How the data sets are mixed, one phase after the other; empty: evenly, all the time.
    phases: tuple[Phase, ...] = ()
    batch: int = Field(default=8, gt=0)
    crop_px: int = Field(default=320, gt=0, multiple_of=32)
    long_side_px: int = Field(default=480, gt=0)  # photos are scaled about this size before they are cut
    # The high branch's first stages take half of a step's time on a CPU and hold 2 % of the
    # weights; with a few dozen photos their ImageNet filters are kept as they are.
    frozen_stages: int = Field(default=3, ge=0, le=8)
    lr_encoder: float = Field(default=5e-4, gt=0)
    lr_decoder: float = Field(default=2e-3, gt=0)
    weight_decay: float = 0.01
    warmup_steps: int = Field(default=60, ge=0)
    # The two coarse levels guide the fusion modules; the finest one is what ships.
    level_weights: dict[int, float] = {4: 1.0, 8: 0.4, 16: 0.4}
    mask_loss: MaskLoss = "lmp"
    plain_steps: int = Field(default=0, ge=0)  # cross-entropy + Dice before LMP: for random initialisation
    direction_loss: DirectionLoss = "l2"
    # Both are means over labelled nails, so they weigh as much where one image of eight carries such labels.
    finger_weight: float = Field(default=1.0, ge=0)
    direction_weight: float = Field(default=1.0, ge=0)
    crops: Crops = "opencv"
    whole_share: float = Field(
        default=0.0, ge=0, le=1
    )  # of crops show the whole photo, if its fingers are known
    ema_decay: float = Field(default=0.997, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    checkpoint_every: int = Field(default=100, gt=0)
    threads: int = Field(default=0, ge=0)  # 0: as torch chooses
    workers: int = Field(default=0, ge=0)  # processes that make crops; 0: between the steps

    @model_validator(mode="after")
    def _whole(self) -> TrainConfig:
        if self.phases and self.steps != sum(phase.steps for phase in self.phases):
            raise ValueError(
                f"steps {self.steps} must be the sum over the phases, {sum(p.steps for p in self.phases)}"
            )
        return self

    def list_phases(self, sources: int) -> tuple[Phase, ...]:
        """The phases, or the one that mixes all data sets evenly."""
        return self.phases or (Phase(steps=self.steps, shares=(1.0,) * sources),)

    def describe_crops(self) -> AugmentConfig:
        """The random crops of this training."""
        return AugmentConfig(
            crop_px=self.crop_px,
            long_side_px=self.long_side_px,
            crops=self.crops,
            whole_share=self.whole_share,
        )


# What may change between a killed run and its continuation: it does not touch the weights.
FREE_SETTINGS = {"threads", "checkpoint_every", "workers", "precision"}


@dataclass(frozen=True)
class StepReport:
    """What a progress display needs after each step."""

    step: int
    steps: int
    loss: float
    images_per_s: float
    fgbg: float = 0.0
    finger: float = 0.0
    direction: float = 0.0
    learning_rate: float = 0.0  # of the decoder
    loader_s: float = 0.0  # waited for the batch


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to 1 %."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class _Average:
    """Exponential moving average of weights and BatchNorm statistics, in two fused calls a step."""

    def __init__(self, average: nn.Module, network: nn.Module, decay: float) -> None:
        pairs = list(zip(average.state_dict().values(), network.state_dict().values(), strict=True))
        self.kept = [a for a, _ in pairs if a.is_floating_point()]
        self.new = [b for a, b in pairs if a.is_floating_point()]
        self.counters = [(a, b) for a, b in pairs if not a.is_floating_point()]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average quickly at first: the first weights are worth nothing."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.kept, self.new, 1 - decay)
        for kept, new in self.counters:
            kept.copy_(new)


def initialise(network: Cascade, init: Path, frozen_stages: int) -> None:
    """Encoders from a pretrained backbone, or the whole network from trained weights (.safetensors).

    Raises:
        WeightsError: missing, damaged, or of another network (naming the layers that differ).
    """
    if init.suffix == ".safetensors":
        state = read_state(init)
        check_state(network, state, init)
        network.load_state_dict(state)
    else:
        init_encoders(network, init)
    for branch in network.encoders():
        as_encoder(branch).freeze(frozen_stages)


def start_training(
    variant: Variant,
    config: TrainConfig,
    init: Path | None,
    build: Callable[[Variant], Cascade] = build_cascade,
) -> TrainState:
    """A network before its first step, its average and its optimiser."""
    torch.manual_seed(config.seed)
    network = build(variant)
    if init is not None:
        if init.suffix == ".safetensors":
            check_encoder(variant.encoder, init)
        initialise(network, init, config.frozen_stages)
    # Channels-last is a third faster for depthwise convolutions on CPUs (and GPUs).
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    encoder = [p for branch in network.encoders() for p in branch.parameters()]
    known = {id(p) for p in encoder}
    groups = [
        ([p for p in encoder if p.requires_grad], config.lr_encoder),
        ([p for p in network.parameters() if id(p) not in known], config.lr_decoder),
    ]
    optimizer = torch.optim.AdamW(
        [{"params": params, "lr": lr, "base_lr": lr} for params, lr in groups if params],
        weight_decay=config.weight_decay,
    )
    return TrainState(network, copy.deepcopy(network), optimizer)


def choose_precision(wanted: str) -> Literal["32-true", "bf16-mixed"]:
    """bf16 where it is asked for, or where ``auto`` finds hardware that is faster with it."""
    if wanted == "auto":
        if torch.cuda.is_available():
            faster = torch.cuda.is_bf16_supported()
        else:
            # With AVX512-BF16 alone a step took 7 to 27 % more CPU time than in float32 (55 layers,
            # batch 8): gradients of depthwise convolutions are slow there.
            faster = bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())
        wanted = "bf16" if faster else "fp32"
    return "bf16-mixed" if wanted == "bf16" else "32-true"


def make_fabric(config: TrainConfig) -> Any:
    """Fabric on this machine's device, or on what ``torchrun`` started."""
    from lightning_fabric import Fabric

    precision = choose_precision(config.precision)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Fabric(accelerator="auto", devices=1, precision=precision)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    fabric = Fabric(
        accelerator="auto",
        devices=local,
        num_nodes=int(os.environ["WORLD_SIZE"]) // local,
        # A batch without fingers or directions leaves their heads without gradients.
        strategy="ddp_find_unused_parameters_true",
        precision=precision,
    )
    fabric.launch()
    return fabric


def run_training(
    variant: Variant,
    sources: Dataset | Sequence[Dataset],
    config: TrainConfig,
    out: Path,
    *,
    init: Path | None,
    report: Callable[[StepReport], None] | None = None,
    max_minutes: float = 0.0,
    build: Callable[[Variant], Cascade] = build_cascade,
) -> Path:
    """Train one depth to the end, resuming from ``out/checkpoint.pt`` where there is one.

    Returns the path of ``out/<variant.weights>.safetensors``, the averaged (EMA) weights; when
    ``max_minutes`` (0: no limit) were over before, ``out/<variant.weights>.partial.safetensors`` with
    the average so far (see ``is_partial``): the same call then goes on.

    Raises:
        DataError, WeightsError: unusable data, initialisation or checkpoint.
        NailtoolError: the loss became NaN; the last good checkpoint is kept.
        MissingToolError: the disk is full; the last checkpoint is kept.
    """
    sources = [sources] if isinstance(sources, Dataset) else sources
    if config.threads:
        import cv2

        torch.set_num_threads(config.threads)
        cv2.setNumThreads(config.threads)
    fabric = make_fabric(config)
    if config.batch % fabric.world_size:
        raise NailtoolError(f"A batch of {config.batch} cannot be shared by {fabric.world_size} processes.")
    identity = describe_training(variant, sources, config, init, fabric.world_size)
    batches = MixedBatches(
        [PhotoStore(dataset) for dataset in sources],
        config.list_phases(len(sources)),
        config.batch,
        config.describe_crops(),
        config.seed,
        fabric.global_rank,
        fabric.world_size,
    )
    state = start_training(variant, config, init, build)
    if (out / CHECKPOINT).exists():
        since = {
            name: field.default for name, field in Variant.model_fields.items() if not field.is_required()
        }
        defaults = {"config": _dump(TrainConfig()), "variant": since}
        load_checkpoint(out / CHECKPOINT, state, identity, defaults=defaults)
    deadline = time.monotonic() + 60 * max_minutes if max_minutes else math.inf
    weights, partial = out / f"{variant.weights}.safetensors", out / f"{variant.weights}{PARTIAL}"

    def keep() -> None:
        if fabric.is_global_zero:
            save_checkpoint(out / CHECKPOINT, state, identity)
            save_weights(state.average, partial, {"steps": str(state.step), "encoder": variant.encoder})

    for progress in run_steps(fabric, batches, state, config, variant):
        if report is not None and fabric.is_global_zero:
            report(progress)
        over = time.monotonic() > deadline
        if fabric.world_size > 1 and max_minutes:
            over = fabric.broadcast(over)  # all processes stop at the same step
        if state.step % config.checkpoint_every == 0 or state.step == config.steps or over:
            keep()
        if over and state.step < config.steps:
            return partial
    if fabric.is_global_zero:
        images = "+".join(identity["images_sha256"])
        noted = {"steps": str(state.step), "images_sha256": images, "encoder": variant.encoder}
        save_weights(state.average, weights, noted)
        partial.unlink(missing_ok=True)
    return weights


def is_partial(weights: Path) -> bool:
    """Whether a training stopped before its end and returned what it had."""
    return weights.name.endswith(PARTIAL)


def describe_training(
    variant: Variant, sources: Sequence[Dataset], config: TrainConfig, init: Path | None, processes: int
) -> dict[str, Any]:
    """What must be the same for a checkpoint to be gone on with."""
    guesses = [dataset.learn_guesses for dataset in sources]
    return {
        "variant": variant.model_dump(mode="json", exclude={"weights"}),  # a file's name trains nothing
        "config": _dump(config),
        "precision": choose_precision(config.precision),
        "init_sha256": hash_file(init) if init is not None else "",
        "images_sha256": [dataset.describe("train").sha256 for dataset in sources],
        "processes": processes,
        # Left out where none are learnt, as in checkpoints from before it was written down.
        **({"machine_labels": guesses} if any(least is not None for least in guesses) else {}),
    }


def _dump(config: TrainConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=FREE_SETTINGS)


def run_steps(
    fabric: Any, batches: MixedBatches, state: TrainState, config: TrainConfig, variant: Variant
) -> Iterator[StepReport]:
    """Optimiser steps from ``state.step`` to the end; yields after each."""
    network, optimizer = fabric.setup(state.network, state.optimizer)
    network.mark_forward_method("forward_levels")
    state.average.to(fabric.device)
    average = _Average(state.average, state.network, config.ema_decay)
    pipeline = BatchPipeline(variant, config.level_weights, fabric.device)
    network.train()
    loader = iter(load_batches(batches, state.step, config.workers))
    while state.step < config.steps:
        started = time.perf_counter()
        batch = next(loader)
        waited = time.perf_counter() - started
        x, targets = pipeline.prepare(batch)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * learning_rate_factor(state.step, config)
        parts = total_loss(
            network.forward_levels(x),
            targets,
            config.level_weights,
            mask_kind="plain" if state.step < config.plain_steps else config.mask_loss,
            direction_kind=config.direction_loss,
            finger_weight=config.finger_weight,
            direction_weight=config.direction_weight,
        )
        values = _read_losses(fabric, parts)
        _check_loss(values[0], state.step, config.seed)
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(parts.total)
        norm = fabric.clip_gradients(network, optimizer, max_norm=5.0, error_if_nonfinite=False)
        _check_loss(float(norm), state.step, config.seed, what="gradient")
        optimizer.step()
        average.update(state.step)
        state.step += 1
        yield StepReport(
            step=state.step,
            steps=config.steps,
            loss=values[0],
            images_per_s=config.batch / (time.perf_counter() - started),
            fgbg=values[1],
            finger=values[2],
            direction=values[3],
            learning_rate=optimizer.param_groups[-1]["lr"],
            loader_s=waited,
        )


def _read_losses(fabric: Any, parts: LossParts) -> list[float]:
    """Total, fgbg, finger, direction; the mean over the processes, so that all of them see a NaN."""
    values = torch.stack([parts.total, parts.fgbg, parts.finger, parts.direction]).detach()
    if fabric.world_size > 1:
        values = fabric.all_reduce(values, reduce_op="mean")
    return [float(v) for v in values.tolist()]


def _check_loss(value: float, step: int, seed: int, what: str = "loss") -> None:
    if not math.isfinite(value):
        raise NailtoolError(
            f"The {what} became {value} at step {step} (batch {step}, seed {seed}).",
            hint="The last good checkpoint is kept; lower the learning rates and start in a new folder.",
        )
