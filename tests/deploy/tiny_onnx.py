"""A tiny three-headed network with every op of the real one, written as ONNX in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nailcore.variant import Variant

SIZE_PX = 64
NAMES = ("fgbg", "finger", "direction")
VARIANT = Variant(name="tiny-64", encoder_layers=43, height_px=SIZE_PX, width_px=SIZE_PX, weights="tiny")
FP32 = {"name": "fp32", "weights_dtype": "float32"}
FP16 = {"name": "fp16", "weights_dtype": "float16"}


class _Writer:
    """Adds nodes one after the other; each returns the name of its result."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def constant(self, values: Any) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(self, op: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        name = out or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"n_{name}", **attributes))
        return name

    def conv(self, x: str, cin: int, cout: int, k: int = 1, *, out: str = "", **how: int) -> str:
        group, stride, dilation = how.get("group", 1), how.get("stride", 1), how.get("dilation", 1)
        fan_in = cin // group * k * k
        kernel = self.rng.normal(0, fan_in**-0.5, (cout, cin // group, k, k)).astype(np.float32)
        bias = self.rng.normal(0, 0.2, cout).astype(np.float32)
        pad = dilation * (k - 1) // 2
        return self.add(
            "Conv",
            x,
            self.constant(kernel),
            self.constant(bias),
            out=out,
            kernel_shape=[k, k],
            pads=[pad] * 4,
            strides=[stride] * 2,
            dilations=[dilation] * 2,
            group=group,
        )

    def relu6(self, x: str) -> str:
        return self.add("Clip", x, self.constant(np.float32(0)), self.constant(np.float32(6)))

    def double(self, x: str) -> str:
        scales = self.constant(np.array([1, 1, 2, 2], np.float32))
        half = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        return self.add("Resize", x, "", scales, **half)

    def inverted_residual(self, x: str, cin: int, cout: int, *, stride: int = 1, dilation: int = 1) -> str:
        wide, group = self.relu6(self.conv(x, cin, 2 * cin)), 2 * cin
        wide = self.relu6(self.conv(wide, group, group, 3, group=group, stride=stride, dilation=dilation))
        narrow = self.conv(wide, group, cout)
        return self.add("Add", x, narrow) if cin == cout and stride == 1 else narrow


def write_onnx(path: Path, *, order: tuple[int, ...] = (0, 1, 2), scale: float = 1.0) -> Path:
    """(1, 3, 64, 64) RGB 0..255 -> three logits maps (1, C, 16, 16), listed in ``order``.

    ``scale`` multiplies the first kernel: with 1e7 it leaves the range of float16.
    """
    writer = _Writer(seed=7)
    x = writer.add("Sub", "image", writer.constant(np.full((1, 3, 1, 1), 127.5, np.float32)))
    x = writer.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = writer.relu6(writer.conv(x, 3, 12, 3))
    first = numpy_helper.to_array(writer.weights[1]) * np.float32(scale / 64)
    writer.weights[1].CopyFrom(numpy_helper.from_array(first, writer.weights[1].name))
    high = writer.inverted_residual(x, 12, 12, stride=2)  # (1, 12, 16, 16)
    low = writer.inverted_residual(high, 12, 20, stride=2)  # (1, 20, 8, 8)
    low = writer.inverted_residual(low, 20, 20, dilation=2)
    fused = writer.add(
        "Add", writer.conv(writer.double(low), 20, 14, 3, dilation=2), writer.conv(high, 12, 14)
    )
    fused = writer.add("Relu", fused)
    heads = [(name, channels) for name, channels in zip(NAMES, (2, 10, 2), strict=True)]
    for name, channels in heads:
        writer.conv(fused, 14, channels, out=name)
    outputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, channels, 16, 16))
        for name, channels in (heads[i] for i in order)
    ]
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, (1, 3, SIZE_PX, SIZE_PX))
    graph = helper.make_graph(writer.nodes, "tiny", [image], outputs, writer.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path
