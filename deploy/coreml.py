"""Target CoreML: an mlprogram with image input, in float32, in float16, or with compressed weights."""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.coreml_structure import INPUT_NAME, check_structure, describe_ops
from deploy.coremltools_import import import_coremltools, silence_coremltools
from nailcore.artifact import Artifact, MadeBy, describe_artifact
from nailcore.errors import ArtifactError, ConversionError, UnknownNameError
from nailcore.measure import find_versions, measure_cost
from nailcore.runtime import Engine, Runner
from nailcore.service import FLOAT, Service
from nailcore.storage import hash_file, hash_path, replacing
from nailcore.variant import Variant
from quantize.layer_names import choose_float_layers
from quantize.palettes import PALETTES, load_tables
from quantize.prepared import Prepared, open_prepared
from quantize.recipe import Recipe

if TYPE_CHECKING:
    from nailcore.nets.export_form import ExportForm

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
_PALETTES = ("palette8", "palette6", "palette4")
SERVICE = Service(
    (*FLOAT, "int8", *_PALETTES),
    True,
    ("equalize", "search", "finetune", "keep_float", "size_ratio"),
    ("int8", *_PALETTES),
    rounded_beside=("coreml", "tflite"),
)


def convert(
    variant: Variant, recipe: dict[str, Any], parent: Path, out: Path, *, prepared: Path | None = None
) -> Artifact:
    """Convert the weights at ``parent`` to an mlprogram at ``out``, loadable from iOS 15 on.

    Compressed weights need iOS 16, palettes with a scale per channel iOS 18; the manifest says which.
    Input: an RGB image of the variant's size. Outputs: float32 logits (1, C, H/4, W/4) by name.
    ``prepared``: what was prepared for a recipe with calibration images or changed weights.

    Raises:
        WeightsError: unusable weights.
        ArtifactError: what was prepared is damaged.
        ConversionError: coremltools failed or lost an output.
    """
    plan = Recipe.model_validate({"summary": "", "targets": (KIND,), **recipe})
    with measure_cost() as cost, silence_coremltools():
        model, minimum, notes = _make_model(variant, plan, parent, prepared)
        model.short_description = _describe(variant)
        with replacing(out) as scratch:
            model.save(str(scratch))
            _make_deterministic(scratch, small=plan.weights_dtype not in ("float32", "float16"))
    made_by = MadeBy(
        versions=find_versions(TOOLS),
        config={
            "variant": variant.model_dump(mode="json"),
            "recipe": recipe,
            "minimum_target": minimum,
            **({} if prepared is None else {"prepared_sha256": hash_path(prepared)}),
        },
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
        recipe=plan.name,
        input_name=INPUT_NAME,
        input_layout="image RGB",
        output_names={o.name: o.name for o in variant.outputs},
        made_by=made_by,
        structure={**describe_ops(out), **notes},
    )
    lost = [check for check in check_structure(variant, artifact, out) if not check.passed]
    if lost:
        raise ConversionError(f"{variant.name}: {lost[0].name}: {lost[0].detail}")
    return artifact


def convert_sibling(variant: Variant, network: ExportForm, out: Path) -> None:
    """Write a network as it stands, in float32: what a smaller package of it is proven against.

    Raises:
        ConversionError: coremltools failed.
    """
    with silence_coremltools():
        model = convert_network(variant, network, "iOS15", half=False)
        model.short_description = _describe(variant)
        with replacing(out) as scratch:
            model.save(str(scratch))
            _make_deterministic(scratch, small=False)


def _describe(variant: Variant) -> str:
    return f"Nail segmentation, {variant.name}, logits at 1/{variant.output_stride}"


def _make_model(
    variant: Variant, recipe: Recipe, parent: Path, folder: Path | None
) -> tuple[Any, str, dict[str, Any]]:
    """The converted model, the oldest system that loads it, and notes for the manifest."""
    from deploy.coreml_compress import attach_tables, find_sizes, name_target
    from nailcore.nets import load_network

    prepared = None if folder is None else open_prepared(folder)
    network = load_network(variant, parent) if prepared is None else prepared.load_network(variant, parent)
    half = recipe.compute_dtype != "float32"
    if recipe.weights_dtype in ("float32", "float16"):
        return convert_network(variant, network, "iOS15", half=half), "iOS15", {}
    if prepared is None:
        raise ConversionError(f"Recipe '{recipe.name}' needs rounded weights, and none were prepared.")
    tables = load_tables(prepared.folder / PALETTES)
    attach_tables(network, tables)
    notes = {"kernels": find_sizes(tables)}
    if recipe.compute_dtype == "int8":
        return _make_integer(variant, recipe, network, prepared), "iOS17", notes
    target = name_target(tables)
    return convert_network(variant, network, target, half=half), target, notes


def _make_integer(variant: Variant, recipe: Recipe, network: ExportForm, prepared: Prepared) -> Any:
    """A float16 program whose convolutions and additions read and write 8-bit activations, but for some."""
    from deploy.coreml_activations import measure_ranges, name_operations, quantize_activations

    if recipe.activations is None:
        raise ConversionError(f"Recipe '{recipe.name}' does not say how activations are rounded.")
    model = convert_network(variant, network, "iOS17", half=True)
    names = name_operations(model, network)
    keep = choose_float_layers((*recipe.weights.keep_float, *prepared.card.float_layers), names)
    ranges = measure_ranges(model, INPUT_NAME, prepared.load_images())
    return quantize_activations(model, ranges, recipe.activations, [names[name] for name in keep])


def convert_network(variant: Variant, network: ExportForm, target: str, *, half: bool) -> Any:
    """Trace and convert an export form as it stands; raises ConversionError when coremltools fails."""
    import torch

    from deploy.coreml_compress import make_pipeline

    ct = import_coremltools()
    shape = (1, 3, variant.height_px, variant.width_px)
    traced = torch.jit.trace(network, torch.zeros(shape))  # type: ignore[no-untyped-call]
    try:
        return ct.convert(
            traced,
            inputs=[ct.ImageType(INPUT_NAME, shape=shape, color_layout=ct.colorlayout.RGB)],
            # float32 named outputs even in float16 models: iOS 15 has no float16 arrays.
            outputs=[ct.TensorType(name=o.name, dtype=np.float32) for o in variant.outputs],
            minimum_deployment_target=ct.target[target],
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            convert_to="mlprogram",
            skip_model_load=True,
            pass_pipeline=make_pipeline(),
        )
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ConversionError(f"{variant.name}: coremltools failed: {error}") from error


def _make_deterministic(package: Path, *, small: bool) -> None:
    """The same program must make the same bytes: no conversion date, no random identifiers.

    ``small``: shorten the program, which a small package needs and the others are left without.
    """
    from deploy.coreml_compact import compact
    from deploy.mil.reader import read_spec

    spec, model_file = read_spec(package)
    if small:
        function = spec.mlProgram.functions["main"]
        compact(function.block_specializations[function.opset], model_file)
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
