"""What a recipe needs before a file is written: calibration images, changed weights, layers kept in float."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from nailcore.errors import ArtifactError
from nailcore.facts import ImageSet
from nailcore.variant import Variant

if TYPE_CHECKING:
    from nailcore.nets.export_form import ExportForm

CARD = "prepared.json"
CALIBRATION = "calibration.npz"
NETWORK = "network.safetensors"
_HINT = "Run `nailtool build-variants`; it will be made again."


class PreparedCard(BaseModel):
    """What lies in a prepared folder, and from what it was made."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    variant: str
    recipe: str
    weights_sha256: str
    images: ImageSet | None = None  # calibration or training images
    image_names: tuple[str, ...] = ()  # of the calibration images, in their order
    network_changed: bool = False  # NETWORK holds the state to quantize instead of the weights' own
    float_layers: tuple[
        str, ...
    ] = ()  # torch module names that stay in float, beside the recipe's keep_float
    kernel_errors: dict[str, float] = {}  # by torch module name, see quantize.kernel_errors
    notes: dict[str, Any] = {}  # what each pass did, for the manifest


@dataclass(frozen=True)
class Prepared:
    """A prepared folder, opened."""

    folder: Path
    card: PreparedCard

    def load_images(self) -> npt.NDArray[np.uint8]:
        """Calibration images (N, H, W, 3) RGB at the variant's size, as the shipped preprocessing gives them.

        Raises:
            ArtifactError: missing or damaged.
        """
        path = self.folder / CALIBRATION
        try:
            with np.load(path, allow_pickle=False) as stored:
                return np.asarray(stored["images"], np.uint8)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise ArtifactError(f"{path}: calibration images cannot be read: {error}", hint=_HINT) from error

    def load_network(self, variant: Variant, weights: Path) -> ExportForm:
        """The network to quantize, in export form: the weights' own, or what the passes made of it.

        Raises:
            WeightsError: unusable weights.
            ArtifactError: the changed network is damaged or of another variant.
        """
        from safetensors.torch import load_file

        from nailcore.nets import load_network

        network = load_network(variant, weights)
        if self.card.network_changed:
            path = self.folder / NETWORK
            try:
                network.load_state_dict(load_file(path))
            except Exception as error:  # safetensors and torch raise unrelated types
                raise ArtifactError(
                    f"{path}: not a network of {variant.name}: {error}", hint=_HINT
                ) from error
        return network


def open_prepared(folder: Path) -> Prepared:
    """Open a prepared folder; raises ArtifactError when it is missing or damaged."""
    path = folder / CARD
    try:
        return Prepared(folder, PreparedCard.model_validate_json(path.read_bytes()))
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: nothing prepared there: {error}", hint=_HINT) from error
