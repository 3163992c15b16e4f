"""Target TFLite: an ONNX file becomes a flatbuffer with named signatures, executed by LiteRT."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.intake import check_intake
from deploy.onnx_to_tf import (
    INPUT_NAME,
    FrozenModel,
    freeze_onnx,
    make_probe_image,
    quiet_native_logs,
    run_onnx,
    verify_outputs,
)
from deploy.tf_passes import SPLITS, count_ops, drop_noops, fold_dilations, fold_pads, rename_nodes
from deploy.tflite_file import TfliteFile, read_tflite
from deploy.tflite_quantize import correct_parent, quantize_tflite
from nailcore.artifact import Artifact, MadeBy, describe_artifact
from nailcore.errors import ArtifactError, ConversionError
from nailcore.measure import find_versions, measure_cost
from nailcore.runtime import Engine, Images, Layer, Logits
from nailcore.service import FLOAT, Service
from nailcore.storage import hash_file, replacing
from nailcore.variant import Variant
from quantize.prepared import open_prepared
from quantize.recipe import Recipe

KIND = "tflite"
SUFFIX = ".tflite"
PARENT = "onnx"
# XNNPACK is what phones run on the CPU; the reference kernels share no code with it (and are 30× slower).
ENGINES = (Engine("litert"), Engine("litert-reference", default=False, image_limit=4))
TOOLS = ("onnx2tf", "tensorflow", "tf-keras", "onnxruntime", "numpy", "ai-edge-litert", "ai-edge-quantizer")
FAMILY = "tensorflow"  # which libraries a conversion loads: torch and tensorflow never share a process
RUNTIME_TOOLS = ("ai-edge-litert",)
RESOURCES: tuple[str, ...] = ()
SERVICE = Service((*FLOAT, "int8"), True, ("correct_bias",), ("int8",))
# At conversion, for each dtype of the weights: tells a wrong tensor from a rounded one.
MAX_RELATIVE_ERROR: Mapping[str, float | None] = {"float32": None, "float16": 2e-2, "int8": 1.0}
_INPUT_HINT = "Run `nailtool build-variants`; it will be made again."
F32 = npt.NDArray[np.float32]


def convert(
    variant: Variant, recipe: dict[str, Any], parent: Path, out: Path, *, prepared: Path | None = None
) -> Artifact:
    """Convert the ONNX file at ``parent`` to ``out``: one signature, inputs and outputs by our names.

    The model takes ``image``, (1, H, W, 3) float32 RGB 0..255, and gives logits (1, h, w, C). With
    ``weights_dtype`` float16 constants are stored in half precision and widened when the file is opened;
    with int8 they are codes, and so are activations where ``compute_dtype`` is int8. ``prepared`` holds the
    calibration images: biases make up for the mean shift of 8-bit weights on them, in integer arithmetic
    where the recipe says so.

    Raises:
        ArtifactError: what was prepared is damaged.
        ConversionError: a converter failed, lost a name, left a dilated convolution split, or what
            LiteRT computes from the bytes is not what onnxruntime computes from the parent.
    """
    names = tuple(output.name for output in variant.outputs)
    dtype = _read_dtype(recipe)
    half = dtype == "float16"
    with measure_cost() as cost, quiet_native_logs(), tempfile.TemporaryDirectory() as scratch_dir:
        source, plan, images, corrected = parent, None, None, 0
        if dtype == "int8":
            plan = Recipe.model_validate({"summary": "", "targets": (KIND,), **recipe})
            if prepared is None:
                raise ConversionError(f"Recipe '{plan.name}' needs calibration images; none were prepared.")
            images = open_prepared(prepared).load_images()
            if plan.passes.correct_bias or plan.activations is None:
                source = Path(scratch_dir) / parent.name
                corrected = correct_parent(parent, plan, images, source)
        model = freeze_onnx(source, names)
        graph = _fold(model)
        if half:
            _check_float16_range(graph)
        data = _run_converter(graph, names, half=half)
        if plan is not None and images is not None:
            data = quantize_tflite(data, plan, images)
        content = read_tflite(data)
        _check_content(content, names)
        _verify(parent, data, names, MAX_RELATIVE_ERROR[dtype])
        with replacing(out) as scratch:
            scratch.write_bytes(data)
    before, after = count_ops(model.graph), content.count_ops()
    return describe_artifact(
        out,
        kind=KIND,
        variant=variant.name,
        recipe=str(recipe["name"]),
        input_name=INPUT_NAME,
        input_layout="NHWC",
        output_names={name: name for name in names},
        made_by=MadeBy(
            versions=find_versions(TOOLS),
            config={"variant": variant.model_dump(mode="json"), "recipe": recipe},
            parent=parent.name,
            parent_sha256=hash_file(parent),
            cpu_s=cost.cpu_s,
            wall_s=cost.wall_s,
            peak_rss_bytes=cost.peak_rss_bytes,
        ),
        structure={
            "ops": after,
            "ops_before": before,
            "space_to_batch_before": before.get("SpaceToBatchND", 0),
            "space_to_batch_after": after.get("SPACE_TO_BATCH_ND", 0),
            "dilated_convolutions": content.count_dilated(),
            "nodes": sum(after.values()),
            **({"biases_corrected": corrected} if corrected else {}),
        },
    )


def _read_dtype(recipe: Mapping[str, Any]) -> str:
    dtype = str(recipe.get("weights_dtype", "float32"))
    if dtype not in MAX_RELATIVE_ERROR:
        raise ConversionError(
            f"TFLite target: weights_dtype '{dtype}' is not one of {', '.join(MAX_RELATIVE_ERROR)}.",
            hint="Change weights_dtype in the recipe.",
        )
    return dtype


def _fold(model: FrozenModel) -> Any:
    """The frozen graph with dilations on the convolutions and names that depend on the graph alone."""
    outputs = tuple(model.output_nodes.values())
    graph = drop_noops(model.graph, outputs)
    for rewrite in (fold_dilations, fold_pads):
        graph = rewrite(graph, outputs)
    return rename_nodes(graph, model.input_node, model.output_nodes)


def _check_float16_range(graph: Any) -> None:
    from tensorflow.python.framework import tensor_util

    limit = float(np.finfo(np.float16).max)
    for node in graph.node:
        if node.op != "Const":
            continue
        values = tensor_util.MakeNdarray(node.attr["value"].tensor)
        if values.dtype == np.float32 and values.size and not float(np.abs(values).max()) <= limit:
            raise ConversionError(
                f"Weight {node.name} reaches {float(np.abs(values).max()):g}; float16 ends at {limit:g}.",
                hint="Ship this variant as fp32, or retrain with weight decay.",
            )


def _run_converter(graph: Any, names: tuple[str, ...], *, half: bool) -> bytes:
    """TensorFlow's converter on a saved model, the only source for which it keeps output names."""
    import tensorflow as tf

    placeholder = next(node for node in graph.node if node.op == "Placeholder")
    shape = [dim.size for dim in placeholder.attr["shape"].shape.dim]

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, name=INPUT_NAME)])  # type: ignore[untyped-decorator, unused-ignore]
    def forward(image: Any) -> dict[str, Any]:
        wanted = [f"{name}:0" for name in names]
        found = tf.import_graph_def(graph, {f"{placeholder.name}:0": image}, wanted, name="")
        return dict(zip(names, found, strict=True))

    module = tf.Module()
    module.forward = forward
    with tempfile.TemporaryDirectory(prefix="nailtool-tflite-") as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf.saved_model.save(module, scratch, signatures={"serving_default": forward})
        converter = tf.lite.TFLiteConverter.from_saved_model(scratch)
        if half:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        try:
            return bytes(converter.convert())
        except Exception as error:  # MLIR's failures share no public base class
            raise ConversionError(f"TensorFlow's TFLite converter failed: {error}") from error


def _check_content(content: TfliteFile, names: tuple[str, ...]) -> None:
    if sorted(content.signature) != sorted(names) or list(content.inputs) != [INPUT_NAME]:
        raise ConversionError(
            f"The TFLite file maps {list(content.inputs)} to {sorted(content.signature)}; "
            f"expected {INPUT_NAME} to {', '.join(names)}."
        )
    if any(one.op in ("SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND") for one in content.operators):
        raise ConversionError(
            f"Dilated convolutions are still written as {' and '.join(SPLITS)}.",
            hint="deploy/tf_passes.py met a form it does not know; such a model runs slower.",
        )


def _verify(parent: Path, data: bytes, names: tuple[str, ...], limit: float | None) -> None:
    """Each name must stand for the same tensor as in the parent: fgbg and direction have one shape."""
    interpreter = LitertSession(data, "litert")
    image = make_probe_image(*interpreter.input_shape[1:3])
    found, expected = interpreter.run(image), run_onnx(parent, image, names)
    if limit is not None:
        verify_outputs(expected, found, parent, limit=limit)
    else:
        verify_outputs(expected, found, parent)
    for name, values in expected.items():  # coarse levels: the nearest of its shape, at least
        gaps = {n: float(np.abs(v - values).mean()) for n, v in found.items() if v.shape == values.shape}
        if gaps and min(gaps, key=gaps.__getitem__) != name:
            raise ConversionError(f"{parent.name}: output '{name}' holds what another name should.")


class LitertSession:
    """An interpreter over the bytes of one file, one image at a time, tensors by signature name."""

    def __init__(self, data: bytes, engine: str, *, threads: int = 1, keep_all: bool = False) -> None:
        with warnings.catch_warnings():  # it advises against keep_all, which tracing is made of
            warnings.simplefilter("ignore")
            from ai_edge_litert.interpreter import Interpreter, OpResolverType

            kernels = OpResolverType.BUILTIN_REF if engine == "litert-reference" else OpResolverType.AUTO
            self.interpreter = Interpreter(
                model_content=data,
                num_threads=threads,
                experimental_op_resolver_type=kernels,
                experimental_preserve_all_tensors=keep_all,
            )
            self.interpreter.allocate_tensors()
        runner = self.interpreter.get_signature_runner()
        self._inputs: dict[str, Any] = runner.get_input_details()
        self._outputs: dict[str, Any] = runner.get_output_details()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of the only input, (1, H, W, 3)."""
        return tuple(int(side) for side in next(iter(self._inputs.values()))["shape"])

    @property
    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """By signature name, (1, h, w, C)."""
        return {
            name: tuple(int(side) for side in one["shape"]) for name, one in sorted(self._outputs.items())
        }

    @property
    def input_names(self) -> list[str]:
        """By the signature."""
        return list(self._inputs)

    def count_delegated(self) -> int:
        """Groups of operators that XNNPACK took over; 0: the built-in kernels run."""
        return sum(one["op_name"] == "DELEGATE" for one in self.interpreter._get_ops_details())

    def invoke(self, image: F32) -> None:
        """Execute for one (1, H, W, 3) float32 image; results stay in the interpreter."""
        self.interpreter.set_tensor(next(iter(self._inputs.values()))["index"], image)
        self.interpreter.invoke()

    def run(self, image: F32) -> dict[str, F32]:
        """Outputs by signature name as the file lays them out, (1, h, w, C)."""
        self.invoke(image)
        return {name: self.read(int(one["index"])) for name, one in self._outputs.items()}

    def read(self, index: int) -> F32:
        """A copy of one tensor."""
        return np.asarray(self.interpreter.get_tensor(index), np.float32)


class TfliteRunner:
    """LiteRT on the CPU; see :class:`nailcore.runtime.Runner` and :class:`nailcore.runtime.Tracer`."""

    def __init__(self, artifact: Artifact, path: Path, engine: str = "litert", *, threads: int = 1) -> None:
        self.artifact = artifact
        self._engine = engine
        # Checked, parsed and executed are one and the same copy of the bytes.
        self._data = path.read_bytes()
        self._content = read_tflite(self._data)
        self._tracer: LitertSession | None = None
        lacking = sorted(set(artifact.output_names.values()) - set(self._content.signature))
        if lacking:
            present = ", ".join(self._content.signature)
            raise ArtifactError(
                f"{path}: no output {', '.join(lacking)}; the model has {present}.",
                hint=_INPUT_HINT,
            )
        try:
            with quiet_native_logs():  # it announces its delegate on stderr
                self.session = LitertSession(self._data, engine, threads=threads)
        except (ValueError, RuntimeError) as error:
            raise ArtifactError(f"{path}: LiteRT cannot open it: {error}", hint=_INPUT_HINT) from error
        self._check_outputs(path)
        kernels = "reference kernels" if engine == "litert-reference" else "XNNPACK"
        self.runtime = f"LiteRT CPU, {kernels}, {threads} thread{'s' if threads > 1 else ''}"
        self.versions = find_versions(RUNTIME_TOOLS)
        self.settings = {
            "threads": str(threads),
            "kernels": kernels,
            "delegated groups": str(self.session.count_delegated()),
        }

    def _check_outputs(self, path: Path) -> None:
        shapes = self.session.output_shapes
        for ours, theirs in self.artifact.output_names.items():
            if len(shapes[theirs]) != 4:
                raise ArtifactError(
                    f"{path}: output {ours} has shape {list(shapes[theirs])}; expected a map (1, h, w, C).",
                    hint=_INPUT_HINT,
                )

    def run(self, images: Images) -> Logits:
        """(N, H, W, 3) uint8 RGB -> our names -> (N, C, h, w); the graph's batch is one."""
        batches: dict[str, list[F32]] = {name: [] for name in self.artifact.output_names}
        for image in images:
            found = self._execute(self.session, image)
            for name, theirs in self.artifact.output_names.items():
                batches[name].append(found[theirs].transpose(0, 3, 1, 2))
        return {name: np.ascontiguousarray(np.concatenate(parts)) for name, parts in batches.items()}

    def _execute(self, session: LitertSession, image: npt.NDArray[np.uint8]) -> dict[str, F32]:
        try:
            return session.run(image.astype(np.float32)[None])
        except (ValueError, RuntimeError) as error:
            raise ArtifactError(
                f"{self.artifact.file}: LiteRT cannot execute it: {error}", hint=_INPUT_HINT
            ) from error

    def list_layers(self) -> list[Layer]:
        """Operators in the order of execution; a constant's DEQUANTIZE is no layer."""
        return self._content.list_layers()

    def trace(self, image: npt.NDArray[np.uint8], names: Sequence[str]) -> dict[str, F32]:
        """Outputs of the named layers for one (1, H, W, 3) image; 4-D tensors as (N, C, h, w).

        A second interpreter keeps every tensor, so operators run one by one instead of as one XNNPACK
        group: same kernels, other grouping.
        """
        if self._tracer is None:
            with quiet_native_logs():
                self._tracer = LitertSession(self._data, self._engine, keep_all=True)
        self._execute(self._tracer, image[0])
        index = {tensor.name: place for place, tensor in enumerate(self._content.tensors)}
        return {name: _as_nchw(self._tracer.read(index[name])) for name in names}

    def read_weight(self, name: str) -> F32 | None:
        """Kernel of a convolution as (out, in/groups, kh, kw), decompressed; None for other layers."""
        return self._content.read_weight(name)

    def close(self) -> None:
        """LiteRT frees its interpreters with the objects."""
        self._tracer = None
        del self.session


def _as_nchw(values: F32) -> F32:
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2)) if values.ndim == 4 else values


def open_runner(artifact: Artifact, path: Path, engine: str = "") -> TfliteRunner:
    """Execute exactly the bytes at ``path`` with LiteRT, one thread; see ``ENGINES`` for the kernels.

    Raises:
        ArtifactError: the file is damaged, refused by LiteRT, or lacks an output.
    """
    engine = engine or ENGINES[0].name
    check_intake(KIND, path, engine)
    return TfliteRunner(artifact, path, engine)
