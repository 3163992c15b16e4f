"""Fingers and directions that ship with nailtool for a public set of masks, found by its file names."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nailcore.data.labels import ImageRecord

KNOWN_DIR = Path(__file__).parent / "known"


class KnownLabels(BaseModel):
    """What people said of photographs whose publisher gave masks alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    dataset: str
    note: str  # who said it, and how exact it is
    images: dict[str, ImageRecord]  # by stem; points in pixels, and the area of the very mask they are for
    sha256: str = ""  # of the file, once it was read


def find_known_labels(stems: Collection[str]) -> KnownLabels | None:
    """Those of the set that all of these photographs belong to, if there is one."""
    for path in sorted(KNOWN_DIR.glob("*.json")) if stems else ():
        data = path.read_bytes()
        known = KnownLabels.model_validate_json(data)
        if set(stems) <= set(known.images):
            return known.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()})
    return None
