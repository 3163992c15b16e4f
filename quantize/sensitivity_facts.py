"""What is measured about the rounding of single layers, as JSON: image by image, and pooled."""

from __future__ import annotations

from nailcore.facts import Fact, ImageSet, Interval, Machine


class Counts(Fact):
    """One image under one scheme."""

    confusion: tuple[int, int, int, int]  # tp, fp, fn, tn of the nail mask at the photo's own size
    flipped: int  # mask pixels at the output's stride that differ from the float network's
    margin_error: float  # mean square of the margin's change, weighted by the float network's doubt


class ImageEffects(Fact):
    """What one image says about every layer; the unit in which a measurement is kept and resumed."""

    image: str
    pixels: int  # of the mask at the output's stride
    clean: tuple[int, int, int, int]  # of the float network
    rounded: Counts  # everything rounded
    only: dict[str, Counts]  # layer -> this one rounded, with the tensors it reads and writes
    without: dict[str, Counts]  # layer -> everything rounded but this kernel
    cpu_s: float


class LayerSensitivity(Fact):
    """One layer over all images. Drops are points of nail IoU against the float network, above 0 a loss."""

    layer: str  # torch module name
    macs: int  # multiplications for one image
    weights: int
    only_drop_points: Interval
    only_flipped_permille: float
    only_share: float  # of the margin's squared error with everything rounded
    without_drop_points: Interval
    without_flipped_permille: float
    saved_points: Interval  # what leaving it in float wins back, of the drop with everything rounded
    saved_permille: float
    saved_share: float  # of the margin's squared error with everything rounded; noise hides least here


class SensitivityResult(Fact):
    """The sensitivity of a variant's layers under a recipe; ``layers`` in the order of execution."""

    variant: str
    recipe: str
    weights_sha256: str
    prepared_sha256: str  # of the folder that ranges and a changed network came from
    part: str
    images: ImageSet
    drop_points: Interval  # everything rounded
    flipped_permille: float
    layers: tuple[LayerSensitivity, ...]
    runtime: str  # the simulation: no file was executed
    versions: dict[str, str]
    machine: Machine
    cpu_s: float

    def rank(self) -> list[LayerSensitivity]:
        """The layers that cause most of the margin's error when each is rounded alone, first.

        Not by what leaving a layer in float saves: both branches' first layers err the same way, so errors
        cancel, and repairing one of them alone shows nothing. Nor by flipped pixels, which are few.
        """
        return sorted(self.layers, key=lambda layer: (-layer.only_share, layer.layer))
