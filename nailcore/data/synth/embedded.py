"""The embedded default set: photoreal hands that ship with the package, unpacked into a data folder."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from nailcore.data.coco import ANNOTATIONS, CocoFile, write_coco
from nailcore.data.folder import SplitFile
from nailcore.errors import DataError
from nailcore.storage import replacing, write_text

PACK = Path(__file__).parent / "pack" / "hands.zip"
SPLIT = "split.json"
DOZEN = 12  # the first test images, chosen by eye: what parity and CI look at


def make_embedded_set(
    out: Path,
    *,
    test_images: int | None = DOZEN,
    train_images: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    pack: Path = PACK,
) -> None:
    """Unpack the embedded images into a data folder (see nailcore.data.folder), whole or not at all.

    The people of its training part occur in the test part nowhere.

    Args:
        out: the folder to write; an older one is replaced once the new one is complete.
        test_images: how many of the test part, in its order; None: all.
        train_images: the same of the training part.
        progress: called with (images done, images in all) after each image.

    Raises:
        DataError: the pack is missing or damaged.
        MissingToolError: the disk is full.
    """
    with replacing(Path(out)) as folder:
        (folder / "images").mkdir(parents=True)
        try:
            with zipfile.ZipFile(pack) as archive:
                file = CocoFile.model_validate_json(archive.read(ANNOTATIONS))
                split = SplitFile.model_validate_json(archive.read(SPLIT))
                file, split = choose_images(file, split, test_images, train_images)
                for done, image in enumerate(file.images, start=1):
                    data = archive.read(f"images/{image.file_name}")  # checks the CRC
                    (folder / "images" / image.file_name).write_bytes(data)
                    if progress is not None:
                        progress(done, len(file.images))
        except (FileNotFoundError, zipfile.BadZipFile, KeyError, ValidationError) as error:
            raise DataError(
                f"{pack.name}: the embedded images are missing or damaged: {error}",
                hint="They are part of the package: install nailtool again, or name a folder with --data.",
            ) from error
        write_coco(folder / ANNOTATIONS, file)
        write_text(folder / SPLIT, split.model_dump_json(indent=1) + "\n")


def choose_images(
    file: CocoFile, split: SplitFile, test_images: int | None, train_images: int | None = None
) -> tuple[CocoFile, SplitFile]:
    """The first ``train_images`` to train on and the first ``test_images`` others (None: all), by name."""
    parts = split.parts()
    names = sorted(Path(image.file_name).stem for image in file.images)
    train = [name for name in names if parts[name] == "train"]
    test = [name for name in names if parts[name] != "train"]
    kept = set(train[:train_images]) | set(test[:test_images])
    images = tuple(image for image in file.images if Path(image.file_name).stem in kept)
    ids = {image.id for image in images}
    groups = {group: tuple(s for s in stems if s in kept) for group, stems in split.groups.items()}
    groups = {group: stems for group, stems in groups.items() if stems}
    return (
        file.model_copy(
            update={
                "images": images,
                "annotations": tuple(nail for nail in file.annotations if nail.image_id in ids),
            }
        ),
        split.model_copy(
            update={"groups": groups, "held_out": tuple(g for g in split.held_out if g in groups)}
        ),
    )
