"""Open a saved .mlpackage: the manifest, the model file and nothing outside the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploy.coremltools_import import import_coremltools
from nailcore.errors import ArtifactError, ConversionError

_REBUILD = "Build or download the package again."
_MAX_SPEC_BYTES = 2**31 - 1  # protobuf's own limit
_MAX_MANIFEST_BYTES = 1 << 20


def find_model_file(path: Path) -> Path:
    """The model file inside a package (or ``path`` itself when it is a .mlmodel file).

    Raises:
        ArtifactError: not a package, a damaged manifest, or one that points outside the package.
    """
    if not path.exists():
        raise ArtifactError(f"{path} does not exist.")
    if path.is_file():
        if path.suffix == ".mlmodel":
            return path
        raise ArtifactError(f"{path}: expected a .mlpackage folder or a .mlmodel file.")
    if (path / "coremldata.bin").exists():
        raise ArtifactError(
            f"{path}: a compiled model (.mlmodelc), which only macOS can read.",
            hint="Use the .mlpackage that it was compiled from.",
        )
    manifest_file = path / "Manifest.json"
    try:
        if manifest_file.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ArtifactError(f"{manifest_file}: larger than any manifest.", hint=_REBUILD)
        manifest = json.loads(manifest_file.read_text("utf-8"))
        entry = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
        relative = str(entry["path"])
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{manifest_file}: missing, so {path.name} is not an .mlpackage.", hint=_REBUILD
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise ArtifactError(f"{manifest_file}: damaged ({problem}).", hint=_REBUILD) from error
    model_file = path / "Data" / relative
    inside = not relative.startswith("/") and "\\" not in relative and ".." not in Path(relative).parts
    if not inside or not model_file.resolve().is_relative_to(path.resolve()):
        raise ArtifactError(f"{manifest_file}: points to {relative!r}, outside the package.")
    return model_file


def read_spec(path: Path) -> tuple[Any, Path]:
    """The model's protobuf and the file it came from.

    Raises:
        ArtifactError: missing, damaged, or a model of another kind than an ML program.
    """
    model_file = find_model_file(path)
    import_coremltools()
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError

    spec = Model_pb2.Model()
    try:
        if model_file.stat().st_size > _MAX_SPEC_BYTES:
            raise ArtifactError(f"{model_file}: larger than 2 GB, which no model file can be.")
        spec.ParseFromString(model_file.read_bytes())
    except FileNotFoundError as error:
        raise ArtifactError(f"{model_file}: the model file is missing.", hint=_REBUILD) from error
    except (OSError, DecodeError, RuntimeError) as error:
        raise ArtifactError(f"{model_file}: cannot be read: {error}", hint=_REBUILD) from error
    kind = spec.WhichOneof("Type")
    if kind is None:
        raise ArtifactError(f"{model_file}: holds no model.", hint=_REBUILD)
    if kind != "mlProgram":
        raise ConversionError(
            f"{path.name} is a {kind} model; only mlProgram models can be executed.",
            hint='Convert it with convert_to="mlprogram" (coremltools), iOS 15 or newer.',
        )
    if len(spec.description.state) or any(len(f.state) for f in spec.description.functions):
        raise ConversionError(
            f"{path.name} is a stateful model (iOS 18 states), which is not supported.",
            hint="Convert it without states: pass what it remembers in and out as tensors.",
        )
    return spec, model_file
