"""Render a training set: many images of a few hundred people, in parallel, resumable, split by person."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import ValidationError

from nailcore.data.coco import ANNOTATIONS, CocoInfo, LabelledImage, build_coco, write_coco
from nailcore.data.folder import ImageRecord, SplitFile
from nailcore.data.synth.render import Rendering, render_scene
from nailcore.data.synth.sensor import encode_jpeg
from nailcore.errors import DataError
from nailcore.storage import write_bytes, write_text

if TYPE_CHECKING:
    from nailcore.data.synth.photoreal import Blender

RendererName = Literal["raster", "photoreal"]
RENDERERS: tuple[RendererName, ...] = ("raster", "photoreal")
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
    renderer: RendererName = "raster"

    def stem(self, number: int) -> str:
        """File stem of an image, counted from 0."""
        return f"rendered-{self.seed:02d}-{number:05d}"


def render_set(
    out: Path,
    order: RenderOrder,
    *,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
    blender_python: Path | None = None,
) -> None:
    """Render into ``out`` (images/, annotations.json, split.json); a stopped run goes on where it was.

    Args:
        blender_python: see ``photoreal.find_blender_python``; of the photoreal renderer.

    Raises:
        DataError: ``out`` holds another rendered set.
        MissingToolError: the disk is full, or Blender is missing or fails.
    """
    if order.renderer == "photoreal":
        from nailcore.data.synth.photoreal import find_blender_python

        blender_python = find_blender_python(blender_python)
    _claim(out, order)
    waiting = [n for n in range(order.count) if _read_part(out, order, n) is None]
    done = order.count - len(waiting)
    if progress is not None:
        progress(done, order.count)
    if waiting:
        with _open_pool(order, jobs, blender_python) as (pool, render_one):
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


RenderOne = Callable[[Path, RenderOrder, int], None]


@contextlib.contextmanager
def _open_pool(
    order: RenderOrder, jobs: int, blender_python: Path | None
) -> Iterator[tuple[Executor, RenderOne]]:
    """Workers, and what each of them does."""
    if order.renderer == "raster":
        # Spawned, not forked: BLAS and OpenCV threads of this process must not be inherited.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            yield pool, rasterise_one
        return
    import cv2

    from nailcore.data.synth.photoreal import Blender

    assert blender_python is not None  # noqa: S101 - render_set found it
    cv2.setNumThreads(1)
    free: queue.Queue[Blender] = queue.Queue()

    def photograph(out: Path, order: RenderOrder, number: int) -> None:
        blender = free.get()
        try:
            _photograph_one(blender, out, order, number)
        finally:
            free.put(blender)

    # Threads do: the work is done in one Blender process each.
    with contextlib.ExitStack() as stack:
        for _ in range(jobs):
            free.put(stack.enter_context(Blender(blender_python)))
        yield stack.enter_context(ThreadPoolExecutor(jobs)), photograph


def _claim(out: Path, order: RenderOrder) -> None:
    """Write what is being rendered, or check that it is the same."""
    note = out / "order.json"
    values = {k: v for k, v in vars(order).items() if k != "count" and (k, v) != ("renderer", "raster")}
    text = json.dumps(values) + "\n"
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


def rasterise_one(out: Path, order: RenderOrder, number: int) -> None:
    """Draw one image and its labels."""
    import cv2

    cv2.setNumThreads(1)
    seed, who, width, height, quality = _draw_lot(order, number)
    rendering = render_scene(seed, subject_seed=who, width_px=width, height_px=height)
    _write_one(out, order, number, rendering, quality)


def _photograph_one(blender: Blender, out: Path, order: RenderOrder, number: int) -> None:
    from nailcore.data.synth.photoreal import render_photoreal

    seed, who, width, height, quality = _draw_lot(order, number)
    rendering = render_photoreal(blender, seed, subject_seed=who, width_px=width, height_px=height)
    _write_one(out, order, number, rendering, quality)


def _draw_lot(order: RenderOrder, number: int) -> tuple[int, int, int, int, int]:
    """Seed, person, width, height and JPEG quality of an image."""
    rng = np.random.default_rng([order.seed, number, 7])
    sides = (order.long_side_px, order.short_side_px)
    width, height = sides[::-1] if rng.random() < PORTRAIT_SHARE else sides
    # Subjects of different orders never meet: a set rendered with another seed shows other people.
    who = order.seed * 100_000 + number % order.subjects
    return order.seed * 10_000_000 + number, who, width, height, int(rng.integers(70, 97))


def _write_one(out: Path, order: RenderOrder, number: int, rendering: Rendering, quality: int) -> None:
    """Write a picture and its labels; the labels are written last and mark it as done."""
    name = f"{order.stem(number)}.jpg"
    write_bytes(out / "images" / name, encode_jpeg(rendering.image, quality))
    part = LabelledImage.of(name, rendering.nail_index, describe(rendering))
    write_text(out / _PARTS / f"{order.stem(number)}.json", part.model_dump_json() + "\n")


def describe(rendering: Rendering) -> ImageRecord:
    """The record of a rendering: all three labels, and its person."""
    return ImageRecord(
        labels=("mask", "finger", "direction"), subject=rendering.scene.subject, nails=rendering.nails
    )


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
    kind = "photoreal " if order.renderer == "photoreal" else ""
    info = CocoInfo(
        description=f"{kind}rendered hands, seed {order.seed}",
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
