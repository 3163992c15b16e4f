"""Target CoreML: an mlprogram with image input, float16 and its float32 sibling."""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from deploy.coreml_structure import INPUT_NAME, check_structure, describe_ops
from deploy.coremltools_import import import_coremltools, silence_coremltools
from nailcore.artifact import Artifact, MadeBy, describe_artifact
from nailcore.errors import ArtifactError, ConversionError, UnknownNameError
from nailcore.measure import find_versions, measure_cost
from nailcore.runtime import Engine, Runner
from nailcore.storage import hash_file, replacing
from nailcore.variant import Variant

__all__ = ["ENGINES", "KIND", "PARENT", "SUFFIX", "TOOLS", "check_structure", "convert", "open_runner"]

KIND = "coreml"
SUFFIX = ".mlpackage"
COREML = "coreml"
ENGINES = (
    Engine("mil-reference"),
    Engine(COREML, default=sys.platform == "darwin"),  # CoreML's own predict
)
PARENT = "weights"
TOOLS = ("torch", "coremltools")
FAMILY = "torch"  # torch and tensorflow never share a process
RUNTIME_TOOLS = ("torch", "coremltools")
RESOURCES: tuple[str, ...] = ()


def convert(variant: Variant, recipe: dict[str, Any], parent: Path, out: Path) -> Artifact:
    """Convert the weights at ``parent`` to an iOS 15 mlprogram at ``out``.

    Input: an RGB image of the variant's size. Outputs: float32 logits (1, C, H/4, W/4) by name.

    Raises:
        WeightsError: unusable weights.
        ConversionError: coremltools failed or lost an output.
    """
    import torch

    from nailcore.nets import load_network

    ct = import_coremltools()

    half = recipe.get("compute_dtype") == "float16"
    shape = (1, 3, variant.height_px, variant.width_px)
    with measure_cost() as cost, silence_coremltools():
        network = load_network(variant, parent)
        traced = torch.jit.trace(network, torch.zeros(shape))  # type: ignore[no-untyped-call]
        try:
            model = ct.convert(
                traced,
                inputs=[ct.ImageType(INPUT_NAME, shape=shape, color_layout=ct.colorlayout.RGB)],
                # float32 named outputs even in float16 models: iOS 15 has no float16 arrays.
                outputs=[ct.TensorType(name=o.name, dtype=np.float32) for o in variant.outputs],
                minimum_deployment_target=ct.target.iOS15,
                compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
                convert_to="mlprogram",
                skip_model_load=True,
            )
        except (ValueError, RuntimeError, NotImplementedError) as error:
            raise ConversionError(f"{variant.name}: coremltools failed: {error}") from error
        model.short_description = f"Nail segmentation, {variant.name}, logits at 1/{variant.output_stride}"
        with replacing(out) as scratch:
            model.save(str(scratch))
            _make_deterministic(scratch)
    structure = describe_ops(out)
    made_by = MadeBy(
        versions=find_versions(TOOLS),
        config={"variant": variant.model_dump(mode="json"), "recipe": recipe, "minimum_target": "iOS15"},
        parent=parent.name,
        parent_sha256=hash_file(parent),
        cpu_s=cost.cpu_s,
        wall_s=cost.wall_s,
        peak_rss_bytes=cost.peak_rss_bytes,
    )
    artifact = describe_artifact(
        out,
        kind=KIND,
        variant=variant.name,
        recipe=str(recipe["name"]),
        input_name=INPUT_NAME,
        input_layout="image RGB",
        output_names={o.name: o.name for o in variant.outputs},
        made_by=made_by,
        structure=structure,
    )
    lost = [check for check in check_structure(variant, artifact, out) if not check.passed]
    if lost:
        raise ConversionError(f"{variant.name}: {lost[0].name}: {lost[0].detail}")
    return artifact


def _make_deterministic(package: Path) -> None:
    """The same program must make the same bytes: no conversion date, no random identifiers."""
    from deploy.mil.reader import read_spec

    spec, model_file = read_spec(package)
    noted = spec.description.metadata.userDefined
    for key in [k for k in noted if k.endswith("conversion_date")]:
        del noted[key]
    model_file.write_bytes(spec.SerializeToString(deterministic=True))
    manifest_file = package / "Manifest.json"
    manifest = json.loads(manifest_file.read_text("utf-8"))
    renamed: dict[str, str] = {}
    for old, entry in manifest["itemInfoEntries"].items():
        renamed[old] = str(uuid.uuid5(uuid.NAMESPACE_URL, str(entry["path"]))).upper()
    manifest["itemInfoEntries"] = {
        renamed[old]: entry
        for old, entry in sorted(manifest["itemInfoEntries"].items(), key=lambda i: renamed[i[0]])
    }
    manifest["rootModelIdentifier"] = renamed[manifest["rootModelIdentifier"]]
    manifest_file.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", "utf-8")


def open_runner(artifact: Artifact, path: Path, engine: str = "") -> Runner:
    """Execute a package with the MIL reference (anywhere), or with CoreML itself (macOS alone).

    Raises:
        MissingToolError: this machine has no CoreML.
        UnknownNameError: no such engine.
        ArtifactError: the package is damaged, or holds what the MIL reference does not know.
    """
    from deploy.coreml_runners import CoreMLRunner, MilRunner

    names = [e.name for e in ENGINES]
    if engine not in ("", *names):
        raise UnknownNameError("engine of coreml", engine, names)
    if engine == COREML:
        return CoreMLRunner(artifact, path)
    try:
        return MilRunner(artifact, path)
    except ConversionError as error:  # here it is a file that cannot be used, whoever converted it
        raise ArtifactError(error.message, hint=error.hint) from error
