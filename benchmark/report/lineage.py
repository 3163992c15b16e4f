"""Who was made from whom: an artefact's chain of parents back to the trained weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from nailcore.artifact import Artifact
from nailcore.variant import Variant


@dataclass(frozen=True)
class BrokenParent:
    """An artefact made from another artefact that has since been replaced or is gone."""

    artifact: Artifact
    found: str | None  # SHA-256 of the parent's namesake as it is now; None: no such file


def index_by_file(artifacts: Iterable[Artifact]) -> dict[tuple[str, str], Artifact]:
    """Artefacts by (variant, file name)."""
    return {(a.variant, a.file): a for a in artifacts}


def find_weights_sha256(
    artifact: Artifact, by_file: Mapping[tuple[str, str], Artifact]
) -> str | BrokenParent:
    """SHA-256 of the weights an artefact descends from, through the artefacts it was converted from.

    A parent is an artefact when it carries an artefact's name (``<variant>.…``), else the weights file.
    """
    seen = set()
    while artifact.made_by.parent.startswith(f"{artifact.variant}."):
        seen.add(artifact.file)
        parent = by_file.get((artifact.variant, artifact.made_by.parent))
        if parent is None or parent.sha256 != artifact.made_by.parent_sha256 or parent.file in seen:
            return BrokenParent(artifact, parent.sha256 if parent else None)
        artifact = parent
    return artifact.made_by.parent_sha256


def read_variant(artifact: Artifact) -> Variant | None:
    """The variant's declaration as the manifest carries it; None when it carries none that is valid."""
    try:
        return Variant.model_validate(artifact.made_by.config.get("variant"))
    except ValidationError:
        return None
