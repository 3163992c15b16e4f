"""Render a training set: many images of a few hundred people, in parallel, resumable, split by person."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from nailcore.data.coco import ANNOTATIONS, CocoInfo, LabelledImage, build_coco, write_coco
from nailcore.data.folder import ImageRecord, SplitFile
from nailcore.data.synth.render import Rendering, render_scene
from nailcore.errors import DataError
from nailcore.storage import write_bytes, write_text

PORTRAIT_SHARE = 0.4
HELD_OUT_EVERY = 10  # every tenth person is held out
_PARTS = "parts"  # labels of single images, until annotations.json is complete


@dataclass(frozen=True)
class RenderOrder:
    """What is to be rendered; equal orders give equal bytes, whatever the number of jobs."""

    count: int
    subjects: int = 300
    seed: int = 0
    long_side_px: int = 640
    short_side_px: int = 480

    def stem(self, number: int) -> str:
        """File stem of an image, counted from 0."""
        return f"rendered-{self.seed:02d}-{number:05d}"


def render_set(
    out: Path, order: RenderOrder, *, jobs: int = 1, progress: Callable[[int, int], None] | None = None
) -> None:
    """Render into ``out`` (images/, annotations.json, split.json); a stopped run goes on where it was.

    Raises:
        DataError: ``out`` holds another rendered set.
        MissingToolError: the disk is full.
    """
    _claim(out, order)
    waiting = [n for n in range(order.count) if _read_part(out, order, n) is None]
    done = order.count - len(waiting)
    if progress is not None:
        progress(done, order.count)
    if waiting:
        # Spawned, not forked: BLAS and OpenCV threads of this process must not be inherited.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            # A short queue, so that Ctrl-C ends after the images in hand.
            running: set[Future[None]] = set()
            while waiting or running:
                while waiting and len(running) < 2 * jobs:
                    running.add(pool.submit(render_one, out, order, waiting.pop(0)))
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    done += 1
                    if progress is not None:
                        progress(done, order.count)
    _complete(out, order)


def _claim(out: Path, order: RenderOrder) -> None:
    """Write what is being rendered, or check that it is the same."""
    note = out / "order.json"
    text = "{" + ", ".join(f'"{k}": {v}' for k, v in vars(order).items() if k != "count") + "}\n"
    if note.is_file():
        if note.read_text("utf-8") != text:
            raise DataError(
                f"{out}: holds a set rendered with other settings: {note.read_text('utf-8').strip()}.",
                hint="Name another folder, or repeat those settings (more images may be asked for).",
            )
    elif out.exists() and any(not p.name.startswith(".") for p in out.iterdir()):
        raise DataError(
            f"{out}: exists already and is no rendered set.", hint="Name a folder that does not exist yet."
        )
    (out / "images").mkdir(parents=True, exist_ok=True)
    write_text(note, text)


def render_one(out: Path, order: RenderOrder, number: int) -> None:
    """Render one image and its labels; the labels are written last and mark it as done."""
    import cv2

    cv2.setNumThreads(1)
    rng = np.random.default_rng([order.seed, number, 7])
    sides = (order.long_side_px, order.short_side_px)
    width, height = sides[::-1] if rng.random() < PORTRAIT_SHARE else sides
    # Subjects of different orders never meet: a set rendered with another seed shows other people.
    who = order.seed * 100_000 + number % order.subjects
    rendering = render_scene(
        order.seed * 10_000_000 + number, subject_seed=who, width_px=width, height_px=height
    )
    name = f"{order.stem(number)}.jpg"
    write_bytes(out / "images" / name, encode_jpeg(rendering, int(rng.integers(70, 97))))
    part = LabelledImage.of(name, rendering.nail_index, describe(rendering))
    write_text(out / _PARTS / f"{order.stem(number)}.json", part.model_dump_json() + "\n")


def describe(rendering: Rendering) -> ImageRecord:
    """The record of a rendering: all three labels, and its person."""
    return ImageRecord(
        labels=("mask", "finger", "direction"), subject=rendering.scene.subject, nails=rendering.nails
    )


def encode_jpeg(rendering: Rendering, quality: int) -> bytes:
    """The picture as JPEG bytes."""
    import cv2

    done, data = cv2.imencode(".jpg", rendering.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise DataError(f"A rendering of {rendering.image.shape} could not be encoded as JPEG.")
    return bytes(data.tobytes())


def _read_part(out: Path, order: RenderOrder, number: int) -> LabelledImage | None:
    """The labels of a finished image; None when it has to be rendered (again)."""
    path = out / _PARTS / f"{order.stem(number)}.json"
    try:
        part = LabelledImage.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return part if (out / "images" / part.file_name).is_file() else None


def _complete(out: Path, order: RenderOrder) -> None:
    parts = [part for n in range(order.count) if (part := _read_part(out, order, n)) is not None]
    info = CocoInfo(
        description=f"rendered hands, seed {order.seed}",
        synthetic=True,
        licence="CC0-1.0",
        note="Rendered from the MakeHuman hand mesh (CC0). Not photographs.",
    )
    write_coco(out / ANNOTATIONS, build_coco(info, parts))
    groups: dict[str, list[str]] = {}
    for part in parts:
        groups.setdefault(str(part.record.subject), []).append(Path(part.file_name).stem)
    people = sorted(groups)
    split = SplitFile(
        dataset=info.description,
        note=f"By person; every {HELD_OUT_EVERY}th is held out.",
        groups={person: tuple(groups[person]) for person in people},
        held_out=tuple(people[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]) or (people[-1],),
    )
    write_text(out / "split.json", split.model_dump_json(indent=1) + "\n")
