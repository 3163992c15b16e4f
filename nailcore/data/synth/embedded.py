"""The embedded default set: a dozen rendered hands, made from fixed seeds in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nailcore.data.folder import DatasetCard, ImageRecord
from nailcore.data.synth.render import Rendering, render_scene
from nailcore.storage import replacing

# Chosen by eye: light to deep skin, bare, polished and French nails, both hands, open and bent fingers.
SEEDS = (5, 9, 16, 17, 21, 23, 25, 26, 27, 29, 30, 31)
JPEG_QUALITY = 92


def make_embedded_set(
    out: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    seeds: tuple[int, ...] = SEEDS,
    width_px: int = 640,
    height_px: int = 480,
) -> None:
    """Render the embedded images into a data folder (see nailcore.data.folder), whole or not at all.

    Args:
        out: the folder to write; an older one is replaced once the new one is complete.
        progress: called with (images done, images in all) after each image.

    Raises:
        MissingToolError: the disk is full.
    """
    records: dict[str, ImageRecord] = {}
    with replacing(Path(out)) as folder:
        for part in ("images", "masks"):
            (folder / part).mkdir(parents=True)
        for done, seed in enumerate(seeds, start=1):
            stem = f"rendered-{seed:04d}"
            rendering = render_scene(seed, width_px=width_px, height_px=height_px)
            _write_images(folder, stem, rendering)
            records[stem] = ImageRecord(
                labels=("mask", "finger", "direction"),
                subject=rendering.scene.subject,
                nails=rendering.nails,
            )
            if progress is not None:
                progress(done, len(seeds))
        card = DatasetCard(
            name="embedded synthetic hands",
            synthetic=True,
            licence="CC0-1.0",
            note="Rendered from the MakeHuman hand mesh (CC0). Not photographs: figures on them say "
            "whether the tools work, not how well a network does on real hands.",
            images=records,
        )
        (folder / "dataset.json").write_text(card.model_dump_json(indent=1) + "\n", "utf-8")


def _write_images(folder: Path, stem: str, rendering: Rendering) -> None:
    import cv2

    bgr = rendering.image[..., ::-1]
    mask = rendering.mask.astype("uint8") * 255
    jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    png = cv2.imencode(".png", mask)[1]
    # Through Python's own files: OpenCV's writer hides a full disk.
    (folder / "images" / f"{stem}.jpg").write_bytes(jpeg.tobytes())
    (folder / "masks" / f"{stem}.png").write_bytes(png.tobytes())
