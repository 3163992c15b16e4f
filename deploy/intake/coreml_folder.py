"""What an .mlpackage must keep before it is parsed: listed files and no others, bounded, none outside."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from deploy.intake.documents import read_json
from deploy.intake.folder import (
    MAX_MANIFEST_BYTES,
    check_listing,
    check_relative,
    list_folder,
    refuse,
)
from nailcore.errors import ArtifactError

MANIFEST_FILE = "Manifest.json"
# coremltools writes it for models of torch.export; it maps debug handles and computes nothing.
_DEBUG_FILE = "executorch_debug_handle_mapping.json"
_FINDER_FILE = ".DS_Store"  # macOS leaves one in every folder that somebody looked into
_BLOB_NAME = re.compile(rb"@model_path/([^\x00-\x1f\x7f]{1,255}?\.bin)")


def check(path: Path) -> None:
    """Raises ArtifactError unless the manifest, the model file and its weights are all and alone there.

    What the model file itself says is checked by ``deploy.mil`` while it parses it: offsets, sizes,
    types and every operation.
    """
    found = list_folder(path)
    if "coremldata.bin" in found:
        raise ArtifactError(
            f"{path}: a compiled model (.mlmodelc), which only macOS can read.",
            hint="Use the .mlpackage that it was compiled from.",
        )
    found = {name: size for name, size in found.items() if not _is_beside_the_model(name)}
    items, root = _read_manifest(path)
    if root not in items:
        raise refuse(path / MANIFEST_FILE, "does not list its own root model.")
    model = f"Data/{items[root]}"
    if model not in found:
        raise refuse(path, f"{model!r}, the model file, is missing.")
    if found[model] == 0:
        raise refuse(path / model, "is empty.")
    weights = _list_weights(path, model)
    # Xcode lists descriptions beside the model; a model without large constants has no weights to list.
    listed = {f"Data/{item}" for item in items.values()}
    check_listing(path, found, {MANIFEST_FILE, model, *weights, *(listed & found.keys())})
    for item in items.values():
        place = f"Data/{item}"
        if place not in found and not (path / place).is_dir():
            raise refuse(path, f"{item!r}, listed in the manifest, is missing.")


def _is_beside_the_model(name: str) -> bool:
    return name == _DEBUG_FILE or name.rpartition("/")[2] == _FINDER_FILE


def _read_manifest(path: Path) -> tuple[dict[str, str], str]:
    """Paths below ``Data`` by item identifier, and the identifier of the model."""
    file = path / MANIFEST_FILE
    manifest: Any = read_json(file, MAX_MANIFEST_BYTES, "a package manifest")
    try:
        entries = manifest["itemInfoEntries"]
        root = manifest["rootModelIdentifier"]
        listed = {str(key): entry["path"] for key, entry in entries.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise refuse(file, f"is no package manifest: {type(error).__name__}: {error}.") from error
    if not isinstance(root, str):
        raise refuse(file, "is no package manifest: its root model is no name.")
    items = {key: str(check_relative(file, name, "an item's path")) for key, name in listed.items()}
    return items, root


def _list_weights(path: Path, model: str) -> set[str]:
    """Weight files that the model file names, as it spells them; found without parsing it."""
    names = {match.group(1) for match in _BLOB_NAME.finditer((path / model).read_bytes())}
    parent = model.rpartition("/")[0]
    weights: set[str] = set()
    for raw in names:
        text = raw.decode("utf-8", "replace")
        weights.add(f"{parent}/{check_relative(path / model, text, 'a weight file')}")
    return weights
