"""What each layer of an ONNX file computes: intermediate tensors, attributes and decompressed kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nailcore.artifact import Artifact
from nailcore.errors import ArtifactError
from nailcore.runtime import Layer

_MAX_CONSTANT = 16  # values of a constant operand that are shown as an attribute
_CONVOLUTIONS = ("Conv", "QLinearConv", "ConvInteger")


class OnnxTrace:
    """The graph of an ONNX file, executed with any of its tensors as extra outputs.

    The file is never changed: the outputs are added to a copy in memory. Adding one keeps onnxruntime
    from fusing across that tensor, so values may differ from an untraced run by rounding.
    """

    def __init__(self, artifact: Artifact, path: Path, options: Any) -> None:
        import onnx

        try:
            self._model = onnx.load(path)
        except Exception as error:  # protobuf's DecodeError and OSError share no base
            raise ArtifactError(f"{path}: cannot be read as ONNX: {error}") from error
        self._path = path
        self._options = options
        self._input_name = artifact.input_name
        graph = self._model.graph
        self._values = {tensor.name: tensor for tensor in graph.initializer}
        self._constants = set(self._values) | {""}
        self._nodes: dict[str, Any] = {}
        for node in graph.node:
            if all(name in self._constants for name in node.input):
                self._constants.update(node.output)
            else:
                self._nodes[node.output[0]] = node

    def list_layers(self) -> list[Layer]:
        """All nodes that depend on the image, in the file's (topological) order."""
        return [
            Layer(
                name,
                node.op_type,
                self._attributes(node),
                tuple(source for source in node.input if source not in self._constants),
            )
            for name, node in self._nodes.items()
        ]

    def _attributes(self, node: Any) -> dict[str, Any]:
        import onnx

        found: dict[str, Any] = {}
        for attribute in node.attribute:
            value = onnx.helper.get_attribute_value(attribute)
            found[attribute.name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        try:
            labels = [item.name for item in onnx.defs.get_schema(node.op_type).inputs]
        except onnx.defs.SchemaError:
            labels = []
        for place, source in enumerate(node.input):
            label = labels[place] if place < len(labels) else f"input {place}"
            tensor = self._values.get(source)
            if node.op_type in _CONVOLUTIONS and label == "B":
                found["bias"] = "present"
            elif tensor is not None and int(np.prod(tensor.dims)) <= _MAX_CONSTANT:
                found[label] = onnx.numpy_helper.to_array(tensor).ravel().tolist()
        return found

    def trace(self, image: npt.NDArray[np.uint8], names: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Outputs of the named layers for one (1, H, W, 3) RGB image, as float32."""
        feed = np.ascontiguousarray(image.transpose(0, 3, 1, 2), np.float32)
        values = self._run(feed, list(names))
        return {name: np.asarray(value).astype(np.float32) for name, value in zip(names, values, strict=True)}

    def _run(self, feed: npt.NDArray[np.float32], names: list[str]) -> list[Any]:
        import onnx
        import onnxruntime as ort

        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        try:
            session = ort.InferenceSession(
                model.SerializeToString(), self._options, providers=["CPUExecutionProvider"]
            )
            return list(session.run(names, {self._input_name: feed}))
        except Exception as error:  # onnxruntime raises many unrelated types
            raise ArtifactError(
                f"{self._path}: onnxruntime cannot show {', '.join(names[:4])}: {error}"
            ) from error

    def read_weight(self, name: str) -> npt.NDArray[np.float32] | None:
        """Kernel of the convolution called ``name``, (out, in/groups, kh, kw); None for other layers."""
        import onnx

        node = self._nodes.get(name)
        if node is None or node.op_type != "Conv" or node.input[1] not in self._constants:
            return None
        tensor = self._values.get(node.input[1])
        if tensor is not None:
            return np.asarray(onnx.numpy_helper.to_array(tensor)).astype(np.float32)
        # Stored quantized: onnxruntime itself decompresses it.
        shape = [d.dim_value for d in self._model.graph.input[0].type.tensor_type.shape.dim]
        blank = np.zeros([max(side, 1) for side in shape], np.float32)
        return np.asarray(self._run(blank, [node.input[1]])[0]).astype(np.float32)
