"""Target TF.js: an ONNX file becomes a graph model that a browser loads over HTTP and runs by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy.onnx_to_tf import INPUT_NAME, freeze_onnx, quiet_native_logs
from deploy.tf_passes import count_ops
from deploy.tfjs_engines import ENGINES, find_obstacle
from deploy.tfjs_quantize import read_rounding
from deploy.tfjs_runner import TfjsRunner
from deploy.tfjs_write import Passes, optimise, write_model
from nailcore.artifact import Artifact, MadeBy, describe_artifact
from nailcore.errors import ConversionError
from nailcore.measure import find_versions, measure_cost
from nailcore.service import FLOAT, Service
from nailcore.storage import hash_file, replacing
from nailcore.variant import Variant
from quantize.prepared import open_prepared

__all__ = ["ENGINES", "KIND", "PARENT", "SUFFIX", "convert", "find_obstacle", "open_runner"]

KIND = "tfjs"
SUFFIX = ".tfjs"  # a folder: model.json and its weight shards, nothing else
PARENT = "onnx"
TOOLS = ("onnx2tf", "tensorflow", "tf-keras", "tensorflowjs", "onnxruntime", "numpy")
FAMILY = "tensorflow"  # torch and tensorflow never share a process
RUNTIME_TOOLS = ("playwright", "selenium", "websockets")
RESOURCES = ("deploy/web/bundle",)  # the pages a browser loads
SERVICE = Service((*FLOAT, "uint8", "uint16"), False, ("size_ratio",))


def convert(
    variant: Variant,
    recipe: dict[str, Any],
    parent: Path,
    out: Path,
    *,
    prepared: Path | None = None,
    passes: Passes = "fuse",
) -> Artifact:
    """Convert the ONNX file at ``parent`` to a TF.js graph model in the folder ``out``.

    The model takes ``image``, (1, H, W, 3) float32 RGB 0..255, and gives logits (1, h, w, C) by our
    names. ``prepared`` holds calibration images and kernels' errors, where the recipe asks for some.
    ``passes`` is "fuse" for what ships; "none" and "fold" exist to measure what the passes gain.

    Raises:
        ConversionError: a converter failed, lost a name, or left a dilated convolution split; or the recipe
            wants what TF.js cannot store.
        ArtifactError: what was prepared is damaged.
    """
    if recipe.get("weights", {}).get("keep_float"):
        raise ConversionError(
            "TF.js target: keep_float names torch modules, which this target does not know.",
            hint="Leave keep_float out: kernels that one scale would damage keep two bytes by themselves.",
        )
    ratio = recipe.get("weights", {}).get("size_ratio")
    rounding = None
    if prepared is not None and ratio is not None:
        rounding = read_rounding(parent, open_prepared(prepared), float(ratio))
    names = tuple(output.name for output in variant.outputs)
    with measure_cost() as cost, quiet_native_logs():
        model = freeze_onnx(parent, names)
        graph = optimise(model, passes)
        with replacing(out) as scratch:
            dtype = str(recipe.get("weights_dtype", "float32"))
            stored = write_model(graph, names, dtype, scratch, rounding)
    before, after = count_ops(model.graph), count_ops(graph)
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
            config={"variant": variant.model_dump(mode="json"), "recipe": recipe, "passes": passes},
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
            "space_to_batch_after": after.get("SpaceToBatchND", 0),
            "nodes_before": sum(before.values()),
            "nodes": sum(after.values()),
            **({"weights_stored": stored} if stored else {}),
        },
    )


def open_runner(artifact: Artifact, path: Path, engine: str = "") -> TfjsRunner:
    """Load exactly the files at ``path`` over HTTP into a browser; ``engine`` is one of ``ENGINES``.

    Raises:
        UnknownNameError: no such engine.
        MissingToolError: its browser, or the backend in it, does not exist here.
        ArtifactError: the folder is incomplete, damaged, or refused by TF.js.
        BrowserError: an installed browser failed: no verdict about the file.
    """
    return TfjsRunner(artifact, path, engine)
