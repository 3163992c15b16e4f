"""Compressed weights: what the reference decompresses against an unpacking of weight.bin written apart."""

from __future__ import annotations

import itertools
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.coremltools_import import import_coremltools, silence_coremltools
from deploy.mil import MilModel, load_package
from deploy.mil.blobs import unpack_bits
from deploy.mil.constants import lut_to_dense
from deploy.mil.reader import read_spec
from nailcore.errors import ArtifactError
from tests.deploy.mil_builder import Array, target_of

C_OUT, C_IN = 16, 8


class Probe(torch.nn.Module):
    """One convolution large enough to be compressed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = torch.nn.Conv2d(C_IN, C_OUT, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv(x)
        return result


@pytest.fixture(scope="module")
def plain() -> dict[tuple[int, bool], Any]:
    """The same convolution for iOS 16 and 18, before compression."""
    ct = import_coremltools()
    made = {}
    with silence_coremltools():
        traced = torch.jit.trace(Probe().eval(), torch.zeros(1, C_IN, 6, 6))  # type: ignore[no-untyped-call]
        for opset, half in ((16, False), (18, True), (18, False)):
            made[opset, half] = ct.convert(
                traced,
                inputs=[ct.TensorType("x", shape=(1, C_IN, 6, 6))],
                minimum_deployment_target=target_of(opset),
                compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
                convert_to="mlprogram",
                skip_model_load=True,
            )
    return made


def compress(model: Any, *steps: tuple[str, dict[str, Any]]) -> Any:
    """Apply compressions of coremltools.optimize.coreml one after the other."""
    import_coremltools()
    import coremltools.optimize.coreml as cto

    kinds = {
        "palettize": (cto.OpPalettizerConfig, cto.palettize_weights),
        "quantize": (cto.OpLinearQuantizerConfig, cto.linear_quantize_weights),
        "prune": (cto.OpMagnitudePrunerConfig, cto.prune_weights),
    }
    with silence_coremltools():
        for i, (kind, options) in enumerate(steps):
            make, apply = kinds[kind]
            config = cto.OptimizationConfig(global_config=make(**options, weight_threshold=16))
            model = apply(model, config, **({"joint_compression": True} if i else {}))
    return model


# ---- an unpacking of our own, by the format's description and nothing of deploy.mil ---------------


def bits_one_by_one(data: bytes, bits: int, count: int) -> list[int]:
    """Elements packed from the least significant bit on, with plain integers."""
    whole = int.from_bytes(data, "little")
    return [(whole >> (bits * i)) & ((1 << bits) - 1) for i in range(count)]


class RawFile:
    """weight.bin by hand: records of 64 bytes that say where their data lie."""

    _BITS: ClassVar = {1: 16, 2: 32, 3: 8, 4: 8, 8: 4, 9: 1, 10: 2, 11: 4, 12: 3, 13: 6}

    def __init__(self, package: Path) -> None:
        self.spec, model_file = read_spec(package)
        self.data = (model_file.parent / "weights" / "weight.bin").read_bytes()
        function = self.spec.mlProgram.functions["main"]
        self.operations = list(function.block_specializations[function.opset].operations)
        self.by_name = {o.name: op for op in self.operations for o in op.outputs}

    def argument(self, op: Any, name: str) -> Any:
        """The value proto of an argument, wherever this opset keeps it; or the operation it names."""
        if name in op.attributes:
            return op.attributes[name]
        binding = op.inputs[name].arguments[0]
        if binding.WhichOneof("binding") == "value":
            return binding.value
        maker = self.by_name[binding.name]
        return maker.attributes["val"] if maker.type == "const" else maker

    def read(self, value: Any) -> Array:
        """A stored tensor as float64."""
        shape = [d.constant.size for d in value.type.tensorType.dimensions]
        count = int(np.prod(shape))
        if value.WhichOneof("value") == "immediateValue":
            return self._inline(value, count).reshape(shape)
        offset = value.blobFileValue.offset
        _, code, size, start = struct.unpack_from("<IIQQ", self.data, offset)
        raw = self.data[start : start + size]
        if code in (1, 2):
            return np.array(struct.unpack(f"<{count}{'e' if code == 1 else 'f'}", raw)).reshape(shape)
        values = np.array(bits_one_by_one(raw, self._BITS[code], count), np.float64)
        if code in (4, 8):  # signed: two's complement
            values[values >= 1 << (self._BITS[code] - 1)] -= 1 << self._BITS[code]
        return values.reshape(shape)

    @staticmethod
    def _inline(value: Any, count: int) -> Array:
        tensor = value.immediateValue.tensor
        kind = tensor.WhichOneof("value")
        if kind != "bytes":
            return np.array(getattr(tensor, kind).values, np.float64)
        code = {10: "e", 21: "b", 31: "B", 33: "I"}[value.type.tensorType.dataType]
        return np.array(struct.unpack(f"<{count}{code}", tensor.bytes.values), np.float64)

    def dense(self, op: Any) -> Array:
        """The weight that a constexpr operation stands for, element by element."""
        return getattr(self, op.type.removeprefix("constexpr_"))(op)  # type: ignore[no-any-return]

    def _value(self, op: Any, name: str) -> Array:
        found = self.argument(op, name)
        return self.dense(found) if hasattr(found, "outputs") else self.read(found)

    def lut_to_dense(self, op: Any) -> Array:
        lut = self._value(op, "lut")
        if "shape" in op.attributes:
            shape = [int(v) for v in self._value(op, "shape")]
            packed = bytes(self._value(op, "indices").astype(np.uint8))
            picks = bits_one_by_one(packed, int(np.log2(lut.size)), int(np.prod(shape)))
            return lut.reshape(-1)[picks].reshape(shape)
        indices = self._value(op, "indices").astype(int)
        out = np.empty(indices.shape)
        for place in itertools.product(*map(range, indices.shape)):
            group = [p * g // n for p, g, n in zip(place, lut.shape, indices.shape, strict=False)]
            out[place] = lut[(*group, indices[place], 0)]
        return out

    def affine_dequantize(self, op: Any) -> Array:
        data, axis = self._value(op, "quantized_data"), int(self._value(op, "axis"))
        scale, zero = self._value(op, "scale").reshape(-1), self._value(op, "zero_point").reshape(-1)
        out = np.empty(data.shape)
        for place in itertools.product(*map(range, data.shape)):
            i, j = (place[axis] if v.size > 1 else 0 for v in (scale, zero))
            out[place] = scale[i] * (data[place] - zero[j])
        return out

    def blockwise_shift_scale(self, op: Any) -> Array:
        data, scale = self._value(op, "data"), self._value(op, "scale")
        offset = self._value(op, "offset") if "offset" in op.inputs else np.zeros(scale.shape)
        out = np.empty(data.shape)
        for place in itertools.product(*map(range, data.shape)):
            block = tuple(p * b // n for p, b, n in zip(place, scale.shape, data.shape, strict=True))
            out[place] = scale[block] * (data[place] - offset[block])
        return out

    def sparse_to_dense(self, op: Any) -> Array:
        if "shape" in op.attributes:
            shape = [int(v) for v in self._value(op, "shape")]
            flags = bits_one_by_one(bytes(self._value(op, "mask").astype(np.uint8)), 1, int(np.prod(shape)))
            values = iter(self._value(op, "nonzero_data"))
        else:
            maker = self.argument(op, "nonzero_data")
            mask, data = self._pair(maker) if hasattr(maker, "outputs") else (
                self._value(op, "mask"), self.read(maker)
            )  # fmt: skip
            shape, flags, values = list(mask.shape), [int(m) for m in mask.reshape(-1)], iter(data)
        return np.array([next(values) if f else 0.0 for f in flags]).reshape(shape)

    def _pair(self, op: Any) -> tuple[Array, Array]:
        if op.type == "constexpr_lut_to_sparse":
            mask, picks = self._value(op, "indices_mask"), self._value(op, "indices_nonzero_data").astype(int)
            return mask, self._value(op, "lut").reshape(-1)[picks]
        mask, data = self._value(op, "data_mask"), self._value(op, "nonzero_data")
        places = np.argwhere(mask != 0)
        scale = self._value(op, "scale")
        offset = self._value(op, "offset") if "offset" in op.inputs else np.zeros(scale.shape)
        blocks = [
            tuple(p * b // n for p, b, n in zip(place, scale.shape, mask.shape, strict=True))
            for place in places
        ]
        return mask, np.array([scale[b] * (d - offset[b]) for b, d in zip(blocks, data, strict=True)])


@dataclass(frozen=True)
class Recipe:
    """One way to compress, and what the package must look like afterwards."""

    label: str
    opset: int
    half: bool
    scheme: str
    steps: tuple[tuple[str, dict[str, Any]], ...]
    furthest: float = 0.12  # that a value may move; the weights reach 0.12


def palette(bits: int, **options: Any) -> tuple[str, dict[str, Any]]:
    return "palettize", {"nbits": bits, "mode": "uniform", **options}


PER_GROUP = {"granularity": "per_grouped_channel", "group_size": 4}
PER_BLOCK = {"granularity": "per_block", "block_size": 4}
PER_TENSOR = {"granularity": "per_tensor"}
INT8 = ("quantize", {"dtype": "int8", "mode": "linear_symmetric"})
HALF_PRUNED = ("prune", {"target_sparsity": 0.5})
RECIPES = [
    *(Recipe(f"palette {n} bit", 16, False, "palette", (palette(n),), 0.16) for n in (8, 6, 4, 2, 1)),
    Recipe("int8 per channel", 16, False, "linear", (INT8,), 1e-3),
    Recipe(
        "uint8 per tensor",
        16,
        False,
        "linear",
        (("quantize", {"mode": "linear", "dtype": "uint8", **PER_TENSOR}),),
        1e-3,
    ),
    Recipe("pruned", 16, False, "sparse", (("prune", {"target_sparsity": 0.6}),)),
    Recipe("grouped palette 6 bit", 18, True, "palette", (palette(6, **PER_GROUP),)),
    Recipe("grouped palette 3 bit", 18, True, "palette", (palette(3, **PER_GROUP),)),
    Recipe("int4 per block", 18, True, "linear", (("quantize", {"dtype": "int4", **PER_BLOCK}),)),
    Recipe("uint4 per channel", 18, False, "linear", (("quantize", {"dtype": "uint4", "mode": "linear"}),)),
    Recipe("palette of int8", 18, True, "linear+palette", (palette(4), (INT8[0], {**INT8[1], **PER_TENSOR}))),
    Recipe("pruned palette", 18, False, "palette+sparse", (HALF_PRUNED, palette(4))),
    Recipe("pruned int8", 18, True, "linear+sparse", (HALF_PRUNED, INT8)),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.label)
def test_decompression_agrees_with_the_bytes(
    plain: dict[tuple[int, bool], Any], tmp_path: Path, recipe: Recipe
) -> None:
    path = tmp_path / "probe.mlpackage"
    compress(plain[recipe.opset, recipe.half], *recipe.steps).save(str(path))
    model = load_package(path)
    raw = RawFile(path)
    name = next(layer.name for layer in model.layers if layer.op == "conv")
    maker = raw.argument(raw.by_name[name], "weight")
    wanted = raw.dense(maker)
    found = model.read_weight(name)
    assert found is not None
    assert found.shape == (C_OUT, C_IN, 3, 3)
    rounding = 2**-11 if recipe.half else 2**-23
    np.testing.assert_allclose(found, wanted, rtol=2 * rounding, atol=1e-7)
    forms = {str(form.scheme) for _, _, values, form in model.constants() if values.shape == found.shape}
    assert forms == {recipe.scheme}
    # The weight is still the network's: no recipe here moves a value further than its coarsest step.
    kept = Probe().conv.weight.detach().numpy()
    assert np.abs(found - kept).max() < recipe.furthest
    x = np.random.default_rng(0).normal(size=(1, C_IN, 6, 6)).astype(np.float32)
    run_with_weight(model, found, x, half=recipe.half)


def run_with_weight(model: MilModel, weight: Array, x: Array, *, half: bool) -> None:
    """The model computes with exactly that weight."""
    bias = Probe().conv.bias
    assert bias is not None
    wanted = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(weight), bias, padding=1)
    found = next(iter(model.run({"x": x}).values()))
    tolerance = 4e-3 if half else 2e-6
    np.testing.assert_allclose(found.astype(np.float32), wanted.detach().numpy(), atol=tolerance)


@given(st.data(), st.sampled_from((1, 2, 3, 4, 6, 8)), st.booleans())
@settings(max_examples=60, deadline=None)
def test_unpacking_is_the_inverse_of_packing(data: st.DataObject, bits: int, signed: bool) -> None:
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    values = data.draw(st.lists(st.integers(low, high), max_size=40))
    whole = sum((v & ((1 << bits) - 1)) << (bits * i) for i, v in enumerate(values))
    packed = whole.to_bytes(-(-bits * len(values) // 8), "little")
    found = unpack_bits(np.frombuffer(packed, np.uint8), bits, len(values), signed=signed)
    assert found.tolist() == values


def test_vectors_of_a_palette_lie_along_their_axis() -> None:
    # The example of coremltools' manual, case 2.1: two centroids a and b of three values each.
    indices = np.array([[[0, 0], [1, 0]], [[1, 1], [0, 0]]], np.uint8)
    lut = np.array([[10, 11, 12], [20, 21, 22]], np.int8).reshape(1, 1, 1, 2, 3)
    along_1 = lut_to_dense(indices, lut, 1)
    assert along_1[0].tolist() == [[10, 10], [11, 11], [12, 12], [20, 10], [21, 11], [22, 12]]
    assert lut_to_dense(indices, lut, 2)[1].tolist() == [[20, 21, 22, 20, 21, 22], [10, 11, 12, 10, 11, 12]]
    with pytest.raises(ArtifactError, match="vector_axis"):
        lut_to_dense(indices, lut, None)
    with pytest.raises(ArtifactError, match="palette of 2"):
        lut_to_dense(indices + 1, lut, 1)


@pytest.fixture(scope="module")
def saved(plain: dict[tuple[int, bool], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "probe.mlpackage"
    plain[16, False].save(str(path))
    return path


@pytest.mark.parametrize("keep", [0, 63, 64, 200, 4000])
def test_a_truncated_weight_file_is_named(saved: Path, tmp_path: Path, keep: int) -> None:
    broken = tmp_path / "broken.mlpackage"
    shutil.copytree(saved, broken)
    weights = next(broken.rglob("weight.bin"))
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"weight\.bin"):
        load_package(broken)


@pytest.mark.parametrize(
    ("position", "what"), [(64, "marker"), (68, "type 3"), (72, "bytes"), (4, "version")]
)
def test_a_damaged_record_is_named(saved: Path, tmp_path: Path, position: int, what: str) -> None:
    broken = tmp_path / "broken.mlpackage"
    shutil.copytree(saved, broken)
    weights = next(broken.rglob("weight.bin"))
    data = bytearray(weights.read_bytes())
    data[position] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=what):
        load_package(broken)
