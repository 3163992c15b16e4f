"""The variant: one frozen declaration of a network's size, normalisation and outputs."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nailcore.errors import NailtoolError, tell_problems

FINGERS = ("thumb", "index", "middle", "ring", "pinky")
FINGER_CLASSES = tuple(f"{hand} {finger}" for hand in ("left", "right") for finger in FINGERS)


class OutputSpec(BaseModel):
    """One named logits tensor of the exported graph, (N, channels, H/stride, W/stride) float32."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    channels: int = Field(gt=0)


# Order is part of the contract: every target ships the outputs in this order *and* by these names.
OUTPUTS = (
    OutputSpec(name="fgbg", channels=2),  # background, nail
    OutputSpec(name="finger", channels=len(FINGER_CLASSES)),
    OutputSpec(name="direction", channels=2),  # x, y of base -> tip, image axes (y down)
)


class Variant(BaseModel):
    """What is built, checked and timed under one name such as ``nail55-480``.

    ``mean`` and ``std`` are in uint8 units (0..255) per RGB channel: a network input is
    ``(x - mean) / std``. ``output_stride`` is input pixels per logits cell; no report hides it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[a-z0-9]+-[0-9]+$")
    encoder: str = "mobilenetv2"
    encoder_layers: Literal[43, 55]
    height_px: int = Field(gt=0)
    width_px: int = Field(gt=0)
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)
    fusion_width: int = Field(default=128, gt=0)
    fusion_conv: Literal["dense", "separable"] = "dense"  # the 3×3 convolution on F1
    heads_stride: Literal[4, 8] = 4  # of the map the heads see; at 8 their logits are upsampled
    output_stride: Literal[4] = 4
    weights: str  # stem of the safetensors file in model_zoo/weights

    @model_validator(mode="after")
    def _divisible(self) -> Variant:
        for side in (self.height_px, self.width_px):
            if side % 32:
                raise ValueError(
                    f"input side {side} px is not a multiple of 32, the deepest stride of the cascade"
                )
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """Named logits in the order every target keeps."""
        return OUTPUTS

    @property
    def output_height(self) -> int:
        """Rows of every logits map."""
        return self.height_px // self.output_stride

    @property
    def output_width(self) -> int:
        """Columns of every logits map."""
        return self.width_px // self.output_stride


def load_variant(path: Path) -> Variant:
    """Read one TOML declaration.

    Raises:
        NailtoolError: naming the file, key, value found and values allowed.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
        variant = Variant.model_validate(values)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise NailtoolError(f"{path}: not valid TOML: {error}") from error
    except ValidationError as error:
        raise NailtoolError(f"{path}: not a valid variant: {tell_problems(error, 'file')}") from error
    if variant.name != path.stem:
        raise NailtoolError(
            f"{path}: declares name '{variant.name}'.",
            hint=f"A variant's file is called like the variant: rename it {variant.name}.toml.",
        )
    return variant
