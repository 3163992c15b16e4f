"""What makes a stage stale beside its files: data folders, tools, configuration and our own source."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from nailcore.variant import Variant
from nailtool.nodes import SOURCE_NODE, TOOLS_NODE, FileNode, ValueNode, hash_content
from nailtool.shadow import HOME
from nailtool.sources import hash_sources
from quantize import Recipe

# Distributions whose version decides what a stage produces; a target names its own in TOOLS.
TOOLS: Mapping[str, tuple[str, ...]] = {
    "parity": ("torch", "numpy", "opencv-python-headless", "scipy"),
    "prepare": ("torch", "numpy", "opencv-python-headless", "scipy", "onnxruntime"),
    "accuracy": ("torch", "numpy", "opencv-python-headless", "scipy"),
    "report": ("jinja2", "pydantic"),
}
SPLITS = "nailcore/data/splits"  # which images of the known public sets are held out
DATA_PARTS = ("images", "annotations.json", "masks", "dataset.json", "split.json")


@dataclass(frozen=True)
class DataNode(FileNode):
    """A data folder: only the parts that commands read count, and its name, which facts quote."""

    def state(self) -> str | None:
        """Content hash over images, masks, card and split; None when missing."""
        if not (self.location / "images").is_dir():
            return None
        digest = hashlib.sha256(self.location.resolve().name.encode())
        for part in DATA_PARTS:
            if (self.location / part).exists():
                digest.update(f"{hash_content(self.location / part)}  {part}\n".encode())
        return digest.hexdigest()


@cache
def find_version(distribution: str) -> str:
    """Version of an installed distribution, in words when there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


# One node for all tools and one for all sources of a stage, as JSON: pytask's bookkeeping costs per node.
def tools_node(*distributions: str) -> ValueNode:
    """The installed versions of some distributions."""
    return ValueNode(TOOLS_NODE, _as_json({name: find_version(name) for name in distributions}))


def sources_node(entries: Iterable[str], resources: Iterable[str] = ()) -> ValueNode:
    """Hashes of everything of ours that some modules import, and of files that are no Python source."""
    found = hash_sources(entries)
    for path in resources:
        if (HOME / path).exists():
            found[path] = hash_content(HOME / path)
    return ValueNode(SOURCE_NODE, _as_json(found))


def config_node(model: Variant | Recipe, kind: str) -> ValueNode:
    """A declaration, as JSON."""
    return ValueNode(f"{kind} {model.name}", _as_json(model.model_dump(mode="json")))


def list_resources(folder: str) -> list[str]:
    """Files of a package that are no Python source: templates, meshes."""
    return [
        path.relative_to(HOME).as_posix()
        for path in sorted((HOME / folder).rglob("*"))
        if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts
    ]


def _as_json(value: object) -> str:
    return json.dumps(value, sort_keys=True)
