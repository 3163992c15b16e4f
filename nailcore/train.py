"""The training loop: one flat, resumable pass from an initialised encoder to a weights file."""

from __future__ import annotations

import copy
import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from nailcore.data.augment import AugmentConfig, draw_crop
from nailcore.data.folder import Dataset
from nailcore.errors import DataError, NailtoolError, WeightsError
from nailcore.losses import mask_loss
from nailcore.nets.cascade import Cascade, build_cascade
from nailcore.nets.encoder import as_encoder
from nailcore.nets.weights import init_encoders, save_weights
from nailcore.storage import hash_file, write_bytes
from nailcore.variant import Variant


class TrainConfig(BaseModel):
    """Everything that decides the trained weights, besides the data and the initialisation."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    steps: int = Field(default=3400, gt=0)
    batch: int = Field(default=8, gt=0)
    crop_px: int = Field(default=320, gt=0, multiple_of=32)
    # The high branch's first stages take half of a step's time on a CPU and hold 2 % of the
    # weights; with a few dozen photos their ImageNet filters are kept as they are.
    frozen_stages: int = Field(default=3, ge=0)
    lr_encoder: float = Field(default=5e-4, gt=0)
    lr_decoder: float = Field(default=2e-3, gt=0)
    weight_decay: float = 0.01
    warmup_steps: int = 60
    # The two coarse levels guide the fusion modules; the finest one is what ships.
    level_weights: dict[int, float] = {4: 1.0, 8: 0.4, 16: 0.4}
    ema_decay: float = Field(default=0.997, ge=0, lt=1)
    seed: int = 0
    checkpoint_every: int = Field(default=100, gt=0)
    threads: int = Field(default=0, ge=0)  # 0: as torch chooses


@dataclass(frozen=True)
class StepReport:
    """What a progress display needs after each step."""

    step: int
    steps: int
    loss: float
    images_per_s: float


class Photos:
    """The training part of a data folder, decoded once, long side at most ``limit_px``."""

    def __init__(self, dataset: Dataset, limit_px: int = 800) -> None:
        import cv2

        self.pairs = []
        for sample in dataset.part("train"):
            if "mask" not in sample.record.labels:
                continue
            image, mask = sample.load_image(), sample.load_mask().astype(np.uint8)
            scale = limit_px / max(mask.shape)
            if scale < 1:
                size = (round(mask.shape[1] * scale), round(mask.shape[0] * scale))
                image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
                soft = cv2.resize(mask * np.uint8(255), size, interpolation=cv2.INTER_AREA)
                mask = np.asarray(soft > 127, np.uint8)
            self.pairs.append((image, mask))
        if not self.pairs:
            raise DataError(f"{dataset.root}: no training image carries a mask.")

    def draw_batch(
        self, step: int, config: TrainConfig, augment: AugmentConfig
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (N, 3, S, S) in 0..255 and masks (N, S, S): a pure function of seed and step."""
        images, masks = [], []
        for i in range(config.batch):
            rng = np.random.default_rng((config.seed, step, i))
            # Walk through shuffled epochs, so that every photo is seen equally often.
            position = step * config.batch + i
            epoch, index = divmod(position, len(self.pairs))
            order = np.random.default_rng((config.seed, 1 << 20, epoch)).permutation(len(self.pairs))
            photo, truth = self.pairs[order[index]]
            image, mask = draw_crop(photo, truth, augment, rng)
            images.append(image)
            masks.append(mask)
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
        return x, torch.from_numpy(np.stack(masks)).float()


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to 1 %."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@torch.no_grad()
def _average_weights(average: nn.Module, network: nn.Module, decay: float) -> None:
    for kept, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)


@dataclass
class _State:
    network: Cascade
    average: Cascade
    optimizer: torch.optim.Optimizer
    step: int


def _start(variant: Variant, config: TrainConfig, init: Path | None) -> _State:
    torch.manual_seed(config.seed)
    network = build_cascade(variant)
    if init is not None:
        init_encoders(network, init)
        for branch in (network.high, network.low):
            as_encoder(branch).freeze(config.frozen_stages)
    encoder = [*network.high.parameters(), *network.low.parameters()]
    known = {id(p) for p in encoder}
    decoder = [p for p in network.parameters() if id(p) not in known]
    groups = [
        {
            "params": [p for p in encoder if p.requires_grad],
            "lr": config.lr_encoder,
            "base_lr": config.lr_encoder,
        },
        {"params": decoder, "lr": config.lr_decoder, "base_lr": config.lr_decoder},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    return _State(network, copy.deepcopy(network), optimizer, 0)


def _save_checkpoint(path: Path, state: _State, identity: dict[str, Any]) -> None:
    payload = {
        "identity": identity,
        "step": state.step,
        "network": state.network.state_dict(),
        "average": state.average.state_dict(),
        "optimizer": state.optimizer.state_dict(),
    }
    # Through memory: torch's own writer hides a full disk behind a RuntimeError.
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    write_bytes(path, buffer.getvalue())


def _load_checkpoint(path: Path, state: _State, identity: dict[str, Any]) -> None:
    try:
        payload = torch.load(path, weights_only=True)
        found = payload["identity"]
    except Exception as error:
        raise WeightsError(
            f"{path}: not a readable checkpoint: {error}",
            hint="It was left as it is. Move it away to start this training from the beginning.",
        ) from error
    if found != identity:
        changed = sorted(k for k in identity.keys() | found.keys() if identity.get(k) != found.get(k))
        raise WeightsError(
            f"{path}: belongs to another training; these differ: {', '.join(changed)}.",
            hint="Use another --out folder, or move the checkpoint away to start again.",
        )
    state.network.load_state_dict(payload["network"])
    state.average.load_state_dict(payload["average"])
    state.optimizer.load_state_dict(payload["optimizer"])
    state.step = payload["step"]


def run_training(
    variant: Variant,
    dataset: Dataset,
    config: TrainConfig,
    out: Path,
    *,
    init: Path | None,
    report: Callable[[StepReport], None] | None = None,
) -> Path:
    """Train one depth to the end, resuming from ``out/checkpoint.pt`` where there is one.

    Returns the path of ``out/<variant.weights>.safetensors``: the averaged (EMA) weights.

    Raises:
        DataError, WeightsError: unusable data, initialisation or checkpoint.
        NailtoolError: the loss became NaN; the last good checkpoint is kept.
    """
    from lightning_fabric import Fabric

    if config.threads:
        torch.set_num_threads(config.threads)
    identity: dict[str, Any] = {
        "variant": variant.model_dump(mode="json"),
        "config": config.model_dump(mode="json", exclude={"threads", "checkpoint_every"}),
        "init_sha256": hash_file(init) if init is not None else "",
        "images_sha256": dataset.describe("train").sha256,
    }
    photos = Photos(dataset)
    state = _start(variant, config, init)
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        _load_checkpoint(checkpoint, state, identity)
    fabric = Fabric(accelerator="auto", devices=1)
    network, optimizer = fabric.setup(state.network, state.optimizer)
    network.mark_forward_method("forward_levels")
    state.average.to(fabric.device)
    for progress in _steps(fabric, network, optimizer, photos, state, config, variant):
        if report is not None:
            report(progress)
        if state.step % config.checkpoint_every == 0 or state.step == config.steps:
            _save_checkpoint(checkpoint, state, identity)
    weights = out / f"{variant.weights}.safetensors"
    metadata = {"steps": str(state.step), "images_sha256": str(identity["images_sha256"])}
    save_weights(state.average, weights, metadata)
    return weights


def _steps(  # noqa: PLR0917 - the loop's own parts, named at the one call
    fabric: Any,
    network: Any,
    optimizer: Any,
    photos: Photos,
    state: _State,
    config: TrainConfig,
    variant: Variant,
) -> Iterator[StepReport]:
    augment = AugmentConfig(crop_px=config.crop_px)
    mean = torch.tensor(variant.mean).view(1, 3, 1, 1)
    std = torch.tensor(variant.std).view(1, 3, 1, 1)
    state.network.train()
    # Channels-last is a third faster for depthwise convolutions on CPUs (and GPUs).
    state.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    while state.step < config.steps:
        started = time.perf_counter()
        images, masks = photos.draw_batch(state.step, config, augment)
        x = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
        x, masks = x.to(fabric.device), masks.to(fabric.device)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * learning_rate_factor(state.step, config)
        loss = mask_loss(network.forward_levels(x), masks, config.level_weights)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NailtoolError(
                f"The loss became {value} at step {state.step} (batch {state.step}, seed {config.seed}).",
                hint="The last good checkpoint is kept; lower the learning rates and start in a new folder.",
            )
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        fabric.clip_gradients(network, optimizer, max_norm=5.0)
        optimizer.step()
        # Average quickly at first: the first weights are worth nothing.
        decay = min(config.ema_decay, (1 + state.step) / (10 + state.step))
        _average_weights(state.average, state.network, decay)
        state.step += 1
        yield StepReport(state.step, config.steps, value, config.batch / (time.perf_counter() - started))
