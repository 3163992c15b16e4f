"""A target whose artefacts are a few bytes; what the weights file says decides how conversions behave."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from nailcore.artifact import Artifact, MadeBy, describe_artifact
from nailcore.errors import ConversionError
from nailcore.runtime import Engine
from nailcore.storage import hash_file, replacing
from nailcore.variant import Variant

KIND = "onnx"
SUFFIX = ".onnx"
PARENT = "weights"
TOOLS = ("numpy",)
FAMILY = "torch"
RUNTIME_TOOLS: tuple[str, ...] = ()
RESOURCES: tuple[str, ...] = ()
ENGINES = (Engine("onnxruntime"),)
REFUSED = "int8-refused"  # a recipe that no file can be made by


def convert(variant: Variant, recipe: dict[str, Any], parent: Path, out: Path) -> Artifact:
    """Write the name and the parent's hash; obey the first word of the weights."""
    print("the converter prints to standard output")  # noqa: T201 - as real converters do
    order = parent.read_text().split()[0]
    with replacing(out) as scratch:
        scratch.write_text("half")
        _obey("refuse" if recipe["name"] == REFUSED else order, variant)
        scratch.write_text(f"{variant.name} {recipe['name']} {hash_file(parent)}")
    return describe(variant, recipe, parent, out, kind=KIND)


def _obey(order: str, variant: Variant) -> None:
    if order == "refuse":
        raise ConversionError(f"{variant.name}: refused.", hint="Ask again.")
    if order == "crash":
        raise KeyError("surprise")
    if order == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if order == "sleep":
        time.sleep(60)


def describe(variant: Variant, recipe: dict[str, Any], parent: Path, out: Path, *, kind: str) -> Artifact:
    """The manifest's content."""
    return describe_artifact(
        out,
        kind=kind,
        variant=variant.name,
        recipe=recipe["name"],
        input_name="image",
        input_layout="NCHW",
        output_names={output.name: output.name for output in variant.outputs},
        made_by=MadeBy(
            versions={},
            config={"recipe": recipe},
            parent=parent.name,
            parent_sha256=hash_file(parent),
            cpu_s=0,
            wall_s=0,
            peak_rss_bytes=0,
        ),
    )
