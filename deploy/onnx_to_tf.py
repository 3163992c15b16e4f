"""ONNX to one frozen TensorFlow graph by onnx2tf, each output traced by name and then verified by number."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nailcore.errors import ConversionError
from nailcore.storage import hash_file

if TYPE_CHECKING:
    from tensorflow.core.framework.graph_pb2 import GraphDef

INPUT_NAME = "image"
# The parent runs in onnxruntime and the graph in TensorFlow: equal up to the order of additions.
MAX_RELATIVE_ERROR = 1e-4


@dataclass(frozen=True)
class FrozenModel:
    """A graph without variables; ``output_nodes`` maps our output names to node names inside it."""

    graph: GraphDef
    input_node: str
    output_nodes: dict[str, str]


def freeze_onnx(parent: Path, names: tuple[str, ...]) -> FrozenModel:
    """Convert an ONNX file and prove that each name stands for the same tensor on both sides.

    Args:
        parent: ONNX file with input ``image`` (1 or N, 3, H, W) float32 and the outputs ``names``.
        names: our output names, in the order the result lists them.

    Raises:
        ConversionError: onnx2tf failed, or an output is not, by number, the one its name says.
    """
    if not parent.is_file():
        raise ConversionError(
            f"{parent}: no such ONNX file.", hint="Run `nailtool build-variants`; it builds parents first."
        )
    text, input_node, nodes = _freeze_cached(str(parent), hash_file(parent), names)
    from tensorflow.core.framework.graph_pb2 import GraphDef

    return FrozenModel(GraphDef.FromString(text), input_node, dict(zip(names, nodes, strict=True)))


@lru_cache(maxsize=1)  # a worker converts all recipes of one variant one after the other
def _freeze_cached(parent: str, _sha256: str, names: tuple[str, ...]) -> tuple[bytes, str, tuple[str, ...]]:
    model = _run_onnx2tf(Path(parent))
    function, nodes = _freeze(model, _order_outputs(Path(parent), model, names), names)
    image = make_probe_image(*function.inputs[0].shape[1:3])
    verify_outputs(
        run_onnx(Path(parent), image, names),
        dict(zip(names, (y.numpy() for y in function(_constant(image))), strict=True)),
        parent,
    )
    graph = function.graph.as_graph_def()
    return graph.SerializeToString(deterministic=True), function.inputs[0].op.name, nodes


def _run_onnx2tf(parent: Path) -> Any:
    """The Keras model onnx2tf builds; its outputs come in the order of the ONNX file's outputs."""
    silence_tensorflow()
    from onnx2tf import onnx2tf

    with tempfile.TemporaryDirectory(prefix="nailtool-onnx2tf-") as scratch, _without_download(onnx2tf):
        copy = Path(scratch) / "model.onnx"  # onnx2tf may write over what it is given
        shutil.copyfile(parent, copy)
        try:
            return onnx2tf.convert(
                input_onnx_file_path=str(copy),
                output_folder_path=scratch,
                batch_size=1,
                not_use_onnxsim=True,  # already simplified, and these two start other programs
                not_use_opname_auto_generate=True,
                disable_model_save=True,
                non_verbose=True,
                verbosity="error",
            )
        except (Exception, SystemExit) as error:  # it calls sys.exit on what it cannot convert
            raise ConversionError(
                f"{parent}: onnx2tf could not convert it: {type(error).__name__}: {error}",
                hint="The operator named above is new to this pipeline: see docs for adding a target's op.",
            ) from error


@contextmanager
def _without_download(onnx2tf: Any) -> Iterator[None]:
    """onnx2tf compares layouts on sample photographs that it fetches from the network: hand it our own."""
    original = onnx2tf.download_test_image_data
    noise = np.random.default_rng(0).random((20, 128, 128, 3), dtype=np.float32)
    onnx2tf.download_test_image_data = lambda: noise
    try:
        yield
    finally:
        onnx2tf.download_test_image_data = original


def _order_outputs(parent: Path, model: Any, names: tuple[str, ...]) -> list[Any]:
    """The Keras outputs in the order of ``names``, by the ONNX file's own list of output names."""
    import onnx

    listed = [output.name for output in onnx.load(str(parent), load_external_data=False).graph.output]
    if sorted(listed) != sorted(names) or len(model.outputs) != len(listed):
        raise ConversionError(
            f"{parent}: has outputs {', '.join(listed)} ({len(model.outputs)} converted); "
            f"expected {', '.join(names)}."
        )
    return [model.outputs[listed.index(name)] for name in names]


def _freeze(model: Any, outputs: list[Any], names: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
    """Constants for variables; returns the function and the node of each output, in order."""
    import tensorflow as tf
    import tf_keras
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    ordered = tf_keras.Model(inputs=model.inputs, outputs=outputs)
    shape = model.inputs[0].shape

    forward = tf.function(
        lambda image: tuple(ordered(image)),
        input_signature=[tf.TensorSpec(shape, tf.float32, name=INPUT_NAME)],
    )
    frozen = convert_variables_to_constants_v2(
        forward.get_concrete_function(), lower_control_flow=False, aggressive_inlining=True
    )
    nodes = tuple(output.op.name for output in frozen.outputs)
    tf_keras.backend.clear_session()
    if len(set(nodes)) != len(names):
        raise ConversionError(f"The outputs {', '.join(names)} do not come from {len(names)} nodes: {nodes}.")
    return frozen, nodes


def make_probe_image(height: int, width: int) -> npt.NDArray[np.float32]:
    """A fixed colour picture, (1, H, W, 3) float32 0..255, without any symmetry between axes or channels."""
    rng = np.random.default_rng(20190607)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [np.sin(x / (9 + 7 * c) + c) * np.cos(y / (13 + 5 * c)) for c in range(3)]
    smooth = np.stack([(1 + wave) * (90 + 20 * c) for c, wave in enumerate(waves)], axis=-1)
    noisy = smooth + rng.normal(0, 12, smooth.shape)
    return np.asarray(np.clip(noisy, 0, 255).round()[np.newaxis], np.float32)


def run_onnx(
    parent: Path, image: npt.NDArray[np.float32], names: tuple[str, ...]
) -> dict[str, npt.NDArray[np.float32]]:
    """The ONNX file's logits for one NHWC image, by name, as NHWC."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(parent), options, providers=["CPUExecutionProvider"])
        values = session.run(list(names), {INPUT_NAME: image.transpose(0, 3, 1, 2)})
    except Exception as error:  # onnxruntime's errors share no public base class
        raise ConversionError(f"{parent}: onnxruntime cannot run it: {error}") from error
    return {name: value.transpose(0, 2, 3, 1) for name, value in zip(names, values, strict=True)}


def verify_outputs(
    expected: dict[str, npt.NDArray[np.float32]],
    found: dict[str, npt.NDArray[np.float32]],
    what: Path | str,
    *,
    limit: float = MAX_RELATIVE_ERROR,
) -> None:
    """Compare by name; a swap of two outputs of one shape is named as such.

    Raises:
        ConversionError: an output differs from the one of its name by more than rounding.
    """
    for name, reference in expected.items():
        errors = {
            other: _relative_error(reference, value)
            for other, value in found.items()
            if value.shape == reference.shape
        }
        if errors.get(name, np.inf) <= limit:
            continue
        nearest = min(errors, key=lambda other: errors[other]) if errors else name
        swapped = nearest != name and errors[nearest] <= limit
        detail = f"it holds '{nearest}'" if swapped else f"relative error {errors.get(name, np.inf):.2g}"
        raise ConversionError(
            f"{what}: output '{name}' is not what the ONNX file computes under that name ({detail}; "
            f"allowed {limit:g}).",
            hint="Nothing was written. This is a converter's fault: please report it with the versions.",
        )


def _relative_error(reference: npt.NDArray[np.float32], value: npt.NDArray[np.float32]) -> float:
    scale = max(float(np.abs(reference).max()), 1e-6)
    return float(np.abs(value - reference).max()) / scale


def _constant(image: npt.NDArray[np.float32]) -> Any:
    import tensorflow as tf

    return tf.constant(image)


def silence_tensorflow() -> None:
    """Keep TensorFlow off the GPU and its start-up notes off the terminal; works before its first import."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # the same bytes on every processor
    os.environ.setdefault("TFDF_DISABLE_WELCOME_MESSAGE", "1")


@contextmanager
def quiet_native_logs() -> Iterator[None]:
    """Send file descriptor 2 nowhere: TensorFlow's C++ notes obey no Python setting. Errors still raise."""
    sys.stderr.flush()
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
