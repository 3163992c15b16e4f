"""Target ONNX: torch's dynamo exporter at opset 18, simplified, executed by onnxruntime."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deploy.intake import check_intake
from deploy.onnx_trace import OnnxTrace
from nailcore.artifact import Artifact, MadeBy, describe_artifact
from nailcore.errors import ArtifactError, ConversionError
from nailcore.measure import find_versions, measure_cost
from nailcore.runtime import Engine, Images, Layer, Logits
from nailcore.service import Service
from nailcore.storage import hash_file, replacing
from nailcore.variant import Variant
from quantize.calibration import hash_pixels
from quantize.prepared import Prepared, open_prepared
from quantize.recipe import Recipe

if TYPE_CHECKING:
    from nailcore.nets.export_form import ExportForm

KIND = "onnx"
SUFFIX = ".onnx"
ENGINES = (Engine("onnxruntime"),)
PARENT = "weights"
OPSET = 18  # the exporter was written for it: asks for 17 stay at 18 without a word
INPUT_NAME = "image"
TOOLS = ("torch", "onnx", "onnxscript", "onnxsim")
FAMILY = "torch"  # torch and tensorflow never share a process
RUNTIME_TOOLS = ("onnxruntime",)
RESOURCES: tuple[str, ...] = ()
SERVICE = Service(
    ("float32", "int8"),
    True,
    ("correct_bias", "equalize", "search", "finetune", "keep_float"),
    integer_only=True,
)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporter prints its progress and warns about its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def convert(
    variant: Variant,
    recipe: dict[str, Any],
    parent: Path,
    out: Path,
    *,
    prepared: Path | None = None,
    simplify: bool = True,
) -> Artifact:
    """Export the weights at ``parent`` to ``out``; (1, 3, H, W) float32 RGB 0..255 -> named logits.

    Args:
        prepared: folder of what the recipe prepared (see quantize.prepared): the network to export in the
            weights' place, and the images that integer arithmetic is calibrated on.
        simplify: False keeps the graph as torch's exporter leaves it, to tell the two steps' errors apart.

    Raises:
        WeightsError: unusable weights.
        ArtifactError: the prepared folder is damaged.
        ConversionError: the simplifier could not prove its result equal, names were lost, or integer
            arithmetic was asked for without prepared images.
    """
    from nailcore.nets import load_network

    integer = recipe.get("compute_dtype") == "int8"
    with measure_cost() as cost:
        opened = open_prepared(prepared) if prepared is not None else None
        network = opened.load_network(variant, parent) if opened else load_network(variant, parent)
        model, structure = _export(variant, network, simplify=simplify)
        if integer:
            model, extra = _quantize(model, network, Recipe.model_validate(recipe), opened)
            _check_names(variant, model)
            structure |= extra
        with replacing(out) as scratch:
            # Deterministic: the same graph always makes the same bytes, hence the same hash.
            scratch.write_bytes(model.SerializeToString(deterministic=True))
    made_by = MadeBy(
        versions=find_versions((*TOOLS, *RUNTIME_TOOLS) if integer else TOOLS),
        config={
            "variant": variant.model_dump(mode="json"),
            "recipe": recipe,
            "opset": OPSET,
            **({} if simplify else {"simplify": False}),
        },
        parent=parent.name,
        parent_sha256=hash_file(parent),
        cpu_s=cost.cpu_s,
        wall_s=cost.wall_s,
        peak_rss_bytes=cost.peak_rss_bytes,
    )
    return describe_artifact(
        out,
        kind=KIND,
        variant=variant.name,
        recipe=str(recipe["name"]),
        input_name=INPUT_NAME,
        input_layout="NCHW",
        output_names={output.name: output.name for output in variant.outputs},
        made_by=made_by,
        structure={
            **structure,
            "nodes": len(model.graph.node),
            "ops": dict(sorted(Counter(n.op_type for n in model.graph.node).items())),
            "parameters": sum(int(np.prod(t.dims)) for t in model.graph.initializer),
        },
    )


def _export(variant: Variant, network: ExportForm, *, simplify: bool) -> tuple[Any, dict[str, Any]]:
    """The network as a float ONNX graph, checked, and the number of nodes before simplification."""
    import onnx
    import onnxsim
    import torch

    example = torch.zeros(1, 3, variant.height_px, variant.width_px)
    with _silence():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=[output.name for output in variant.outputs],
            verbose=False,
        )
        if program is None:
            raise ConversionError(f"{variant.name}: torch's exporter returned nothing.")
        exported = program.model_proto
        simplified, proven = onnxsim.simplify(exported) if simplify else (exported, True)
    if not proven:
        raise ConversionError(f"{variant.name}: onnxsim could not prove its result equal.")
    _strip_traces(simplified)
    onnx.checker.check_model(simplified, full_check=True)
    _check_names(variant, simplified)
    return simplified, {"nodes_exported": len(exported.graph.node)}


def _quantize(
    model: Any, network: ExportForm, recipe: Recipe, prepared: Prepared | None
) -> tuple[Any, dict[str, Any]]:
    """The graph in 8 bits, calibrated on the prepared images."""
    import onnx

    from quantize.onnx_qdq import quantize_onnx

    if prepared is None:
        raise ConversionError(
            f"Recipe '{recipe.name}' needs calibration images, and nothing was prepared.",
            hint="`nailtool build-variants` prepares them.",
        )
    card = prepared.card
    images = prepared.load_images()
    with _silence():
        made, structure = quantize_onnx(model, network, images, recipe, card.float_layers)
    _strip_traces(made)
    onnx.checker.check_model(made, full_check=True)
    if card.images is not None:
        structure["calibration"] = {
            "set": card.images.name,
            "sha256": card.images.sha256,
            "images": list(card.image_names),
            "pixels_sha256": hash_pixels(images),
        }
    return made, structure | ({"prepared": card.notes} if card.notes else {})


def _strip_traces(model: Any) -> None:
    """Drop what the exporter notes about its own run: stack traces carry paths of this machine."""
    del model.metadata_props[:]
    model.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]


def _check_names(variant: Variant, model: Any) -> None:
    """Names, order and shapes of the outputs must be the variant's own."""
    found = [(o.name, tuple(d.dim_value for d in o.type.tensor_type.shape.dim)) for o in model.graph.output]
    expected = [
        (o.name, (1, o.channels, variant.output_height, variant.output_width)) for o in variant.outputs
    ]
    if found != expected:
        raise ConversionError(f"{variant.name}: ONNX outputs are {found}, expected {expected}.")


class OnnxRunner:
    """onnxruntime on the CPU; see :class:`nailcore.runtime.Runner`."""

    def __init__(self, artifact: Artifact, path: Path, *, threads: int = 1) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning threads burn CPU while they wait: far slower on a busy machine, and it would
        # count as CPU time of the model.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises many unrelated types
            raise ArtifactError(
                f"{path}: onnxruntime cannot open it: {error}",
                hint="Run `nailtool build-variants`; it will be made again.",
            ) from error
        self._check_outputs(artifact, path)
        self.artifact = artifact
        self._path = path
        self._options = options
        self._graph: OnnxTrace | None = None
        self.runtime = f"onnxruntime CPU, {threads} thread{'s' if threads > 1 else ''}"
        self.versions = find_versions(("onnxruntime",))
        self.settings = {"threads": str(threads), "spinning": "off", "provider": "CPU"}

    def _check_outputs(self, artifact: Artifact, path: Path) -> None:
        present = {output.name: list(output.shape or ()) for output in self.session.get_outputs()}
        hint = "Run `nailtool build-variants`; it will be made again."
        for name in artifact.output_names.values():
            if name not in present:
                raise ArtifactError(
                    f"{path}: no output {name}; the model has {', '.join(present)}.", hint=hint
                )
            if len(present[name]) != 4:
                raise ArtifactError(
                    f"{path}: output {name} has shape {present[name]}; expected a map (1, C, h, w).",
                    hint=hint,
                )

    def run(self, images: Images) -> Logits:
        """(N, H, W, 3) uint8 RGB -> our names -> (N, C, h, w); the graph's batch is one."""
        ours = list(self.artifact.output_names)
        theirs = [self.artifact.output_names[name] for name in ours]
        batches: dict[str, list[Any]] = {name: [] for name in ours}
        for image in images:
            feed = np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)
            try:
                values = self.session.run(theirs, {self.artifact.input_name: feed})
            except Exception as error:  # onnxruntime raises many unrelated types
                raise ArtifactError(
                    f"{self.artifact.file}: onnxruntime cannot execute it on a {image.shape[1]}×"
                    f"{image.shape[0]} image: {error}",
                    hint="Run `nailtool build-variants`; it will be made again.",
                ) from error
            for name, value in zip(ours, values, strict=True):
                batches[name].append(value)
        return {name: np.concatenate(parts) for name, parts in batches.items()}

    @property
    def _trace(self) -> OnnxTrace:
        if self._graph is None:  # read only when someone looks inside
            self._graph = OnnxTrace(self.artifact, self._path, self._options)
        return self._graph

    def list_layers(self) -> list[Layer]:
        """See :class:`nailcore.runtime.Tracer`."""
        return self._trace.list_layers()

    def trace(self, image: npt.NDArray[np.uint8], names: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """See :class:`nailcore.runtime.Tracer`."""
        return self._trace.trace(image, names)

    def read_weight(self, name: str) -> npt.NDArray[np.float32] | None:
        """See :class:`nailcore.runtime.Tracer`."""
        return self._trace.read_weight(name)

    def close(self) -> None:
        """onnxruntime frees its session with the object."""
        del self.session


def open_runner(artifact: Artifact, path: Path, engine: str = "") -> OnnxRunner:
    """Execute exactly the bytes at ``path`` with onnxruntime, one thread."""
    check_intake(KIND, path)
    return OnnxRunner(artifact, path)
