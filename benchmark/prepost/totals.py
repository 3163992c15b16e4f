"""One stage of one implementation over all photographs: figures, verdict, and the sentence that says it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from benchmark.limits import load_tables
from benchmark.prepost import causes, nails
from benchmark.prepost.causes import Source, find_region
from benchmark.prepost.images import measure_difference
from benchmark.prepost.implementations import Implementation, decode_file, read_alpha
from nailcore.data.folder import Sample
from nailcore.errors import NailtoolError
from nailcore.facts import ImageSet, Limits, StageParity
from nailcore.measure import describe_machine
from nailcore.runtime import Logits
from nailcore.storage import hash_file
from nailcore.tryon import Nail
from nailcore.variant import Variant

Stage = Literal["decode", "resize", "normalise", "preprocess", "image input", "postprocess"]
Pixels = npt.NDArray[np.generic]

_AVERAGED = ("mean_abs_code_values", "over_1_permille", "flipped_permille")  # of the others the worst counts


def stage_limits(stage: Stage) -> Limits:
    """The limits of one stage, from benchmark/limits.toml; raises NailtoolError when it has none."""
    key = f"stage.{stage.replace(' ', '-')}"
    table = load_tables().get(key)
    if table is None:
        raise NailtoolError(f"No limits for the stage {stage}.", hint=f'Add ["{key}"] to limits.toml.')
    return Limits.model_validate({"max_abs": None, "flipped_permille": 0.0} | table)


@dataclass(frozen=True)
class Photo:
    """One photograph: its file and what Python decodes from it, (H, W, 3) RGB."""

    name: str
    file: bytes
    pixels: npt.NDArray[np.uint8]

    @classmethod
    def read(cls, sample: Sample) -> Photo:
        """Read and decode; raises DataError when it cannot be."""
        return cls(sample.name, sample.image.read_bytes(), sample.load_image())

    def as_source(self, size: tuple[int, int] | None) -> Source:
        """With the EXIF rotation undone and the alpha: what mistakes are made from."""
        stored = decode_file(self.file, upright=False)
        turned = stored.shape != self.pixels.shape or not np.array_equal(stored, self.pixels)
        return Source(self.pixels, size, stored if turned else None, read_alpha(self.file))


def describe_part(images: ImageSet, samples: Sequence[Sample]) -> ImageSet:
    """The image set of only some photos of another, named and hashed as what it is."""
    if len(samples) == images.count:
        return images
    digest = hashlib.sha256()
    for sample in samples:
        line = f"{sample.name} {hash_file(sample.image)} {sample.hash_labels()}\n"
        digest.update(line.encode())
    name = f"{images.name}, {len(samples)} of {images.count}"
    return images.model_copy(update={"name": name, "sha256": digest.hexdigest(), "count": len(samples)})


@dataclass
class Totals:
    """Running figures of one stage; memory does not grow with the number of photos."""

    stage: Stage
    implementation: Implementation
    variant: Variant
    limits: Limits = field(init=False)
    images: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)  # what no figure tells
    worst: tuple[float, str] = (-1.0, "")
    _explained: float = 0.0  # how far off the image was that the cause was looked for on
    _cause: tuple[str, str] = ("", "")  # name, sentence

    def __post_init__(self) -> None:
        self.limits = stage_limits(self.stage)

    def add_image(
        self, photo: Photo, reference: Pixels, found: Pixels, flipped_permille: float | None = None
    ) -> None:
        """Compare one image of a stage of pre-processing with Python's."""
        size = None if self.stage == "decode" else (self.variant.height_px, self.variant.width_px)
        if reference.shape != found.shape:
            (height, width), (h, w) = found.shape[:2], reference.shape[:2]
            self._count({}, photo.name, float("inf"))
            self.complaints.append(f"{photo.name} became {width}×{height} px, not {w}×{h} px.")
            self._explain(photo, reference, found, float("inf"), size)
            return
        if not np.isfinite(np.asarray(found, np.float64)).all():
            self._count({}, photo.name, float("inf"))
            self.complaints.append(f"{photo.name}: holds NaN or infinite values.")
            return
        region = find_region(photo.pixels.shape[:2], size) if size else None
        difference = measure_difference(reference, found, region)
        values = {
            "max_abs_code_values": difference.max_abs,
            "mean_abs_code_values": difference.mean_abs,
            "over_1_permille": 1000 * difference.over_1_share,
            "shift_px": difference.shift_px,
            "gamma_off": abs(difference.gamma - 1),
            "channels_permuted": float(difference.channel_order != "RGB"),
        }
        if flipped_permille is not None:
            values |= {"flipped_permille": flipped_permille, "worst_flipped_permille": flipped_permille}
        self._count(values, photo.name, difference.mean_abs)
        if difference.max_abs > 1:
            self._explain(photo, reference, found, difference.mean_abs, size)

    def add_nails(
        self, name: str, logits: Logits, reference: list[Nail], found: list[Nail], min_area_px: int
    ) -> None:
        """Compare the nails found from the same logits; see :func:`benchmark.prepost.nails.compare_nails`."""
        difference = nails.compare_nails(reference, found)
        values = {
            "nails": float(difference.reference),
            "unmatched_nails": float(difference.unmatched),
            "area_cells": float(difference.area),
            "place_cells": difference.place,
            "box_cells": float(difference.box),
            "fingers_differ": float(difference.fingers),
            "angle_deg": difference.angle_deg,
            "score": difference.score,
        }
        amount = difference.unmatched + difference.fingers + difference.place + difference.angle_deg
        self._count(values, name, float(amount))
        if amount > self._explained and not difference.is_none:
            self._explained = float(amount)
            cause = nails.find_cause(logits, found, min_area_px)
            self._cause = (
                cause,
                f"Most likely cause: {cause}; it gives the very same nails." if cause else "",
            )

    def add_mask(self, flipped_permille: float) -> None:
        """Share of photo pixels on which the mask stretched to the photo differs, of the last image."""
        for key in ("flipped_permille", "worst_flipped_permille"):
            self._add_figure(key, flipped_permille)

    def refuse(self, name: str, reason: str) -> None:
        """The implementation threw on an image."""
        self._count({}, name, float("inf"))
        self.complaints.append(f"{name}: refused: {reason}")

    def _count(self, values: dict[str, float], name: str, amount: float) -> None:
        self.images += 1
        self.worst = max(self.worst, (amount, name))
        for key, value in values.items():
            self._add_figure(key, value)

    def _add_figure(self, key: str, value: float) -> None:
        old = self.figures.get(key, 0.0)
        if key in _AVERAGED:
            self.figures[key] = old + (value - old) / self.images
        elif key == "nails":
            self.figures[key] = old + value
        else:
            self.figures[key] = max(old, value)

    def _explain(
        self, photo: Photo, reference: Pixels, found: Pixels, amount: float, size: tuple[int, int] | None
    ) -> None:
        """Look for the cause on the image that is furthest off so far."""
        if amount <= self._explained:
            return
        self._explained = amount
        ranked = causes.rank_causes(reference, found, photo.as_source(size))
        self._cause = (ranked[0].name, ranked[0].describe()) if ranked else ("", "")

    def find_failures(self) -> list[str]:
        """One sentence per broken limit."""
        limits, failures = self.limits, list(self.complaints[:3])
        at_most = {
            "max_abs_code_values": (limits.max_abs, "differs by {:.3g} code values at most"),
            "mean_abs_code_values": (limits.mean_abs, "differs by {:.3g} code values on average"),
            "shift_px": (limits.contour_shift_px, "is shifted by {:.2g} px"),
            "channels_permuted": (0, "has its channels in another order"),
            "flipped_permille": (limits.flipped_permille, "flips {:.3g} ‰ of the mask"),
            "unmatched_nails": (0, "finds {:g} nails more or fewer in an image"),
            "area_cells": (0, "finds a nail's area {:g} cells off"),
            "box_cells": (0, "finds a nail's box {:g} cells off"),
            "place_cells": (limits.contour_shift_px, "puts a nail's centre, base or tip {:.3g} cells off"),
            "angle_deg": (limits.direction_error_deg, "turns a nail by {:.3g}°"),
            "fingers_differ": (0, "gives {:g} nails of an image another finger"),
        }
        for key, (limit, sentence) in at_most.items():
            value = self.figures.get(key, 0.0)
            if limit is not None and not value <= limit:
                failures.append(f"It {sentence.format(value)} (limit {limit:g}).")
        return failures

    def finish(self, images: ImageSet, weights_sha256: str | None) -> StageParity:
        """The fact."""
        failures = self.find_failures()
        cause = self._cause[0] if failures else ""
        if failures:
            unknown = "No known mistake reproduces it."
            detail = " ".join([*failures, self._cause[1] or unknown])
        else:
            detail = self._describe_agreement()
        return StageParity(
            stage=self.stage,
            implementation=self.implementation.name,
            engine=self.implementation.engine,
            variant=self.variant.name,
            weights_sha256=weights_sha256,
            source_sha256=self.implementation.source_sha256,
            versions=self.implementation.versions,
            machine=describe_machine(),
            images=images,
            figures=self.figures,
            limits=self.limits,
            judged=self.implementation.judged,
            passed=not failures,
            cause=cause,
            detail=detail,
            worst_image=self.worst[1] if failures else None,
        )

    def _describe_agreement(self) -> str:
        figures: dict[str, Any] = self.figures
        if self.stage == "postprocess":
            return (
                f"The same {figures['nails']:g} nails in {self.images} images: angles within "
                f"{figures['angle_deg']:.2g}°, places within {figures['place_cells']:.2g} cells."
            )
        return (
            f"{self.images} images within {figures['max_abs_code_values']:.3g} code values "
            f"({figures['mean_abs_code_values']:.2g} on average)."
        )
