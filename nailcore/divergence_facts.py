"""Facts about where a file begins to differ from its network: the first layer, each step of a conversion."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import Field

from nailcore.facts import ArtifactRef, Fact, ImageSet, Machine


class Divergence(Fact):
    """The first layer of a file that does not compute what its torch counterpart computes."""

    artifact: ArtifactRef
    weights_sha256: str  # of the network it was compared with
    engine: str
    runtime: str
    versions: dict[str, str]
    image: str  # name of the photograph
    layer: str  # name of the layer's output tensor in the file
    op: str  # the format's own word
    module: str  # torch module, as in the code: "low.stage4.1.layers.3"
    torch_op: str
    file_attributes: dict[str, str]
    torch_attributes: dict[str, str]
    # Of this layer alone: torch's step is fed with the file's own inputs, so no earlier error counts.
    max_abs: float | None  # None: not finite, or of another shape
    relative: float | None  # max_abs over the range of the expected values
    tolerance: float  # for ``relative``
    accumulated_max_abs: float | None  # against the network run from the image
    where: str  # "everywhere", "border", and which channels
    channels: list[int]  # that differ; empty: all
    cause: str  # "dilation", "dropped bias", ...
    detail: str  # one sentence
    confirmed: bool  # recomputing torch's step with the cause made the error vanish
    residual: float | None  # error left then, as a share of the range
    layers_checked: int
    layers: int
    measured_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class StageError(Fact):
    """One output compared between two stages, over all images."""

    name: str
    max_abs: float
    psnr_db: float | None  # None: identical


class StagePair(Fact):
    """Two neighbouring stages of a conversion on the same photographs: what this step alone changed."""

    chain: str  # "onnx", "coreml", "tfjs", "tflite"
    variant: str
    recipe: str
    before: str  # "ONNX as exported"
    after: str  # "ONNX simplified"
    runtimes: tuple[str, str]
    outputs: list[StageError]
    flipped_permille: float  # of the mask pixels, by this step
    mask_iou: float  # of the two stages' nail masks, pooled
    share: float  # of the chain's whole squared error in fgbg that arose here, 0..1
    largest: bool  # no other pair of the chain contributes more
    images: int
    measured_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class BisectResult(Fact):
    """Where a file begins to compute something else than the network; nowhere is an answer, too."""

    artifact: ArtifactRef
    weights_sha256: str
    engine: str
    images: ImageSet
    found: Divergence | None  # None: every layer computes what torch computes from the same inputs
    measured_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class ConversionStages(Fact):
    """A file's whole conversion, step by step: each neighbouring pair on the same photographs."""

    artifact: ArtifactRef  # the last stage is this file
    weights_sha256: str
    images: ImageSet
    versions: dict[str, str]
    machine: Machine
    pairs: list[StagePair]
    measured_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
