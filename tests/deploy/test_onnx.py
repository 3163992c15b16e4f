"""Target ONNX: deterministic bytes, no traces of this machine, names kept, damage named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from deploy import find_target
from nailcore.artifact import Artifact
from nailcore.errors import ArtifactError, UnknownNameError, WeightsError
from nailcore.nets import load_network
from nailcore.nets.cascade import build_cascade
from nailcore.nets.weights import save_weights
from nailcore.variant import Variant

VARIANT = Variant(name="nail43-96", encoder_layers=43, height_px=96, width_px=64, weights="tiny")
FP32 = {"name": "fp32"}
TARGET = find_target("onnx")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(build_cascade(VARIANT), path, {})
    return path


@pytest.fixture(scope="module")
def built(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    path = tmp_path_factory.mktemp("out") / "nail43-96.fp32.onnx"
    return TARGET.convert(VARIANT, FP32, weights, path), path


def test_equal_inputs_make_equal_bytes(built: tuple[Artifact, Path], weights: Path, tmp_path: Path) -> None:
    again = TARGET.convert(VARIANT, FP32, weights, tmp_path / "again.onnx")
    assert again.sha256 == built[0].sha256


def test_the_file_says_nothing_of_the_machine_that_made_it(built: tuple[Artifact, Path]) -> None:
    data = built[1].read_bytes()
    for trace in (b"site-packages", str(Path.cwd()).encode(), b".py", str(Path.home()).encode() + b"/"):
        assert trace not in data


def test_outputs_keep_names_order_and_shapes(built: tuple[Artifact, Path]) -> None:
    model = onnx.load(built[1])
    shapes = {o.name: [d.dim_value for d in o.type.tensor_type.shape.dim] for o in model.graph.output}
    assert shapes == {"fgbg": [1, 2, 24, 16], "finger": [1, 10, 24, 16], "direction": [1, 2, 24, 16]}
    assert [i.name for i in model.graph.input] == ["image"] and model.opset_import[0].version == 18
    assert "BatchNormalization" not in {n.op_type for n in model.graph.node}


def test_runner_equals_torch_on_a_batch(built: tuple[Artifact, Path], weights: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 64, 3)).astype(np.uint8)
    runner = TARGET.open_runner(*built)
    found = runner.run(images)
    with torch.inference_mode():
        expected = load_network(VARIANT, weights)(torch.from_numpy(images).permute(0, 3, 1, 2).float())
    for output, value in zip(VARIANT.outputs, expected, strict=True):
        np.testing.assert_allclose(found[output.name], value.numpy(), atol=1e-4)
    runner.close()


def test_damaged_files_and_missing_weights_are_named(built: tuple[Artifact, Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(built[1].read_bytes()[:5000])
    with pytest.raises(ArtifactError, match=r"cut\.onnx: is cut short"):
        TARGET.open_runner(built[0], cut)
    with pytest.raises(WeightsError, match="no weights file"):
        TARGET.convert(VARIANT, FP32, tmp_path / "gone.safetensors", tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_unknown_target_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean onnx"):
        find_target("onxx")
