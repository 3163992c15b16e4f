"""Defects planted into a CoreML package: each copies it, breaks one thing and names the torch module hit."""

from __future__ import annotations

import copy
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.mil.reader import read_spec

Plant = Callable[[Path, Path], str]  # (package, copy to write) -> torch module whose output changes first
NO_MODULE = ""  # the file cannot be executed at all
INPUT = "input"  # wrong before the first module
# MIL.proto's numbers of the element types that are edited here.
NUMPY_TYPES = {1: "?", 10: "<f2", 11: "<f4", 21: "i1", 23: "<i4", 31: "u1"}


@cache
def module_names() -> dict[str, str]:
    """Torch module names of the export form by the spelling coremltools gives them."""
    from model_zoo import find_variant
    from nailcore.nets.cascade import build_cascade
    from nailcore.nets.export_form import ExportForm

    variant = find_variant("nail55-288")  # its modules are a superset of the shallow one's
    network = ExportForm(build_cascade(variant), variant)
    return {name.replace(".", "_"): name for name, _ in network.named_modules()}


class Editor:
    """A copied package whose operations and weights can be changed in place."""

    def __init__(self, source: Path, out: Path) -> None:
        shutil.copytree(source, out)
        self.out = out
        self.spec, self.model_file = read_spec(out)
        self.weights_file = self.model_file.parent / "weights" / "weight.bin"
        function = self.spec.mlProgram.functions["main"]
        self.block = function.block_specializations[function.opset]
        self.blob = bytearray(self.weights_file.read_bytes())

    def save(self) -> None:
        self.model_file.write_bytes(self.spec.SerializeToString(deterministic=True))
        self.weights_file.write_bytes(bytes(self.blob))

    def index(self, output: str) -> int:
        """Place of the operation that makes a tensor."""
        return next(i for i, op in enumerate(self.block.operations) if op.outputs[0].name == output)

    def producer(self, output: str) -> Any:
        return self.block.operations[self.index(output)]

    def conv(self, module: str) -> Any:
        """The convolution of a torch module."""
        prefix = module.replace(".", "_") + "_weight"
        return next(
            op
            for op in self.block.operations
            if op.type == "conv" and op.inputs["weight"].arguments[0].name.startswith(prefix)
        )

    def consumers(self, output: str) -> list[Any]:
        return [
            op
            for op in self.block.operations
            if any(a.name == output for value in op.inputs.values() for a in value.arguments)
        ]

    def holder(self, op: Any, argument: str, part: str = "val") -> Any:
        """The stored value (``MIL_pb2.Value``) behind an argument; ``part``: of a compressed weight."""
        constant = self.producer(op.inputs[argument].arguments[0].name)
        return constant.attributes[part]

    def read(self, value: Any) -> npt.NDArray[Any]:
        """A stored float or integer array, as a writable copy."""
        tensor_type = value.type.tensorType
        kind = NUMPY_TYPES[int(tensor_type.dataType)]
        shape = tuple(int(d.constant.size) for d in tensor_type.dimensions)
        raw = self._raw(value)
        if raw is None:
            tensor = value.immediateValue.tensor
            found = list(getattr(tensor, tensor.WhichOneof("value")).values)
            return np.array(found, dtype=kind).reshape(shape)
        return np.frombuffer(raw, dtype=kind).reshape(shape).copy()

    def write(self, value: Any, array: npt.NDArray[Any]) -> None:
        """Put an array of the same type and size where :meth:`read` found it."""
        if value.WhichOneof("value") == "blobFileValue":
            start, length = self._place(value)
            self.blob[start : start + length] = array.tobytes()
            return
        tensor = value.immediateValue.tensor
        field = tensor.WhichOneof("value")
        if field == "bytes":
            tensor.bytes.values = array.tobytes()
        else:
            getattr(tensor, field).values[:] = array.ravel().tolist()

    def change(self, value: Any, edit: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> None:
        """Read, edit, write, and insist that something changed."""
        before = self.read(value)
        after = edit(before.copy()).astype(before.dtype)
        assert before.tobytes() != after.tobytes(), "the defect was not planted"
        self.write(value, after)

    def rebind(self, op: Any, argument: str, edit: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> None:
        """Give an op its own edited copy of a constant, which others may share."""
        binding = op.inputs[argument].arguments[0]
        position = self.index(binding.name)
        fresh = copy.deepcopy(self.block.operations[position])
        fresh.outputs[0].name = f"{binding.name}_planted"
        binding.name = fresh.outputs[0].name
        self.block.operations.insert(position, fresh)
        self.change(self.block.operations[position].attributes["val"], edit)

    def _raw(self, value: Any) -> bytes | None:
        if value.WhichOneof("value") == "blobFileValue":
            start, length = self._place(value)
            return bytes(self.blob[start : start + length])
        tensor = value.immediateValue.tensor
        return bytes(tensor.bytes.values) if tensor.WhichOneof("value") == "bytes" else None

    def _place(self, value: Any) -> tuple[int, int]:
        _, _, length, start = struct.unpack_from("<IIQQ", self.blob, value.blobFileValue.offset)
        return start, length


DENSE = "network.fusion8.project_f1"
DILATED = "network.fusion16.project_f1"
NARROW = "network.low.stage4.1.layers.0"  # a 1×1 convolution in the middle of the deep branch
OVERFLOW = 2.0**15  # a power of two: torch weights can be scaled alike, bit for bit
STRIDED = "network.high.stage4.0.layers.3"


def _head(name: str) -> str:
    return f"network.output.heads.{name}"


def flip_align_corners(package: Path, out: Path) -> str:
    """The second upsampling aligns corners."""
    edit = Editor(package, out)
    upsampled = [op for op in edit.block.operations if op.type == "upsample_bilinear"][1]
    edit.rebind(upsampled, "align_corners", lambda a: ~a)
    edit.save()
    return "network.fusion8"


def swap_colours(package: Path, out: Path) -> str:
    """The image input is declared BGR."""
    from coremltools.proto import FeatureTypes_pb2

    edit = Editor(package, out)
    edit.spec.description.input[0].type.imageType.colorSpace = FeatureTypes_pb2.ImageFeatureType.BGR
    edit.save()
    return INPUT


def undilate(package: Path, out: Path) -> str:
    """Dilation 2 becomes 1, and the padding follows so that shapes still agree."""
    edit = Editor(package, out)
    op = edit.conv(DILATED)
    edit.rebind(op, "dilations", lambda a: a // 2)
    edit.rebind(op, "pad", lambda a: a // 2)
    edit.save()
    return DILATED


def lower_clip(package: Path, out: Path) -> str:
    """One ReLU6 clips at 1."""
    edit = Editor(package, out)
    clip = edit.consumers(edit.conv(NARROW).outputs[0].name)[0]
    edit.rebind(clip, "beta", np.ones_like)
    edit.save()
    return NARROW.removesuffix(".0") + ".2"


def swap_heads(package: Path, out: Path) -> str:
    """fgbg and direction exchange their values and keep their names: both have two channels."""
    edit = Editor(package, out)
    first, second = edit.producer("fgbg"), edit.producer("direction")
    first.outputs[0].name, second.outputs[0].name = "direction", "fgbg"
    edit.save()
    return _head("fgbg")


def _flip_bit(package: Path, out: Path, from_top: int | None, module: str = DENSE) -> str:
    edit = Editor(package, out)

    def flip(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        words = array.view(np.uint16 if array.itemsize == 2 else np.uint32)
        bits = 8 * array.itemsize
        bit = 0 if from_top is None else bits - 1 - from_top
        # The largest weight: its damage is not hidden behind a pixel that never lights up.
        place = int(np.abs(array).argmax())
        words.ravel()[place] ^= words.dtype.type(1 << bit)
        return array

    edit.change(edit.holder(edit.conv(module), "weight"), flip)
    edit.save()
    return module


def flip_exponent_bit(package: Path, out: Path) -> str:
    """One exponent bit of one weight."""
    return _flip_bit(package, out, 3)


def flip_sign_bit(package: Path, out: Path) -> str:
    """The sign of one weight."""
    return _flip_bit(package, out, 0)


def flip_lowest_bit(package: Path, out: Path) -> str:
    """The lowest mantissa bit of one weight."""
    return _flip_bit(package, out, None)


def drop_bias(package: Path, out: Path) -> str:
    """A convolution loses its bias."""
    edit = Editor(package, out)
    del edit.conv(NARROW).inputs["bias"]
    edit.save()
    return NARROW


def transpose_kernel(package: Path, out: Path) -> str:
    """Rows and columns of a square kernel are exchanged."""
    edit = Editor(package, out)
    edit.change(edit.holder(edit.conv(DENSE), "weight"), lambda a: a.swapaxes(2, 3))
    edit.save()
    return DENSE


def transpose_channels(package: Path, out: Path) -> str:
    """Output and input channels of a square weight are exchanged."""
    edit = Editor(package, out)
    edit.change(edit.holder(edit.conv(DENSE), "weight"), lambda a: a.swapaxes(0, 1))
    edit.save()
    return DENSE


def wrong_std(package: Path, out: Path) -> str:
    """A normalisation constant of .225 instead of .226, folded into the first convolution."""
    edit = Editor(package, out)
    module = "network.low.stage1.0"
    edit.change(edit.holder(edit.conv(module), "weight"), lambda a: a * (0.226 / 0.225))
    edit.save()
    return module


def wrong_mean(package: Path, out: Path) -> str:
    """The image's mean is 127 instead of 127.5."""
    edit = Editor(package, out)
    op = next(op for op in edit.block.operations if op.type == "sub")
    edit.change(edit.holder(op, "y"), lambda a: a - 0.5)
    edit.save()
    return INPUT


def wrong_epsilon(package: Path, out: Path) -> str:
    """A BatchNorm was folded with epsilon 1e-2 instead of 1e-3: its channels scale by a per mille or so."""
    from safetensors.torch import load_file

    from model_zoo import find_variant, weights_path

    edit = Editor(package, out)
    name = package.name.split(".")[0]
    # A norm of moderate variances: where they are large, float16 rounds the defect away.
    variance = load_file(weights_path(find_variant(name)))["low.stage5.0.layers.4.running_var"].numpy()
    factor = np.sqrt((variance + 1e-3) / (variance + 1e-2))
    module = "network.low.stage5.0.layers.3"
    edit.change(edit.holder(edit.conv(module), "weight"), lambda a: a * factor[:, None, None, None])
    edit.save()
    return module


def stale_weights(package: Path, out: Path) -> str:
    """weight.bin is of an earlier epoch: every float tensor in it differs by about one per cent."""
    edit = Editor(package, out)
    rng = np.random.default_rng(0)
    for op in edit.block.operations:
        value = op.attributes["val"] if op.type == "const" else None
        if value is not None and value.WhichOneof("value") == "blobFileValue":
            edit.change(value, lambda a: a * (1 + 0.01 * rng.standard_normal(a.shape)))
    edit.save()
    return "network.low.stage1.0"


def truncate_weights(package: Path, out: Path) -> str:
    """The second half of weight.bin is missing."""
    edit = Editor(package, out)
    del edit.blob[len(edit.blob) // 2 :]
    edit.save()
    return NO_MODULE


def rename_op(package: Path, out: Path) -> str:
    """An operation of a type nobody knows."""
    edit = Editor(package, out)
    edit.conv(NARROW).type = "conv_of_tomorrow"
    edit.save()
    return NO_MODULE


def overflow(package: Path, out: Path) -> str:
    """A convolution before a ReLU6 grows beyond float16: its clip hides the infinities."""
    edit = Editor(package, out)
    edit.change(edit.holder(edit.conv(NARROW), "weight"), lambda a: a * OVERFLOW)
    edit.save()
    return NARROW


def _swap_channels(package: Path, out: Path, module: str, first: int, second: int) -> str:
    edit = Editor(package, out)

    def swap(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        array[[first, second]] = array[[second, first]]
        return array

    op = edit.conv(module)
    edit.change(edit.holder(op, "weight"), swap)
    edit.change(edit.holder(op, "bias"), swap)
    edit.save()
    return module


def swap_fingers(package: Path, out: Path) -> str:
    """Thumb and index finger exchange their classes."""
    return _swap_channels(package, out, _head("finger"), 0, 1)


def swap_direction_axes(package: Path, out: Path) -> str:
    """The direction's x and y are exchanged."""
    return _swap_channels(package, out, _head("direction"), 0, 1)


def shift_padding(package: Path, out: Path) -> str:
    """A strided convolution pads one row too many above and none below: everything moves by one."""
    edit = Editor(package, out)
    edit.rebind(edit.conv(STRIDED), "pad", lambda a: a + np.array([1, -1, 0, 0], a.dtype))
    edit.save()
    return STRIDED


def rewire_residual(package: Path, out: Path) -> str:
    """A residual sum adds its branch twice and forgets the input."""
    edit = Editor(package, out)
    # Only an addition of equal shapes; the first one of the deep branch is its stage 3.
    op = next(op for op in edit.block.operations if op.type == "add")
    op.inputs["x"].arguments[0].name = op.inputs["y"].arguments[0].name
    edit.save()
    return "network.low.stage3.1"


def drop_relu(package: Path, out: Path) -> str:
    """A fusion loses its ReLU: the next operation reads the sum."""
    edit = Editor(package, out)
    relu = next(op for op in edit.block.operations if op.type == "relu")
    source, made = relu.inputs["x"].arguments[0].name, relu.outputs[0].name
    for op in edit.consumers(made):
        for value in op.inputs.values():
            for argument in value.arguments:
                if argument.name == made:
                    argument.name = source
    del edit.block.operations[edit.index(made)]
    edit.save()
    return "network.fusion16"


def _edit_part(package: Path, out: Path, part: str, edit_part: Callable[[Any], Any]) -> str:
    edit = Editor(package, out)
    edit.change(edit.holder(edit.conv(DENSE), "weight", part), edit_part)
    edit.save()
    return DENSE


def shift_palette_index(package: Path, out: Path) -> str:
    """Every eighth byte of a palette's packed indices is off by one."""

    def bump(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        array.ravel()[::8] += 1
        return array

    return _edit_part(package, out, "indices", bump)


def wrong_zero_point(package: Path, out: Path) -> str:
    """An int8 weight's zero points are off by one."""
    return _edit_part(package, out, "zero_point", lambda a: a + 1)


def wrong_scale(package: Path, out: Path) -> str:
    """An int8 weight's scales are two per cent too large."""
    return _edit_part(package, out, "scale", lambda a: a * 1.02)


# Those any float package can carry; the last three need a package compressed accordingly.
PLANTS: dict[str, Plant] = {
    plant.__name__: plant
    for plant in (
        flip_align_corners,
        swap_colours,
        undilate,
        lower_clip,
        swap_heads,
        flip_exponent_bit,
        flip_sign_bit,
        flip_lowest_bit,
        drop_bias,
        transpose_kernel,
        transpose_channels,
        wrong_std,
        wrong_mean,
        wrong_epsilon,
        stale_weights,
        truncate_weights,
        rename_op,
        overflow,
        swap_fingers,
        swap_direction_axes,
        shift_padding,
        rewire_residual,
        drop_relu,
    )
}
COMPRESSED_PLANTS: dict[str, Plant] = {
    plant.__name__: plant for plant in (shift_palette_index, wrong_zero_point, wrong_scale)
}
