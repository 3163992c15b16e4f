"""What backbones made of numbered stages share: maps by stride, and stages that stay as initialised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import nn

LASTS = (4, 6, 8)  # the paper's prefixes: the high branch, and the low one of 43 and of 55 layers


class StagedPrefix(nn.Module):
    """Stages 1..last of a backbone; satisfies :class:`nailcore.nets.encoder.Encoder`.

    Stage 4 ends at stride 8, stages 6 and 8 at stride 16 (the later strides are removed, the stages
    behind them dilated). ``stages`` holds one module per stage, ``channels`` what each puts out.
    """

    def __init__(self, stages: Sequence[nn.Module], channels: Sequence[int]) -> None:
        super().__init__()
        last = len(stages)
        if last not in LASTS:
            raise ValueError(f"last stage {last}: expected 4, 6 or 8")
        for number, stage in enumerate(stages, start=1):
            self.add_module(f"stage{number}", stage)
        self.last = last
        self._frozen = 0
        self.channels = {8: channels[3]}
        if last > 4:
            self.channels[16] = channels[last - 1]

    def freeze(self, stages: int) -> None:
        """Keep the first stages, BatchNorm statistics included, as they were initialised."""
        self._frozen = min(stages, self.last)
        for number in range(1, self._frozen + 1):
            self.get_submodule(f"stage{number}").requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Training mode for all but the frozen stages."""
        super().train(mode)
        for number in range(1, self._frozen + 1):
            self.get_submodule(f"stage{number}").eval()
        return self

    def forward(self, x: torch.Tensor) -> dict[int, torch.Tensor]:
        """(N, 3, H, W) normalised RGB -> {8: (N, C, H/8, W/8), 16: (N, C, H/16, W/16)}."""
        maps: dict[int, torch.Tensor] = {}
        for number in range(1, self.last + 1):
            x = self.get_submodule(f"stage{number}")(x)
            if number == 4:
                maps[8] = x
        if self.last > 4:
            maps[16] = x
        return maps
