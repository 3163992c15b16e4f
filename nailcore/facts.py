"""The facts: everything measured, as JSON models bound to an artefact's hash; the report reads only these."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nailcore.artifact import Artifact
from nailcore.errors import ArtifactError, tell_problems
from nailcore.storage import write_text


class Fact(BaseModel):
    """Base of all facts: frozen, strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(Fact):
    """The machine a fact was measured on."""

    cpu: str
    cores: int
    memory_bytes: int
    system: str  # e.g. "Linux 6.1 x86_64"
    python: str


class ImageSet(Fact):
    """The photographs a fact was measured on, named by content."""

    name: str  # "nails_cc0 held-out", "embedded synthetic hands"
    sha256: str  # over the sorted (file name, image hash, mask hash) lines
    count: int
    synthetic: bool
    part_of_sha256: str = ""  # of the whole part, where a slow engine saw only its first images


class ArtifactRef(Fact):
    """Which file a fact speaks of. A fact never outlives this hash."""

    variant: str
    kind: str
    recipe: str
    file: str
    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, artifact: Artifact) -> ArtifactRef:
        """The reference of an artefact."""
        return cls(**artifact.model_dump(include=set(cls.model_fields)))

    @property
    def label(self) -> str:
        """Short identity, e.g. ``nail55-480 tfjs fp16``."""
        return f"{self.variant} {self.kind} {self.recipe}"


class Interval(Fact):
    """A figure with its 95 % bootstrap interval over images."""

    value: float
    low: float
    high: float

    def tell(self, digits: int = 1, *, scale: float = 1.0, sign: str = "", unit: str = "") -> str:
        """``0.12 [-0.05, 0.31]``, as all tables print it; "-0.00" is written without its sign."""
        value, low, high = (
            f"{round(scale * figure, digits) + 0.0:{sign}.{digits}f}"
            for figure in (self.value, self.low, self.high)
        )
        return f"{value}{unit} [{low}, {high}]"


class OutputParity(Fact):
    """One named output against the torch reference, over all images."""

    name: str
    max_abs: float
    psnr_db: float | None  # None: identical
    cosine: float | None


class Limits(Fact):
    """What an artefact must keep; None: not judged by this figure."""

    max_abs: float | None
    flipped_permille: float
    mask_iou: float | None = None  # at least
    boundary_iou: float | None = None  # at least
    contour_shift_px: float | None = None  # at most, at the logits' resolution
    lone_blob_px: int | None = None  # largest blob or hole that may appear or vanish, logits' resolution
    finger_agreement: float | None = None  # at least; judged only where the head is trained
    direction_error_deg: float | None = None  # p90, at most; judged only where the head is trained
    mean_abs: float | None = None  # at most, in uint8 code values; judged in pre-processing only
    reason: str


class Gate(Fact):
    """One of several independent proofs about a file, with the figures it rests on."""

    name: str  # "semantics", "identity", "end to end"
    passed: bool
    detail: str  # one sentence
    figures: dict[str, float] = {}


class WorstImage(Fact):
    """An image the file gets most wrong, kept with a heat-map of where."""

    name: str
    flipped_permille: float
    heatmap: str | None = None  # file name of a PNG in the folder beside the facts file


class Check(Fact):
    """One structural check of a file that is not executed."""

    name: str
    passed: bool
    detail: str


class ImageDrop(Fact):
    """One labelled image: confusion counts (tp, fp, fn, tn) in pixels, at the photo's own size."""

    name: str
    found: tuple[int, int, int, int]  # of the file's mask
    reference: tuple[int, int, int, int]  # of the float network's


class AccuracyDrop(Fact):
    """What a file segments worse than the float network, both against the labels of the same images."""

    miou: Interval  # of the file, 0..1
    nail_iou: Interval
    reference_miou: Interval  # of the float network
    reference_nail_iou: Interval
    # Float network less file, in points (100 x IoU), images resampled in pairs; below 0: the file is better.
    drop_points: Interval  # of nail IoU
    miou_drop_points: Interval
    per_image: list[ImageDrop]


class ParityResult(Fact):
    """Does this file still compute what the trained network computes?"""

    artifact: ArtifactRef
    weights_sha256: str  # of the network it was compared with
    status: Literal["passed", "failed", "not executed"]
    runtime: str
    versions: dict[str, str]
    machine: Machine
    images: ImageSet
    limits: Limits
    outputs: list[OutputParity] = []
    # Over all pixels of all images, at the logits' resolution: argmax(fgbg) differs from torch's.
    flipped_permille: float | None = None
    worst_image_flipped_permille: float | None = None
    worst_image: str | None = None
    mask_iou: float | None = None  # nail mask against the reference's nail mask, pooled
    boundary_iou: float | None = None  # same, of the 2 px wide bands inside either contour
    contour_shift_px: float | None = None  # furthest a contour moved, at the logits' resolution
    contour_shift_image: str | None = None
    blobs_appeared: int | None = None  # blobs and holes that touch none of the reference's
    blobs_vanished: int | None = None
    lone_blob_px: int | None = None  # the largest of those
    finger_agreement: float | None = None  # same argmax class inside the reference's nails, 0..1
    direction_error_median_deg: float | None = None  # inside the reference's nails
    direction_error_p90_deg: float | None = None
    heads_trained: tuple[str, ...] = ()  # figures of other heads are shown and not judged
    engine: str = ""  # nailcore.runtime.Engine.name
    software_gpu: bool = False  # right numbers, meaningless speed
    settings: dict[str, str] = {}  # backend really obtained, renderer, isolation, ...
    worst_images: list[WorstImage] = []
    accuracy: AccuracyDrop | None = None  # None: not executed, or measured by an older nailtool
    gates: list[Gate] = []
    checks: list[Check] = []
    failures: list[str] = []  # one sentence each: output, figure, limit
    note: str = ""  # why it was not executed
    measured_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class StageParity(Fact):
    """Does one step before or after the network give what Python's gives, on the same photographs?"""

    stage: Literal["decode", "resize", "normalise", "preprocess", "image input", "postprocess"]
    implementation: str  # "nailtool JavaScript", "canvas drawImage (low)", "iOS dump", ...
    engine: str  # "chromium", "firefox", "webkit", "ios", "mil-reference"
    variant: str
    weights_sha256: str | None  # of the network that tells what the difference does to the mask
    source_sha256: str | None = None  # of the code or model file that was compared: page bundle, package
    versions: dict[str, str]
    machine: Machine
    images: ImageSet
    figures: dict[str, float]  # units in the names; every image counts alike in a mean
    limits: Limits
    judged: bool = True  # False: shown for comparison, its failure fails nothing
    passed: bool | None  # None: not measured here, detail says why and how it can be
    cause: str = ""  # short name of the most likely cause of a failure, "" when none fits
    detail: str  # one or two sentences
    worst_image: str | None = None
    measured_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class NailAccuracy(Fact):
    """One annotated nail."""

    size_px: float  # √area with the image scaled to a long side of 480 px
    iou: float  # with the predicted blob that overlaps it best
    finger_right: bool | None = None  # None: not labelled, or the head is not trained
    finger_right_alone: bool | None = None  # named without regard to the image's other nails
    direction_error_deg: float | None = None


class ImageKind(Fact):
    """What kind of image it is, measured from the image itself; None: cannot be told."""

    nail_size_px: float | None  # of the mean nail, √area at a long side of 480 px
    skin_ita_deg: float | None  # individual typology angle of the skin around the nails
    brightness: float  # mean L*, 0..100


class ImageAccuracy(Fact):
    """One held-out image: its confusion counts in pixels and figures derived from them."""

    name: str
    tp: int
    fp: int
    fn: int
    tn: int
    nail_iou: float | None  # None: no nail annotated and none predicted
    overlay: str | None = None  # file name of a JPEG beside the facts file
    boundary: tuple[int, int, int, int] | None = None  # matched predicted, predicted, matched true, true
    nails: list[NailAccuracy] = []
    kind: ImageKind | None = None


class AccuracySlice(Fact):
    """The images of one kind."""

    by: str  # "nail size", "skin tone", "brightness"
    name: str  # "small", "light", "dark", ...
    images: int
    nails: int
    miou: Interval
    nail_iou: Interval
    nail_recall: Interval | None


class AccuracyResult(Fact):
    """Segmentation accuracy of a variant's weights on an image set, at the original image size."""

    variant: str
    weights: str
    weights_sha256: str
    runtime: str
    versions: dict[str, str]
    machine: Machine
    images: ImageSet
    output_stride: int
    miou: Interval  # mean of nail and background IoU, 0..1
    nail_iou: Interval
    boundary_f: Interval  # 2 px tolerance with the image scaled to a 480 px long side
    per_image: list[ImageAccuracy]
    nail_recall: Interval | None = None  # share of annotated nails overlapped by a blob with IoU >= 0.5
    finger_accuracy: Interval | None = None  # share of nails whose finger is named right; None: no labels
    finger_accuracy_alone: Interval | None = None  # the same with each nail named by itself
    direction_error_median_deg: Interval | None = None
    direction_error_p90_deg: Interval | None = None
    slices: list[AccuracySlice] = []
    measured_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class WeightsFacts(Fact):
    """What is known of a weights file; written by ``nailtool train`` beside it."""

    weights: str  # stem, e.g. "nail55-480"
    sha256: str
    size_bytes: int
    encoder: str
    encoder_layers: int
    fusion_width: int
    parameters: int  # of the export form
    heads_trained: tuple[str, ...]  # the other heads hold their random initialisation
    trained_on: ImageSet
    init: str  # file name of the encoder initialisation, or "random"
    init_sha256: str
    command: str
    config: dict[str, object]
    versions: dict[str, str]
    machine: Machine
    accuracy: list[AccuracyResult]  # on photographs held out of the training, largest input first
    sources: list[ImageSet] = []  # the data sets that ``trained_on`` sums up
    accuracy_synthetic: list[AccuracyResult] = []  # on rendered images of people never trained on
    trained_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class Measurement(Fact):
    """Latency of one artefact on one device; samples are raw and complete."""

    artifact: ArtifactRef
    device: str  # "cpu", "chromium"
    runtime: str  # e.g. "onnxruntime CPU", "tfjs wasm"
    versions: dict[str, str]
    machine: Machine
    settings: dict[str, str]  # threads, spinning, simd, isolation, ...
    software_gpu: bool = False  # never ranked as a GPU
    warmup: int  # runs before the first sample of each round
    rounds: int
    wall_ms: list[float]
    cpu_ms: list[float]  # of the process (and its children) that runs the model; aligned with cpu_batches
    cpu_batch: int = 1  # inferences per CPU sample: process clocks may be coarse
    load_ms: float  # open the file, until ready for the first inference
    first_ms: float  # the first inference
    load_average_before: float
    load_average_after: float
    median_wall_ms: float
    p90_wall_ms: float
    median_cpu_ms: float
    p90_cpu_ms: float
    invalid: list[str] = []  # reasons this row must not be ranked: drift, too few samples, ...
    measured_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class Skipped(Fact):
    """Something a command could have measured here and did not."""

    what: str
    reason: str
    remedy: str


class PrePostResult(Fact):
    """All stages before and after the network of one variant."""

    variant: str
    weights_sha256: str
    images: ImageSet
    stages: list[StageParity]


FactT = TypeVar("FactT", bound=Fact)


def write_fact(path: Path, fact: Fact) -> None:
    """Write one fact as JSON, atomically."""
    write_text(path, fact.model_dump_json(indent=1) + "\n")


def read_fact(path: Path, kind: type[FactT]) -> FactT:
    """Read one fact.

    Raises:
        ArtifactError: missing, damaged, or another kind of fact.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path}: there is no such file.", hint=f"It should be a {kind.__name__} that nailtool wrote."
        ) from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{path}: not a readable {kind.__name__}: {tell_problems(error, most=3)}",
            hint="If nailtool wrote it, delete it: the command that did will measure again. Otherwise it is "
            "another kind of file.",
        ) from error
