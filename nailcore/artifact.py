"""The artefact: one shipped file or folder, and the manifest that travels beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nailcore.errors import ArtifactError
from nailcore.storage import hash_path, size_bytes, write_text

MANIFEST_SUFFIX = ".manifest.json"
WEIGHTS_SUFFIX = ".safetensors"  # of trained weights, from which the first artefact of a chain is made


class MadeBy(BaseModel):
    """How an artefact came to be: enough to make it again and to know what it cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    versions: dict[str, str]  # distribution -> version of every tool that touched the bytes
    config: dict[str, Any]  # variant and recipe as data
    parent: str  # file name of what it was made from
    parent_sha256: str
    cpu_s: float = Field(ge=0)
    wall_s: float = Field(ge=0)
    peak_rss_bytes: int = Field(ge=0)


class Artifact(BaseModel):
    """One built file or folder. ``file`` is its name inside the folder that holds the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = 1
    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")  # a bare name: no '..', no '/'
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)
    kind: str  # onnx, coreml, tfjs
    variant: str
    recipe: str  # fp32, fp16, ...
    input_name: str
    input_layout: str  # "NCHW" or "NHWC"; always RGB, 0..255
    output_names: dict[str, str]  # our name -> the name inside the file
    structure: dict[str, Any] = Field(default_factory=dict)  # op counts and the like
    made_by: MadeBy

    @property
    def label(self) -> str:
        """Short identity for tables and messages, e.g. ``nail55-480 onnx fp32``."""
        return f"{self.variant} {self.kind} {self.recipe}"


def artifact_path(out_dir: Path, variant: str, recipe: str, suffix: str) -> Path:
    """Where an artefact lives below an output folder: ``OUT/nail55-480/nail55-480.fp16.onnx``."""
    return out_dir / variant / f"{variant}.{recipe}{suffix}"


def manifest_path(path: Path) -> Path:
    """The manifest beside an artefact."""
    return path.with_name(path.name + MANIFEST_SUFFIX)


def describe_artifact(
    path: Path,
    *,
    kind: str,
    variant: str,
    recipe: str,
    input_name: str,
    input_layout: str,
    output_names: dict[str, str],
    made_by: MadeBy,
    structure: dict[str, Any] | None = None,
    file: str | None = None,
) -> Artifact:
    """Hash what lies at ``path`` and describe it; ``file`` overrides the name it will ship under."""
    return Artifact(
        file=file or path.name,
        sha256=hash_path(path),
        size_bytes=size_bytes(path),
        kind=kind,
        variant=variant,
        recipe=recipe,
        input_name=input_name,
        input_layout=input_layout,
        output_names=output_names,
        structure=structure or {},
        made_by=made_by,
    )


def write_manifest(path: Path, artifact: Artifact) -> Path:
    """Write the manifest of the artefact at ``path`` beside it; returns the manifest's path."""
    target = manifest_path(path)
    write_text(target, artifact.model_dump_json(indent=2) + "\n")
    return target


def read_manifest(manifest: Path) -> Artifact:
    """Read and validate a manifest without touching the artefact itself.

    Raises:
        ArtifactError: missing, not JSON, or not a manifest of ours.
    """
    try:
        return Artifact.model_validate_json(manifest.read_bytes())
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{manifest}: no manifest there.", hint="Run `nailtool build-variants` first."
        ) from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{manifest}: the manifest is damaged: {error}",
            hint="Delete it and run `nailtool build-variants`; it will be made again.",
        ) from error


def open_artifact(manifest: Path) -> tuple[Artifact, Path]:
    """Read a manifest and check that the artefact beside it is the one it describes.

    Raises:
        ArtifactError: the manifest is damaged, or the artefact missing or changed since.
    """
    artifact = read_manifest(manifest)
    path = manifest.parent / artifact.file
    if not path.exists():
        raise ArtifactError(
            f"{path}: described by {manifest.name} but missing.",
            hint="Run `nailtool build-variants`; it will be made again.",
        )
    found = hash_path(path)
    if found != artifact.sha256:
        raise ArtifactError(
            f"{path}: its bytes changed since it was built "
            f"(SHA-256 {found[:12]}…, manifest says {artifact.sha256[:12]}…).",
            hint="The file is damaged or was edited: do not ship it. "
            "Run `nailtool build-variants` to make it again.",
        )
    return artifact, path


@dataclass(frozen=True)
class BrokenParent:
    """An artefact made from another artefact that has since been replaced or is gone."""

    artifact: Artifact
    found: str | None  # SHA-256 of the parent's namesake as it is now; None: no such file


def _is_artifact(child: Artifact, parent: str) -> bool:
    return parent.startswith(f"{child.variant}.") and not parent.endswith(WEIGHTS_SUFFIX)


def trace_weights(
    artifact: Artifact, find_parent: Callable[[Artifact, str], Artifact | None]
) -> str | BrokenParent:
    """SHA-256 of the weights an artefact descends from, through the artefacts it was converted from.

    A parent is an artefact when it carries an artefact's name (``<variant>.…``), else the weights file,
    which may be called like the variant (``nail55-480.safetensors``).
    ``find_parent`` gets a child and its parent's file name, and gives that file's manifest as it is now.
    """
    seen = set()
    while _is_artifact(artifact, artifact.made_by.parent):
        seen.add(artifact.file)
        parent = find_parent(artifact, artifact.made_by.parent)
        if parent is None or parent.sha256 != artifact.made_by.parent_sha256 or parent.file in seen:
            return BrokenParent(artifact, parent.sha256 if parent else None)
        artifact = parent
    return artifact.made_by.parent_sha256
