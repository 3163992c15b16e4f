"""A divergence in words: its error, and the attributes of both sides under one name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from nailcore.divergence_facts import Divergence

# The words of ONNX, TensorFlow, TFLite and MIL for what torch calls by one name.
_WORDS = {
    "dilations": "dilation",
    "strides": "stride",
    "group": "groups",
    "kernel_shape": "kernel",
    "pads": "padding",
    "pad": "padding",
    "explicit_paddings": "padding",
    "auto_pad": "padding mode",
    "pad_type": "padding mode",
}
_COMPARED = ("dilation", "stride", "groups", "bias")  # the others are written in another order or unit


class Attribute(NamedTuple):
    """One attribute; a side that does not state it has None. ``differs`` only where that can be told."""

    name: str
    file: str | None
    network: str | None
    differs: bool


def pair_attributes(file: Mapping[str, str], network: Mapping[str, str]) -> list[Attribute]:
    """All attributes of both sides, those that differ first, then by name.

    Args:
        file: of the file's layer, under the format's own words.
        network: of the torch module, under torch's.
    """
    found, wanted = _rename(file), _rename(network)
    pairs = [
        Attribute(name, found.get(name), wanted.get(name), _differ(name, found.get(name), wanted.get(name)))
        for name in sorted({*found, *wanted})
    ]
    return sorted(pairs, key=lambda pair: not pair.differs)


def _rename(attributes: Mapping[str, str]) -> dict[str, str]:
    renamed: dict[str, str] = {}
    for word, value in attributes.items():
        name = _WORDS.get(word, word)
        if word == "padding" and not re.search(r"\d", value):
            name = "padding mode"  # TensorFlow's SAME, VALID and EXPLICIT
        # Two words of one name in one layer (TensorFlow's padding beside explicit_paddings): keep both.
        renamed[word if name in renamed else name] = value
    return renamed


def _differ(name: str, file: str | None, network: str | None) -> bool:
    if name not in _COMPARED or file is None or network is None:
        return False
    one, other = _numbers(file), _numbers(network)
    return one != other if one and other else "none" in (file, network) and file != network


def _numbers(text: str) -> list[int]:
    """The whole numbers of a list; TensorFlow's (1, height, width, 1) without what stands around."""
    numbers = [int(n) for n in re.findall(r"-?\d+", text)] if not re.search(r"\d\.\d", text) else []
    return numbers[1:3] if len(numbers) == 4 and numbers[0] == numbers[3] == 1 else numbers


def describe_error(divergence: Divergence) -> str:
    """How large the layer's own error is; of a kernel that is off by little, that it is the kernel."""
    d = divergence
    if d.max_abs is None or d.relative is None:
        return "values that are not finite, or of another shape"
    size = f"max-abs {d.max_abs:.3g}, {100 * d.relative:.2g} % of its range"
    if d.relative <= d.tolerance:
        return f"{size}; too little to tell on this image, but the kernel is not the network's"
    return f"{size} (tolerance {100 * d.tolerance:.2g} %)"


def describe_divergence(divergence: Divergence) -> str:
    """A divergence for the terminal: what, where, why, and the attributes of both sides that differ."""
    d = divergence
    sure = "recomputed with torch: the error vanishes" if d.confirmed else "not confirmed by recomputing"
    lines = [
        f"{d.artifact.label} on {d.runtime}: first divergence in {d.module}",
        f"  layer    {d.layer} ({d.op}), {d.layers_checked} of {d.layers} layers checked, photo {d.image}",
        f"  cause    {d.cause}: {d.detail} ({sure})",
        f"  error    {describe_error(d)}",
        f"  where    {d.where}",
        f"  file     {_tell_attributes(d.file_attributes)}",
        f"  network  {d.torch_op}: {_tell_attributes(d.torch_attributes)}",
    ]
    return "\n".join(lines)


def _tell_attributes(attributes: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in attributes.items()) or "no attributes"
