"""EfficientNet-Lite0 prefixes: a younger drop-in for MobileNetV2 with the same stages and strides."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from nailcore.errors import WeightsError
from nailcore.nets.mobilenetv2 import BATCHNORM_EPSILON  # TensorFlow's value, here too
from nailcore.nets.staged import StagedPrefix

NORM_ENTRIES = ("weight", "bias", "running_mean", "running_var")


class StageRow(NamedTuple):
    """One row of EfficientNet-Lite0 (Tan and Le 2019, table 1; Lite: no squeeze-excitation, ReLU6)."""

    expansion: int  # 0: a plain 3×3 convolution
    channels: int
    repeats: int
    stride: int
    kernel: int
    dilation: int = 1


# Stage 7 has lost its stride, and stages 7 and 8 are dilated, as in our MobileNetV2.
STAGES = (
    StageRow(0, 32, 1, 2, 3),
    StageRow(1, 16, 1, 1, 3),
    StageRow(6, 24, 2, 2, 3),
    StageRow(6, 40, 2, 2, 5),
    StageRow(6, 80, 3, 2, 3),
    StageRow(6, 112, 3, 1, 5),
    StageRow(6, 192, 4, 1, 5, 2),
    StageRow(6, 320, 1, 1, 3, 2),
)


def _pointwise(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs, eps=BATCHNORM_EPSILON)]


def _depthwise(channels: int, row: StageRow, stride: int) -> list[nn.Module]:
    padding = row.dilation * (row.kernel // 2)
    return [
        nn.Conv2d(channels, channels, row.kernel, stride, padding, row.dilation, channels, bias=False),
        nn.BatchNorm2d(channels, eps=BATCHNORM_EPSILON),
    ]


class MobileBlock(nn.Module):
    """Expand 1×1, depthwise k×k, project 1×1; the input is added where shapes allow."""

    def __init__(self, inputs: int, row: StageRow, stride: int) -> None:
        super().__init__()
        hidden = inputs * row.expansion
        layers: list[nn.Module] = []
        if row.expansion != 1:
            layers += [*_pointwise(inputs, hidden), nn.ReLU6(inplace=True)]
        layers += [*_depthwise(hidden, row, stride), nn.ReLU6(inplace=True)]
        layers += _pointwise(hidden, row.channels)
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == row.channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, outputs, H/stride, W/stride)."""
        y: torch.Tensor = self.layers(x)
        return x + y if self.residual else y


def _build_stage(row: StageRow, inputs: int) -> nn.Sequential:
    if row.expansion == 0:
        stem = nn.Conv2d(inputs, row.channels, row.kernel, row.stride, row.kernel // 2, bias=False)
        return nn.Sequential(
            stem, nn.BatchNorm2d(row.channels, eps=BATCHNORM_EPSILON), nn.ReLU6(inplace=True)
        )
    blocks = [MobileBlock(inputs, row, row.stride)]
    blocks += [MobileBlock(row.channels, row, 1) for _ in range(row.repeats - 1)]
    return nn.Sequential(*blocks)


class EfficientNetLite0Prefix(StagedPrefix):
    """Stages 1..last of EfficientNet-Lite0: 15, 33 or 48 convolutions up to stage 4, 6 or 8."""

    def __init__(self, last: int) -> None:
        rows = STAGES[:last]
        inputs = (3, *(row.channels for row in rows))
        super().__init__(
            [_build_stage(row, size) for row, size in zip(rows, inputs, strict=False)],
            [row.channels for row in rows],
        )

    def load_init(self, path: Path) -> int:
        """Take the weights of a classifier's state dict; returns the convolutions loaded.

        The file is torch's, with the layer names of ``efficientnet_lite_pytorch``
        (``_conv_stem``, ``_blocks.0._depthwise_conv``, ...); its head is left out.

        Raises:
            WeightsError: missing, damaged, or of another network.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            found = {str(name): torch.as_tensor(value) for name, value in state.items()}
        except Exception as error:  # torch raises nearly anything for a foreign file
            raise WeightsError(
                f"{path}: not a readable state dict of EfficientNet-Lite0: {str(error).splitlines()[0]}",
                hint="Pass --init the classifier's .pth file.",
            ) from error
        own = self.state_dict()  # shares its memory with the parameters
        names = list_names(self.last)
        for conv, norm, their_conv, their_norm in names:
            _copy(own[f"{conv}.weight"], found, f"{their_conv}.weight", path)
            for entry in NORM_ENTRIES:
                _copy(own[f"{norm}.{entry}"], found, f"{their_norm}.{entry}", path)
        return len(names)


def list_names(last: int) -> list[tuple[str, str, str, str]]:
    """(our convolution, our norm, theirs, their norm) for every convolution of a prefix."""
    names = [("stage1.0", "stage1.1", "_conv_stem", "_bn0")]
    block = 0
    for number, row in enumerate(STAGES[1:last], start=2):
        parts = [("depthwise", 1), ("project", 2)]
        if row.expansion != 1:
            parts = [("expand", 0), *parts]
        for i in range(row.repeats):
            ours, theirs = f"stage{number}.{i}.layers", f"_blocks.{block}"
            for position, (part, norm) in enumerate(parts):
                names.append(
                    (
                        f"{ours}.{3 * position}",
                        f"{ours}.{3 * position + 1}",
                        f"{theirs}._{part}_conv",
                        f"{theirs}._bn{norm}",
                    )
                )
            block += 1
    return names


def _copy(target: torch.Tensor, found: dict[str, torch.Tensor], name: str, path: Path) -> None:
    if name not in found:
        raise WeightsError(
            f"{path}: holds no '{name}': not the weights of EfficientNet-Lite0.",
            hint="Pass --init the classifier's .pth file, or choose the --encoder that the file is of.",
        )
    if found[name].shape != target.shape:
        raise WeightsError(f"{path}: '{name}' is {tuple(found[name].shape)}, expected {tuple(target.shape)}.")
    with torch.no_grad():
        target.copy_(found[name])
