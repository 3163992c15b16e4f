"""A cascade with any registered encoder leaves by the ONNX converter as the same function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deploy import find_target
from nailcore.nets import load_network
from nailcore.nets.cascade import build_cascade
from nailcore.nets.encoder import ENCODERS
from nailcore.nets.weights import save_weights
from nailcore.variant import Variant
from tests.nailcore.test_nets import scramble


@pytest.mark.parametrize("encoder", [name for name in ENCODERS if name != "mobilenetv2"])
def test_onnxruntime_equals_torch(encoder: str, tmp_path: Path) -> None:
    variant = Variant(
        name="other55-96", encoder=encoder, encoder_layers=55, height_px=96, width_px=64, weights="other"
    )
    torch.manual_seed(0)
    network = build_cascade(variant)
    scramble(network)
    weights, path = tmp_path / "other.safetensors", tmp_path / "other55-96.fp32.onnx"
    save_weights(network, weights, {"encoder": encoder})
    target = find_target("onnx")
    runner = target.open_runner(target.convert(variant, {"name": "fp32"}, weights, path), path)
    images = np.random.default_rng(0).integers(0, 256, (1, 96, 64, 3)).astype(np.uint8)
    found = runner.run(images)
    runner.close()
    with torch.inference_mode():
        expected = load_network(variant, weights)(torch.from_numpy(images).permute(0, 3, 1, 2).float())
    for output, value in zip(variant.outputs, expected, strict=True):
        span = float(value.max() - value.min())
        assert span > 0.1  # a constant would agree with anything
        assert float(np.abs(found[output.name] - value.numpy()).max()) < 1e-4 * span
