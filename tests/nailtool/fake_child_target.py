"""A target that is converted from another artefact and ships as a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nailcore.artifact import Artifact
from nailcore.runtime import Engine
from nailcore.storage import hash_file, replacing
from nailcore.variant import Variant
from tests.nailtool.fake_target import describe

KIND = "tfjs"
SUFFIX = ".tfjs"
PARENT = "onnx"
TOOLS = ("numpy",)
FAMILY = "tensorflow"
RUNTIME_TOOLS: tuple[str, ...] = ()
RESOURCES: tuple[str, ...] = ()
ENGINES = (Engine("fake-wasm"), Engine("fake-webgl", default=False, software_gpu=True, image_limit=2))


def convert(variant: Variant, recipe: dict[str, Any], parent: Path, out: Path) -> Artifact:
    """Write a folder with two files."""
    with replacing(out) as scratch:
        scratch.mkdir()
        (scratch / "model.json").write_text(hash_file(parent))
        (scratch / "weights.bin").write_text(recipe["name"])
    return describe(variant, recipe, parent, out, kind=KIND)
