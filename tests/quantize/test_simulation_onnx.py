"""The simulation against the file it stands for, executed by onnxruntime."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from deploy.onnx import _export
from model_zoo import find_variant, weights_path
from nailcore.data.folder import open_dataset
from nailcore.data.synth import draw_few
from nailcore.nets import load_network
from nailcore.nets.export_form import ExportForm
from nailcore.preprocess import letterbox
from quantize import find_recipe
from quantize.onnx_qdq import quantize_onnx
from quantize.rounding import round_weight
from quantize.simulate import Scheme, Simulation, as_input, list_layers, list_steps, observe_ranges
from tests.quantize.small_network import tiny_layers

VARIANT = find_variant("nail43-288")
RECIPE = find_recipe("int8-per-channel")
FLOAT = ("network.high.stage2.0.layers.0", "network.low.stage2.0.layers.3")
F32 = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> npt.NDArray[np.uint8]:
    folder = tmp_path_factory.mktemp("hands") / "set"
    draw_few(folder, (5, 9, 16))
    size = (VARIANT.height_px, VARIANT.width_px)
    return np.stack([letterbox(s.load_image(), *size) for s in open_dataset(folder).samples])


@cache
def network() -> ExportForm:
    return load_network(VARIANT, weights_path(VARIANT))


@cache
def exported() -> Any:
    return _export(VARIANT, network(), simplify=True)[0]


def margin(fgbg: F32) -> F32:
    return np.asarray(fgbg[:, 1] - fgbg[:, 0], np.float32)


def run_file(model: Any, images: npt.NDArray[np.uint8]) -> F32:
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = [np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32) for image in images]
    return margin(np.concatenate([session.run(["fgbg"], {"image": feed})[0] for feed in feeds]))


@pytest.mark.parametrize("float_layers", [(), FLOAT], ids=["all int8", "two in float"])
def test_it_is_far_closer_to_the_file_than_the_file_is_to_float(
    images: npt.NDArray[np.uint8], float_layers: tuple[str, ...]
) -> None:
    """Most of all where layers stay in float, which undoes the merging of pointwise convolutions."""
    made, _ = quantize_onnx(exported(), network(), images, RECIPE, float_layers)
    file = run_file(made, images)
    assert RECIPE.calibration is not None
    ranges = observe_ranges(network(), images, RECIPE.calibration)
    scheme = Scheme.of(RECIPE, list_layers(list_steps(network())), float_layers)
    with torch.inference_mode():
        simulated = margin(Simulation(network(), scheme, ranges)(as_input(images))[0].numpy())
        clean = margin(network()(as_input(images))[0].numpy())
    off, rounding = np.abs(simulated - file), np.abs(file - clean)
    assert off.mean() < 0.5 * rounding.mean()
    flipped = [np.count_nonzero((a > 0) != (b > 0)) for a, b in ((simulated, file), (file, clean))]
    assert flipped[0] < max(3, 0.7 * flipped[1])


def test_the_same_pairs_are_merged() -> None:
    scheme = Scheme.of(RECIPE, tiny_layers())
    simulation = Simulation(network(), Scheme(keep_float=frozenset(tiny_layers()), glue=False), {})
    ranges = dict.fromkeys((step.name for step in simulation.steps), (-1.0, 1.0))
    plan = Simulation(network(), scheme, ranges).plan
    calm = np.full((1, VARIANT.height_px, VARIANT.width_px, 3), 127, np.uint8)
    _, notes = quantize_onnx(exported(), network(), calm, RECIPE)
    assert {simulation.pairs[name] for name in plan.merged} == set(notes["rewritten"]["merged_pointwise"])


def test_trained_levels_are_the_files_levels(images: npt.NDArray[np.uint8]) -> None:
    """A kernel that lies on its grid passes through the quantizer unchanged."""
    import onnx

    found, _ = quantize_onnx(exported(), network(), images[:1], RECIPE)
    values = {t.name: onnx.numpy_helper.to_array(t) for t in found.graph.initializer}
    writers = {name: node for node in found.graph.node for name in node.output}
    checked = 0
    for node in found.graph.node:
        if node.op_type != "Conv" or node.name not in tiny_layers() or "stage1" in node.name:
            continue
        levels, scale = (values[name] for name in writers[node.input[1]].input[:2])
        weight = network().get_submodule(node.name).weight
        assert isinstance(weight, torch.Tensor)
        if levels.shape == tuple(weight.shape):  # not a merged one
            kernel = levels.astype(np.float32) * scale.reshape(-1, 1, 1, 1)
            np.testing.assert_allclose(kernel, round_weight(weight).numpy(), atol=1e-6 * np.abs(kernel).max())
            checked += 1
    assert checked > 50
