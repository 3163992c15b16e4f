"""One tiny sound model of each kind, with its manifest: what fuzzing starts from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nailcore.artifact import (
    Artifact,
    MadeBy,
    describe_artifact,
    manifest_path,
    read_manifest,
    write_manifest,
)
from tests.deploy.tiny_onnx import FP16, FP32, NAMES, SIZE_PX, VARIANT, write_onnx

KINDS = ("onnx", "coreml", "tfjs", "tflite")
SUFFIXES = {"onnx": ".onnx", "coreml": ".mlpackage", "tfjs": ".tfjs", "tflite": ".tflite"}


def make_models(folder: Path) -> dict[str, Path]:
    """Paths by kind below ``folder``; what is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / f"tiny{suffix}" for kind, suffix in SUFFIXES.items()}
    for kind, path in paths.items():
        if not manifest_path(path).is_file():
            write_manifest(path, _make(kind, paths["onnx"], path))
    return paths


def make_image() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(1, 64, 64, 3), the size of all tiny models."""
    return np.random.default_rng(3).integers(0, 256, (1, SIZE_PX, SIZE_PX, 3)).astype(np.uint8)


def read_model(path: Path) -> Artifact:
    """The manifest beside a tiny model."""
    return read_manifest(manifest_path(path))


def _make(kind: str, parent: Path, path: Path) -> Artifact:
    if kind == "onnx":
        write_onnx(path)
        return _describe(kind, path, "NCHW")
    if kind == "coreml":
        _write_package(path)
        return _describe(kind, path, "image RGB")
    from deploy import find_target

    # float16 for one of the two, so that both ways of storing weights are read
    return find_target(kind).convert(VARIANT, FP16 if kind == "tflite" else FP32, parent, path)


def _write_package(path: Path) -> None:
    """A network of torch's with the ops of the real one, converted as the target does it."""
    import torch
    from torch import nn

    from deploy.coreml import _make_deterministic
    from deploy.coremltools_import import import_coremltools, silence_coremltools

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
            self.deep = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
            self.heads = nn.ModuleList(nn.Conv2d(8, channels, 1) for channels in (2, 10, 2))

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            x = nn.functional.relu6(self.stem((image - 127.5) / 127.5))
            small = nn.functional.avg_pool2d(x, 2)
            wide = nn.functional.interpolate(small, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = x + self.deep(wide)
            return tuple(head(x) for head in self.heads)

    ct = import_coremltools()
    torch.manual_seed(0)
    shape = (1, 3, SIZE_PX, SIZE_PX)
    with silence_coremltools():
        traced = torch.jit.trace(Tiny().eval(), torch.zeros(shape))  # type: ignore[no-untyped-call]
        model = ct.convert(
            traced,
            inputs=[ct.ImageType("image", shape=shape, color_layout=ct.colorlayout.RGB)],
            outputs=[ct.TensorType(name=name, dtype=np.float32) for name in NAMES],
            minimum_deployment_target=ct.target.iOS15,
            compute_precision=ct.precision.FLOAT16,
            convert_to="mlprogram",
            skip_model_load=True,
        )
        model.save(str(path))
    _make_deterministic(path, small=False)  # a case must be the same damage everywhere


def _describe(kind: str, path: Path, layout: str) -> Artifact:
    made_by = MadeBy(
        versions={}, config={}, parent="none", parent_sha256="0" * 64, cpu_s=0, wall_s=0, peak_rss_bytes=0
    )
    return describe_artifact(
        path,
        kind=kind,
        variant=VARIANT.name,
        recipe="fp32",
        input_name="image",
        input_layout=layout,
        output_names={name: name for name in NAMES},
        made_by=made_by,
    )
