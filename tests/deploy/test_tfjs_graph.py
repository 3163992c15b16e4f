"""Reading a TF.js folder without TF.js: layers in order, their attributes, kernels in torch's layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.tfjs_graph import GraphModel
from nailcore.errors import ArtifactError, UnknownNameError
from tests.deploy.tiny_tfjs import NAMES, TinyModel


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.tfjs"
    TinyModel().write(path)
    return path


def edit(folder: Path, change: Callable[[Any], object]) -> None:
    document = json.loads((folder / "model.json").read_text())
    change(document)
    (folder / "model.json").write_text(json.dumps(document))


def test_layers_stand_in_order_with_their_attributes(folder: Path) -> None:
    layers = GraphModel(folder).list_layers()
    names = [layer.name for layer in layers]
    assert names[:7] == ["centred", "scaled", "conv", "depth", "point", "sum", "small"]
    assert set(names[7:]) == {f"{name}_conv" for name in NAMES}
    found = {layer.name: layer for layer in layers}
    assert found["centred"].attributes == {"constant_1": [[[[127.5] * 3]]]}
    assert found["conv"].op == "_FusedConv2D"
    assert found["conv"].attributes["strides"] == [1, 2, 2, 1]
    assert found["conv"].attributes["padding"] == "EXPLICIT"
    assert found["conv"].attributes["explicit_paddings"] == [0, 0, 1, 1, 1, 1, 0, 0]
    assert found["conv"].attributes["fused_ops"] == ["BiasAdd", "Relu6"]
    assert found["depth"].attributes["dilations"] == [1, 2, 2, 1]
    assert found["depth"].attributes["padding"] == "SAME"
    assert found["sum"].inputs == ("depth", "point")  # through the alias, without the control input
    assert found["small"].attributes == {
        "size": [16, 16],
        "half_pixel_centers": True,
        "align_corners": False,
    }


def test_a_file_written_in_any_order_gives_an_order_of_execution(folder: Path) -> None:
    edit(folder, lambda document: document["modelTopology"]["node"].reverse())
    seen: set[str] = {"image"}
    for layer in GraphModel(folder).list_layers():
        assert set(layer.inputs) <= seen
        seen.add(layer.name)


def test_kernels_come_in_torch_layout(folder: Path) -> None:
    model, graph = TinyModel(), GraphModel(folder)
    kernel = model.kernels["conv"]
    dense = graph.read_weight("conv")
    assert dense is not None
    np.testing.assert_array_equal(dense, kernel.transpose(3, 2, 0, 1))
    found = graph.read_weight("depth")
    assert found is not None and found.shape == (16, 1, 3, 3)
    for channel in range(8):
        for multiple in range(2):
            expected = model.kernels["depth"][:, :, channel, multiple]
            np.testing.assert_array_equal(found[2 * channel + multiple, 0], expected)
    assert graph.read_weight("sum") is None
    with pytest.raises(UnknownNameError, match="Did you mean depth"):
        graph.read_weight("dept")


@pytest.mark.parametrize(("dtype", "steps"), [("float16", 0), ("uint16", 65535), ("uint8", 255)])
@pytest.mark.parametrize("shards", [1, 3])
def test_compressed_kernels_are_read_back(tmp_path: Path, dtype: str, steps: int, shards: int) -> None:
    model = TinyModel()
    model.write(tmp_path / "small", dtype, shards)
    graph = GraphModel(tmp_path / "small")
    for name, kernel in model.kernels.items():
        found = graph.read_tensor(f"{name}/kernel")
        assert found.dtype == np.float32
        span = float(kernel.max() - kernel.min())
        bound = 0.51 * span / steps if steps else 2**-11 * float(np.abs(kernel).max())
        assert 0 < float(np.abs(found - kernel).max()) <= bound
        np.testing.assert_array_equal(graph.read_tensor(f"{name}/bias"), model.biases[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["modelTopology"]["node"][2].update(input=["fgbg"]), "waits for its own result"),
        (lambda d: d["modelTopology"]["node"][2].update(input=["nowhere", "mean"]), "nowhere"),
        (lambda d: d["modelTopology"]["node"][4].pop("op"), "op"),
        (lambda d: d.pop("modelTopology"), "modelTopology"),
        (lambda d: d["modelTopology"].update(node=7), "not a TF.js model"),
        (lambda d: d["modelTopology"]["node"].append({"op": "Const"}), "name"),
        (lambda d: d["weightsManifest"][0]["weights"].pop(), "bytes, not"),
        (lambda d: d["weightsManifest"][0]["weights"][0].update(shape=[9]), "bytes, not"),
        (lambda d: d["weightsManifest"][0].update(paths=["gone.bin"]), "gone.bin"),
    ],
)
def test_graphs_that_are_none_are_refused_by_name(
    folder: Path, change: Callable[[Any], object], message: str
) -> None:
    edit(folder, change)
    with pytest.raises(ArtifactError, match=message):
        GraphModel(folder)
