"""Quantization-aware fine-tuning: the rounded network learns to say what the float network says."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the name every reader of torch code expects
from torch import nn

from nailcore.checkpoint import TrainState, load_checkpoint, save_checkpoint
from nailcore.data.augment import AugmentConfig
from nailcore.data.folder import Dataset, Sample, Split
from nailcore.data.mixing import Batch, MixedBatches, Phase, PhotoStore
from nailcore.errors import NailtoolError
from nailcore.losses import loss_max_pooling, shrink_mask
from nailcore.nets.export_form import ExportForm
from nailcore.variant import Variant
from quantize.recipe import FineTune
from quantize.rounding import measure_scale, round_to_integers
from quantize.sensitivity import check_memory
from quantize.simulate import Ranges, Scheme, Simulation, align_means, as_input, merge_kernels

Report = Callable[[int, int, float], None]  # steps done, steps in all, loss
WARMUP_STEPS = 10
CHECKPOINT_EVERY = 50
HORIZON = 20
ALIGNED_IMAGES = 8  # means settle within a few
BACKGROUND_WEIGHT = 0.02  # of finger classes and directions outside nails


@dataclass(frozen=True)
class FineTuned:
    """What a fine-tuning leaves: kernels already on their grids, and how the loss went."""

    network: ExportForm
    first_loss: float  # means over the first and the last ``HORIZON`` steps of this process
    last_loss: float
    steps: int


class LevelKernels(nn.Module):
    """Integer convolutions in units of their own levels, which is what training moves.

    A step of the optimiser is then the same share of a level in every channel, however differently
    folded BatchNorms scaled them. The largest weight of each scale stays at the outermost level, so
    that whoever measures the scale of the finished kernel finds the same grid again. Of two
    convolutions that the file merges, the product is rounded; both keep training.
    """

    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        self.scheme = simulation.scheme
        self.outermost = 2 ** (self.scheme.weight_bits - 1) - 1
        self.layers = [name for name in simulation.layers if name in simulation.plan.integer]
        self.inner_of = {name: simulation.find_inner(name) for name in self.layers}
        self.scales: dict[str, torch.Tensor] = {}
        self.pinned: dict[str, torch.Tensor] = {}
        self.bias_units: dict[str, float] = {}
        self.first_bias: dict[str, torch.Tensor] = {}
        self.levels, self.shifts = nn.ParameterDict(), nn.ParameterDict()
        for name in self.layers:
            conv = simulation.find_conv(name)
            bits, per_channel = self.scheme.weight_bits, self.scheme.per_channel
            self.scales[name] = measure_scale(conv.weight, bits, per_channel=per_channel)
            levels = conv.weight.detach() / self.scales[name]
            self.pinned[name] = levels.abs() > self.outermost - 1e-3
            self.levels[layer_key(name)] = nn.Parameter(levels)
            if conv.bias is not None:
                low, high = simulation.ranges.get(name, (0.0, 6.0))
                self.bias_units[name] = (high - low) / 255 or 1.0
                self.first_bias[name] = conv.bias.detach().clone()
                self.shifts[layer_key(name)] = nn.Parameter(torch.zeros_like(conv.bias))

    def forward(self, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The rounded kernel and the bias of a convolution as the file holds it, with gradients."""
        inner = self.inner_of[name]
        if inner is None:
            return round_to_integers(self._read_levels(name)) * self.scales[name], self._read_bias(name)
        parts = [(self._read_levels(n) * self.scales[n], self._read_bias(n)) for n in (inner, name)]
        kernel, bias = merge_kernels(*parts[0], *parts[1])
        scale = measure_scale(kernel, self.scheme.weight_bits, per_channel=self.scheme.per_channel)
        return round_to_integers(kernel / scale) * scale, bias

    def _read_levels(self, name: str) -> torch.Tensor:
        levels = self.levels[layer_key(name)]
        inside = torch.where(self.pinned[name], levels.detach(), levels)
        return inside.clamp(-self.outermost, self.outermost)

    def _read_bias(self, name: str) -> torch.Tensor | None:
        if name not in self.first_bias:
            return None
        bias: torch.Tensor = self.first_bias[name] + self.shifts[layer_key(name)] * self.bias_units[name]
        return bias

    def write_to(self, network: ExportForm) -> None:
        """Put kernels and biases into a network: rounded, but for those that are merged before."""
        merged = {name for pair in self.inner_of.items() if pair[1] for name in pair}
        with torch.no_grad():
            for name in self.layers:
                conv = network.get_submodule(name)
                assert isinstance(conv, nn.Conv2d)  # noqa: S101 - the graph says so
                levels = self._read_levels(name)
                conv.weight.copy_((levels if name in merged else levels.round()) * self.scales[name])
                bias = self._read_bias(name)
                if conv.bias is not None and bias is not None:
                    conv.bias.copy_(bias)


def layer_key(name: str) -> str:
    """A layer's name as a key of a ParameterDict, which allows no dots."""
    return name.replace(".", "/")


def measure_distance(
    found: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...], names: tuple[str, ...]
) -> torch.Tensor:
    """How far logits (N, C, h, w) are from the float network's, where it matters.

    ``fgbg``: divergence of the nail probabilities per pixel, summed and divided by how much doubt the
    float network has in all; where it is undecided pixels flip. The other heads: squared difference
    relative to the float logits' own variance, weighted by its nail probability: nobody reads them
    elsewhere.
    """
    ours, theirs = dict(zip(names, found, strict=True)), dict(zip(names, wanted, strict=True))
    margins = [logits["fgbg"][:, 1] - logits["fgbg"][:, 0] for logits in (ours, theirs)]
    nail = margins[1].sigmoid()
    cross, own = (F.binary_cross_entropy_with_logits(m, nail, reduction="sum") for m in margins)
    # Near the truth the divergence is nail * (1 - nail) / 2 times the squared difference of the margins.
    total = 2 * (cross - own) / ((nail * (1 - nail)).sum() + 1)
    inside = (nail + BACKGROUND_WEIGHT)[:, None]
    for name in names:
        if name != "fgbg":
            error = (ours[name] - theirs[name]).square() / (theirs[name].var() + 1e-6)
            total = total + 0.1 * (inside * error).sum() / (inside.sum() * error.shape[1])
    return total


def finetune_quantized(
    network: ExportForm,
    scheme: Scheme,
    ranges: Ranges,
    *,
    variant: Variant,
    dataset: Dataset,
    settings: FineTune,
    checkpoint: Path,
    images: npt.NDArray[np.uint8] | None = None,
    report: Report | None = None,
) -> FineTuned:
    """Move the kernels and biases of the integer convolutions until their rounding shows least.

    The float network is the teacher: at every crop of the training part the rounded network is pulled
    to its logits, and with ``label_weight`` to the labels. With calibration ``images`` (N, H, W, 3) RGB,
    biases first make up for the mean shift of rounding, which training finds slowly. Ranges stay as they
    were measured. A killed run goes on from ``checkpoint`` to the same weights; it is removed at the end.

    Raises:
        DataError: no usable training part.
        WeightsError: the checkpoint is damaged, or of another fine-tuning.
        NailtoolError: the loss or a gradient became NaN; the last good checkpoint is kept.
    """
    simulation = Simulation(_lay_out(copy.deepcopy(network)), scheme, ranges)
    if images is not None:
        plain = Scheme(keep_float=frozenset(simulation.layers), glue=False)
        seen = as_input(images[:: max(1, len(images) // ALIGNED_IMAGES)][:ALIGNED_IMAGES])
        align_means(simulation, Simulation(_lay_out(copy.deepcopy(network)), plain, {}), seen)
    kernels = LevelKernels(simulation)
    identity = {
        "scheme": repr(sorted(vars(scheme).items(), key=str)),
        "ranges_sha256": hashlib.sha256(repr(sorted(ranges.items())).encode()).hexdigest(),
    }
    course = run_finetuning(
        Lesson(network, simulation, kernels, variant, dataset, settings, identity), checkpoint, report
    )
    kernels.write_to(simulation.network)
    return FineTuned(simulation.network, *course)


class Kernels(Protocol):
    """What is trained: gives the rounded kernel and the bias of a convolution, with gradients."""

    def __call__(self, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """By torch module name."""


@dataclass(frozen=True)
class Lesson:
    """Who learns what from whom, on which images."""

    teacher: ExportForm  # float; not changed
    simulation: Simulation  # of the network that learns
    kernels: nn.Module  # its parameters; satisfies ``Kernels``
    variant: Variant
    dataset: Dataset
    settings: FineTune
    identity: dict[str, str]  # what else must be the same for a checkpoint to be gone on with


def run_finetuning(lesson: Lesson, checkpoint: Path, report: Report | None) -> tuple[float, float, int]:
    """Train ``lesson.kernels`` to the end: first and last loss, and the steps; raises as above."""
    settings, kernels = lesson.settings, lesson.kernels
    lesson.simulation.trained = kernels
    optimizer = torch.optim.Adam(kernels.parameters(), lr=settings.lr, betas=(0.9, 0.99))
    state = TrainState(kernels, kernels, optimizer)
    identity = {
        **lesson.identity,
        "settings": settings.model_dump(mode="json"),
        "variant": lesson.variant.model_dump(mode="json", exclude={"weights"}),
        "teacher_sha256": hash_network(lesson.teacher),
        "network_sha256": hash_network(lesson.simulation.network),
        "images_sha256": training_part(lesson.dataset).describe("train").sha256,
    }
    # A step keeps all tensors for the way back, some of them twice.
    pixels = settings.batch * crop_side(lesson.variant, settings) ** 2
    passes = 3 * pixels / (lesson.variant.height_px * lesson.variant.width_px)
    check_memory(lesson.simulation, lesson.variant, passes=passes)
    if checkpoint.exists():
        load_checkpoint(checkpoint, state, identity)
    losses = []
    with _on_one_thread():
        for loss in _run_steps(state, lesson):
            losses.append(loss)
            if report is not None:
                report(state.step, settings.steps, loss)
            if state.step % CHECKPOINT_EVERY == 0 and state.step < settings.steps:
                save_checkpoint(checkpoint, state, identity)
    checkpoint.unlink(missing_ok=True)
    head, tail = losses[:HORIZON], losses[-HORIZON:]
    return sum(head) / max(1, len(head)), sum(tail) / max(1, len(tail)), state.step


def _lay_out(network: ExportForm) -> ExportForm:
    """Channels last in memory, which depthwise convolutions like."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


@contextlib.contextmanager
def _on_one_thread() -> Iterator[None]:
    """The order of sums must not depend on the machine's cores, nor resumed weights on where they started."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _run_steps(state: TrainState, lesson: Lesson) -> Iterator[float]:
    settings, teacher = lesson.settings, _lay_out(copy.deepcopy(lesson.teacher))
    batches = make_batches(lesson.dataset, lesson.variant, settings)
    while state.step < settings.steps:
        batch = batches[state.step]
        images = as_input(batch.images)
        with torch.no_grad():
            wanted = teacher(images)
        for group in state.optimizer.param_groups:
            group["lr"] = settings.lr * _learning_rate_factor(state.step, settings.steps)
        found = lesson.simulation(images)
        loss = measure_distance(found, wanted, teacher.names)
        if settings.label_weight:
            loss = loss + settings.label_weight * _measure_labels(found, teacher.names, batch)
        _check_finite(float(loss.detach()), state.step, settings)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(state.network.parameters(), 10.0)
        _check_finite(float(norm), state.step, settings)
        state.optimizer.step()
        state.step += 1
        yield float(loss.detach())


def _measure_labels(found: tuple[torch.Tensor, ...], names: tuple[str, ...], batch: Batch) -> torch.Tensor:
    """Loss Max-Pooling of the mask, as in training, at the output's stride."""
    logits = found[names.index("fgbg")]
    stride = batch.masks.shape[1] // logits.shape[2]
    labels = shrink_mask(torch.from_numpy(batch.masks).float(), stride)
    return loss_max_pooling(logits, labels)


def _learning_rate_factor(step: int, steps: int) -> float:
    """A short warm-up, then half a cosine down to 1 %."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _check_finite(value: float, step: int, settings: FineTune) -> None:
    if not math.isfinite(value):
        raise NailtoolError(
            f"The loss or its gradient became {value} in step {step} of the fine-tuning.",
            hint="The last good checkpoint is kept; lower [finetune] lr in the recipe.",
        )


# -- what it is trained on -------------------------------------------------------------------------
class _Rendered(Dataset):
    """A folder of rendered hands without a split: nothing in it was held out, so all of it is trained on."""

    def part(self, which: Split) -> tuple[Sample, ...]:
        return self.samples


def training_part(dataset: Dataset) -> Dataset:
    """The data set whose training part is used; as for calibration, rendered hands need no split."""
    if dataset.card.synthetic and dataset.split is None:
        return _Rendered(dataset.root, dataset.card, dataset.samples, None)
    return dataset


def crop_side(variant: Variant, settings: FineTune) -> int:
    """Pixels: as asked for, but no more than the network will see."""
    return min(settings.crop_px, variant.height_px, variant.width_px)


def make_batches(dataset: Dataset, variant: Variant, settings: FineTune) -> MixedBatches:
    """Crops of the training part about the size the network will see, by the number of the step."""
    augment = AugmentConfig(
        crop_px=crop_side(variant, settings), long_side_px=max(variant.height_px, variant.width_px)
    )
    phases = (Phase(steps=settings.steps, shares=(1.0,)),)
    return MixedBatches([PhotoStore(training_part(dataset))], phases, settings.batch, augment, settings.seed)


def hash_network(network: nn.Module) -> str:
    """SHA-256 over the names and values of a network's tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        digest.update(value.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
