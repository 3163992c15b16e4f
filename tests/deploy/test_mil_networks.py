"""Other people's networks, converted by coremltools, executed by the MIL reference, compared with torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy.coremltools_import import import_coremltools
from deploy.mil import MilModel
from nailcore.errors import DataError
from nailcore.runtime import Layer
from tests.deploy.mil_builder import convert_exported, convert_module, run_module
from tests.deploy.other_networks import NETWORKS, build_network

SHAPE = (1, 3, 64, 96)
# Each network for another iOS release, so that all four opsets are met with real graphs.
OPSET_OF = {name: 15 + i % 4 for i, name in enumerate(NETWORKS)}
HALVES = ("lraspp", "segformer", "unet")  # float16 too, each for another release than in float32


def example() -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_float32_agrees_with_torch(name: str, tmp_path: Path) -> None:
    network, x = build_network(name), example()
    model = convert_module(network, [x], tmp_path / f"{name}.mlpackage", opset=OPSET_OF[name])
    assert model.opset == OPSET_OF[name]
    found = model.run({"x0": x.numpy()})
    wanted = run_module(network, [x])
    assert [v.shape for v in found.values()] == [w.shape for w in wanted]
    for (label, value), want in zip(found.items(), wanted, strict=True):
        if want.dtype.kind == "i":
            assert value.dtype == np.int32, label
            np.testing.assert_array_equal(value, want)
        else:
            np.testing.assert_allclose(value, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", HALVES)
def test_float16_stays_within_its_rounding(name: str, tmp_path: Path) -> None:
    network, x = build_network(name), example()
    opset = 15 + (OPSET_OF[name] - 14) % 4
    ct = import_coremltools()
    inputs = [ct.TensorType("x0", shape=SHAPE, dtype=np.float32)]
    model = convert_module(
        network, [x], tmp_path / f"{name}.mlpackage", opset=opset, half=True, inputs=inputs
    )
    (wanted,) = run_module(network, [x])
    scale = float(np.abs(wanted).max())
    declared = next(iter(model.run({"x0": x.numpy()}).values())).astype(np.float32)
    exact = next(iter(model.run({"x0": x.numpy()}, precision="fp32").values())).astype(np.float32)
    narrow = next(iter(model.run({"x0": x.numpy()}, accumulate="fp16").values())).astype(np.float32)
    errors = [float(np.abs(v - wanted).max()) / scale for v in (exact, declared, narrow)]
    # Weights alone are rounded; then storage too; then sums as well: each step adds error, none breaks.
    assert 1e-6 < errors[0] < errors[1] < 5e-3
    assert errors[1] < errors[2] < 3e-2
    # What "declared" stores between operations can be stored in float16: rounding again changes nothing.
    stored: list[bool] = []

    def check(layer: Layer, tensors: tuple[torch.Tensor, ...]) -> None:
        if layer.name.endswith("_fp16"):
            stored.extend(torch.equal(t, t.half().float()) for t in tensors if t.is_floating_point())

    model.run({"x0": x.numpy()}, watch=check)
    assert len(stored) > 10
    assert all(stored)


def test_a_package_of_torch_export_agrees_too(tmp_path: Path) -> None:
    """Other operations, other names, and a debug file of coremltools' beside the model."""
    network, x = build_network("segformer"), example()
    model = convert_exported(network, x, tmp_path / "exported.mlpackage", opset=18)
    (feature,) = model.inputs
    (found,) = model.run({feature.name: x.numpy()}).values()
    (wanted,) = run_module(network, [x])
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def flexible(tmp_path_factory: pytest.TempPathFactory) -> MilModel:
    """A network whose input may have any size within a range."""
    ct = import_coremltools()
    sides = [ct.RangeDim(32, 128, 64), ct.RangeDim(32, 128, 96)]
    return convert_module(
        build_network("fastscnn"),
        [example()],
        tmp_path_factory.mktemp("flexible") / "fastscnn.mlpackage",
        opset=16,
        inputs=[ct.TensorType("x0", shape=ct.Shape((1, 3, *sides)))],
    )


@pytest.mark.parametrize("size", [(64, 96), (32, 32), (128, 64)])
def test_flexible_sizes(flexible: MilModel, size: tuple[int, int]) -> None:
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(2))
    (wanted,) = run_module(build_network("fastscnn"), [x])
    (found,) = flexible.run({"x0": x.numpy()}).values()
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)


def test_a_size_outside_the_range_is_refused(flexible: MilModel) -> None:
    with pytest.raises(DataError, match=r"32\.\.128"):
        flexible.run({"x0": np.zeros((1, 3, 64, 256), np.float32)})


def make_image_type(ct: Any, space: str, **options: Any) -> Any:
    layout = {"RGB": ct.colorlayout.RGB, "BGR": ct.colorlayout.BGR, "GRAYSCALE": ct.colorlayout.GRAYSCALE}
    channels = 1 if space == "GRAYSCALE" else 3
    return ct.ImageType("x0", shape=(1, channels, 8, 12), color_layout=layout[space], **options)


class Pick(torch.nn.Module):
    """Tells its channels apart."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.tensor([1.0, 10.0, 100.0])[: x.shape[1]].reshape(1, -1, 1, 1)
        return (x * weights).sum(1)


@pytest.mark.parametrize(
    ("space", "scale", "bias"),
    [("RGB", 1 / 127.5, [-1.0, -0.5, 0.25]), ("BGR", 0.5, [1.0, 2.0, 3.0]), ("GRAYSCALE", 2.0, 3.0)],
)
def test_image_inputs_keep_scale_bias_and_channel_order(
    space: str, scale: float, bias: Any, tmp_path: Path
) -> None:
    ct = import_coremltools()
    channels = 1 if space == "GRAYSCALE" else 3
    model = convert_module(
        Pick(),
        [torch.zeros(1, channels, 8, 12)],
        tmp_path / "pick.mlpackage",
        inputs=[make_image_type(ct, space, scale=scale, bias=bias)],
    )
    (feature,) = model.inputs
    assert feature.image is not None
    assert feature.image.color_space == space
    np.testing.assert_allclose(feature.image.scale, scale, rtol=1e-6)
    np.testing.assert_allclose(feature.image.bias, bias, rtol=1e-6)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3)[: 3 if channels == 3 else 2], np.uint8)
    planes = (
        pixels[None].astype(np.float64) if channels == 1 else pixels.transpose(2, 0, 1).astype(np.float64)
    )
    if space == "BGR":
        planes = planes[::-1]
    fed = planes * scale + np.reshape(np.asarray(bias, np.float64), (-1, 1, 1))
    wanted = (fed * np.array([1.0, 10.0, 100.0])[:channels, None, None]).sum(0)
    (found,) = model.run({"x0": pixels}).values()
    np.testing.assert_allclose(found[0], wanted, rtol=1e-5, atol=1e-4)
