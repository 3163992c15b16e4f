"""What a file segments worse than the float network, from the logits that parity has in hand anyway."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nailcore.facts import AccuracyDrop, ImageDrop
from nailcore.metrics import Confusion, bootstrap, bootstrap_drop, count_confusion
from nailcore.preprocess import Letterbox, unletterbox_mask
from nailcore.runtime import Logits
from nailcore.variant import Variant


def count_image(variant: Variant, truth: npt.NDArray[np.bool_], logits: Logits) -> tuple[int, int, int, int]:
    """(tp, fp, fn, tn) of the mask that some logits of a batch of one give, as ``benchmark.accuracy`` counts.

    ``truth`` is (H, W), the photo's own size: the mask is brought there before it is counted.
    """
    box = Letterbox(truth.shape[0], truth.shape[1], variant.height_px, variant.width_px)
    found: Confusion = count_confusion(unletterbox_mask(logits["fgbg"][0], box, variant.output_stride), truth)
    return (found.tp, found.fp, found.fn, found.tn)


@dataclass
class DropCounter:
    """Counts of both sides, image by image."""

    variant: Variant
    images: list[ImageDrop] = field(default_factory=list)

    def add(self, name: str, truth: npt.NDArray[np.bool_], reference: Logits, found: Logits) -> None:
        """Count one image's logits of both sides against its (H, W) annotated nails."""
        self.images.append(
            ImageDrop(
                name=name,
                found=count_image(self.variant, truth, found),
                reference=count_image(self.variant, truth, reference),
            )
        )

    def describe(self) -> AccuracyDrop | None:
        """Figures over all images; None when there was none."""
        return describe_drop(self.images) if self.images else None


def describe_drop(images: list[ImageDrop]) -> AccuracyDrop:
    """Pooled figures of both sides, and the drop with its paired interval over images (at least one)."""
    found = np.array([image.found for image in images], np.float64)
    reference = np.array([image.reference for image in images], np.float64)
    return AccuracyDrop(
        miou=bootstrap("miou", found),
        nail_iou=bootstrap("nail_iou", found),
        reference_miou=bootstrap("miou", reference),
        reference_nail_iou=bootstrap("nail_iou", reference),
        drop_points=bootstrap_drop("nail_iou", reference, found),
        miou_drop_points=bootstrap_drop("miou", reference, found),
        per_image=images,
    )
