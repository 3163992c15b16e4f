"""Activation ranges of an ONNX graph: executed on calibration images one at a time, in fixed memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nailcore.errors import ConversionError, DataError
from quantize.ranges import Observer, Range
from quantize.recipe import Calibration

F32 = npt.NDArray[np.float32]


def measure_ranges(
    model: Any, tensors: Sequence[str], images: npt.NDArray[np.uint8], calibration: Calibration
) -> dict[str, Range]:
    """Ranges of the named tensors, by the method the recipe names.

    Args:
        model: float onnx.ModelProto with one input, an image (1, 3, H, W) float32 in 0..255.
        tensors: names of tensors that nodes of the graph write.
        images: (N, H, W, 3) uint8 RGB.
        calibration: method and percentile.

    Raises:
        DataError: the network gives NaN or infinite values on an image.
    """
    observers = {name: Observer() for name in tensors}
    for name, value in execute_graph(model, tensors, images):
        try:
            observers[name].see(value)
        except DataError as error:
            raise DataError(f"{name}: {error.message}") from error
    if calibration.method != "min-max":
        for name, value in execute_graph(model, tensors, images):
            observers[name].count(value)
    return {name: o.choose(calibration.method, calibration.percentile) for name, o in observers.items()}


def execute_graph(
    model: Any, tensors: Iterable[str], images: npt.NDArray[np.uint8]
) -> Iterator[tuple[str, F32]]:
    """(tensor, value) of every image in turn; the tensors of one image are in memory at a time.

    Raises:
        ConversionError: onnxruntime cannot run the graph.
    """
    import onnx
    import onnxruntime as ort

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    names = list(tensors)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    # Fused nodes would hide the tensors between them.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1  # the order of sums, and with it the last bit, must not depend on cores
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(
            watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime raises many unrelated types
        raise ConversionError(f"onnxruntime cannot run the graph for calibration: {error}") from error
    entry = session.get_inputs()[0].name
    for image in images:
        feed = np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)
        yield from zip(names, session.run(names, {entry: feed}), strict=True)
