"""What a CoreML package is proven against: the float32 package of the network it was converted from."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from nailcore.artifact import Artifact
from nailcore.errors import ArtifactError
from nailcore.storage import hash_path
from nailcore.variant import Variant

if TYPE_CHECKING:
    from nailcore.nets import ExportForm


@lru_cache(maxsize=1)
def load_trained(variant: Variant, weights: Path, _weights_sha256: str) -> ExportForm:
    """The trained network; a worker checks one variant's recipes one after the other."""
    from nailcore.nets import load_network

    return load_network(variant, weights)


def load_prepared(variant: Variant, artifact: Artifact, path: Path, weights: Path) -> ExportForm | None:
    """The network a recipe's passes made, from the folder it was converted from; None without one.

    Raises:
        ArtifactError: that folder is gone, or is another by now.
    """
    from quantize.prepared import open_prepared

    digest = artifact.made_by.config.get("prepared_sha256")
    if digest is None:
        return None
    folder = path.parent.parent / "prepared" / f"{artifact.variant}.{artifact.recipe}"
    hint = "Run `nailtool build-variants`; both will be made again."
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: what {artifact.label} was converted from is missing.", hint=hint)
    if hash_path(folder) != digest:
        raise ArtifactError(f"{folder}: is not what {artifact.label} was converted from.", hint=hint)
    return open_prepared(folder).load_network(variant, weights)


def convert_prepared(variant: Variant, network: ExportForm, scratch: Path) -> Path:
    """The float32 package of a prepared network, below ``scratch``."""
    from deploy.coreml import convert_sibling

    path = scratch / f"{variant.name}.prepared.mlpackage"
    convert_sibling(variant, network, path)
    return path


def build_sibling(variant: Variant, weights: Path, scratch: Path) -> Path:
    """The float32 package of the trained weights, below ``scratch``."""
    from deploy.coreml import convert
    from quantize import find_recipe

    path = scratch / f"{variant.name}.fp32.mlpackage"
    convert(variant, find_recipe("fp32").model_dump(mode="json"), weights, path)
    return path
