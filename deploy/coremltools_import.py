"""Import coremltools quietly and without the TensorFlow front-end it would load."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def silence_coremltools() -> Iterator[None]:
    """coremltools warns of every torch newer than 2.7; parity is how we know that 2.13 works."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # Its progress bars write to stderr whatever they are told.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def import_coremltools() -> Any:
    """The coremltools module, without TensorFlow (a gigabyte, 8 s) unless it is loaded already."""
    blocked = "tensorflow" not in sys.modules
    if blocked:
        sys.modules["tensorflow"] = None  # type: ignore[assignment]
    try:
        with silence_coremltools():
            import coremltools
    finally:
        if blocked:
            del sys.modules["tensorflow"]
    return coremltools
