"""Running totals of a file's logits against the network's: figures in task units, in fixed memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nailcore.errors import ConversionError
from nailcore.facts import Limits, OutputParity
from nailcore.mask_metrics import (
    AngleHistogram,
    ContourShift,
    Mask,
    count_boundary_overlap,
    measure_angles_deg,
    measure_contour_shift,
)
from nailcore.runtime import Logits

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
WORST_IMAGES = 3


@dataclass(frozen=True)
class Suspect:
    """One of the images a file gets most wrong, with what a heat-map is drawn from."""

    name: str
    flipped_permille: float
    image: npt.NDArray[np.uint8]  # (H, W, 3) RGB as the file got it
    reference: F32  # (h, w) margin: logit of nail less that of background
    found: F32


@dataclass
class OutputTotals:
    """Running totals of one output."""

    max_abs: float = 0.0
    squared: float = 0.0
    values: int = 0
    low: float = np.inf
    high: float = -np.inf
    dots: F64 = field(default_factory=lambda: np.zeros(3))  # (a·b, a·a, b·b)

    def add(self, a: F64, b: F64) -> None:
        """Count the differences of one image; NaN never gets here."""
        difference = np.abs(a - b)
        self.max_abs = max(self.max_abs, float(difference.max()))
        self.squared += float((difference**2).sum())
        self.values += a.size
        self.low, self.high = min(self.low, float(a.min())), max(self.high, float(a.max()))
        self.dots += np.array([(a * b).sum(), (a * a).sum(), (b * b).sum()])

    def describe(self, name: str) -> OutputParity:
        """Figures over all images. PSNR's peak is the reference's own range of values."""
        mse = self.squared / self.values
        peak = max(self.high - self.low, 1e-12)
        norm = float(np.sqrt(self.dots[1] * self.dots[2]))
        psnr = None if mse == 0 else float(10 * np.log10(peak**2 / mse))
        cosine = float(self.dots[0] / norm) if norm else None
        return OutputParity(name=name, max_abs=self.max_abs, psnr_db=psnr, cosine=cosine)


@dataclass
class Comparison:
    """Running totals of one artefact against the reference; memory does not grow with images."""

    totals: dict[str, OutputTotals] = field(default_factory=dict)
    flipped: int = 0
    pixels: int = 0
    mask_overlap: tuple[int, int] = (0, 0)  # intersection, union
    boundary_overlap: tuple[int, int] = (0, 0)
    contour: ContourShift = field(default_factory=ContourShift)
    contour_image: str | None = None
    same_finger: int = 0
    nail_pixels: int = 0
    angles: AngleHistogram = field(default_factory=AngleHistogram)
    worst: tuple[float, str] = (-1.0, "")
    suspects: list[Suspect] = field(default_factory=list)

    def add(
        self, name: str, reference: Logits, found: Logits, image: npt.NDArray[np.uint8] | None = None
    ) -> None:
        """Compare the logits of one image; outputs are matched by name, never by shape or order.

        Args:
            name: of the image.
            reference, found: named logits of a batch of one.
            image: (H, W, 3) RGB as both got it; kept while the image is among the worst.

        Raises:
            ConversionError: an output is missing, of another shape, or not finite.
        """
        if set(found) != set(reference):
            raise ConversionError(
                f"Outputs are named {sorted(found)}, the network's are {sorted(reference)}."
            )
        for output, a in reference.items():
            self._add_output(output, a, found[output])
        margins = [logits["fgbg"][0, 1] - logits["fgbg"][0, 0] for logits in (reference, found)]
        ours, theirs = (np.asarray(logits["fgbg"][0].argmax(0) == 1) for logits in (reference, found))
        permille = self._add_masks(name, ours, theirs)
        self._add_classes(ours, reference, found)
        if image is not None and permille > 0:
            self.suspects.append(Suspect(name, permille, image, margins[0], margins[1]))
            self.suspects.sort(key=lambda suspect: (-suspect.flipped_permille, suspect.name))
            del self.suspects[WORST_IMAGES:]

    def _add_output(self, output: str, a: F32, b: F32) -> None:
        if a.shape != b.shape:
            raise ConversionError(f"Output '{output}' is {b.shape}, the network's is {a.shape}.")
        if not np.isfinite(b).all():
            raise ConversionError(f"Output '{output}' holds NaN or infinite values.")
        self.totals.setdefault(output, OutputTotals()).add(a.astype(np.float64), b.astype(np.float64))

    def _add_masks(self, name: str, ours: Mask, theirs: Mask) -> float:
        """Flipped pixels, overlaps and contours; returns this image's flipped pixels in ‰."""
        flipped = int(np.count_nonzero(ours != theirs))
        both, either = int(np.count_nonzero(ours & theirs)), int(np.count_nonzero(ours | theirs))
        band = count_boundary_overlap(theirs, ours)
        self.flipped += flipped
        self.pixels += ours.size
        self.mask_overlap = (self.mask_overlap[0] + both, self.mask_overlap[1] + either)
        self.boundary_overlap = (self.boundary_overlap[0] + band[0], self.boundary_overlap[1] + band[1])
        shift, so_far = measure_contour_shift(theirs, ours), self.contour
        if shift.shift_px > so_far.shift_px:
            self.contour_image = name
        self.contour = ContourShift(
            shift_px=max(so_far.shift_px, shift.shift_px),
            appeared=so_far.appeared + shift.appeared,
            vanished=so_far.vanished + shift.vanished,
            largest_lone_px=max(so_far.largest_lone_px, shift.largest_lone_px),
        )
        permille = 1000 * flipped / ours.size
        # Of equals the first by name, as in the list of suspects.
        self.worst = min(self.worst, (permille, name), key=lambda one: (-one[0], one[1]))
        return permille

    def _add_classes(self, nails: Mask, reference: Logits, found: Logits) -> None:
        """Finger classes and directions inside the reference's nails."""
        if "finger" in reference:
            ours, theirs = (logits["finger"][0].argmax(0) for logits in (reference, found))
            self.same_finger += int(np.count_nonzero((ours == theirs) & nails))
            self.nail_pixels += int(np.count_nonzero(nails))
        if "direction" in reference:
            vectors = [logits["direction"][0][:, nails] for logits in (found, reference)]
            self.angles.add(measure_angles_deg(*vectors))

    def outputs(self) -> list[OutputParity]:
        """Figures per output."""
        return [totals.describe(name) for name, totals in self.totals.items()]

    @property
    def flipped_permille(self) -> float:
        """Nail-mask pixels that changed side, of all pixels."""
        return 1000 * self.flipped / self.pixels

    @property
    def mask_iou(self) -> float:
        """The file's nail mask against the reference's, pooled."""
        return _divide(*self.mask_overlap)

    @property
    def boundary_iou(self) -> float:
        """The same of the 2 px wide bands inside the contours, pooled."""
        return _divide(*self.boundary_overlap)

    @property
    def finger_agreement(self) -> float | None:
        """Share of the reference's nail pixels with the same finger class; None: there is none."""
        return self.same_finger / self.nail_pixels if self.nail_pixels else None

    @property
    def direction_error_median_deg(self) -> float | None:
        """Median angle inside the reference's nails, rounded up to 0.01."""
        return self.angles.find_percentile(0.5)

    @property
    def direction_error_p90_deg(self) -> float | None:
        """90th percentile of the angle inside the reference's nails, rounded up to 0.01."""
        return self.angles.find_percentile(0.9)


def _divide(intersection: int, union: int) -> float:
    return intersection / union if union else 1.0


def judge(
    label: str, comparison: Comparison, limits: Limits, heads_trained: Sequence[str] = ("fgbg",)
) -> list[str]:
    """One sentence per broken limit, naming artefact, output, figure and limit.

    Finger classes and directions are judged only where their head is trained: an untrained head's
    argmax decides between noise, and tells nothing about the file. Its logits are judged as any other's.
    """
    c, failures = comparison, []
    for output in c.outputs():
        if limits.max_abs is not None and not output.max_abs <= limits.max_abs:
            failures.append(
                f"output '{output.name}' differs by {output.max_abs:.3g} "
                f"(max-abs; limit {limits.max_abs:.3g})."
            )
    if not c.flipped_permille <= limits.flipped_permille:
        failures.append(
            f"output 'fgbg' flips {c.flipped_permille:.3f} ‰ of the mask pixels "
            f"(limit {limits.flipped_permille:.3g} ‰; worst image {c.worst[1]}: {c.worst[0]:.2f} ‰)."
        )
    failures += _judge_masks(c, limits)
    if "finger" in heads_trained and _is_below(c.finger_agreement, limits.finger_agreement):
        failures.append(
            f"output 'finger' names the same finger on {c.finger_agreement:.4f} of the nail pixels "
            f"(at least {limits.finger_agreement:.4g})."
        )
    if "direction" in heads_trained and _is_above(c.direction_error_p90_deg, limits.direction_error_deg):
        failures.append(
            f"output 'direction' turns by {c.direction_error_p90_deg:.2f}° or more on a tenth of the nail "
            f"pixels (limit {limits.direction_error_deg:.3g}°)."
        )
    return [f"{label}: {failure}" for failure in failures]


def _judge_masks(c: Comparison, limits: Limits) -> list[str]:
    failures = []
    for word, figure, limit in (
        ("mask", c.mask_iou, limits.mask_iou),
        ("boundary", c.boundary_iou, limits.boundary_iou),
    ):
        if _is_below(figure, limit):
            failures.append(f"output 'fgbg' has a {word} IoU of {figure:.4f} (at least {limit:.4g}).")
    if _is_above(c.contour.shift_px, limits.contour_shift_px):
        failures.append(
            f"output 'fgbg' moves a contour by {c.contour.shift_px:.1f} px in image {c.contour_image} "
            f"(limit {limits.contour_shift_px:.3g} px of the output)."
        )
    if _is_above(c.contour.largest_lone_px, limits.lone_blob_px):
        failures.append(
            f"output 'fgbg' makes a blob or hole of {c.contour.largest_lone_px} px appear or vanish "
            f"(limit {limits.lone_blob_px} px of the output)."
        )
    return failures


# Written so that a NaN is never within a limit.
def _is_below(figure: float | None, limit: float | None) -> bool:
    return figure is not None and limit is not None and not figure >= limit


def _is_above(figure: float | None, limit: float | None) -> bool:
    return figure is not None and limit is not None and not figure <= limit
