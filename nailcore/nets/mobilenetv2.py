"""MobileNetV2 prefixes as data: one row per stage, strides and dilations chosen by the branch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

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


class MobileNetV2Prefix(nn.Module):
    """Stages 1..last of MobileNetV2 (α = 1.0); ``forward`` returns maps by their stride.

    Satisfies :class:`nailcore.nets.encoder.Encoder`. Ending at stage 4 it is the high-resolution
    branch (18 convolutions); at 6 or 8 the low-resolution one with 39 or 51 convolutions.
    """

    def __init__(self, last: int) -> None:
        super().__init__()
        if last not in (4, 6, 8):
            raise ValueError(f"last stage {last}: expected 4, 6 or 8")
        inputs = 3
        for number in range(1, last + 1):
            self.add_module(f"stage{number}", _build_stage(number, inputs, dilated=True))
            inputs = STAGES[number].channels
        self.last = last
        self._frozen = 0
        self.channels = {8: STAGES[4].channels}
        if last > 4:
            self.channels[16] = STAGES[last].channels

    def freeze(self, stages: int) -> None:
        """Keep the first stages, BatchNorm statistics included, as they were initialised."""
        self._frozen = stages
        for number in range(1, stages + 1):
            self.get_submodule(f"stage{number}").requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> MobileNetV2Prefix:
        """Training mode for all but the frozen stages."""
        super().train(mode)
        for number in range(1, self._frozen + 1):
            self.get_submodule(f"stage{number}").eval()
        return self

    def forward(self, x: torch.Tensor) -> dict[int, torch.Tensor]:
        """(N, 3, H, W) normalised RGB -> {8: (N, 32, H/8, W/8), 16: (N, C, H/16, W/16)}."""
        maps: dict[int, torch.Tensor] = {}
        for number in range(1, self.last + 1):
            x = self.get_submodule(f"stage{number}")(x)
            if number == 4:
                maps[8] = x
        if self.last > 4:
            maps[16] = x
        return maps


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
