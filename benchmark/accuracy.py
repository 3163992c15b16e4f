"""Accuracy of a variant's weights on labelled photographs, with intervals and overlays."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmark.parity import TorchReference
from nailcore.data.folder import Dataset, Sample, Split
from nailcore.errors import DataError
from nailcore.facts import (
    AccuracyResult,
    AccuracySlice,
    ImageAccuracy,
    ImageSet,
    Interval,
    NailAccuracy,
    WeightsFacts,
    read_fact,
)
from nailcore.measure import describe_machine
from nailcore.metrics import bootstrap, count_boundary, count_confusion
from nailcore.nail_metrics import (
    FOUND_IOU,
    SLICES,
    bootstrap_values,
    describe_kind,
    find_slice,
    measure_nails,
)
from nailcore.preprocess import Letterbox, letterbox, unletterbox_mask
from nailcore.runtime import Runner
from nailcore.storage import hash_file, replacing
from nailcore.variant import Variant

OVERLAY_LONG_SIDE_PX = 480
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def predict_mask(runner: Runner, variant: Variant, image: npt.NDArray[np.uint8]) -> Mask:
    """(H, W, 3) RGB photo -> (H, W) nail mask at the photo's own size."""
    box = Letterbox(image.shape[0], image.shape[1], variant.height_px, variant.width_px)
    logits = runner.run(letterbox(image, variant.height_px, variant.width_px)[None])
    return unletterbox_mask(logits["fgbg"][0], box, variant.output_stride)


def draw_overlay(image: npt.NDArray[np.uint8], predicted: Mask, truth: Mask) -> npt.NDArray[np.uint8]:
    """Photo with the predicted mask filled (magenta) and the annotation outlined (white on black)."""
    import cv2

    scale = OVERLAY_LONG_SIDE_PX / max(truth.shape)
    size = (max(1, round(truth.shape[1] * scale)), max(1, round(truth.shape[0] * scale)))
    shrinking = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    canvas = np.asarray(cv2.resize(image, size, interpolation=shrinking), np.float32)
    fill = cv2.resize(predicted.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)[..., None]
    canvas = canvas * (1 - 0.55 * fill) + np.array([225, 20, 150], np.float32) * 0.55 * fill
    drawn = np.ascontiguousarray(np.clip(canvas, 0, 255).astype(np.uint8))
    outline = (cv2.resize(truth.astype(np.float32), size) > 0.5).astype(np.uint8)
    contours, _ = cv2.findContours(outline, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, contours, -1, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.drawContours(drawn, contours, -1, (255, 255, 255), 1, cv2.LINE_AA)
    return drawn


def _write_overlay(path: Path, overlay: npt.NDArray[np.uint8]) -> None:
    import cv2

    encoded, data = cv2.imencode(".jpg", overlay[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    if not encoded:
        raise DataError(f"{path}: the overlay could not be encoded.")
    with replacing(path) as scratch:
        scratch.write_bytes(data.tobytes())


def evaluate_accuracy(
    variant: Variant,
    weights: Path,
    dataset: Dataset,
    split: Split,
    overlay_dir: Path,
    *,
    heads: Sequence[str] | None = None,
) -> AccuracyResult:
    """Segment every photo of one part at the variant's size and compare at the photo's own size.

    Overlays are written to ``overlay_dir/<image>.jpg``. Fingers and directions are judged where the
    images carry them and the head is among ``heads`` (default: those that the facts beside the
    weights call trained; all where there are none).

    Raises:
        DataError, WeightsError: an input is missing or damaged; or the part is empty.
    """
    if not dataset.part(split):
        raise DataError(f"{dataset.root}: its {split} part is empty.")
    reference = TorchReference(variant, weights)
    judged = find_heads(weights) if heads is None else tuple(heads)
    return evaluate_runner(reference, variant, weights, dataset, split, overlay_dir, judged)


def evaluate_runner(  # noqa: PLR0917 - ``evaluate_accuracy`` with what it opened
    reference: Runner,
    variant: Variant,
    weights: Path,
    dataset: Dataset,
    split: Split,
    overlay_dir: Path,
    judged: Sequence[str],
) -> AccuracyResult:
    """The same for anything that runs: ``weights`` is only named and hashed."""
    samples = dataset.part(split)
    per_image = [_evaluate_sample(reference, variant, sample, overlay_dir, judged) for sample in samples]
    return AccuracyResult(
        variant=variant.name,
        weights=weights.name,
        weights_sha256=hash_file(weights),
        runtime=reference.runtime,
        versions=reference.versions,
        machine=describe_machine(),
        images=dataset.describe(split),
        output_stride=variant.output_stride,
        per_image=per_image,
        **sum_up(per_image),
    )


def find_heads(weights: Path) -> tuple[str, ...]:
    """Trained heads as the facts beside a weights file have them; all where there are no facts."""
    facts = weights.with_suffix(".json")
    if not facts.is_file():
        return ("fgbg", "finger", "direction")
    return read_fact(facts, WeightsFacts).heads_trained


def sum_up(per_image: Sequence[ImageAccuracy]) -> dict[str, Any]:
    """The pooled figures of an AccuracyResult, each with its interval over images, and the slices.

    Raises:
        DataError: an image's boundary was not kept (facts of an older version).
    """
    counts = np.array([[i.tp, i.fp, i.fn, i.tn] for i in per_image], np.float64)
    lost = [i.name for i in per_image if i.boundary is None]
    if lost:
        raise DataError(f"{lost[0]}: its facts hold no boundary counts.", hint="Measure it again.")
    errors = [_list_errors(i) for i in per_image]
    return {
        "miou": bootstrap("miou", counts),
        "nail_iou": bootstrap("nail_iou", counts),
        "boundary_f": bootstrap("boundary_f", np.array([i.boundary for i in per_image], np.float64)),
        "nail_recall": _find_recall(per_image),
        "finger_accuracy": _find_fingers(per_image, lambda nail: nail.finger_right),
        "finger_accuracy_alone": _find_fingers(per_image, lambda nail: nail.finger_right_alone),
        "direction_error_median_deg": bootstrap_values(errors, _median),
        "direction_error_p90_deg": bootstrap_values(errors, _p90),
        "slices": [
            _describe_slice(by, name, [i for i in per_image if i.kind and find_slice(by, i.kind) == name])
            for by, parts in SLICES.items()
            for name, _, _ in parts
            if any(i.kind and find_slice(by, i.kind) == name for i in per_image)
        ],
    }


def _mean(values: Floats) -> float:
    return float(values.mean())


def _median(values: Floats) -> float:
    return float(np.median(values))


def _p90(values: Floats) -> float:
    return float(np.percentile(values, 90))


def _list_errors(image: ImageAccuracy) -> list[float]:
    return [n.direction_error_deg for n in image.nails if n.direction_error_deg is not None]


def _find_fingers(
    per_image: Sequence[ImageAccuracy], verdict: Callable[[NailAccuracy], bool | None]
) -> Interval | None:
    verdicts = [[verdict(nail) for nail in image.nails] for image in per_image]
    return bootstrap_values([[v for v in image if v is not None] for image in verdicts], _mean)


def _find_recall(per_image: Sequence[ImageAccuracy]) -> Interval | None:
    return bootstrap_values([[n.iou >= FOUND_IOU for n in i.nails] for i in per_image], _mean)


def _describe_slice(by: str, name: str, images: Sequence[ImageAccuracy]) -> AccuracySlice:
    counts = np.array([[i.tp, i.fp, i.fn, i.tn] for i in images], np.float64)
    return AccuracySlice(
        by=by,
        name=name,
        images=len(images),
        nails=sum(len(i.nails) for i in images),
        miou=bootstrap("miou", counts),
        nail_iou=bootstrap("nail_iou", counts),
        nail_recall=_find_recall(images),
    )


def pool_accuracy(results: Sequence[AccuracyResult]) -> AccuracyResult:
    """One result over the held-out parts of several folds: figures and intervals over all images.

    Raises:
        DataError: nothing to pool, other variants, or an image that was held out twice.
    """
    if not results:
        raise DataError("There are no results to pool.")
    variants = sorted({result.variant for result in results})
    if len(variants) > 1:
        raise DataError(f"Results of {' and '.join(variants)} cannot be pooled: one variant at a time.")
    per_image = sorted((image for result in results for image in result.per_image), key=lambda i: i.name)
    twice = [a.name for a, b in itertools.pairwise(per_image) if a.name == b.name]
    if twice:
        raise DataError(f"{twice[0]} is in two of the results: folds must not overlap.")
    first = results[0]
    digest = hashlib.sha256("\n".join(sorted(r.images.sha256 for r in results)).encode()).hexdigest()
    weights = hashlib.sha256("\n".join(r.weights_sha256 for r in results).encode()).hexdigest()
    name = re.sub(r" fold \d+/\d+", "", first.images.name)
    return first.model_copy(
        update={
            "weights": f"{first.weights} × {len(results)}",
            "weights_sha256": weights,
            "images": ImageSet(
                name=f"{name}, {len(results)} folds pooled",
                sha256=digest,
                count=len(per_image),
                synthetic=any(r.images.synthetic for r in results),
            ),
            "per_image": per_image,
            **sum_up(per_image),
        }
    )


def _evaluate_sample(
    reference: Runner, variant: Variant, sample: Sample, overlay_dir: Path, heads: Sequence[str]
) -> ImageAccuracy:
    image, labels = sample.load_image(), sample.load_labels()
    truth = labels.mask
    box = Letterbox(image.shape[0], image.shape[1], variant.height_px, variant.width_px)
    logits = reference.run(letterbox(image, variant.height_px, variant.width_px)[None])
    predicted = unletterbox_mask(logits["fgbg"][0], box, variant.output_stride)
    confusion = count_confusion(predicted, truth)
    edge = count_boundary(predicted, truth)
    overlay = overlay_dir / f"{sample.name}.jpg"
    _write_overlay(overlay, draw_overlay(image, predicted, truth))
    single = {name: value[0] for name, value in logits.items()}
    return ImageAccuracy(
        name=sample.name,
        tp=confusion.tp,
        fp=confusion.fp,
        fn=confusion.fn,
        tn=confusion.tn,
        nail_iou=confusion.nail_iou,
        overlay=overlay.name,
        boundary=(edge.matched_predicted, edge.predicted, edge.matched_truth, edge.truth),
        nails=measure_nails(predicted, labels, single, box, heads),
        kind=describe_kind(image, labels.nail_index),
    )
