"""Target CoreML: an mlprogram with image input, float16 and its float32 sibling."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nailcore.artifact import Artifact, MadeBy, describe_artifact
from nailcore.errors import ArtifactError, ConversionError, MissingToolError
from nailcore.facts import Check
from nailcore.measure import find_versions, measure_cost
from nailcore.runtime import Engine, Runner
from nailcore.storage import hash_file, replacing
from nailcore.variant import Variant

KIND = "coreml"
SUFFIX = ".mlpackage"
ENGINES = (Engine("mil-reference"),)
PARENT = "weights"
INPUT_NAME = "image"
TOOLS = ("torch", "coremltools")
MODEL_FILE = "Data/com.apple.CoreML/model.mlmodel"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """coremltools warns of every torch newer than 2.7; parity is how we know that 2.13 works."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # Its progress bars write to stderr whatever they are told.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _import_coremltools() -> Any:
    """Import coremltools without the TensorFlow front-end it would load (a gigabyte, 8 s)."""
    blocked = "tensorflow" not in sys.modules
    if blocked:
        sys.modules["tensorflow"] = None  # type: ignore[assignment]
    try:
        with _silence():
            import coremltools
    finally:
        if blocked:
            del sys.modules["tensorflow"]
    return coremltools


def convert(variant: Variant, recipe: dict[str, Any], parent: Path, out: Path) -> Artifact:
    """Convert the weights at ``parent`` to an iOS 15 mlprogram at ``out``.

    Input: an RGB image of the variant's size. Outputs: float32 logits (1, C, H/4, W/4) by name.

    Raises:
        WeightsError: unusable weights.
        ConversionError: coremltools failed or lost an output.
    """
    import torch

    from nailcore.nets import load_network

    ct = _import_coremltools()

    half = recipe.get("compute_dtype") == "float16"
    shape = (1, 3, variant.height_px, variant.width_px)
    with measure_cost() as cost, _silence():
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
    structure = _describe_ops(out)
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


def _read_spec(path: Path) -> Any:
    _import_coremltools()
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model()
    try:
        spec.ParseFromString((path / MODEL_FILE).read_bytes())
    except Exception as error:  # protobuf's DecodeError and OSError share no base
        raise ArtifactError(
            f"{path}: its {MODEL_FILE} cannot be read: {error}",
            hint="Run `nailtool build-variants`; it will be made again.",
        ) from error
    return spec


def _make_deterministic(package: Path) -> None:
    """The same program must make the same bytes: no conversion date, no random identifiers."""
    spec = _read_spec(package)
    noted = spec.description.metadata.userDefined
    for key in [k for k in noted if k.endswith("conversion_date")]:
        del noted[key]
    (package / MODEL_FILE).write_bytes(spec.SerializeToString(deterministic=True))
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


def _operations(spec: Any) -> list[Any]:
    function = spec.mlProgram.functions["main"]
    return list(function.block_specializations[function.opset].operations)


def _describe_ops(path: Path) -> dict[str, Any]:
    spec = _read_spec(path)
    counts = Counter(op.type for op in _operations(spec) if op.type != "const")
    return {"ops": dict(sorted(counts.items())), "specification_version": spec.specificationVersion}


def _constants(operations: list[Any]) -> dict[str, Any]:
    """Small constants by name, as Python values."""
    values: dict[str, Any] = {}
    for op in operations:
        if op.type != "const":
            continue
        tensor = op.attributes["val"].immediateValue.tensor
        kind = tensor.WhichOneof("value")
        if kind is not None and kind != "bytes":
            values[op.outputs[0].name] = list(getattr(tensor, kind).values)
    return values


def _attribute(op: Any, name: str, constants: dict[str, Any]) -> Any:
    """The value of an op's named argument: inline, or the constant it refers to."""
    argument = op.inputs[name].arguments[0]
    if argument.WhichOneof("binding") == "name":
        return constants.get(argument.name)
    tensor = argument.value.immediateValue.tensor
    kind = tensor.WhichOneof("value")
    return list(getattr(tensor, kind).values) if kind else None


def check_structure(variant: Variant, artifact: Artifact, path: Path) -> list[Check]:
    """What can be told of a saved package without executing it.

    Raises:
        ArtifactError: the package cannot be read.
    """
    spec = _read_spec(path)
    operations = _operations(spec)
    constants = _constants(operations)
    return [
        _check_input(variant, spec),
        _check_outputs(variant, spec, operations),
        _check_resizes(operations, constants),
        _check_dilations(variant, operations, constants),
        _check_precision(artifact, operations),
    ]


def _check_input(variant: Variant, spec: Any) -> Check:
    from coremltools.proto import FeatureTypes_pb2

    feature = spec.description.input[0]
    image = feature.type.imageType
    rgb = image.colorSpace == FeatureTypes_pb2.ImageFeatureType.RGB
    found = (feature.name, image.height, image.width)
    expected = (INPUT_NAME, variant.height_px, variant.width_px)
    space = "RGB" if rgb else FeatureTypes_pb2.ImageFeatureType.ColorSpace.Name(image.colorSpace)
    return Check(
        name="input is an RGB image of the variant's size",
        passed=found == expected and rgb,
        detail=f"{found[0]}: {image.width}×{image.height} {space}",
    )


def _check_outputs(variant: Variant, spec: Any, operations: list[Any]) -> Check:
    shapes: dict[str, tuple[int, ...]] = {}
    for op in operations:
        for output in op.outputs:
            dimensions = output.type.tensorType.dimensions
            shapes[output.name] = tuple(int(d.constant.size) for d in dimensions)
    names = [feature.name for feature in spec.description.output]
    found = [(name, shapes.get(name)) for name in names]
    expected = [
        (o.name, (1, o.channels, variant.output_height, variant.output_width)) for o in variant.outputs
    ]
    return Check(
        name="outputs keep names, order and shapes",
        passed=found == expected,
        detail=", ".join(f"{name} {shape}" for name, shape in found),
    )


def _check_resizes(operations: list[Any], constants: dict[str, Any]) -> Check:
    resizes = [op for op in operations if op.type in ("upsample_bilinear", "resize_bilinear")]
    aligned = [
        op.outputs[0].name
        for op in resizes
        if op.type != "upsample_bilinear" or (_attribute(op, "align_corners", constants) or [True])[0]
    ]
    return Check(
        name="every resize is bilinear ×2 with half-pixel centres",
        passed=len(resizes) == 3 and not aligned,
        detail=f"{len(resizes)} resizes; with other corners: {', '.join(aligned) or 'none'}",
    )


def _check_dilations(variant: Variant, operations: list[Any], constants: dict[str, Any]) -> Check:
    from nailcore.nets.cascade import build_cascade

    found: Counter[int] = Counter()
    for op in operations:
        if op.type == "conv":
            found[int((_attribute(op, "dilations", constants) or [1])[0])] += 1
    import torch

    network = build_cascade(variant)
    del network.fusion16.branch, network.fusion8.branch
    expected = Counter(m.dilation[0] for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    return Check(
        name="convolutions keep their count and dilations",
        passed=found == expected,
        detail=f"by dilation {dict(sorted(found.items()))}, torch {dict(sorted(expected.items()))}",
    )


def _check_precision(artifact: Artifact, operations: list[Any]) -> Check:
    from coremltools.proto import MIL_pb2

    wanted = MIL_pb2.FLOAT16 if artifact.recipe == "fp16" else MIL_pb2.FLOAT32
    convolutions = [op for op in operations if op.type == "conv"]
    other = [op for op in convolutions if op.outputs[0].type.tensorType.dataType != wanted]
    return Check(
        name=f"convolutions compute in {artifact.recipe}",
        passed=bool(convolutions) and not other,
        detail=f"{len(convolutions) - len(other)} of {len(convolutions)} do",
    )


def open_runner(artifact: Artifact, path: Path, engine: str = "") -> Runner:
    """CoreML executes on macOS alone; until the MIL reference executor exists nothing runs here."""
    raise MissingToolError(
        f"{artifact.label}: not executed yet: CoreML runs on macOS only, and {path.name} "
        "was checked by structure alone.",
        hint="Open the package on a Mac, or wait for the MIL reference executor.",
    )
