"""Bisecting names the torch module and the cause of every defect planted into an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.bisect import Bisection, find_first_divergence, locate
from benchmark.causes import match_channels
from benchmark.divergence_words import describe_divergence
from benchmark.layer_map import kind_of, map_layers
from benchmark.torch_graph import TorchGraph, as_input
from deploy import find_target
from model_zoo import find_variant, weights_path
from nailcore.artifact import open_artifact
from nailcore.divergence_facts import Divergence
from nailcore.errors import ArtifactError
from nailcore.facts import read_fact, write_fact
from nailcore.preprocess import letterbox
from nailcore.runtime import Images, Layer
from tests.benchmark.broken_onnx import Defect, list_defects, plant_defect
from tests.built import build_artifact
from tests.photos import load_images

SHALLOW, DEEP = "nail43-288", "nail55-288"


@cache
def graph_of(name: str) -> TorchGraph:
    variant = find_variant(name)
    return TorchGraph(variant, weights_path(variant))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Images:
    sample = load_images(tmp_path_factory.mktemp("images") / "set").samples[0]
    return letterbox(sample.load_image(), 288, 288)[None]


def defects_of(name: str, other: str) -> list[Defect]:
    stale = graph_of(other).network.network.get_submodule("low.stage6.0.layers.0")
    norm = graph_of(name).norms["low.stage5.0.layers.3"]
    return list_defects(norm, stale.weight.numpy())  # type: ignore[operator]


def bisect_defect(name: str, defect: Defect, photo: Images, folder: Path) -> Divergence:
    artifact, path = open_artifact(build_artifact(name, "onnx"))
    broken = folder / path.name
    plant_defect(path, defect, broken)
    found = find_first_divergence(
        artifact, broken, weights_path(find_variant(name)), photo, names=["hand.jpg"]
    )
    assert found is not None, f"{defect.name}: no divergence found"
    return found


NAMES = [defect.name for defect in defects_of(SHALLOW, DEEP)]


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_the_planted_defect_is_named(number: int, photo: Images, tmp_path: Path) -> None:
    defect = defects_of(SHALLOW, DEEP)[number]
    found = bisect_defect(SHALLOW, defect, photo, tmp_path)
    assert (found.module, found.cause, found.confirmed) == (defect.module, defect.cause, True), found.detail


@pytest.mark.parametrize("name", ["dilation 2 to 1", "clip 6 to 1", "stale weights", "finger order"])
def test_the_deeper_variant_too(name: str, photo: Images, tmp_path: Path) -> None:
    defect = next(d for d in defects_of(DEEP, SHALLOW) if d.name == name)
    found = bisect_defect(DEEP, defect, photo, tmp_path)
    assert (found.module, found.cause, found.confirmed) == (defect.module, defect.cause, True)


def test_the_facts_hold_what_a_reader_needs(photo: Images, tmp_path: Path) -> None:
    defect = next(d for d in defects_of(SHALLOW, DEEP) if d.name == "dilation 2 to 1")
    found = bisect_defect(SHALLOW, defect, photo, tmp_path)
    assert found.file_attributes["dilations"] == "[1, 1]" and found.torch_attributes["dilation"] == "(2, 2)"
    assert found.image == "hand.jpg" and found.relative is not None and found.relative > found.tolerance
    assert found.residual is not None and found.residual < found.tolerance
    text = describe_divergence(found)
    assert "fusion16.project_f1" in text and "its dilation is 1, the network's 2" in text
    write_fact(tmp_path / "fact.json", found)
    assert read_fact(tmp_path / "fact.json", Divergence) == found


@pytest.mark.parametrize("name", [SHALLOW, DEEP])
def test_a_sound_file_has_no_divergence(name: str, photo: Images) -> None:
    artifact, path = open_artifact(build_artifact(name, "onnx"))
    assert find_first_divergence(artifact, path, weights_path(find_variant(name)), photo) is None


def test_every_layer_of_a_sound_file_is_mapped_and_memory_stays_bounded(
    photo: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, path = open_artifact(build_artifact(SHALLOW, "onnx"))
    runner = find_target("onnx").open_runner(artifact, path)
    graph, limit = graph_of(SHALLOW), 16 << 20
    asked: list[int] = []
    trace = runner.trace  # type: ignore[attr-defined]

    def watch(image: Any, names: Sequence[str]) -> Any:
        values = trace(image, names)
        asked.append(sum(value.nbytes for value in values.values()))
        return values

    monkeypatch.setattr(runner, "trace", watch)
    search = Bisection(artifact, runner, graph, "onnxruntime", limit)
    checks = list(search.check(photo))
    runner.close()
    # One point per step: nothing of the file or of the network is left out.
    assert sorted(c.point.node for c in checks) == sorted(n for n in graph.nodes if n != "image")
    assert search.map.unmatched == [] and all(c.passed for c in checks)
    assert max(asked) <= limit and len(asked) > 2


def test_a_file_of_another_network_is_refused(photo: Images) -> None:
    artifact, path = open_artifact(build_artifact(SHALLOW, "onnx"))
    runner = find_target("onnx").open_runner(artifact, path)

    class Half:
        def list_layers(self) -> list[Layer]:
            return runner.list_layers()[:40]  # type: ignore[attr-defined, no-any-return]

        def trace(self, image: Any, names: Sequence[str]) -> dict[str, Any]:
            raise AssertionError("a foreign file must not be executed")

        def read_weight(self, name: str) -> Any:
            return runner.read_weight(name)  # type: ignore[attr-defined]

    with pytest.raises(ArtifactError, match="convolutions have a counterpart"):
        map_layers(Half(), graph_of(SHALLOW), artifact.output_names, artifact.input_name)
    runner.close()


def test_recomputing_all_steps_gives_the_network_itself(photo: Images) -> None:
    graph = graph_of(SHALLOW)
    with torch.inference_mode():
        expected = graph.network(as_input(photo))
    for name, value in zip(graph.network.names, expected, strict=True):
        found = graph.evaluate(graph.outputs[name], {"image": as_input(photo)})
        assert torch.allclose(found, value, atol=1e-4)


@given(st.permutations(range(6)), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_any_channel_order_is_recognised(order: list[int], seed: int) -> None:
    expected = torch.randn(1, 6, 9, 9, generator=torch.Generator().manual_seed(seed))
    assert match_channels(expected, expected[:, order]) == list(order)


@given(st.sampled_from(["top", "bottom", "left", "right"]), st.integers(0, 7))
def test_an_error_at_one_edge_is_told_as_such(side: str, channel: int) -> None:
    expected = torch.linspace(0, 1, 8 * 12 * 12).reshape(1, 8, 12, 12)
    found = expected.clone()
    edge = {"top": found[0, channel, 0], "bottom": found[0, channel, -1]}
    edge |= {"left": found[0, channel, 1:-1, 0], "right": found[0, channel, 1:-1, -1]}
    edge[side] += 1.0
    where, channels = locate(expected, found, 1)
    assert side in where and "only within 1 px" in where and channels == [channel]


def test_words_of_all_formats_are_understood() -> None:
    words = {
        "conv": (
            "Conv",
            "_FusedConv2D",
            "FusedDepthwiseConv2dNative",
            "CONV_2D",
            "DEPTHWISE_CONV_2D",
            "conv",
        ),
        "clip": ("Clip", "Relu6", "RELU6", "clip"),
        "resize": ("Resize", "ResizeBilinear", "upsample_bilinear", "RESIZE_BILINEAR"),
        "pool": ("AveragePool", "AvgPool", "AVERAGE_POOL_2D", "avg_pool"),
    }
    for kind, names in words.items():
        assert {kind_of(Layer(n, n, {}, ("x",))) for n in names} == {kind}
    assert kind_of(Layer("a", "AddV2", {}, ("x", "y"))) == "add"
    assert kind_of(Layer("a", "AddV2", {}, ("x",))) == "tail"
