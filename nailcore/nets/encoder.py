"""The encoder seam: what the cascade asks of a backbone, and the registry of known ones."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import nn

from nailcore.errors import UnknownNameError
from nailcore.nets.mobilenetv2 import MobileNetV2Prefix


class Encoder(Protocol):
    """A backbone prefix that yields feature maps by stride.

    The high branch asks for stride 8 alone, the low one for strides 8 and 16.
    """

    channels: dict[int, int]  # stride -> channels

    def freeze(self, stages: int) -> None:
        """Stop training the first stages (counted as the backbone counts them)."""

    def __call__(self, x: torch.Tensor) -> dict[int, torch.Tensor]:
        """(N, 3, H, W) normalised RGB -> {stride: (N, channels[stride], H/stride, W/stride)}."""


_MOBILENETV2_LAST = {43: 6, 55: 8}
ENCODERS = ("mobilenetv2",)


def build_encoders(name: str, layers: int) -> tuple[nn.Module, nn.Module]:
    """The (high, low) branches of a cascade; both satisfy :class:`Encoder`.

    Raises:
        UnknownNameError: no encoder of that name.
    """
    if name != "mobilenetv2":
        raise UnknownNameError("encoder", name, ENCODERS)
    return MobileNetV2Prefix(4), MobileNetV2Prefix(_MOBILENETV2_LAST[layers])


def as_encoder(module: nn.Module) -> Encoder:
    """A branch through the encoder seam, typed."""
    return cast(Encoder, module)
