"""The images parity tests look at: the photographs of $NAILTOOL_TEST_DATA, or three embedded hands."""

from __future__ import annotations

import dataclasses
import os
from functools import cache
from pathlib import Path

from nailcore.data.folder import Dataset, open_dataset
from nailcore.data.synth import make_embedded_set

MAX_IMAGES = 3


@cache
def load_images(scratch: Path) -> Dataset:
    """At most three labelled images without a training part; real and colour-asymmetric, or rendered."""
    given = os.environ.get("NAILTOOL_TEST_DATA")
    if given:
        dataset = open_dataset(Path(given))
        held_out = dataset.part("held-out")[:MAX_IMAGES]
        return dataclasses.replace(dataset, samples=held_out, split=None)
    make_embedded_set(scratch, test_images=MAX_IMAGES)
    dataset = open_dataset(scratch)
    return dataclasses.replace(dataset, samples=dataset.part("test"), split=None)
