"""ONNX files with one planted defect each, named with the torch module and the cause that must be found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nailcore.variant import FINGER_CLASSES


@dataclass(frozen=True)
class Defect:
    """One planted defect: ``plant`` edits the model in place."""

    name: str
    plant: Callable[[Any], None]
    module: str
    cause: str


def conv_of(model: Any, module: str) -> Any:
    """The node that reads the kernel of a module (not one that shares its kernel with another branch)."""
    nodes = [n for n in model.graph.node if n.op_type == "Conv" and n.input[1] == f"network.{module}.weight"]
    assert len(nodes) == 1, f"{module}: {len(nodes)} nodes read its kernel"
    return nodes[0]


def read(model: Any, name: str) -> Any:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    return numpy_helper.to_array(tensor).copy()


def write(model: Any, name: str, value: Any) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))


def change(module: str, edit: Callable[[Any], Any], what: str = "weight") -> Callable[[Any], None]:
    def plant(model: Any) -> None:
        conv_of(model, module)
        name = f"network.{module}.{what}"
        write(model, name, edit(read(model, name)))

    return plant


def set_attribute(module: str, **values: Any) -> Callable[[Any], None]:
    def plant(model: Any) -> None:
        replace_attributes(conv_of(model, module), **values)

    return plant


def replace_attributes(node: Any, **values: Any) -> None:
    kept = [a for a in node.attribute if a.name not in values]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(k, v) for k, v in values.items())])


def reader_of(model: Any, tensor: str, op: str) -> Any:
    return next(n for n in model.graph.node if tensor in n.input and n.op_type == op)


def permute_rows(module: str, order: list[int]) -> Callable[[Any], None]:
    def plant(model: Any) -> None:
        for what in ("weight", "bias"):
            change(module, lambda value: value[order], what)(model)

    return plant


def clip_to_one(model: Any) -> None:
    node = reader_of(model, conv_of(model, "low.stage5.2.layers.0").output[0], "Clip")
    model.graph.initializer.append(numpy_helper.from_array(np.array(1.0, np.float32), "one"))
    node.input[2] = "one"


def drop_clip(model: Any) -> None:
    conv = conv_of(model, "low.stage5.3.layers.0")
    clip = reader_of(model, conv.output[0], "Clip")
    for node in model.graph.node:
        for place, source in enumerate(node.input):
            if source == clip.output[0]:
                node.input[place] = conv.output[0]
    model.graph.node.remove(clip)


def resize_mode(module: str, mode: str) -> Callable[[Any], None]:
    def plant(model: Any) -> None:
        source = conv_of(model, module).input[0]
        node = next(n for n in model.graph.node if source in n.output)
        replace_attributes(node, coordinate_transformation_mode=mode)

    return plant


def swap_heads(model: Any) -> None:
    names = {"fgbg": "direction", "direction": "fgbg"}
    for node in model.graph.node:
        for place, output in enumerate(node.output):
            node.output[place] = names.get(output, output)


def before_normalization(make: Callable[[Any], list[Any]]) -> Callable[[Any], None]:
    """Insert nodes from ``image`` to ``seen`` in front of the subtraction of the mean."""

    def plant(model: Any) -> None:
        reader_of(model, "image", "Sub").input[0] = "seen"
        nodes = [*make(model), *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    return plant


def add_constant(model: Any, name: str, values: Any, dtype: Any = np.int64) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), name))


def reverse_colours(model: Any) -> list[Any]:
    add_constant(model, "bgr", [2, 1, 0])
    return [helper.make_node("Gather", ["image", "bgr"], ["seen"], axis=1)]


def shift_picture(model: Any) -> list[Any]:
    for name, values in (("pads", [0, 0, 0, 1, 0, 0, 0, 0]), ("starts", [0]), ("ends", [-1]), ("axes", [3])):
        add_constant(model, name, values)
    return [
        helper.make_node("Pad", ["image", "pads"], ["wide"], mode="edge"),
        helper.make_node("Slice", ["wide", "starts", "ends", "axes"], ["seen"]),
    ]


def linear_light(model: Any) -> list[Any]:
    add_constant(model, "white", 255.0, np.float32)
    add_constant(model, "gamma", 2.2, np.float32)
    return [
        helper.make_node("Div", ["image", "white"], ["unit"]),
        helper.make_node("Pow", ["unit", "gamma"], ["linear"]),
        helper.make_node("Mul", ["linear", "white"], ["seen"]),
    ]


def change_mean(model: Any) -> None:
    write(model, "mean", np.array([123.675, 116.28, 103.53]).reshape(1, 3, 1, 1))


def softmax_over_rows(model: Any) -> None:
    head = next(n for n in model.graph.node if "fgbg" in n.output)
    head.output[0] = "fgbg_logits"
    model.graph.node.append(helper.make_node("Softmax", ["fgbg_logits"], ["fgbg"], axis=2))


def rewire_residual(model: Any) -> None:
    conv = conv_of(model, "low.stage5.3.layers.6")
    add = reader_of(model, conv.output[0], "Add")
    other = 0 if add.input[1] == conv.output[0] else 1
    earlier = next(n for n in model.graph.node if add.input[other] in n.output)
    add.input[other] = earlier.input[0]  # one residual block too early


def double_operand(model: Any) -> None:
    conv = conv_of(model, "low.stage4.1.layers.6")
    add = reader_of(model, conv.output[0], "Add")
    add.input[:] = [conv.output[0]] * 2


def exchange_kernels(model: Any) -> None:
    one, two = "network.low.stage5.1.layers.3.weight", "network.low.stage5.2.layers.3.weight"
    a, b = read(model, one), read(model, two)
    write(model, one, b)
    write(model, two, a)


def flip_exponent_bit(value: Any) -> Any:
    bits = value.view(np.uint32)
    bits.flat[37] ^= np.uint32(1 << 26)
    return value


def overflow(value: Any) -> Any:
    value[3] = np.inf
    return value


def wrong_epsilon(norm: Any) -> Callable[[Any], None]:
    """As if low stage 5.0's depthwise BatchNorm had been folded with epsilon 1e-5 instead of 1e-3."""
    ratio = np.sqrt((norm.variance.numpy() + 1e-3) / (norm.variance.numpy() + 1e-5))
    beta = norm.beta.numpy()

    def plant(model: Any) -> None:
        change("low.stage5.0.layers.3", lambda w: w * ratio[:, None, None, None])(model)
        change("low.stage5.0.layers.3", lambda b: beta - (beta - b) * ratio, "bias")(model)

    return plant


def list_defects(norm: Any, stale: Any) -> list[Defect]:
    """All planted defects; ``norm``: NormStatistics of low.stage5.0.layers.3, ``stale``: another kernel."""
    fingers = [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]  # right hand first
    assert len(fingers) == len(FINGER_CLASSES)
    return [
        Defect("dropped bias", change("low.stage5.1.layers.0", np.zeros_like, "bias"),
               "low.stage5.1.layers.0", "dropped bias"),
        Defect("wrong epsilon", wrong_epsilon(norm), "low.stage5.0.layers.3", "wrong epsilon"),
        Defect("transposed depthwise kernel", change("low.stage5.2.layers.3", lambda w: w.swapaxes(2, 3)),
               "low.stage5.2.layers.3", "transposed weight"),
        Defect("transposed 1×1 kernel", change("fusion8.project_f1", lambda w: w.swapaxes(0, 1)),
               "fusion8.project_f1", "transposed weight"),
        Defect("convolution for correlation", change("output.refine.0", lambda w: w[:, :, ::-1, ::-1]),
               "output.refine.0", "flipped weight"),
        Defect("sign flipped", change("low.stage6.1.layers.6", np.negative),
               "low.stage6.1.layers.6", "sign-flipped weight"),
        Defect("dilation 2 to 1", set_attribute("fusion16.project_f1", dilations=[1, 1], pads=[1, 1, 1, 1]),
               "fusion16.project_f1", "dilation"),
        Defect("padding off by one", set_attribute("low.stage5.0.layers.3", pads=[0, 0, 1, 1]),
               "low.stage5.0.layers.3", "padding"),
        Defect("clip 6 to 1", clip_to_one, "low.stage5.2.layers.2", "clip bound"),
        Defect("clip dropped", drop_clip, "low.stage5.3.layers.2", "missing activation"),
        Defect("align_corners", resize_mode("fusion16.project_f1", "align_corners"),
               "fusion16.upsample", "corner alignment"),
        Defect("asymmetric resize", resize_mode("output.refine.0", "asymmetric"),
               "upsample", "coordinate mode"),
        Defect("stale weights", change("low.stage6.0.layers.0", lambda w: stale),
               "low.stage6.0.layers.0", "stale weight"),
        Defect("exchanged kernels", exchange_kernels, "low.stage5.1.layers.3", "foreign weight"),
        Defect("bit flip", change("low.stage6.2.layers.0", flip_exponent_bit),
               "low.stage6.2.layers.0", "damaged weight"),
        Defect("infinite weight", change("low.stage6.2.layers.0", overflow),
               "low.stage6.2.layers.0", "damaged weight"),
        Defect("overflowing scale", change("low.stage5.0.layers.0", lambda w: w * np.float32(1e38)),
               "low.stage5.0.layers.0", "weight scale"),
        Defect("finger order", permute_rows("output.heads.finger", fingers),
               "output.heads.finger", "channel permutation"),
        Defect("direction x and y", permute_rows("output.heads.direction", [1, 0]),
               "output.heads.direction", "channel permutation"),
        Defect("heads swapped", swap_heads, "output.heads.fgbg", "exchanged outputs"),
        Defect("softmax over rows", softmax_over_rows, "output.heads.fgbg", "softmax"),
        Defect("other mean", change_mean, "normalize", "normalization"),
        Defect("BGR", before_normalization(reverse_colours), "normalize", "colour order"),
        Defect("off-by-one crop", before_normalization(shift_picture), "normalize", "spatial shift"),
        Defect("linear light", before_normalization(linear_light), "normalize", "gamma"),
        Defect("operand twice", double_operand, "low.stage4.1.add", "wrong input"),
        Defect("wrong residual", rewire_residual, "low.stage5.3.add", "wrong input"),
    ]  # fmt: skip


def plant_defect(source: Path, defect: Defect, out: Path) -> None:
    model = onnx.load(source)
    defect.plant(model)
    out.write_bytes(model.SerializeToString())
