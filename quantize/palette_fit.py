"""Palettes fitted to what a layer does to real activations, one layer after the other (GPTQ with tables)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from quantize.layer_names import list_convolutions
from quantize.palettes import F64, Codes, Table, find_group_size, fit_entries, normalise, to_half

if TYPE_CHECKING:
    from nailcore.nets.export_form import ExportForm

MAX_PATCHES = 8000  # of all images, that a layer's statistics are taken from
DAMPING = 0.01  # of the mean curvature, so that inverses exist
PASSES = 2  # of rounding and refitting the tables


@dataclass(frozen=True)
class Choice:
    """How one kernel is stored."""

    bits: int
    group_size: int = 0  # output channels that share a table; 0: all
    channel_scale: bool = False


@dataclass(frozen=True)
class Linear:
    """A kernel stored as 8-bit codes with a scale per output channel, no zero point."""


@dataclass
class Statistics:
    """What the float network does on the calibration images."""

    curvature: dict[str, F64] = field(default_factory=dict)  # (D, D), or (C, D, D) of a depthwise kernel
    influence: dict[str, F64] = field(default_factory=dict)  # (O,): squared gradient of the logits
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)  # (O,): mean of each channel


def measure_curvature(conv: nn.Conv2d, inputs: torch.Tensor) -> F64:
    """Second moments of the patches a convolution sees: (D, D), or (C, D, D) where channels stay apart.

    The squared error of an output channel is d @ curvature @ d for a kernel that is off by d.
    """
    kernel, dilation, stride = conv.kernel_size, conv.dilation, conv.stride
    patches = nn.functional.unfold(
        inputs, kernel, dilation=dilation, padding=_read_padding(conv), stride=stride
    )  # (N, I*kh*kw, L)
    count, _, length = patches.shape
    step = max(1, count * length // MAX_PATCHES)
    flat = patches.permute(1, 0, 2).reshape(patches.shape[1], -1)[:, ::step].double()
    if conv.groups > 1:
        channels = flat.reshape(conv.groups, -1, flat.shape[1])
        return np.asarray(torch.einsum("cdl,cel->cde", channels, channels).numpy() / flat.shape[1])
    return np.asarray((flat @ flat.T).numpy() / flat.shape[1])


def _read_padding(conv: nn.Conv2d) -> tuple[int, int]:
    padding = conv.padding
    assert not isinstance(padding, str)  # noqa: S101 - the networks are ours
    return int(padding[0]), int(padding[1])


def measure_statistics(network: ExportForm, images: torch.Tensor, *, seed: int = 0) -> Statistics:
    """Curvature, influence on the nail logits and mean output of every convolution, in float.

    ``images``: (N, 3, H, W) RGB 0..255. Gradients are of random mixtures of the logits' margins.
    """
    found = Statistics()
    layers = list_convolutions(network)
    torch.manual_seed(seed)
    sums: dict[str, torch.Tensor] = {}
    kept: dict[str, torch.Tensor] = {}
    handles = []
    for name, conv in layers.items():

        def keep(
            _: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor, name: str = name
        ) -> torch.Tensor:
            kept[name] = out
            out.retain_grad()
            return out.clone()  # activations work in place

        handles.append(conv.register_forward_hook(keep))
    try:
        for image in images:
            with torch.enable_grad():
                fgbg = network(image[None].clone().requires_grad_(True))[0]
                margin = fgbg[:, 1] - fgbg[:, 0]
                mixture = (margin * torch.randn_like(margin)).sum()
                mixture.backward()
            for name, out in kept.items():
                gradient = torch.zeros(out.shape[1]) if out.grad is None else out.grad.square().sum((0, 2, 3))
                sums[name] = sums.get(name, torch.zeros(out.shape[1])) + gradient
                means = found.outputs.get(name, torch.zeros(out.shape[1]))
                found.outputs[name] = means + out.detach().mean((0, 2, 3)) / len(images)
            kept.clear()
    finally:
        for handle in handles:
            handle.remove()
    found.influence = {name: np.asarray(value.double() / len(images)) for name, value in sums.items()}
    handles = []
    for name, conv in layers.items():

        def see(conv: nn.Module, args: tuple[torch.Tensor, ...], name: str = name) -> None:
            assert isinstance(conv, nn.Conv2d)  # noqa: S101
            found.curvature[name] = measure_curvature(conv, args[0])

        handles.append(conv.register_forward_pre_hook(see))
    try:
        with torch.inference_mode():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def measure_error(loss: F64, curvature: F64, influence: F64) -> float:
    """Expected squared change of the nail logits when a kernel (O, D) is off by ``loss``."""
    if curvature.ndim == 3:
        per_output = np.einsum("od,ode,oe->o", loss, curvature, loss)
    else:
        per_output = np.einsum("od,de,oe->o", loss, curvature, loss, optimize=True)
    return float(np.sum(per_output * influence))


def fit_layer(kernel: npt.NDArray[np.float32], curvature: F64, influence: F64, choice: Choice) -> Table:
    """A kernel (O, I, kh, kw) in tables that change its outputs the least on the calibration images.

    Values are rounded one after the other; what each one is off by is made up for by those not rounded yet
    (Frantar et al. 2023). Tables are then refitted to the indices in closed form.
    """
    outputs = len(kernel)
    flat = np.asarray(kernel, np.float64).reshape(outputs, -1)
    curvature = curvature if curvature.ndim == 3 else curvature[None]
    size = find_group_size(outputs, choice.group_size)
    scale = normalise(flat).astype(np.float64) if choice.channel_scale else np.ones(outputs)
    share = influence + 1e-3 * influence.mean() + 1e-30
    diagonal = np.einsum("cdd->cd", curvature) + 1e-12
    importance = np.broadcast_to(diagonal, flat.shape) * (share * scale**2)[:, None]
    scaled = flat / scale[:, None]
    entries = np.stack(
        [
            fit_entries(scaled[i : i + size].ravel(), importance[i : i + size].ravel(), choice.bits)
            for i in range(0, outputs, size)
        ]
    )
    factor = _factorise(curvature)
    best: tuple[float, F64, npt.NDArray[np.int64]] | None = None
    for turn in range(PASSES + 1):
        entries = np.sort(to_half(entries).astype(np.float64), axis=1)
        indices = _round_rows(flat, factor, entries, scale, size)
        error = _score(flat, entries, indices, scale, size, curvature, share)
        if best is None or error < best[0]:
            best = error, entries, indices
        if turn == PASSES:
            break
        entries = _refit(flat, indices, entries, scale, size, curvature, share)
        again = to_half(entries).astype(np.float64)  # in the order of the indices, which need not be sorted
        error = _score(flat, again, indices, scale, size, curvature, share)
        if error < best[0]:
            best = error, again, indices
    _, entries, indices = best if best is not None else (0.0, entries, indices)
    return _sort_table(entries, indices.reshape(kernel.shape), scale if choice.channel_scale else None)


def _sort_table(entries: F64, indices: npt.NDArray[np.int64], scale: F64 | None) -> Table:
    order = np.argsort(entries, axis=1, kind="stable")
    ranks = np.argsort(order, axis=1, kind="stable")
    outputs = len(indices)
    group = np.repeat(np.arange(len(entries)), outputs // len(entries))
    moved = ranks[group[:, None], indices.reshape(outputs, -1)].reshape(indices.shape)
    return Table(
        moved.astype(np.uint8),
        np.take_along_axis(entries, order, 1).astype(np.float32),
        None if scale is None else scale.astype(np.float32),
    )


def _factorise(curvature: F64) -> F64:
    """Upper factors of the damped inverses, (C, D, D)."""
    size = curvature.shape[-1]
    mean = np.einsum("cdd->c", curvature) / size
    damped = curvature + (DAMPING * mean + 1e-12)[:, None, None] * np.eye(size)
    return np.asarray(np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1), np.float64)


def _round_rows(flat: F64, factor: F64, entries: F64, scale: F64, size: int) -> npt.NDArray[np.int64]:
    outputs, width = flat.shape
    tables = np.repeat(entries, size, 0)  # (O, K)
    left = flat.copy()
    indices = np.empty(flat.shape, np.int64)
    for column in range(width):
        wanted = left[:, column] / scale
        found = np.abs(wanted[:, None] - tables).argmin(1)
        indices[:, column] = found
        rounded = tables[np.arange(outputs), found] * scale
        error = (left[:, column] - rounded) / factor[:, column, column]
        left[:, column + 1 :] -= error[:, None] * factor[:, column, column + 1 :]
    return indices


def _values(entries: F64, indices: npt.NDArray[np.int64], scale: F64, size: int) -> F64:
    tables = np.repeat(entries, size, 0)
    return np.asarray(np.take_along_axis(tables, indices, 1) * scale[:, None], np.float64)


def _score(  # noqa: PLR0917
    flat: F64,
    entries: F64,
    indices: npt.NDArray[np.int64],
    scale: F64,
    size: int,
    curvature: F64,
    share: F64,
) -> float:
    loss = flat - _values(entries, indices, scale, size)
    return measure_error(loss, curvature if len(curvature) > 1 else curvature[0], share)


def _refit(  # noqa: PLR0917
    flat: F64,
    indices: npt.NDArray[np.int64],
    entries: F64,
    scale: F64,
    size: int,
    curvature: F64,
    share: F64,
) -> F64:
    """Entries with the least error for given indices: a small linear system per table."""
    count = entries.shape[1]
    refitted = np.empty_like(entries)
    for table in range(len(entries)):
        matrix, wanted = np.zeros((count, count)), np.zeros(count)
        for row in range(table * size, (table + 1) * size):
            local = curvature[row] if len(curvature) > 1 else curvature[0]
            chosen = np.zeros((count, flat.shape[1]))
            chosen[indices[row], np.arange(flat.shape[1])] = scale[row]
            reach = chosen @ local
            matrix += share[row] * (reach @ chosen.T)
            wanted += share[row] * (reach @ flat[row])
        # What no index points to, or hardly, stays where it was.
        ridge = 1e-6 * np.trace(matrix) / count + 1e-300
        refitted[table] = np.linalg.solve(matrix + ridge * np.eye(count), wanted + ridge * entries[table])
    return refitted


def fit_codes(kernel: npt.NDArray[np.float32], curvature: F64) -> Codes:
    """A kernel (O, I, kh, kw) in 8-bit codes, rounded as ``fit_layer`` rounds."""
    outputs = len(kernel)
    flat = np.asarray(kernel, np.float64).reshape(outputs, -1)
    scale = to_half(np.abs(flat).max(1) / 127).astype(np.float64)
    scale = np.where(scale > 0, scale, 1.0)
    factor = _factorise(curvature if curvature.ndim == 3 else curvature[None])
    levels = np.arange(-127, 128, dtype=np.float64)[None]
    indices = _round_rows(flat, factor, levels, scale, outputs) - 127
    return Codes(indices.astype(np.int8).reshape(kernel.shape), scale.astype(np.float32))


def round_layers(
    network: ExportForm,
    images: torch.Tensor,
    choices: Mapping[str, Choice | Linear],
    statistics: Statistics,
) -> dict[str, Table | Codes]:
    """Round the kernels named in ``choices``, in place, in order of execution; returns what they became.

    Each palette is fitted to the activations that the layers rounded before it give, and every bias, also of
    layers that keep their kernel, to the mean output of the float network.
    """
    tables: dict[str, Table | Codes] = {}
    layers = list_convolutions(network)
    handles = []
    for name, conv in layers.items():

        def replace(conv: nn.Module, args: tuple[torch.Tensor, ...], name: str = name) -> None:
            assert isinstance(conv, nn.Conv2d)  # noqa: S101
            choice = choices.get(name)
            if choice is not None:
                curvature, kernel = measure_curvature(conv, args[0]), conv.weight.detach().numpy()
                tables[name] = (
                    fit_codes(kernel, curvature)
                    if isinstance(choice, Linear)
                    else fit_layer(kernel, curvature, statistics.influence[name], choice)
                )
                conv.weight.copy_(torch.from_numpy(tables[name].values))
            else:
                conv.weight.copy_(conv.weight.half().float())
            if conv.bias is not None:
                output = nn.functional.conv2d(
                    args[0], conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
                )
                conv.bias.add_(statistics.outputs[name] - output.mean((0, 2, 3)))

        handles.append(conv.register_forward_pre_hook(replace))
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return tables
