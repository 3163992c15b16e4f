"""Which artefacts a report holds by name, and what their manifests say of their variant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import ValidationError

from nailcore.artifact import Artifact, BrokenParent, trace_weights
from nailcore.variant import Variant

ByFile = Mapping[tuple[str, str], Artifact]


def index_by_file(artifacts: Iterable[Artifact]) -> dict[tuple[str, str], Artifact]:
    """Artefacts by (variant, file name)."""
    return {(a.variant, a.file): a for a in artifacts}


def find_weights_sha256(artifact: Artifact, by_file: ByFile) -> str | BrokenParent:
    """SHA-256 of the weights an artefact descends from, by the manifests of the same folder."""
    return trace_weights(artifact, lambda child, name: by_file.get((child.variant, name)))


def read_variant(artifact: Artifact) -> Variant | None:
    """The variant's declaration as the manifest carries it; None when it carries none that is valid."""
    try:
        return Variant.model_validate(artifact.made_by.config.get("variant"))
    except ValidationError:
        return None
