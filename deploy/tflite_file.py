"""What a .tflite file says of itself: operators with attributes, tensors, constants and named signatures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from nailcore.runtime import Layer

CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
# Numpy type of each tensor type our files use; others are known by name only.
_DTYPES = {
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FileTensor:
    """A tensor as declared; ``data`` holds a constant's stored bytes and is empty otherwise."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # TFLite's word: FLOAT32, INT8, ...
    data: npt.NDArray[np.uint8]
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    axis: int = 0  # of the scales

    @property
    def constant(self) -> npt.NDArray[Any] | None:
        """The stored values in their stored type; None for what is computed."""
        if not self.data.size or self.dtype not in _DTYPES:
            return None
        return np.asarray(self.data).view(_DTYPES[self.dtype]).reshape(self.shape)

    @property
    def real(self) -> F32 | None:
        """The constant as real numbers: float16 widened, integers scaled back."""
        values = self.constant
        if values is None:
            return None
        if not self.scales:
            return values.astype(np.float32)
        along = [1] * values.ndim
        if len(self.scales) > 1:
            along[self.axis] = len(self.scales)
        scale = np.asarray(self.scales, np.float32).reshape(along if values.ndim else ())
        zero = np.asarray(self.zero_points, np.float32).reshape(along if values.ndim else ())
        return np.asarray((values.astype(np.float32) - zero) * scale, np.float32)


@dataclass(frozen=True)
class FileOperator:
    """One operator; ``inputs`` and ``outputs`` index the file's tensors (-1: left out)."""

    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TfliteFile:
    """The main subgraph of a file; ``signature`` maps output names to tensor indices."""

    tensors: tuple[FileTensor, ...]
    operators: tuple[FileOperator, ...]
    inputs: dict[str, int]
    signature: dict[str, int]

    def list_layers(self) -> list[Layer]:
        """Operators that compute something from the image, in order; named by their first output."""
        return [
            Layer(
                name=self.tensors[one.outputs[0]].name,
                op=one.op,
                attributes=one.attributes,
                inputs=tuple(
                    self.tensors[i].name for i in one.inputs if i >= 0 and self.find_constant(i) is None
                ),
            )
            for one in self.operators
            if not self._is_storage(one)
        ]

    def _is_storage(self, operator: FileOperator) -> bool:
        """A constant's own DEQUANTIZE is part of how it is stored, no layer."""
        return operator.op == "DEQUANTIZE" and self.tensors[operator.inputs[0]].data.size > 0

    def find_constant(self, index: int) -> F32 | None:
        """Real values behind a tensor: its own, or those its DEQUANTIZE widens."""
        values = self.tensors[index].real
        if values is not None:
            return values
        for operator in self.operators:
            if index in operator.outputs and self._is_storage(operator):
                return self.tensors[operator.inputs[0]].real
        return None

    def read_weight(self, name: str) -> F32 | None:
        """Kernel of the convolution that writes tensor ``name``, (out, in/groups, kh, kw)."""
        for operator in self.operators:
            if operator.op in CONVOLUTIONS and self.tensors[operator.outputs[0]].name == name:
                kernel = self.find_constant(operator.inputs[1])
                if kernel is None:
                    return None
                # CONV_2D stores (out, kh, kw, in), DEPTHWISE_CONV_2D (1, kh, kw, out).
                order = (0, 3, 1, 2) if operator.op == "CONV_2D" else (3, 0, 1, 2)
                return np.ascontiguousarray(kernel.transpose(order))
        return None

    def count_ops(self) -> dict[str, int]:
        """Operators per kind, sorted; a constant's DEQUANTIZE counts, it is in the file."""
        return dict(sorted(Counter(one.op for one in self.operators).items()))

    def count_dilated(self) -> int:
        """Convolutions that carry a dilation above one."""
        return sum(max(one.attributes.get("dilations", (1,))) > 1 for one in self.operators)


@cache
def _names(enum: str) -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {value: key for key, value in vars(getattr(schema, enum)).items() if not key.startswith("_")}


def read_tflite(data: bytes) -> TfliteFile:
    """Read the bytes of a file that ``deploy.intake`` has found sound.

    Raises:
        IndexError, ValueError, struct.error: on a file that was not checked before.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(data, 0)
    graph = schema.SubGraphT.InitFromObj(model.Subgraphs(0))
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    kinds = [_names("BuiltinOperator")[max(c.BuiltinCode(), c.DeprecatedBuiltinCode())] for c in codes]
    tensors = tuple(_read_tensor(model, tensor) for tensor in graph.tensors or [])
    inputs, outputs = _read_signature(model, tensors, graph)
    operators = tuple(
        FileOperator(
            kinds[one.opcodeIndex],
            _as_ints(one.inputs),
            _as_ints(one.outputs),
            _read_attributes(one.builtinOptions),
        )
        for one in graph.operators or []
    )
    return TfliteFile(tensors, operators, inputs, outputs)


def _as_ints(values: Any) -> tuple[int, ...]:
    # An absent vector reads as 0 or None, depending on the version of the generated code.
    return () if values is None or np.ndim(values) == 0 else tuple(int(v) for v in values)


def _read_tensor(model: Any, tensor: Any) -> FileTensor:
    raw = model.Buffers(tensor.buffer).DataAsNumpy()
    quantization = tensor.quantization
    scales = () if quantization is None or np.ndim(quantization.scale) == 0 else quantization.scale
    return FileTensor(
        name=(tensor.name or b"").decode("utf-8", "replace"),
        shape=_as_ints(tensor.shape),
        dtype=_names("TensorType")[tensor.type],
        data=raw if isinstance(raw, np.ndarray) else np.zeros(0, np.uint8),
        scales=tuple(float(s) for s in scales),
        zero_points=_as_ints(quantization.zeroPoint) if len(scales) else (),
        axis=int(quantization.quantizedDimension) if quantization is not None else 0,
    )


def _read_signature(
    model: Any, tensors: tuple[FileTensor, ...], graph: Any
) -> tuple[dict[str, int], dict[str, int]]:
    """Names of inputs and outputs: by the first signature, else the tensors' own."""
    if model.SignatureDefsLength():
        entry = model.SignatureDefs(0)
        return (
            {
                entry.Inputs(i).Name().decode(): entry.Inputs(i).TensorIndex()
                for i in range(entry.InputsLength())
            },
            {
                entry.Outputs(i).Name().decode(): entry.Outputs(i).TensorIndex()
                for i in range(entry.OutputsLength())
            },
        )
    return (
        {tensors[i].name: i for i in _as_ints(graph.inputs)},
        {tensors[i].name: i for i in _as_ints(graph.outputs)},
    )


def _read_attributes(options: Any) -> dict[str, Any]:
    """Options in the words of other formats where they have them, the rest under TFLite's own names."""
    if options is None:
        return {}
    values = {key: value for key, value in vars(options).items() if value is not None}
    found: dict[str, Any] = {}
    if "strideH" in values:
        found["strides"] = (int(values.pop("strideH")), int(values.pop("strideW")))
    if "dilationHFactor" in values:
        found["dilations"] = (int(values.pop("dilationHFactor")), int(values.pop("dilationWFactor")))
    if "padding" in values:
        found["padding"] = _names("Padding").get(values.pop("padding"), "unknown")
    if "fusedActivationFunction" in values:
        code = values.pop("fusedActivationFunction")
        found["activation"] = _names("ActivationFunctionType").get(code, "unknown")
    return found | {key: v.tolist() if isinstance(v, np.ndarray) else v for key, v in values.items()}
