"""What a target makes of a recipe: the declaration that each target module carries."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT = ("float32", "float16")


@dataclass(frozen=True)
class Service:
    """How a target stores weights, and which tables of a recipe it obeys."""

    stored: tuple[str, ...]
    integer: bool  # whether it computes in int8
    obeyed: tuple[str, ...] = ()
    calibrated: tuple[str, ...] = ()  # how it stores weights only with [calibration]
    integer_only: bool = False  # quantized weights go with compute_dtype 'int8' alone
    # Its weights are rounded before the conversion, which only these targets can take: None, any.
    rounded_beside: tuple[str, ...] | None = None
