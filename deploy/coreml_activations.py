"""Integer activations in CoreML: ranges from the MIL reference on calibration images, then quantize pairs."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deploy.coremltools_import import import_coremltools
from nailcore.errors import ConversionError, DataError
from nailcore.runtime import Layer
from quantize.layer_names import list_convolutions
from quantize.recipe import Activations

if TYPE_CHECKING:
    import torch

    from nailcore.nets.export_form import ExportForm

# It divides both sides of an addition by a scale, to 16 bits: codes then mean other values than the tensor's.
_RESCALING_PASS = "common::distributive_quantized_binary_op_scale_normalization"  # noqa: S105
_INTEGER_OPS = ("conv", "add")
Ranges = dict[str, dict[str, float]]  # tensor -> {"rmin": ..., "rmax": ...}, coremltools' own words


def measure_ranges(model: Any, input_name: str, images: npt.NDArray[np.uint8]) -> Ranges:
    """Smallest and largest value of every tensor of a converted model over all images.

    coremltools' own calibration needs a Mac and keeps the range of the last sample only.

    Args:
        model: MLModel with one image input.
        images: (N, H, W, 3) uint8 RGB of the model's size.

    Raises:
        DataError: a tensor is NaN or infinite on an image.
    """
    from deploy.mil import load_package

    found: Ranges = {}

    def watch(layer: Layer, outputs: tuple[torch.Tensor, ...]) -> None:
        for tensor in outputs[:1]:
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            low, high = (float(value) for value in tensor.aminmax())
            if not np.isfinite([low, high]).all():
                raise DataError(f"{layer.name} is NaN or infinite on a calibration image.")
            seen = found.setdefault(layer.name, {"rmin": low, "rmax": high})
            seen["rmin"], seen["rmax"] = min(seen["rmin"], low), max(seen["rmax"], high)

    with tempfile.TemporaryDirectory(prefix="nailtool-ranges-") as scratch:
        path = Path(scratch) / "float.mlpackage"
        model.save(str(path))
        reference = load_package(path)
        for image in images:
            reference.run({input_name: image}, watch=watch)
    found[input_name] = {"rmin": 0.0, "rmax": 255.0}  # by contract
    return found


def quantize_activations(
    model: Any, ranges: Ranges, activations: Activations, float_layers: Collection[str]
) -> Any:
    """Put a quantize and a dequantize before and after what computes in integers.

    Convolutions and additions do, but for ``float_layers`` and additions of what these give. What nothing
    of them reads is not rounded: the image before its mean, what is resized, outputs.

    Args:
        model: converted MLModel in float16.
        ranges: of ``measure_ranges``.
        activations: their type, and whether zero is in the middle.
        float_layers: names of convolutions whose inputs and outputs stay in float.
    """
    ct = import_coremltools()
    import coremltools.optimize.coreml as optimize
    from coremltools import _SPECIFICATION_VERSION_IOS_17
    from coremltools.converters.mil.converter import mil_convert
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.converters.mil.mil.passes.graph_pass import PassOption
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
    from coremltools.models import utils

    in_float = find_float_operations(model._mil_program.functions["main"].operations, float_layers)
    config = optimize.OptimizationConfig(
        global_config=optimize.OpLinearQuantizerConfig(
            mode="linear_symmetric" if activations.symmetric else "linear", dtype=activations.dtype
        ),
        op_name_configs=dict.fromkeys(in_float),
    )
    passes = []
    for name in ("insert_prefix_quantize_dequantize_pair", "insert_suffix_quantize_dequantize_pair"):
        one = PASS_REGISTRY[f"compression::{name}"]
        one.set_options([PassOption("config", config), PassOption("activation_stats", ranges)])
        # A ReLU6 is a clip here, and as one with the operation before it as a ReLU: no rounding in between.
        one._allowed_activations = {*getattr(one, "_allowed_activations", ()), "clip"}
        passes.append(one)
    passes.append(PASS_REGISTRY["common::dequantize_quantize_pair_elimination"])
    # What coremltools' linear_quantize_activations does once it has its ranges, but for one pass.
    spec = model.get_spec()
    program = utils._apply_graph_pass(
        model,
        passes,
        spec_version=_SPECIFICATION_VERSION_IOS_17,
        pymil_load_func=load,
        skip_model_load=True,
        return_pymil_prog=True,
    )
    drop_unread_pairs(program.functions["main"], in_float)
    pipeline = ct.PassPipeline.DEFAULT
    pipeline.remove_passes({_RESCALING_PASS})
    return mil_convert(
        program,
        convert_from="milinternal",
        convert_to="mlprogram",
        compute_units=model.compute_unit,
        specification_version=max(spec.specificationVersion, _SPECIFICATION_VERSION_IOS_17),
        model_description=spec.description,
        skip_model_load=True,
        main_pipeline=pipeline,
    )


def find_float_operations(operations: Iterable[Any], float_layers: Collection[str]) -> set[str]:
    """``float_layers`` and the additions all of whose summands these give, be it through activations."""
    found: set[str] = set()
    passed = set(float_layers)
    for op in operations:
        if op.op_type == "conv" and op.name in passed:
            found.add(op.name)
        elif op.op_type in ("add", "clip", "relu"):
            read = [op.x, op.y] if op.op_type == "add" else [op.x]
            if all(var.op is not None and var.op.name in passed for var in read):
                passed.add(op.name)
                if op.op_type == "add":
                    found.add(op.name)
    return found


def drop_unread_pairs(function: Any, in_float: Collection[str]) -> None:
    """Take out each quantize and dequantize that no convolution or addition in integers reads, in place."""
    for wide in list(function.operations):
        if wide.op_type != "dequantize" or any(
            op.op_type in _INTEGER_OPS and op.name not in in_float for op in wide.outputs[0].child_ops
        ):
            continue
        narrow = wide.input.op
        with function:
            function.replace_uses_of_var_after_op(
                anchor_op=wide, old_var=wide.outputs[0], new_var=narrow.input
            )
            function.remove_ops([wide] if len(narrow.outputs[0].child_ops) > 1 else [wide, narrow])


def name_operations(model: Any, network: ExportForm) -> dict[str, str]:
    """Torch module name -> name of its convolution in a converted model, both in order of execution.

    Raises:
        ConversionError: they do not correspond.
    """
    layers = list_convolutions(network)
    operations = [op for op in model._mil_program.functions["main"].operations if op.op_type == "conv"]
    shapes = [tuple(conv.weight.shape) for conv in layers.values()]
    if [tuple(op.weight.shape) for op in operations] != shapes:
        raise ConversionError("The converted convolutions are not those of the network, one by one.")
    return {name: op.outputs[0].name for name, op in zip(layers, operations, strict=True)}
