"""Handlers of MIL operations against coremltools' own inference of their values on constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from deploy.mil.registry import HANDLERS, Context, convert_value, to_tensor
from tests.deploy.mil_builder import Array, infer_value

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, (2, 3, 4, 5)).astype(np.float32)
POSITIVE = RNG.uniform(0.1, 3, (2, 3, 4, 5)).astype(np.float32)
UNIT = RNG.uniform(-0.9, 0.9, (2, 3, 4)).astype(np.float32)
INTS = RNG.integers(-9, 10, (3, 4)).astype(np.int32)
OTHER = np.where(INTS == 0, 3, INTS)[::-1].astype(np.int32)
FLAGS = INTS > 0
WEIGHT = RNG.normal(size=(7, 5)).astype(np.float32)
MASK = np.tri(4).astype(bool)
VECTOR = np.array([0.5, -1.0, 2.0], np.float32)

UNARY = {
    "abs": X, "acos": UNIT, "asin": UNIT, "atan": X, "atanh": UNIT, "ceil": X, "cos": X, "cosh": X, "erf": X,
    "exp": X, "exp2": X, "floor": X, "inverse": POSITIVE, "log": POSITIVE, "round": X * 3, "rsqrt": POSITIVE,
    "sign": X, "sin": X, "sinh": X, "sqrt": POSITIVE, "square": X, "tan": UNIT, "tanh": X, "relu": X,
    "relu6": X * 4, "sigmoid": X, "softplus": X, "softsign": X, "logical_not": FLAGS,
}  # fmt: skip
CASES: list[tuple[str, int, dict[str, Any]]] = [
    *((name, 15, {"x": x}) for name, x in UNARY.items()),
    *(
        (name, 15, {"x": X, "y": POSITIVE})
        for name in ("add", "sub", "mul", "real_div", "floor_div", "mod", "maximum", "minimum")
    ),
    *((name, 15, {"x": INTS, "y": OTHER}) for name in ("add", "sub", "mul", "floor_div", "mod", "maximum")),
    *(
        (name, 15, {"x": INTS, "y": OTHER})
        for name in ("equal", "not_equal", "greater", "greater_equal", "less", "less_equal")
    ),
    *(
        (name, 15, {"x": FLAGS, "y": FLAGS[::-1].copy()})
        for name in ("logical_and", "logical_or", "logical_xor")
    ),
    ("pow", 15, {"x": POSITIVE, "y": X}),
    ("add", 15, {"x": X, "y": VECTOR.reshape(3, 1, 1)}),
    ("round", 15, {"x": np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)}),
    ("clip", 15, {"x": X, "alpha": -0.5, "beta": 0.7}),
    ("threshold", 15, {"x": X, "alpha": 0.3}),
    ("select", 15, {"cond": FLAGS, "a": INTS, "b": OTHER}),
    ("cast", 15, {"x": X * 3, "dtype": "int32"}),
    ("cast", 15, {"x": INTS, "dtype": "bool"}),
    ("cast", 17, {"x": X * 30, "dtype": "int8"}),
    ("clamped_relu", 15, {"x": X, "alpha": 0.3, "beta": 1.2}),
    ("elu", 15, {"x": X, "alpha": 0.7}),
    ("leaky_relu", 15, {"x": X, "alpha": 0.2}),
    ("linear_activation", 15, {"x": X, "alpha": 0.3, "beta": -0.5}),
    ("prelu", 15, {"x": X, "alpha": VECTOR}),
    ("scaled_tanh", 15, {"x": X, "alpha": 1.7, "beta": 0.6}),
    ("sigmoid_hard", 15, {"x": X, "alpha": 0.3, "beta": 0.4}),
    ("softplus_parametric", 15, {"x": X, "alpha": VECTOR, "beta": VECTOR[::-1].copy()}),
    ("thresholded_relu", 15, {"x": X.copy(), "alpha": 0.4}),
    *(("gelu", 15, {"x": X, "mode": m}) for m in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")),
    *(("softmax", 15, {"x": X, "axis": a}) for a in (0, 1, -1)),
    *(
        (f"reduce_{name}", 15, {"x": POSITIVE, "axes": [1, -1], "keep_dims": keep})
        for name in (
            "sum",
            "mean",
            "prod",
            "max",
            "min",
            "l1_norm",
            "l2_norm",
            "sum_square",
            "log_sum",
            "log_sum_exp",
        )
        for keep in (False, True)
    ),
    ("reduce_sum", 15, {"x": INTS, "axes": [0], "keep_dims": False}),
    ("reduce_max", 15, {"x": X, "axes": None, "keep_dims": True}),
    ("reduce_argmax", 15, {"x": X, "axis": 1, "keep_dims": False}),
    ("reduce_argmin", 15, {"x": X, "axis": -1, "keep_dims": True}),
    ("reduce_argmax", 15, {"x": np.array([1.0, 3.0, 3.0], np.float32), "axis": 0, "keep_dims": False}),
    ("l2_norm", 15, {"x": X, "epsilon": 1e-4}),
    ("layer_norm", 15, {"x": X, "axes": [2, 3], "gamma": X[0, 0], "beta": X[0, 1], "epsilon": 1e-3}),
    ("layer_norm", 15, {"x": X, "axes": [1], "gamma": VECTOR, "beta": VECTOR, "epsilon": 1e-3}),
    ("matmul", 15, {"x": X, "y": X, "transpose_y": True}),
    ("matmul", 15, {"x": X[0], "y": X, "transpose_x": True}),
    ("linear", 15, {"x": X[0, 0], "weight": WEIGHT, "bias": WEIGHT[:, 0]}),
    ("einsum", 15, {"values": [X, X.transpose(0, 3, 2, 1).copy()], "equation": "nchw,nwhr->nchr"}),
    ("scaled_dot_product_attention", 18, {"query": X, "key": X, "value": X * 2}),
    ("scaled_dot_product_attention", 18, {"query": X, "key": X, "value": X, "attn_mask": MASK}),
    ("transpose", 15, {"x": X, "perm": [0, 2, 3, 1]}),
    ("reshape", 15, {"x": X, "shape": [0, -1, 2, 0]}),
    ("reshape", 15, {"x": X, "shape": [6, -1]}),
    ("reshape", 17, {"x": X[0, 0], "shape": [1, 0, -1, 0]}),
    ("reshape", 17, {"x": X[0], "shape": [0, -1]}),
    ("expand_dims", 15, {"x": INTS, "axes": [0, -1, 2]}),
    ("squeeze", 15, {"x": X.reshape(2, 1, 12, 1, 5), "axes": [1, -2]}),
    ("squeeze", 15, {"x": X.reshape(2, 1, 12, 1, 5)}),
    ("concat", 15, {"values": [INTS, OTHER], "axis": -1}),
    ("stack", 15, {"values": [INTS, OTHER], "axis": 1}),
    ("split", 15, {"x": X, "num_splits": 2, "axis": 2}),
    ("split", 15, {"x": X, "split_sizes": [1, 3, 1], "axis": -1}),
    ("tile", 15, {"x": INTS, "reps": [2, 3]}),
    ("reverse", 15, {"x": X, "axes": [1, -1]}),
    ("reverse", 15, {"x": INTS}),
    ("slice_by_index", 15, {"x": X, "begin": [0, -2, 3, 0], "end": [2, 3, 0, 5], "stride": [1, 1, -2, 3]}),
    (
        "slice_by_index",
        15,
        {
            "x": X,
            "begin": [1, 0, 0, 2],
            "end": [0, 0, -1, 0],
            "begin_mask": [False, True, False, False],
            "end_mask": [False, True, False, True],
            "squeeze_mask": [True, False, False, False],
        },
    ),
    ("slice_by_size", 15, {"x": X, "begin": [0, 1, 0, 2], "size": [2, -1, 3, 2]}),
    (
        "slice_update",
        18,
        {
            "x": X,
            "update": X[:, 1:, :2, ::2] * 0,
            "begin": [0, 1, 0, 0],
            "end": [2, 3, 2, 5],
            "stride": [1, 1, 1, 2],
        },
    ),
    *(
        ("pad", 15, {"x": X, "pad": [1, 2, 3, 0], "mode": m, "constant_val": 0.5})
        for m in ("constant", "reflect", "replicate")
    ),
    ("pad", 15, {"x": X, "pad": [0, 1, 2, 0, 1, 1, 0, 3], "mode": "reflect"}),
    *(
        ("band_part", 15, {"x": X, "lower": low, "upper": up})
        for low, up in ((0, -1), (-1, 0), (1, 2), (-1, -1))
    ),
    ("cumsum", 15, {"x": X, "axis": 1}),
    ("cumsum", 15, {"x": X, "axis": -1, "reverse": True}),
    ("gather", 15, {"x": X, "indices": np.array([[0, -1], [2, 1]], np.int32), "axis": 1}),
    ("gather", 16, {"x": X, "indices": np.array([[0, 2], [3, 1]], np.int32), "axis": 2, "batch_dims": 1}),
    (
        "gather_along_axis",
        15,
        {"x": INTS, "indices": np.array([[0, 2, 1, 0]], np.int32).repeat(3, 0), "axis": 1},
    ),
    ("non_zero", 15, {"x": INTS}),
    ("fill", 15, {"shape": np.array([2, 3], np.int32), "value": 1.5}),
    ("fill_like", 16, {"ref_tensor": X, "value": 7}),
    ("range_1d", 15, {"end": 12, "start": 1, "step": 3}),
    ("range_1d", 15, {"end": 2.0, "start": 0.0, "step": 0.3}),
    ("topk", 15, {"x": X, "k": 3, "axis": -1}),
    ("topk", 17, {"x": X, "k": 2, "axis": 1, "ascending": True}),
    (
        "quantize",
        17,
        {"input": X * 20, "scale": np.float32(0.3), "zero_point": np.int8(-7), "output_dtype": "int8"},
    ),
    (
        "quantize",
        17,
        {
            "input": X * 90,
            "scale": np.array([0.5, 1, 2], np.float32),
            "zero_point": np.array([1, 2, 3], np.uint8),
            "axis": 1,
            "output_dtype": "uint8",
        },
    ),
]


def compute(name: str, opset: int, arguments: dict[str, Any], expected: list[Array]) -> list[Array]:
    """Call a handler as the executor would, with constants for everything."""
    handler = HANDLERS[name]
    kinds = {np.float32: "fp32", np.float64: "fp32", np.int32: "int32", np.int64: "int32", np.bool_: "bool",
             np.int8: "int8", np.uint8: "uint8", np.int16: "int16", np.uint16: "uint16"}  # fmt: skip
    given: dict[str, Any] = {}
    for key, value in arguments.items():
        parameter = handler.parameters[key]
        if value is None:
            continue
        if parameter.kind == "tensors":
            given[key] = tuple(to_tensor(v, kinds[v.dtype.type]) for v in value)
        elif parameter.kind == "tensor":
            array = np.asarray(value)
            given[key] = to_tensor(array, kinds[array.dtype.type])
        else:
            given[key] = convert_value(
                parameter, value if isinstance(value, str) else np.asarray(value), name
            )
    if handler.wants_context:
        given["context"] = Context(opset, tuple(kinds[e.dtype.type] for e in expected))
    results = handler.function(**given)
    return [r.numpy() for r in (results if isinstance(results, tuple) else (results,))]


@pytest.mark.parametrize(
    ("name", "opset", "arguments"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)]
)
def test_handlers_agree_with_coremltools(name: str, opset: int, arguments: dict[str, Any]) -> None:
    expected = infer_value(name, opset, arguments)
    with torch.inference_mode():
        found = compute(name, opset, arguments, expected)
    assert [f.shape for f in found] == [e.shape for e in expected]
    for have, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(have.astype(np.float64), want.astype(np.float64), rtol=2e-5, atol=2e-6)


def test_interleaved_concat_takes_one_of_each_in_turn() -> None:
    # coremltools' own inference ignores the argument: this is the example of its manual.
    values = (torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.tensor([[7, 8], [9, 10], [11, 12]]))
    found = HANDLERS["concat"].function(values=values, axis=0, interleave=True)
    assert found.tolist() == [[1, 2], [7, 8], [3, 4], [9, 10], [5, 6], [11, 12]]
