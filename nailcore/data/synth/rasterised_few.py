"""A few rasterised hands as a data folder without a split: for trying things out in seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nailcore.data.coco import ANNOTATIONS, CocoInfo, LabelledImage, build_coco, write_coco
from nailcore.data.synth.render import render_scene
from nailcore.data.synth.rendered_set import describe
from nailcore.data.synth.sensor import encode_jpeg
from nailcore.storage import replacing

JPEG_QUALITY = 92


def draw_few(
    out: Path,
    seeds: Sequence[int],
    *,
    progress: Callable[[int, int], None] | None = None,
    width_px: int = 640,
    height_px: int = 480,
) -> None:
    """Rasterise one image, of one person each, per seed (see nailcore.data.folder), whole or not at all.

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
            description="rasterised synthetic hands",
            synthetic=True,
            licence="CC0-1.0",
            note="Rendered from the MakeHuman hand mesh (CC0). Not photographs.",
        )
        write_coco(folder / ANNOTATIONS, build_coco(info, parts))
