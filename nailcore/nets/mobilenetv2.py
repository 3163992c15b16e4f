"""MobileNetV2 prefixes as data: one row per stage, strides and dilations chosen by the branch."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nailcore.errors import WeightsError
from nailcore.nets.staged import StagedPrefix

# Keras trains MobileNetV2 with this epsilon; other sources' weights are loaded with their own
# statistics and fine-tuned, so one value serves.
BATCHNORM_EPSILON = 1e-3


class StageRow(NamedTuple):
    """One row of MobileNetV2's table (Sandler et al. 2018, table 2), numbered from 1."""

    expansion: int  # 0: a plain 3×3 convolution
    channels: int
    repeats: int
    stride: int


STAGES = {
    1: StageRow(0, 32, 1, 2),
    2: StageRow(1, 16, 1, 1),
    3: StageRow(6, 24, 2, 2),
    4: StageRow(6, 32, 3, 2),
    5: StageRow(6, 64, 4, 2),
    6: StageRow(6, 96, 3, 1),
    7: StageRow(6, 160, 3, 2),
    8: StageRow(6, 320, 1, 1),
}
# Our reading of the paper: stage 7 loses its stride, stages 7 and 8 are dilated, so that the deep
# branch ends at stride 16 (see docs/network.md).
LOW_STRIDE = {7: 1}
LOW_DILATION = {7: 2, 8: 2}


def _conv_bn(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1, groups: int = 1
) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False),
        nn.BatchNorm2d(outputs, eps=BATCHNORM_EPSILON),
    ]


class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise 3×3, project 1×1; the input is added where shapes allow."""

    def __init__(self, inputs: int, outputs: int, *, expansion: int, stride: int, dilation: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [*_conv_bn(inputs, hidden, 1), nn.ReLU6(inplace=True)]
        layers += [*_conv_bn(hidden, hidden, 3, stride=stride, dilation=dilation, groups=hidden)]
        layers += [nn.ReLU6(inplace=True), *_conv_bn(hidden, outputs, 1)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, outputs, H/stride, W/stride)."""
        y: torch.Tensor = self.layers(x)
        return x + y if self.residual else y


def _build_stage(number: int, inputs: int, *, dilated: bool) -> nn.Sequential:
    row = STAGES[number]
    stride = LOW_STRIDE.get(number, row.stride) if dilated else row.stride
    dilation = LOW_DILATION.get(number, 1) if dilated else 1
    if row.expansion == 0:
        return nn.Sequential(*_conv_bn(inputs, row.channels, 3, stride=stride), nn.ReLU6(inplace=True))
    blocks = [
        InvertedResidual(
            inputs if i == 0 else row.channels,
            row.channels,
            expansion=row.expansion,
            stride=stride if i == 0 else 1,
            dilation=dilation,
        )
        for i in range(row.repeats)
    ]
    return nn.Sequential(*blocks)


class MobileNetV2Prefix(StagedPrefix):
    """Stages 1..last of MobileNetV2 (α = 1.0); ``forward`` returns maps by their stride.

    Ending at stage 4 it is the high-resolution branch (18 convolutions); at 6 or 8 the
    low-resolution one with 39 or 51 convolutions.
    """

    def __init__(self, last: int) -> None:
        numbers = range(1, last + 1)
        inputs = (3, *(STAGES[number].channels for number in numbers))
        super().__init__(
            [_build_stage(number, inputs[number - 1], dilated=True) for number in numbers], inputs[1:]
        )

    def load_init(self, path: Path) -> int:
        """Take the weights of a Keras-style .npz; returns the convolutions loaded.

        The file holds ``<layer>/kernel`` (HWIO; depthwise HWI1) and ``<bn>/{gamma,beta,moving_mean,
        moving_variance}`` with Keras' layer names.

        Raises:
            WeightsError: missing, damaged, or without one of the layers.
        """
        try:
            arrays = dict(np.load(path))
        except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise WeightsError(
                f"{path}: not a readable .npz of encoder weights: {error}",
                hint="Pass --init a MobileNetV2 1.00 exported with Keras layer names.",
            ) from error
        names = keras_names(self.last)
        for each in names:
            _copy_layer(self, each, arrays, path)
        return len(names)


def keras_names(last: int) -> list[tuple[str, str, str]]:
    """(our module path, Keras convolution, Keras BatchNorm) for every convolution of a prefix."""
    names = [("stage1.0", "Conv1", "bn_Conv1")]
    block = 0
    for number in range(2, last + 1):
        for i in range(STAGES[number].repeats):
            keras = "expanded_conv" if block == 0 else f"block_{block}"
            parts = ["depthwise", "project"] if block == 0 else ["expand", "depthwise", "project"]
            for position, part in enumerate(parts):
                ours = f"stage{number}.{i}.layers.{position * 3}"
                names.append((ours, f"{keras}_{part}", f"{keras}_{part}_BN"))
            block += 1
    return names


def _copy_layer(
    branch: nn.Module, names: tuple[str, str, str], arrays: dict[str, npt.NDArray[np.float32]], path: Path
) -> None:
    ours, conv, norm = names
    prefix, index = ours.rsplit(".", 1)
    targets = {
        f"{conv}/kernel": branch.get_submodule(ours).get_parameter("weight"),
    }
    batchnorm = branch.get_submodule(f"{prefix}.{int(index) + 1}")
    targets[f"{norm}/gamma"] = batchnorm.get_parameter("weight")
    targets[f"{norm}/beta"] = batchnorm.get_parameter("bias")
    targets[f"{norm}/moving_mean"] = batchnorm.get_buffer("running_mean")  # type: ignore[assignment]
    targets[f"{norm}/moving_variance"] = batchnorm.get_buffer("running_var")  # type: ignore[assignment]
    for name, target in targets.items():
        if name not in arrays:
            raise WeightsError(f"{path}: holds no '{name}', needed for {ours}.")
        value = arrays[name].astype(np.float32)
        if value.ndim == 4:  # HWIO -> OIHW; depthwise HWI1 -> I1HW
            value = value.transpose((2, 3, 0, 1) if target.shape[1] == 1 else (3, 2, 0, 1))
        if value.shape != tuple(target.shape):
            raise WeightsError(f"{path}: '{name}' is {value.shape}, expected {tuple(target.shape)}.")
        with torch.no_grad():
            target.copy_(torch.from_numpy(np.ascontiguousarray(value)))
