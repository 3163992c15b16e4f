"""The embedded default set: a dozen rendered hands, made from fixed seeds in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nailcore.data.coco import ANNOTATIONS, CocoInfo, LabelledImage, build_coco, write_coco
from nailcore.data.synth.render import render_scene
from nailcore.data.synth.rendered_set import describe
from nailcore.data.synth.sensor import encode_jpeg
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
    parts = []
    with replacing(Path(out)) as folder:
        (folder / "images").mkdir(parents=True)
        for done, seed in enumerate(seeds, start=1):
            name = f"rendered-{seed:04d}.jpg"
            rendering = render_scene(seed, width_px=width_px, height_px=height_px)
            # Through Python's own files: OpenCV's writer hides a full disk.
            (folder / "images" / name).write_bytes(encode_jpeg(rendering.image, JPEG_QUALITY))
            parts.append(LabelledImage.of(name, rendering.nail_index, describe(rendering)))
            if progress is not None:
                progress(done, len(seeds))
        info = CocoInfo(
            description="embedded synthetic hands",
            synthetic=True,
            licence="CC0-1.0",
            note="Rendered from the MakeHuman hand mesh (CC0). Not photographs: figures on them say "
            "whether the tools work, not how well a network does on real hands.",
        )
        write_coco(folder / ANNOTATIONS, build_coco(info, parts))
