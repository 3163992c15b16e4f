"""Attributes of both sides stand in one row, and those that differ are told."""

from __future__ import annotations

import pytest

from benchmark.divergence_words import Attribute, pair_attributes

NETWORK = {
    "kernel": "64×64×3×3",
    "bias": "present",
    "stride": "(1, 1)",
    "padding": "(2, 2, 2, 2)",
    "dilation": "(2, 2)",
    "groups": "1",
}
FILES = {
    "onnx": {
        "auto_pad": "NOTSET",
        "dilations": "[2, 2]",
        "group": "1",
        "kernel_shape": "[3, 3]",
        "pads": "[2, 2, 2, 2]",
        "strides": "[1, 1]",
        "bias": "present",
    },
    "tfjs": {
        "padding": "EXPLICIT",
        "explicit_paddings": "[0, 0, 2, 2, 2, 2, 0, 0]",
        "strides": "[1, 1, 1, 1]",
        "dilations": "[1, 2, 2, 1]",
    },
    "tflite": {"padding": "SAME", "strides": "(1, 1)", "dilations": "(2, 2)"},
    "coreml": {
        "pad": "[2, 2, 2, 2]",
        "pad_type": "custom",
        "strides": "[1, 1]",
        "dilations": "[2, 2]",
        "groups": "1",
        "bias": "present",
    },
}


@pytest.mark.parametrize("kind", FILES)
def test_every_format_s_words_meet_torch_s(kind: str) -> None:
    pairs = {pair.name: pair for pair in pair_attributes(FILES[kind], NETWORK)}
    assert not any(pair.differs for pair in pairs.values())
    for name in ("stride", "dilation"):
        assert pairs[name].file is not None and pairs[name].network is not None
    assert {p.name for p in pairs.values() if p.network is None} <= {"padding mode", "kernel"}


@pytest.mark.parametrize("kind", FILES)
def test_what_differs_comes_first(kind: str) -> None:
    word = "dilations"
    one = {**FILES[kind], word: FILES[kind][word].replace("2", "1")}
    assert pair_attributes(one, NETWORK)[0] == Attribute("dilation", one[word], "(2, 2)", True)


def test_a_dropped_bias_differs_and_what_one_side_does_not_state_does_not() -> None:
    assert pair_attributes({"bias": "none"}, {"bias": "present"})[0].differs
    assert not pair_attributes({"bias": "[0.5, -0.25]"}, {"bias": "present"})[0].differs
    (pair,) = pair_attributes({}, {"groups": "64"})
    assert pair == Attribute("groups", None, "64", False)
