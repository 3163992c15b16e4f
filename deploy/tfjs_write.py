"""From a frozen graph to a TF.js graph model on disk: the official optimiser, then stable names and bytes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from deploy.onnx_to_tf import INPUT_NAME, FrozenModel, silence_tensorflow
from deploy.tf_passes import (
    SPLITS,
    count_ops,
    drop_noops,
    fold_dilations,
    fold_pads,
    mark_biases,
    rename_nodes,
)
from deploy.tfjs_quantize import (
    Rounding,
    choose_storage,
    choose_wide,
    correct_biases,
    share_constants,
    trim_manifest,
    trim_topology,
)
from nailcore.errors import ConversionError

if TYPE_CHECKING:
    from tensorflow.core.framework.graph_pb2 import GraphDef

# none: the official converter alone. fold: its result with dilations folded afterwards, so that those
# convolutions stay unfused. fuse: folded first, so that the official fusing pass sees every convolution.
Passes = Literal["none", "fold", "fuse"]
SHARD_BYTES = 4 << 20
_ENTRY = 190  # of model.json, that one more weight takes
_SLACK = 256  # scales and minima are written with more digits or fewer


def optimise(model: FrozenModel, passes: Passes = "fuse") -> GraphDef:
    """Run our passes and the official converter's, and give every node a stable name.

    The nodes behind the outputs carry our output names, the placeholder is called ``image``.

    Raises:
        ConversionError: an op TF.js lacks, or a dilated convolution that could not be folded.
    """
    outputs = tuple(model.output_nodes.values())
    graph = model.graph
    if passes == "fuse":
        graph = drop_noops(graph, outputs)
        for rewrite in (fold_dilations, fold_pads, mark_biases):
            graph = rewrite(graph, outputs)
    graph = _run_official(graph, model.input_node, outputs)
    if passes == "fold":
        for rewrite in (fold_dilations, fold_pads):
            graph = rewrite(graph, outputs)
    graph = rename_nodes(drop_noops(graph, outputs), model.input_node, model.output_nodes)
    left = {op: count for op, count in count_ops(graph).items() if op in SPLITS}
    if left and passes != "none":
        raise ConversionError(
            f"{sum(left.values())} dilated convolutions are still written as {' and '.join(left)}.",
            hint="deploy/tf_passes.py met a form it does not know; such a model runs at half the speed.",
        )
    return graph


def _run_official(graph: GraphDef, input_node: str, outputs: tuple[str, ...]) -> GraphDef:
    """tensorflowjs' own optimiser: constant folding, fused convolutions, a check for unknown ops."""
    silence_tensorflow()
    import tensorflow as tf
    from tensorflowjs.converters import tf_saved_model_conversion_v2 as official

    with tf.Graph().as_default() as live:
        tf.import_graph_def(graph, name="")
    tensors = [live.get_tensor_by_name(f"{name}:0") for name in (input_node, *outputs)]
    signature = official._build_signature_def(live, tensors[:1], tensors[1:])
    try:
        return official.optimize_graph(live, signature)
    except ValueError as error:
        raise ConversionError(f"tensorflowjs refused the graph: {error}") from error


def write_model(
    graph: GraphDef,
    names: tuple[str, ...],
    weights_dtype: str,
    folder: Path,
    rounding: Rounding | None = None,
) -> dict[str, int]:
    """Write ``model.json`` and its weight shards; the same graph gives the same bytes.

    Args:
        graph: what ``optimise`` returned.
        names: output names in the order the signature lists them.
        weights_dtype: what kernels are stored in: "float32", "float16", or "uint16" and "uint8" with a scale
            and a minimum per tensor. Biases (under 2 %) keep float32, with "uint8" float16. TF.js widens all
            of them to float32 when it loads the file, so a smaller file is no faster.
        folder: to write; it must not exist.
        rounding: with "uint8": which kernels keep 16 bits, and images on which biases make up for the mean
            shift that rounding causes.

    Returns:
        dtype of storage -> number of weights that have it.

    Raises:
        ConversionError: an unknown dtype, a weight beyond the range of float16, or "uint8" without
            ``rounding``.
    """
    from tensorflowjs.converters import tf_saved_model_conversion_v2 as official

    topology = type(graph)()
    topology.CopyFrom(graph)
    weights = official.extract_weights(topology)  # moves the values out of the nodes
    values = {entry["name"]: entry["data"] for entry in weights[0]}
    storage = choose_storage(values, weights_dtype)
    if "uint8" in storage:
        if rounding is None:
            raise ConversionError("TF.js target: uint8 needs what its recipe prepares; nothing was prepared.")
        wide = choose_wide(values, rounding.errors, _measure_room(graph, names, topology, weights, rounding))
        storage = choose_storage(values, weights_dtype, wide)
    _check_float16_range(values, storage.get("float16", []))
    if rounding is not None and "uint8" in storage:
        correct_biases(graph, weights[0], storage, rounding.images)
        share_constants(topology, weights[0], storage)
    folder.mkdir(parents=True)
    _write_folder(graph, names, topology, weights, storage, folder)
    return {dtype: len(stored) for dtype, stored in storage.items()}


def _measure_room(
    graph: GraphDef,
    names: tuple[str, ...],
    topology: GraphDef,
    weights: list[list[dict[str, Any]]],
    rounding: Rounding,
) -> float:
    """Bytes that are left below the size asked for when every kernel has 8 bits."""
    values = {entry["name"]: entry["data"] for entry in weights[0]}
    sizes = []
    with tempfile.TemporaryDirectory(prefix="nailtool-tfjs-") as scratch:
        for dtype in ("float32", "uint8"):
            work, entries = type(graph)(), [[dict(entry) for entry in weights[0]]]
            work.CopyFrom(topology)
            storage = choose_storage(values, dtype)
            if storage:
                share_constants(work, entries[0], storage)
            folder = Path(scratch) / dtype
            folder.mkdir()
            _write_folder(graph, names, work, entries, storage, folder)
            sizes.append(sum(path.stat().st_size for path in folder.iterdir()))
            if dtype == "uint8":  # biases of equal kernels are corrected apart from each other
                apart = sum(v.nbytes // 2 + _ENTRY for v in values.values() if v.ndim == 1)
                kept = sum(e["data"].nbytes // 2 + _ENTRY for e in entries[0] if e["data"].ndim == 1)
                sizes[-1] += apart - kept
    return rounding.size_ratio * sizes[0] - sizes[1] - _SLACK


def _write_folder(  # noqa: PLR0917 - the parts of a file
    graph: GraphDef,
    names: tuple[str, ...],
    topology: GraphDef,
    weights: list[list[dict[str, Any]]],
    storage: dict[str, list[str]],
    folder: Path,
) -> None:
    import tensorflow as tf
    from tensorflowjs import write_weights
    from tensorflowjs.converters import tf_saved_model_conversion_v2 as official

    manifest = write_weights.write_weights(
        weights,
        str(folder),
        write_manifest=False,
        quantization_dtype_map=storage or None,
        shard_size_bytes=SHARD_BYTES,
    )
    nodes = official.MessageToDict(topology)
    if "uint8" in storage:
        nodes, manifest = trim_topology(nodes), trim_manifest(manifest)
    document = {
        "format": "graph-model",
        "generatedBy": tf.__version__,
        "convertedBy": official.common.get_converted_by(),
        "signature": _describe_signature(graph, names),
        # Keys sorted: protobuf maps have no order of their own.
        "modelTopology": json.loads(json.dumps(nodes, sort_keys=True)),
        "weightsManifest": manifest,
    }
    (folder / "model.json").write_text(json.dumps(document, separators=(",", ":")), "utf-8")


def _describe_signature(graph: GraphDef, names: tuple[str, ...]) -> dict[str, Any]:
    placeholder = next(node for node in graph.node if node.op == "Placeholder")
    size = [{"size": str(dim.size)} for dim in placeholder.attr["shape"].shape.dim]
    image = {"name": f"{placeholder.name}:0", "dtype": "DT_FLOAT", "tensorShape": {"dim": size}}
    return {
        "inputs": {INPUT_NAME: image},
        "outputs": {name: {"name": f"{name}:0", "dtype": "DT_FLOAT"} for name in names},
    }


def _check_float16_range(values: dict[str, Any], kernels: list[str]) -> None:
    limit = float(np.finfo(np.float16).max)
    for name in kernels:
        largest = float(np.abs(values[name]).max())
        if not largest <= limit:
            raise ConversionError(
                f"Weight {name} reaches {largest:g}; float16 ends at {limit:g}.",
                hint="Ship this variant as fp32, or retrain with weight decay.",
            )
