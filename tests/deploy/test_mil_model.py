"""The MIL reference as a library: what it refuses, what it tells, and how it holds memory."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy.coremltools_import import import_coremltools, silence_coremltools
from deploy.mil import MilModel, load_package
from deploy.mil.constants import ARGUMENTS
from deploy.mil.coverage import (
    find_arguments,
    is_supported,
    list_known_operations,
    update_document,
)
from deploy.mil.reader import read_spec
from deploy.mil.registry import HANDLERS
from nailcore.errors import ArtifactError, ConversionError, DataError, UnknownNameError
from nailcore.runtime import Layer
from tests.deploy.mil_builder import build_package, convert_module

DOCUMENT = Path(__file__).parents[2] / "docs" / "mil-ops.md"


class Net(torch.nn.Module):
    """Convolution, activation, resize."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.conv.weight.data.abs_()  # so that large inputs add up

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.interpolate(self.conv(x).relu(), scale_factor=2.0, mode="bilinear")
        return y.clamp(max=0.9)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.mlpackage"
    convert_module(Net(), [torch.zeros(1, 3, 6, 8)], path, half=True, outputs=[float32_output()])
    return path


def float32_output() -> Any:
    return import_coremltools().TensorType("y", dtype=np.float32)


@pytest.fixture
def model(package: Path) -> MilModel:
    return load_package(package)


def x_of(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


Edit = Callable[[Any, Any], None]  # (function's block, whole spec)


def broken(package: Path, out: Path, edit: Edit) -> Path:
    """A copy of a package whose model file was edited."""
    shutil.copytree(package, out)
    spec, file = read_spec(out)
    function = spec.mlProgram.functions["main"]
    edit(function.block_specializations[function.opset], spec)
    file.write_bytes(spec.SerializeToString())
    return out


def find_op(block: Any, kind: str) -> Any:
    return next(op for op in block.operations if op.type == kind)


def set_string(block: Any, op: str, argument: str, text: str) -> None:
    name = find_op(block, op).inputs[argument].arguments[0].name
    constant = next(o for o in block.operations if o.outputs and o.outputs[0].name == name)
    constant.attributes["val"].immediateValue.tensor.strings.values[0] = text


def rename(block: Any, spec: Any) -> None:
    find_op(block, "relu").type = "frobnicate"


def unknown_mode(block: Any, spec: Any) -> None:
    set_string(block, "conv", "pad_type", "diagonal")


def unknown_argument(block: Any, spec: Any) -> None:
    op = find_op(block, "relu")
    op.inputs["slope"].CopyFrom(op.inputs["x"])


def missing_argument(block: Any, spec: Any) -> None:
    del find_op(block, "conv").inputs["weight"]


def undefined_input(block: Any, spec: Any) -> None:
    find_op(block, "relu").inputs["x"].arguments[0].name = "nowhere"


def undefined_output(block: Any, spec: Any) -> None:
    block.outputs[0] = "nowhere"


def wrong_order(block: Any, spec: Any) -> None:
    operations = [o for o in block.operations if o.type != "relu"] + [find_op(block, "relu")]
    copies = [type(o).FromString(o.SerializeToString()) for o in operations]
    del block.operations[:]
    block.operations.extend(copies)


def weight_elsewhere(block: Any, spec: Any) -> None:
    for op in block.operations:
        if op.type == "const" and op.attributes["val"].WhichOneof("value") == "blobFileValue":
            op.attributes["val"].blobFileValue.fileName = "@model_path/../../../secrets/weight.bin"


def unknown_opset(block: Any, spec: Any) -> None:
    function = spec.mlProgram.functions["main"]
    function.block_specializations["CoreML99"].CopyFrom(block)
    function.opset = "CoreML99"


@pytest.mark.parametrize(
    ("edit", "kind", "message"),
    [
        (rename, ConversionError, r"operation \d+ of main, frobnicate '.+'.*does not know"),
        (unknown_mode, ConversionError, r"conv '.+': pad_type is 'diagonal'; known: valid, same"),
        (unknown_argument, ConversionError, r"relu '.+' has the argument slope"),
        (missing_argument, ArtifactError, r"conv '.+' lacks its argument weight"),
        (undefined_input, ArtifactError, r"relu '.+' reads 'nowhere', written nowhere before"),
        (undefined_output, ArtifactError, r"Output 'nowhere'"),
        (wrong_order, ArtifactError, r"written nowhere before"),
        (weight_elsewhere, ArtifactError, r"weight"),
        (unknown_opset, ConversionError, r"opset 'CoreML99'; supported: CoreML5"),
    ],
)
def test_what_it_cannot_vouch_for_is_refused_when_opened(
    package: Path, tmp_path: Path, edit: Edit, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        load_package(broken(package, tmp_path / "broken.mlpackage", edit))


def test_a_shape_that_lies_is_refused_when_run(package: Path, tmp_path: Path) -> None:
    def lie(block: Any, spec: Any) -> None:
        find_op(block, "conv").outputs[0].type.tensorType.dimensions[1].constant.size = 9

    liar = load_package(broken(package, tmp_path / "liar.mlpackage", lie))
    with pytest.raises(ArtifactError, match=r"conv '.+': the file declares fp16\[1, 9, 6, 8\]"):
        liar.run({"x0": x_of(1, 3, 6, 8)})


def test_an_impossible_operation_is_named_when_run(package: Path, tmp_path: Path) -> None:
    def regroup(block: Any, spec: Any) -> None:
        name = find_op(block, "conv").inputs["groups"].arguments[0].name
        groups = next(o for o in block.operations if o.outputs[0].name == name)
        groups.attributes["val"].immediateValue.tensor.ints.values[0] = 2

    impossible = load_package(broken(package, tmp_path / "impossible.mlpackage", regroup))
    with pytest.raises(ArtifactError, match=r"conv '.+' cannot be computed with x \(1, 3, 6, 8\)"):
        impossible.run({"x0": x_of(1, 3, 6, 8)})


@pytest.mark.parametrize(
    ("inputs", "kind", "message"),
    [
        ({}, DataError, "'x0' is missing"),
        ({"y": x_of(1, 3, 6, 8)}, UnknownNameError, "known: x0"),
        ({"x0": x_of(1, 3, 8, 6)}, DataError, r"allowed: \(1, 3, 6, 8\)"),
        ({"x0": np.array(["a"])}, DataError, "numeric"),
    ],
)
def test_inputs_that_do_not_fit(
    model: MilModel, inputs: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        model.run(inputs)


def test_layers_tell_their_attributes_and_weights(model: MilModel) -> None:
    conv = next(layer for layer in model.layers if layer.op == "conv")
    assert conv.attributes["strides"] == [1, 1]
    assert conv.attributes["pad"] == [1, 1, 1, 1]
    assert "weight" not in conv.attributes
    weight = model.read_weight(conv.name)
    assert weight is not None
    np.testing.assert_array_equal(weight, Net().conv.weight.detach().half().float().numpy())
    assert model.read_weight(next(layer.name for layer in model.layers if layer.op == "relu")) is None
    with pytest.raises(UnknownNameError):
        model.read_weight("nothing")
    kinds = {(op, str(form)) for _, op, values, form in model.constants() if values.shape == weight.shape}
    assert kinds == {("const", "plain 16 bit")}


def test_every_layer_is_watched_in_order_and_memory_is_given_back(model: MilModel) -> None:
    seen: list[str] = []
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def watch(layer: Layer, tensors: tuple[torch.Tensor, ...]) -> None:
        nonlocal most
        seen.append(layer.name)
        alive.extend(weakref.ref(t) for t in tensors)
        most = max(most, sum(r() is not None for r in alive))

    model.run({"x0": x_of(1, 3, 6, 8)}, watch=watch)
    assert seen == [layer.name for layer in model.layers]
    assert len(seen) >= 5
    assert most <= 2  # a chain needs its input and its output, nothing else
    assert sum(r() is not None for r in alive) == 0


def test_results_are_the_callers_own(model: MilModel) -> None:
    x = x_of(1, 3, 6, 8)
    first = model.run({"x0": x})["y"]
    kept = first.copy()
    first += 1
    np.testing.assert_array_equal(model.run({"x0": x})["y"], kept)


def test_overflow_becomes_infinite_where_it_happens(model: MilModel) -> None:
    found: list[str] = []

    def scan(layer: Layer, tensors: tuple[torch.Tensor, ...]) -> None:
        if not all(bool(t.isfinite().all()) for t in tensors):
            found.append(layer.op)

    huge = np.full((1, 3, 6, 8), 60000.0, np.float32)
    model.run({"x0": huge}, watch=scan)
    assert found[0] == "conv"
    found.clear()
    model.run({"x0": huge}, watch=scan, precision="fp32")
    assert not found


def test_accumulation_in_float16_needs_float16(model: MilModel) -> None:
    with pytest.raises(ConversionError, match="declared"):
        model.run({"x0": x_of(1, 3, 6, 8)}, precision="fp32", accumulate="fp16")


def test_branches_and_loops(tmp_path: Path) -> None:
    def build(mb: Any, x: Any, count: Any) -> Any:
        total = mb.reduce_sum(x=x, axes=[0, 1])
        chosen = mb.cond(
            pred=mb.greater(x=total, y=0.0),
            _true_fn=lambda: mb.mul(x=x, y=2.0),
            _false_fn=lambda: mb.sub(x=x, y=1.0),
        )
        rounds = mb.squeeze(x=count, axes=[0])
        result = mb.while_loop(
            _cond=lambda i, v: mb.less(x=i, y=rounds),
            _body=lambda i, v: (mb.add(x=i, y=1), mb.add(x=v, y=0.5)),
            loop_vars=(0, chosen),
        )
        return result[1]

    inputs = {"x": np.zeros((2, 3), np.float32), "count": np.zeros(1, np.int32)}
    model = build_package(build, inputs, tmp_path / "loop.mlpackage")
    for sign, rounds in ((1.0, 3), (-1.0, 0)):
        x = np.abs(x_of(2, 3)) * np.float32(sign)
        (found,) = model.run({"x": x, "count": np.array([rounds])}).values()
        wanted = (x * 2 if sign > 0 else x - 1) + 0.5 * rounds
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    seen: list[str] = []
    model.run({"x": x, "count": np.array([2])}, watch=lambda layer, _: seen.append(layer.op))
    assert seen.count("add") == 4
    assert {layer.op for layer in model.layers} >= {"cond", "while_loop", "less", "mul", "sub"}


def test_a_classifier_names_its_class(tmp_path: Path) -> None:
    class Scores(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(x.mean((2, 3)), 1)

    ct = import_coremltools()
    model = convert_module(
        Scores(),
        [torch.zeros(1, 3, 4, 4)],
        tmp_path / "classifier.mlpackage",
        classifier_config=ct.ClassifierConfig(["red", "green", "blue"]),
    )
    x = np.zeros((1, 3, 4, 4), np.float32)
    x[:, 1] = 3
    found = model.run({"x0": x})
    assert model.classes == ("red", "green", "blue")
    label, probabilities = found.values()
    assert str(label) == "green"
    np.testing.assert_allclose(probabilities, np.exp([0, 3, 0]) / np.exp([0, 3, 0]).sum(), rtol=1e-5)


def save_neural_network(path: Path) -> None:
    ct = import_coremltools()
    with silence_coremltools():
        traced = torch.jit.trace(Net().eval(), torch.zeros(1, 3, 6, 8))  # type: ignore[no-untyped-call]
        model = ct.convert(
            traced, inputs=[ct.TensorType("x", shape=(1, 3, 6, 8))], convert_to="neuralnetwork"
        )
        model.save(str(path))


def test_other_kinds_of_model_are_named(package: Path, tmp_path: Path) -> None:
    save_neural_network(tmp_path / "old.mlmodel")
    with pytest.raises(ConversionError, match="is a neuralNetwork model; only mlProgram"):
        load_package(tmp_path / "old.mlmodel")

    def make_pipeline(block: Any, spec: Any) -> None:
        spec.pipeline.SetInParent()

    made = broken(package, tmp_path / "pipe.mlpackage", make_pipeline)
    with pytest.raises(ConversionError, match="pipeline model"):
        load_package(next(made.rglob("model.mlmodel")))

    def make_stateful(block: Any, spec: Any) -> None:
        spec.description.state.add().name = "memory"

    with pytest.raises(ConversionError, match="stateful"):
        load_package(broken(package, tmp_path / "state.mlpackage", make_stateful))


def test_paths_that_are_no_package(package: Path, tmp_path: Path) -> None:
    for name, make in {
        "absent": lambda p: None,
        "empty": lambda p: p.mkdir(),
        "file": lambda p: p.write_text("x"),
        "compiled": lambda p: (p.mkdir(), (p / "coremldata.bin").touch()),
    }.items():
        make(tmp_path / name)  # type: ignore[no-untyped-call]
        with pytest.raises(ArtifactError, match=name):
            load_package(tmp_path / name)
    for manifest in (
        "",
        "[]",
        "{}",
        json.dumps({"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "../x"}}}),
    ):
        shutil.copytree(package, tmp_path / "m.mlpackage")
        (tmp_path / "m.mlpackage" / "Manifest.json").write_text(manifest)
        with pytest.raises(ArtifactError, match="Manifest"):
            load_package(tmp_path / "m.mlpackage")
        shutil.rmtree(tmp_path / "m.mlpackage")


def test_the_table_in_the_docs_is_the_code_s() -> None:
    assert update_document(DOCUMENT) == DOCUMENT.read_text("utf-8"), "run `python -m deploy.mil.coverage`"


def test_handlers_take_every_argument_of_every_version() -> None:
    known = list_known_operations()
    assert set(HANDLERS) <= set(known)
    assert sum(map(is_supported, known)) >= 150
    for name, versions in known.items():
        for opset, definition in versions.items():
            arguments = find_arguments(definition)
            if name in HANDLERS:
                assert arguments <= set(HANDLERS[name].parameters), (name, opset)
            elif name in ARGUMENTS:
                forms = [{a.rstrip("?") for a in form} for form in ARGUMENTS[name]]
                assert arguments in forms, (name, opset)
