"""Accuracy of a variant's weights on labelled photographs, with intervals and overlays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmark.parity import TorchReference
from nailcore.data.folder import Dataset, Sample, Split
from nailcore.errors import DataError
from nailcore.facts import AccuracyResult, ImageAccuracy
from nailcore.measure import describe_machine
from nailcore.metrics import bootstrap, count_boundary, count_confusion
from nailcore.preprocess import Letterbox, letterbox, unletterbox_mask
from nailcore.runtime import Runner
from nailcore.storage import hash_file, replacing
from nailcore.variant import Variant

OVERLAY_LONG_SIDE_PX = 480
Mask = npt.NDArray[np.bool_]


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
    variant: Variant, weights: Path, dataset: Dataset, split: Split, overlay_dir: Path
) -> AccuracyResult:
    """Segment every photo of one part at the variant's size and compare at the photo's own size.

    Overlays are written to ``overlay_dir/<image>.jpg``.

    Raises:
        DataError, WeightsError: an input is missing or damaged; or the part is empty.
    """
    samples = dataset.part(split)
    if not samples:
        raise DataError(f"{dataset.root}: its {split} part is empty.")
    reference = TorchReference(variant, weights)
    per_image: list[ImageAccuracy] = []
    confusions: list[list[int]] = []
    boundaries: list[list[int]] = []
    for sample in samples:
        result, edges = _evaluate_sample(reference, variant, sample, overlay_dir)
        per_image.append(result)
        confusions.append([result.tp, result.fp, result.fn, result.tn])
        boundaries.append(edges)
    counts = np.array(confusions, np.float64)
    return AccuracyResult(
        variant=variant.name,
        weights=weights.name,
        weights_sha256=hash_file(weights),
        runtime=reference.runtime,
        versions=reference.versions,
        machine=describe_machine(),
        images=dataset.describe(split),
        output_stride=variant.output_stride,
        miou=bootstrap("miou", counts),
        nail_iou=bootstrap("nail_iou", counts),
        boundary_f=bootstrap("boundary_f", np.array(boundaries, np.float64)),
        per_image=per_image,
    )


def _evaluate_sample(
    reference: Runner, variant: Variant, sample: Sample, overlay_dir: Path
) -> tuple[ImageAccuracy, list[int]]:
    image, truth = sample.load_image(), sample.load_mask()
    predicted = predict_mask(reference, variant, image)
    confusion = count_confusion(predicted, truth)
    edge = count_boundary(predicted, truth)
    overlay = overlay_dir / f"{sample.name}.jpg"
    _write_overlay(overlay, draw_overlay(image, predicted, truth))
    result = ImageAccuracy(
        name=sample.name,
        tp=confusion.tp,
        fp=confusion.fp,
        fn=confusion.fn,
        tn=confusion.tn,
        nail_iou=confusion.nail_iou,
        overlay=overlay.name,
    )
    return result, [edge.matched_predicted, edge.predicted, edge.matched_truth, edge.truth]
