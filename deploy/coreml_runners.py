"""Execute a CoreML package: by the MIL reference on any machine, by CoreML itself on macOS."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from deploy.coremltools_import import import_coremltools, silence_coremltools
from nailcore.artifact import Artifact
from nailcore.errors import ArtifactError, ConversionError, MissingToolError, UnknownNameError
from nailcore.measure import find_versions
from nailcore.runtime import Images, Layer, Logits

if TYPE_CHECKING:
    import torch

    from deploy.mil import MilModel

Accumulation = Literal["fp32", "fp16"]
COMPUTE_UNITS = ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")  # coremltools' own words


def _find_versions(*distributions: str) -> dict[str, str]:
    try:
        nailtool = importlib.metadata.version("nailtool")
    except importlib.metadata.PackageNotFoundError:  # run from sources that were never installed
        nailtool = "unknown"
    return {**find_versions(distributions), "nailtool": nailtool}


def _name_outputs(artifact: Artifact, found: dict[str, npt.NDArray[Any]], path: Path) -> Logits:
    """Values by *our* output names; a file without one of them is no artefact of ours."""
    missing = sorted(set(artifact.output_names.values()) - set(found))
    if missing:
        raise ConversionError(
            f"{path.name}: has no output '{missing[0]}'; it has {', '.join(sorted(found)) or 'none'}."
        )
    return {
        ours: np.ascontiguousarray(found[theirs], np.float32)
        for ours, theirs in artifact.output_names.items()
    }


class MilRunner:
    """Runner and Tracer: the package's own operations, executed with torch. Never CoreML's arithmetic."""

    def __init__(self, artifact: Artifact, path: Path, accumulate: Accumulation = "fp32") -> None:
        from deploy.mil import load_package

        self.artifact, self.path, self.accumulate = artifact, path, accumulate
        self.model: MilModel = load_package(path)
        self.versions = _find_versions("torch", "coremltools")
        half = artifact_computes_half(artifact)
        self.runtime = (
            f"MIL reference (fp16 emulated, {accumulate} accumulation)" if half else "MIL reference (fp32)"
        )
        self.settings = {"precision": "declared", "accumulation": accumulate if half else "fp32"}

    def run(self, images: Images) -> Logits:
        """(N, H, W, 3) uint8 RGB -> named logits, one image after the other as CoreML would."""
        rows = [self._run_one(image) for image in images]
        return {name: np.concatenate([row[name] for row in rows]) for name in self.artifact.output_names}

    def _run_one(self, image: npt.NDArray[np.uint8], watch: Any = None) -> Logits:
        found = self.model.run({self.artifact.input_name: image}, accumulate=self.accumulate, watch=watch)
        return _name_outputs(self.artifact, found, self.path)

    def list_layers(self) -> list[Layer]:
        """All operations that compute something, in the order of the file."""
        return list(self.model.layers)

    def trace(self, image: npt.NDArray[np.uint8], names: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Outputs of the named layers for one (1, H, W, 3) RGB image, as (N, C, h, w)."""
        wanted = set(names)
        kept: dict[str, npt.NDArray[np.float32]] = {}

        def watch(layer: Layer, outputs: tuple[torch.Tensor, ...]) -> None:
            if layer.name in wanted:
                # A copy: the executor may reuse the memory.
                kept[layer.name] = outputs[0].detach().float().numpy().copy()

        self._run_one(image[0], watch)
        return kept

    def read_weight(self, name: str) -> npt.NDArray[np.float32] | None:
        """Kernel of a convolution as (out, in/groups, kh, kw), decompressed; None for other layers."""
        weight = self.model.read_weight(name)
        return None if weight is None else np.asarray(weight, np.float32)

    def close(self) -> None:
        """Nothing to give back."""


def artifact_computes_half(artifact: Artifact) -> bool:
    """Whether a package's recipe makes it compute in float16, between integers or throughout."""
    recipe = artifact.made_by.config.get("recipe", {})
    return isinstance(recipe, dict) and recipe.get("compute_dtype") in ("float16", "int8")


def require_macos(what: str) -> None:
    """Refuse before coremltools is asked, whose own error says nothing of the reason.

    Raises:
        MissingToolError: this is no macOS.
    """
    if sys.platform != "darwin":
        raise MissingToolError(
            f"{what}: CoreML executes on macOS only.",
            hint="On a Mac, run `python -m benchmark.coreml_golden record MODEL.mlpackage --data FOLDER "
            "--out golden.npz` and compare here with `python -m benchmark.coreml_golden compare` "
            "(docs/parity-coreml.md); the engine mil-reference executes the file anywhere.",
        )


class CoreMLRunner:
    """Runner: CoreML's own ``predict``, on macOS."""

    def __init__(self, artifact: Artifact, path: Path, compute_units: str = "ALL") -> None:
        """Load a package into CoreML.

        Args:
            artifact, path: the package and its manifest.
            compute_units: one of `COMPUTE_UNITS`; which of them CoreML uses for an operation is its choice.

        Raises:
            MissingToolError: this is no Mac, or Pillow is missing.
            UnknownNameError: no such compute units.
            ArtifactError: CoreML does not load the package.
        """
        if compute_units not in COMPUTE_UNITS:
            raise UnknownNameError("compute units", compute_units, COMPUTE_UNITS)
        require_macos(artifact.label)
        ct = import_coremltools()
        try:
            from PIL import Image
        except ImportError as error:
            raise MissingToolError(
                f"{artifact.label}: CoreML takes images through Pillow, which is not installed.",
                hint="pip install pillow",
            ) from error
        self._to_image = Image.fromarray
        self.artifact, self.path = artifact, path
        macos = platform.mac_ver()[0]
        self.versions = {"macOS": macos, **_find_versions("coremltools")}
        self.runtime = f"CoreML, macOS {macos}, {compute_units}"
        self.settings = {"compute units": compute_units, "machine": platform.machine()}
        with silence_coremltools():
            try:
                self._model = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit[compute_units])
            except Exception as error:  # CoreML's own failures arrive as bare Exceptions
                raise ArtifactError(f"{path}: CoreML does not load it: {error}") from error

    def run(self, images: Images) -> Logits:
        """(N, H, W, 3) uint8 RGB -> named logits; the input is an image, so the batch is a loop."""
        rows = []
        for image in images:
            inputs = {self.artifact.input_name: self._to_image(np.ascontiguousarray(image))}
            try:
                found = self._model.predict(inputs)
            except Exception as error:  # as above
                raise ConversionError(f"{self.path.name}: CoreML cannot execute it: {error}") from error
            rows.append(_name_outputs(self.artifact, found, self.path))
        return {name: np.concatenate([row[name] for row in rows]) for name in self.artifact.output_names}

    def close(self) -> None:
        """Let CoreML unload the compiled model."""
        self._model = None
