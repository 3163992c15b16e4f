"""The seams between rooms: what a target, a runner and a device must offer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nailcore.artifact import Artifact
from nailcore.service import Service
from nailcore.variant import Variant

Images = npt.NDArray[np.uint8]  # (N, H, W, 3) RGB at the variant's size
Logits = dict[str, npt.NDArray[np.float32]]  # name -> (N, C, H/stride, W/stride)


@dataclass(frozen=True)
class Engine:
    """One way to execute an artefact kind: a runtime, its backend and where it runs."""

    name: str  # "onnxruntime", "mil-reference", "chromium-wasm", "firefox-webgl", ...
    default: bool = True  # executed unless engines are chosen by name
    software_gpu: bool = False  # right numbers, meaningless speed; never ranked
    image_limit: int | None = None  # slow engines see only the first images of a part; facts say how many


@dataclass(frozen=True)
class Layer:
    """One operation of a model file, as its own format describes it."""

    name: str  # the name of its (first) output tensor in the file
    op: str  # the format's own word: "Conv", "FusedConv2D", "conv", "CONV_2D"
    attributes: Mapping[str, Any] = field(default_factory=dict)  # strides, dilations, pads, align_corners...
    inputs: tuple[str, ...] = ()  # tensor names that are not constants


class Tracer(Protocol):
    """A runner that also tells what each of its layers computes; memory stays bounded by ``names``."""

    def list_layers(self) -> list[Layer]:
        """All layers that compute something, in the order of execution."""

    def trace(self, image: npt.NDArray[np.uint8], names: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Outputs of the named layers for one (1, H, W, 3) RGB image; 4-D tensors as (N, C, h, w)."""

    def read_weight(self, name: str) -> npt.NDArray[np.float32] | None:
        """Kernel of a convolution as (out, in/groups, kh, kw), decompressed; None for other layers."""


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
    TOOLS: tuple[str, ...]  # distributions whose versions decide what a conversion writes
    FAMILY: str  # which libraries a conversion loads: torch and tensorflow never share a process
    RUNTIME_TOOLS: tuple[str, ...]  # distributions that take part in executing a file
    RESOURCES: tuple[str, ...]  # files of ours that do and are no Python source, from the root
    SERVICE: Service  # which recipes it carries out as they say

    def convert(self, variant: Variant, recipe: dict[str, Any], parent: Path, out: Path) -> Artifact:
        """Write the artefact at ``out`` (atomically) and describe it; the caller writes the manifest.

        A target that serves recipes with ``needs_preparation`` also takes ``prepared``, the folder that
        ``quantize.prepare`` made for the recipe and the variant.
        """

    ENGINES: tuple[Engine, ...]  # how its files can be executed; the first one is the usual way

    def open_runner(self, artifact: Artifact, path: Path, engine: str = "") -> Runner:
        """Execute exactly the bytes at ``path`` with an engine (default: the first).

        Raises:
            MissingToolError: this machine cannot; the message says why and how to change that.
            ArtifactError: the file cannot be used.
            BrowserError: an installed browser failed: no verdict about the file.
        """
