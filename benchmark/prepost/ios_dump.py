"""Recorded outputs of the iOS app, one raw RGB file each, bound to the photograph they were made from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmark.prepost.check import Reference, check_implementations, describe_unmeasured
from benchmark.prepost.implementations import Implementation
from benchmark.prepost.totals import Stage, describe_part
from nailcore.data.folder import Sample
from nailcore.errors import DataError
from nailcore.facts import ImageSet, StageParity
from nailcore.storage import hash_file

FORMAT = "nailtool-rgb"
MAX_HEADER_BYTES = 4096
MAX_SIDE_PX = 16384
IMPLEMENTATION = "iOS app (deploy/ios/Preprocess.swift)"


class DumpHeader(BaseModel):
    """The first line of a dump: JSON, ended by one newline; the pixels follow, row by row, RGB."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal["nailtool-rgb"]
    version: Literal[1]
    stage: Literal["decode", "preprocess"]
    photo_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    pixels_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    height_px: int = Field(gt=0, le=MAX_SIDE_PX)
    width_px: int = Field(gt=0, le=MAX_SIDE_PX)
    device: str = Field(max_length=100)  # e.g. "iPhone15,2"
    system: str = Field(max_length=100)  # e.g. "iOS 18.1"


def read_dump(path: Path) -> tuple[DumpHeader, npt.NDArray[np.uint8]]:
    """Header and (H, W, 3) RGB pixels of a dump.

    Raises:
        DataError: not such a file, of the wrong length, or damaged since it was written.
    """
    hint = "It is written by DumpWriter in deploy/ios/Preprocess.swift; docs/preprocessing.md has the format."
    try:
        with path.open("rb") as stream:
            line = stream.readline(MAX_HEADER_BYTES)
            if not line.endswith(b"\n"):
                raise DataError(f"{path}: its first line is no header of {FORMAT}.", hint=hint)
            header = DumpHeader.model_validate_json(line)
            size = header.height_px * header.width_px * 3
            data = stream.read(size + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "header"
        raise DataError(f"{path}: no valid {FORMAT} header: {where}: {first['msg']}.", hint=hint) from error
    if len(data) != size:
        more = "more than " if len(data) > size else ""
        found = f"{more}{min(len(data), size)} bytes of pixels"
        raise DataError(
            f"{path}: holds {found}, its header promises {header.width_px}×{header.height_px}×3 = {size}."
        )
    if hashlib.sha256(data).hexdigest() != header.pixels_sha256:
        raise DataError(f"{path}: the pixels are not those its header names: it was damaged.", hint=hint)
    pixels = np.frombuffer(data, np.uint8).reshape(header.height_px, header.width_px, 3)
    return header, pixels


def write_dump(path: Path, pixels: npt.NDArray[np.uint8], **header: Any) -> None:
    """Write what an app would: the remaining header fields of :class:`DumpHeader` by name."""
    from nailcore.storage import write_bytes

    data = np.ascontiguousarray(pixels, np.uint8).tobytes()
    complete = DumpHeader(
        format=FORMAT,
        version=1,
        pixels_sha256=hashlib.sha256(data).hexdigest(),
        height_px=pixels.shape[0],
        width_px=pixels.shape[1],
        **header,
    )
    write_bytes(path, complete.model_dump_json().encode() + b"\n" + data)


def check_ios_dumps(
    dumps: Sequence[Path], samples: Sequence[Sample], reference: Reference, images: ImageSet
) -> list[StageParity]:
    """Recorded outputs against Python's, one fact per stage, device and system.

    Without any dump: one fact that says why iOS was not measured.

    Raises:
        DataError: a dump is unusable, or was made from a photo that is not among the samples.
    """
    if not dumps:
        reason = (
            "iOS preprocessing runs on a device or simulator alone. Call DumpWriter (deploy/ios) there and "
            "pass its files with --ios-dump."
        )
        who = Implementation(IMPLEMENTATION, "ios")
        return [describe_unmeasured("preprocess", who, reference.variant, images, reason)]
    by_hash = {hash_file(sample.image): sample for sample in samples}
    groups: dict[tuple[Stage, str, str], dict[str, npt.NDArray[np.uint8]]] = {}
    for path in dumps:
        header, pixels = read_dump(path)
        if header.photo_sha256 not in by_hash:
            raise DataError(
                f"{path}: was made from a photograph with SHA-256 {header.photo_sha256[:12]}…, "
                f"which is not among the {len(samples)} of {images.name}.",
                hint="Point the command at the folder that holds the very file the app was given.",
            )
        group = groups.setdefault((header.stage, header.device, header.system), {})
        if header.photo_sha256 in group:
            raise DataError(f"{path}: a second dump of one photo, stage, device and system.")
        group[header.photo_sha256] = pixels
    facts: list[StageParity] = []
    for (stage, device, system), recorded in sorted(groups.items(), key=lambda item: item[0]):
        chosen = [sample for digest, sample in by_hash.items() if digest in recorded]
        who = _replay(recorded, device, system)
        part = describe_part(images, chosen)
        facts += check_implementations([who], chosen, reference, part, (stage,))
    return facts


def _replay(recorded: dict[str, npt.NDArray[np.uint8]], device: str, system: str) -> Implementation:
    """An implementation that answers with what was recorded for exactly this file."""

    def answer(file: bytes) -> npt.NDArray[np.uint8]:
        return recorded[hashlib.sha256(file).hexdigest()]

    return Implementation(
        IMPLEMENTATION,
        "ios",
        versions={"device": device, "system": system},
        decode=answer,
        run=lambda file, height, width: answer(file).astype(np.float32),
    )
