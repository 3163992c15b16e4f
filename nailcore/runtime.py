"""The seams between rooms: what a target, a runner and a device must offer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nailcore.artifact import Artifact
from nailcore.variant import Variant

Images = npt.NDArray[np.uint8]  # (N, H, W, 3) RGB at the variant's size
Logits = dict[str, npt.NDArray[np.float32]]  # name -> (N, C, H/stride, W/stride)


class Runner(Protocol):
    """Executes one model file; same layout and names whatever the runtime."""

    @property
    def runtime(self) -> str:
        """Product and backend for people, e.g. ``onnxruntime CPU`` or ``tfjs wasm, Chromium``."""

    @property
    def versions(self) -> dict[str, str]:
        """Versions of all that took part in the execution."""

    def run(self, images: Images) -> Logits:
        """Logits by *our* output names for a batch of RGB images."""

    def close(self) -> None:
        """Give back sessions, browsers and servers."""


class Target(Protocol):
    """A conversion target: a module in ``deploy`` satisfies this."""

    KIND: str  # "onnx", "coreml", "tfjs"
    SUFFIX: str  # ".onnx", ".mlpackage", ".tfjs"
    PARENT: str  # "weights", or the kind of the artefact it is converted from

    def convert(self, variant: Variant, recipe: dict[str, Any], parent: Path, out: Path) -> Artifact:
        """Write the artefact at ``out`` (atomically) and describe it; the caller writes the manifest."""

    def open_runner(self, artifact: Artifact, path: Path) -> Runner:
        """Execute exactly the bytes at ``path``; raises MissingToolError where it cannot."""
