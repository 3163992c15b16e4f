"""The encoder seam: what the cascade asks of a backbone, and the registry of known ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import nn

from nailcore.errors import UnknownNameError
from nailcore.nets.efficientnet_lite import EfficientNetLite0Prefix
from nailcore.nets.mobilenetv2 import MobileNetV2Prefix
from nailcore.variant import Variant


class Encoder(Protocol):
    """A backbone prefix that yields feature maps by stride.

    The high branch asks for stride 8 alone, the low one for strides 8 and 16.
    """

    channels: dict[int, int]  # stride -> channels

    def freeze(self, stages: int) -> None:
        """Stop training the first stages (counted as the backbone counts them)."""

    def load_init(self, path: Path) -> int:
        """Take pretrained weights from a file of the backbone's own kind; returns convolutions loaded.

        Raises:
            WeightsError: missing, damaged, or of another backbone.
        """

    def __call__(self, x: torch.Tensor) -> dict[int, torch.Tensor]:
        """(N, 3, H, W) normalised RGB -> {stride: (N, channels[stride], H/stride, W/stride)}."""


# Each is built up to a stage: 4 for the high branch, 6 and 8 for the low branch of the two depths.
ENCODERS: dict[str, Callable[[int], nn.Module]] = {
    "mobilenetv2": MobileNetV2Prefix,
    "efficientnet-lite0": EfficientNetLite0Prefix,
}
FIRST_ENCODER = "mobilenetv2"  # the paper's
# The paper names its two depths by MobileNetV2's layers; another encoder is cut after the same stage.
_LAST_STAGE = {43: 6, 55: 8}


def build_encoders(name: str, layers: int) -> tuple[nn.Module, nn.Module]:
    """The (high, low) branches of a cascade; both satisfy :class:`Encoder`.

    Raises:
        UnknownNameError: no encoder of that name.
    """
    if name not in ENCODERS:
        raise UnknownNameError("encoder", name, ENCODERS)
    build = ENCODERS[name]
    return build(4), build(_LAST_STAGE[layers])


def with_encoder(variant: Variant, name: str) -> Variant:
    """A declared variant with another encoder; its name and its weights' name say so.

    Raises:
        UnknownNameError: no encoder of that name.
    """
    if name not in ENCODERS:
        raise UnknownNameError("encoder", name, ENCODERS)
    if name == variant.encoder:
        return variant
    depth, _, size = variant.name.partition("-")
    stem, hyphen, fine_tuned = variant.weights.partition("-")
    compact = "".join(letter for letter in name if letter.isalnum())  # a variant's name has one hyphen
    return variant.model_copy(
        update={
            "encoder": name,
            "name": f"{depth}{compact}-{size}",
            "weights": f"{stem}-{name}{hyphen}{fine_tuned}",
        }
    )


def as_encoder(module: nn.Module) -> Encoder:
    """A branch through the encoder seam, typed."""
    return cast(Encoder, module)
