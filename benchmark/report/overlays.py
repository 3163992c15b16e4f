"""Choose the photographs with overlays and heat-maps that a report shows, and keep them small."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmark.report.bundle import Heatmap, Overlay
from benchmark.report.lineage import read_variant
from nailcore.artifact import Artifact
from nailcore.facts import AccuracyResult, ImageAccuracy, ParityResult, WorstImage

BUDGET_BYTES = 4_000_000  # of JPEG for the whole report; base64 makes 5.3 MB of it
MOST_PER_VARIANT = 24
LONG_SIDES_PX = (640, 512, 400, 320, 240)
JPEG_QUALITY = 84
MOST_HEATMAPS = 12
MOST_HEATMAPS_PER_CHECK = 2


class DamageLog(Protocol):
    """Where an unusable overlay is named."""

    def mark_damaged(self, path: Path, problem: str) -> None:
        """Name a file that cannot be used."""


@dataclass(frozen=True)
class _Source:
    variant: str
    record: ImageAccuracy
    data: bytes


def load_overlays(
    accuracy: Sequence[AccuracyResult], artifacts: Iterable[Artifact], folder: Path, log: DamageLog
) -> tuple[tuple[Overlay, ...], int]:
    """Overlays of the largest input of each depth, worst image first, and how many were left out."""
    sources: list[_Source] = []
    left_out = 0
    for result in _choose_results(accuracy, artifacts):
        records = sorted((r for r in result.per_image if r.overlay), key=rank_image)
        left_out += len(records[MOST_PER_VARIANT:])
        for record in records[:MOST_PER_VARIANT]:
            data = _read_overlay(folder, result.variant, record.overlay or "", log)
            if data is not None:
                sources.append(_Source(result.variant, record, data))
    shown = _shrink(sources, log, folder)
    return tuple(shown), left_out


def rank_image(record: ImageAccuracy) -> tuple[float, str]:
    """Sort key, worst first; an image without nails has no IoU and comes last."""
    return (2.0 if record.nail_iou is None else record.nail_iou, record.name)


def _choose_results(
    accuracy: Sequence[AccuracyResult], artifacts: Iterable[Artifact]
) -> list[AccuracyResult]:
    """Per encoder depth the variant with the largest input that has overlays, deep first."""
    variants = {a.variant: read_variant(a) for a in artifacts}
    best: dict[int, tuple[int, AccuracyResult]] = {}
    for result in accuracy:
        variant = variants.get(result.variant)
        depth, height = (variant.encoder_layers, variant.height_px) if variant else (0, 0)
        has_overlays = any(record.overlay for record in result.per_image)
        if has_overlays and (depth not in best or height > best[depth][0]):
            best[depth] = (height, result)
    return [best[depth][1] for depth in sorted(best, reverse=True)]


def _read_overlay(folder: Path, owner: str, file: str, log: DamageLog) -> bytes | None:
    """The bytes of ``<owner>/<file>``; a name that leads out of the folder is refused."""
    path = folder / owner / file
    if Path(file).name != file:
        log.mark_damaged(folder / f"{owner}.json", f"image '{file}' is not a bare file name")
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        log.mark_damaged(path, f"image cannot be read: {error.strerror}")
        return None


def _shrink(sources: Sequence[_Source], log: DamageLog, folder: Path) -> list[Overlay]:
    """All overlays at the largest size of the list that fits the budget (the smallest if none does)."""
    damaged: set[int] = set()
    shown: list[Overlay] = []
    for long_side_px in LONG_SIDES_PX:
        shown = []
        for number, source in enumerate(sources):
            overlay = None if number in damaged else _encode(source, long_side_px)
            if overlay is not None:
                shown.append(overlay)
            elif number not in damaged:
                damaged.add(number)
                path = folder / source.variant / (source.record.overlay or "")
                log.mark_damaged(path, "not a readable image")
        if sum(len(overlay.jpeg) for overlay in shown) <= BUDGET_BYTES:
            break
    return shown


def _encode(source: _Source, long_side_px: int) -> Overlay | None:
    jpeg = _encode_jpeg(source.data, long_side_px)
    if jpeg is None:
        return None
    return Overlay(
        variant=source.variant,
        image=source.record.name,
        nail_iou=source.record.nail_iou,
        jpeg=jpeg[0],
        width_px=jpeg[1],
        height_px=jpeg[2],
    )


def _encode_jpeg(data: bytes, long_side_px: int) -> tuple[bytes, int, int] | None:
    """JPEG bytes, width and height of an image shrunk to a long side; None when it is no image.

    Always encoded anew: a file that only claims to be an image, or metadata in it, never gets in.
    """
    import cv2
    import numpy as np

    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        return None
    height_px, width_px = image.shape[:2]
    scale = min(1.0, long_side_px / max(height_px, width_px))
    size = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
    if scale < 1:
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    ok, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return (encoded.tobytes(), *size) if ok else None


def load_heatmaps(parity: Sequence[tuple[Path, ParityResult]], log: DamageLog) -> tuple[Heatmap, ...]:
    """Heat-maps of the images that files get most wrong, worst first, few per file and engine.

    Engines that flip the same share of an image of the same file share one: three browsers that run one
    wasm are three proofs, and one picture.

    ``parity``: facts with their own paths; a fact's heat-maps lie in the folder of its name beside it.
    """
    found: list[tuple[float, str, Path, ParityResult, WorstImage]] = []
    for path, fact in parity:
        worst = sorted(fact.worst_images, key=lambda image: (-image.flipped_permille, image.name))
        for image in [image for image in worst if image.heatmap][:MOST_HEATMAPS_PER_CHECK]:
            found.append((-image.flipped_permille, path.name, path, fact, image))
    heatmaps: dict[tuple[str, str, float], Heatmap] = {}
    for _, _, path, fact, image in sorted(found, key=lambda entry: (*entry[:2], entry[4].name)):
        key = (fact.artifact.label, image.name, image.flipped_permille)
        if key in heatmaps:
            shown = heatmaps[key]
            heatmaps[key] = shown.model_copy(update={"engine": f"{shown.engine}, {fact.engine}"})
            continue
        if len(heatmaps) == MOST_HEATMAPS:
            continue
        data = _read_overlay(path.parent, path.stem, image.heatmap or "", log)
        jpeg = _encode_jpeg(data, LONG_SIDES_PX[2]) if data is not None else None
        if jpeg is not None:
            heatmaps[key] = Heatmap(
                label=fact.artifact.label,
                engine=fact.engine,
                image=image.name,
                flipped_permille=image.flipped_permille,
                jpeg=jpeg[0],
                width_px=jpeg[1],
                height_px=jpeg[2],
            )
        elif data is not None:
            log.mark_damaged(path.with_suffix("") / (image.heatmap or ""), "not a readable image")
    return tuple(heatmaps.values())
