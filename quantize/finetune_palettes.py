"""Fine-tuning of palettes: indices stay, what the tables and scales hold learns to say what float says."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nailcore.data.folder import Dataset
from nailcore.nets.export_form import ExportForm
from nailcore.variant import Variant
from quantize.finetune import FineTuned, Lesson, Report, layer_key, run_finetuning
from quantize.palettes import Table, to_half
from quantize.recipe import FineTune
from quantize.simulate import Scheme, Simulation

SCALE_UNIT = 1 / 32  # share of a scale
BIAS_UNIT = 6 / 255  # a level of what a ReLU6 lets through


class TableKernels(nn.Module):
    """Kernels as entries of tables: a gradient reaches an entry from every weight that it stands for.

    The unit in which an entry moves is the mean distance between two, divided by the root of how many
    weights move along: so many small errors in step add up to what as many independent ones of a whole
    unit do.
    """

    def __init__(self, network: ExportForm, tables: Mapping[str, Table]) -> None:
        super().__init__()
        self.tables = dict(tables)
        self.places: dict[str, torch.Tensor] = {}  # (O, D): of the table and the entry, flat
        self.units: dict[str, torch.Tensor] = {}
        self.stretch_unit: dict[str, float] = {}
        self.first: dict[str, torch.Tensor] = {}
        self.scales: dict[str, torch.Tensor] = {}
        self.biases: dict[str, torch.Tensor] = {}
        self.entries, self.stretch, self.shifts = (nn.ParameterDict() for _ in range(3))
        for name, table in self.tables.items():
            outputs, (groups, count) = len(table.indices), table.entries.shape
            owner = np.repeat(np.arange(groups), outputs // groups)[:, None] * count
            self.places[name] = torch.from_numpy(owner + table.indices.reshape(outputs, -1).astype(np.int64))
            first = torch.from_numpy(table.entries.copy())
            members = table.indices.size / first.numel()
            spread = (first.amax(1, keepdim=True) - first.amin(1, keepdim=True)) / count
            spread = spread / max(1.0, members) ** 0.5
            self.units[name] = torch.where(spread > 0, spread, torch.ones_like(spread))
            self.first[name] = first
            self.entries[layer_key(name)] = nn.Parameter(torch.zeros_like(first))
            if table.scale is not None:
                self.scales[name] = torch.from_numpy(table.scale.copy())
                self.stretch_unit[name] = SCALE_UNIT / (table.indices.size / outputs) ** 0.5
                self.stretch[layer_key(name)] = nn.Parameter(torch.zeros(outputs))
            bias = network.get_submodule(name).bias
            if isinstance(bias, torch.Tensor):
                self.biases[name] = bias.detach().clone()
                self.shifts[layer_key(name)] = nn.Parameter(torch.zeros(outputs))

    def forward(self, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The kernel (O, I, kh, kw) and the bias of a convolution, with gradients."""
        entries, scale = self.read(name)
        kernel = entries.flatten()[self.places[name]]
        if scale is not None:
            kernel = kernel * scale[:, None]
        return kernel.reshape(self.tables[name].indices.shape), self.read_bias(name)

    def read(self, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Entries (groups, 2**bits) and scales (O,), as numbers of float16, with gradients."""
        key = layer_key(name)
        entries = _as_half(self.first[name] + self.entries[key] * self.units[name])
        if name not in self.scales:
            return entries, None
        return entries, _as_half(self.scales[name] * (1 + self.stretch[key] * self.stretch_unit[name]))

    def read_bias(self, name: str) -> torch.Tensor | None:
        """The bias; None where there is none."""
        if name not in self.biases:
            return None
        bias: torch.Tensor = self.biases[name] + self.shifts[layer_key(name)] * BIAS_UNIT
        return bias

    def finish(self) -> dict[str, Table]:
        """The tables with what was learnt, their entries sorted."""
        found = {}
        with torch.no_grad():
            for name, table in self.tables.items():
                entries, scale = self.read(name)
                order = np.argsort(entries.numpy(), axis=1, kind="stable")
                ranks = np.argsort(order, axis=1, kind="stable")
                outputs = len(table.indices)
                group = np.repeat(np.arange(len(ranks)), outputs // len(ranks))[:, None]
                found[name] = replace(
                    table,
                    indices=ranks[group, table.indices.reshape(outputs, -1)]
                    .reshape(table.indices.shape)
                    .astype(np.uint8),
                    entries=to_half(np.take_along_axis(entries.numpy(), order, 1)),
                    scale=None if scale is None else to_half(scale.numpy()),
                )
        return found


def _as_half(values: torch.Tensor) -> torch.Tensor:
    """Rounded to float16, the gradient passing straight through."""
    return values + (values.detach().half().float() - values.detach())


def finetune_palettes(
    teacher: ExportForm,
    network: ExportForm,
    tables: Mapping[str, Table],
    *,
    variant: Variant,
    dataset: Dataset,
    settings: FineTune,
    checkpoint: Path,
    report: Report | None = None,
) -> tuple[FineTuned, dict[str, Table]]:
    """The network with fine-tuned tables, and the tables.

    Args:
        teacher: the float network; it is not changed.
        network: the same with the tables' kernels, its other kernels and biases as they will be stored.
        tables: layer -> table; which entry stands for a weight stays as it is.
        variant, dataset, settings, checkpoint, report: as ``finetune_quantized``, and raises as it.
    """
    student = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    others = frozenset(
        name for name, m in student.named_modules() if isinstance(m, nn.Conv2d) and name not in tables
    )
    simulation = Simulation(student, Scheme(activation_bits=0, keep_float=others, glue=False), {})
    kernels = TableKernels(student, tables)
    digest = hashlib.sha256()
    for name, table in sorted(tables.items()):
        digest.update(name.encode() + table.indices.tobytes() + table.entries.tobytes())
    course = run_finetuning(
        Lesson(
            teacher, simulation, kernels, variant, dataset, settings, {"tables_sha256": digest.hexdigest()}
        ),
        checkpoint,
        report,
    )
    found = kernels.finish()
    with torch.no_grad():
        for name, table in found.items():
            conv = simulation.find_conv(name)
            conv.weight.copy_(torch.from_numpy(table.values))
            bias = kernels.read_bias(name)
            if conv.bias is not None and bias is not None:
                conv.bias.copy_(bias)
    return FineTuned(student, *course), found
