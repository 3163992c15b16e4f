"""Decompression of stored weights: ours, the executor's and coremltools' own agree, form by form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from deploy.coreml_structure import read_package
from deploy.coreml_weights import Stored, read_constants
from deploy.coremltools_import import import_coremltools, silence_coremltools
from deploy.mil import load_package
from nailcore.errors import ArtifactError
from tests.deploy.broken_packages import Editor

SHAPE = (4, 6, 2, 2)
Array = npt.NDArray[Any]
Form = Callable[[Any, np.random.Generator], tuple[Any, Array]]


def types() -> Any:
    import_coremltools()
    from coremltools.converters.mil.mil import types as found

    return found


def packed(values: Array, bits: int) -> npt.NDArray[np.uint8]:
    stream = (values.ravel()[:, None].astype(np.uint8) >> np.arange(bits)) & 1
    return np.packbits(stream.ravel().astype(np.uint8), bitorder="little")


# Each form: the operation as coremltools builds it, and its dense values worked out by hand.
def affine(mb: Any, rng: np.random.Generator) -> tuple[Any, Array]:
    codes = rng.integers(-128, 128, SHAPE, dtype=np.int8)
    scale, zero = rng.random(6).astype(np.float32), rng.integers(-9, 9, 6, dtype=np.int8)
    made = mb.constexpr_affine_dequantize(
        quantized_data=codes, zero_point=zero, scale=scale, axis=np.int32(1)
    )
    placed = (1, 6, 1, 1)
    return made, scale.reshape(placed) * (codes.astype(np.float32) - zero.reshape(placed))


def packed_palette(mb: Any, rng: np.random.Generator) -> tuple[Any, Array]:
    indices, lut = rng.integers(0, 64, SHAPE), rng.standard_normal(64).astype(np.float32)
    made = mb.constexpr_lut_to_dense(indices=packed(indices, 6), lut=lut, shape=np.array(SHAPE, np.uint32))
    return made, lut[indices]


def packed_sparse(mb: Any, rng: np.random.Generator) -> tuple[Any, Array]:
    mask = rng.integers(0, 2, SHAPE)
    nonzero = rng.standard_normal(int(mask.sum())).astype(np.float32)
    made = mb.constexpr_sparse_to_dense(
        nonzero_data=nonzero, mask=packed(mask, 1), shape=np.array(SHAPE, np.uint32)
    )
    dense = np.zeros(SHAPE, np.float32)
    dense[mask != 0] = nonzero
    return made, dense


def blockwise(mb: Any, rng: np.random.Generator) -> tuple[Any, Array]:
    uint4 = types().np_uint4_dtype
    codes = rng.integers(0, 16, SHAPE)
    blocks = (2, 3, 1, 1)
    scale, offset = rng.random(blocks).astype(np.float32), rng.integers(0, 16, blocks)
    made = mb.constexpr_blockwise_shift_scale(
        data=codes.astype(uint4), scale=scale, offset=offset.astype(uint4)
    )
    grown: list[Array] = [np.repeat(np.repeat(v, 2, 0), 2, 1) for v in (scale, offset)]
    return made, grown[0] * np.asarray(codes - grown[1], np.float32)


def grouped_palette(mb: Any, rng: np.random.Generator) -> tuple[Any, Array]:
    indices = rng.integers(0, 16, SHAPE)
    lut = rng.standard_normal((2, 1, 1, 1, 16, 1)).astype(np.float32)
    made = mb.constexpr_lut_to_dense(indices=indices.astype(types().np_uint4_dtype), lut=lut)
    return made, np.stack([lut[i // 2, 0, 0, 0, :, 0][indices[i]] for i in range(4)])


def vector_palette(mb: Any, rng: np.random.Generator) -> tuple[Any, Array]:
    indices = rng.integers(0, 4, (2, 6, 2, 2))
    lut = rng.standard_normal((1, 1, 1, 1, 4, 2)).astype(np.float32)
    made = mb.constexpr_lut_to_dense(
        indices=indices.astype(types().np_uint2_dtype), lut=lut, vector_axis=np.int32(0)
    )
    dense = np.empty(SHAPE, np.float32)
    for i in range(4):
        dense[i] = lut[0, 0, 0, 0, :, i % 2][indices[i // 2]]
    return made, dense


def sparse(mb: Any, rng: np.random.Generator) -> tuple[Any, Array]:
    mask = rng.integers(0, 2, SHAPE)
    nonzero = rng.standard_normal(int(mask.sum())).astype(np.float32)
    made = mb.constexpr_sparse_to_dense(nonzero_data=nonzero, mask=mask.astype(types().np_uint1_dtype))
    dense = np.zeros(SHAPE, np.float32)
    dense[mask != 0] = nonzero
    return made, dense


def sparse_palette(mb: Any, rng: np.random.Generator) -> tuple[Any, Array]:
    found = types()
    mask, lut = rng.integers(0, 2, SHAPE), rng.standard_normal((1, 1, 1, 1, 16, 1)).astype(np.float32)
    indices = rng.integers(0, 16, int(mask.sum()))
    kept, nonzero = mb.constexpr_lut_to_sparse(
        indices_mask=mask.astype(found.np_uint1_dtype),
        indices_nonzero_data=indices.astype(found.np_uint4_dtype),
        lut=lut,
    )
    dense = np.zeros(SHAPE, np.float32)
    dense[mask != 0] = lut.ravel()[indices]
    return mb.constexpr_sparse_to_dense(nonzero_data=nonzero, mask=kept), dense


def sparse_linear(mb: Any, rng: np.random.Generator) -> tuple[Any, Array]:
    mask = rng.integers(0, 2, SHAPE)
    codes = rng.integers(-128, 128, int(mask.sum()), dtype=np.int8)
    scale = rng.random((4, 1, 1, 1)).astype(np.float32)
    kept, nonzero = mb.constexpr_sparse_blockwise_shift_scale(
        data_mask=mask.astype(types().np_uint1_dtype), nonzero_data=codes, scale=scale
    )
    dense = np.zeros(SHAPE, np.float32)
    dense[mask != 0] = codes
    return mb.constexpr_sparse_to_dense(nonzero_data=nonzero, mask=kept), dense * scale


def palette_of_codes(mb: Any, rng: np.random.Generator) -> tuple[Any, Array]:
    """A palette whose entries are int8 codes."""
    indices = rng.integers(0, 16, SHAPE)
    lut = rng.integers(-128, 128, (1, 1, 1, 1, 16, 1), dtype=np.int8)
    scale = np.array(0.25, np.float32).reshape(1, 1, 1, 1)
    inner = mb.constexpr_lut_to_dense(indices=indices.astype(types().np_uint4_dtype), lut=lut)
    made = mb.constexpr_blockwise_shift_scale(data=inner, scale=scale)
    return made, lut.ravel()[indices] * np.float32(0.25)


FORMS: dict[str, tuple[int, Form]] = {
    "int8 linear": (16, affine),
    "6-bit palette": (16, packed_palette),
    "sparse fp32": (16, packed_sparse),
    "uint4 linear": (18, blockwise),
    "4-bit palette, grouped": (18, grouped_palette),
    "2-bit palette of 2-vectors": (18, vector_palette),
    "sparse fp32, iOS 18": (18, sparse),
    "sparse 4-bit palette": (18, sparse_palette),
    "sparse int8 linear": (18, sparse_linear),
    "4-bit palette, of codes": (18, palette_of_codes),
}


def save_model(name: str, out: Path) -> Array:
    """A model that adds one compressed constant to its input; returns the constant's dense values."""
    ct = import_coremltools()
    from coremltools.converters.mil import Builder as mb  # noqa: N813 - coremltools' own habit

    version, form = FORMS[name]
    target = {16: ct.target.iOS16, 18: ct.target.iOS18}[version]
    kept: list[Array] = []

    def program(x: Any) -> Any:
        made, dense = form(mb, np.random.default_rng(0))
        kept.append(dense)
        return mb.add(x=x, y=made, name="sum")

    with silence_coremltools():
        decorate = mb.program(input_specs=[mb.TensorSpec(shape=SHAPE)], opset_version=target)
        model = ct.convert(
            decorate(program),
            minimum_deployment_target=target,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
            pass_pipeline=ct.PassPipeline.EMPTY,
        )
        model.save(str(out))
    return kept[-1]


def find_stored(path: Path) -> Stored:
    """The decompressed constant that the sum reads."""
    _, program = read_package(path)
    op = next(op for op in program.block.operations if op.op == "add")
    return read_constants(program)[op.inputs["y"][0].name]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", FORMS)
def test_every_storage_form_is_read_as_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.mlpackage"
    dense = save_model(name, path)
    stored = find_stored(path)
    assert stored.form == name.partition(",")[0] and stored.is_weight
    assert np.allclose(stored.values, dense, rtol=1e-6, atol=1e-7)
    executor = load_package(path)
    weight = executor.read_weight(stored.name)
    assert weight is not None and np.allclose(weight, dense, rtol=1e-6, atol=1e-7)
    found = executor.run({executor.inputs[0].name: np.zeros(SHAPE, np.float32)})
    assert np.allclose(next(iter(found.values())), dense, rtol=1e-6, atol=1e-7)


def test_a_form_that_contradicts_itself_is_named(tmp_path: Path) -> None:
    path, copy = tmp_path / "model.mlpackage", tmp_path / "copy.mlpackage"
    save_model("sparse fp32", path)
    edit = Editor(path, copy)
    op = next(op for op in edit.block.operations if op.type == "constexpr_sparse_to_dense")
    edit.change(op.attributes["mask"], lambda mask: mask ^ np.uint8(1))
    edit.save()
    with pytest.raises(ArtifactError, match=r"constexpr_sparse_to_dense .* cannot be decompressed: the mask"):
        find_stored(copy)


def test_an_unknown_form_is_named(tmp_path: Path) -> None:
    path, copy = tmp_path / "model.mlpackage", tmp_path / "copy.mlpackage"
    save_model("sparse fp32", path)
    edit = Editor(path, copy)
    next(op for op in edit.block.operations if op.type.startswith("constexpr_")).type = "constexpr_zip"
    edit.save()
    with pytest.raises(ArtifactError, match=r"constexpr_zip .*stored in a way that is not known"):
        find_stored(copy)
