"""Fixtures that several test files of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import find_target
from model_zoo import find_variant, weights_path
from nailcore.artifact import write_manifest
from quantize import find_recipe
from tests.deploy.tiny_models import make_models


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tiny sound model of each kind, by kind; copy before breaking."""
    return make_models(tmp_path_factory.mktemp("tiny-models"))


@pytest.fixture(scope="session")
def trained_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The trained nail43-288 as ONNX and TFLite with manifests, by kind; copy before breaking."""
    variant = find_variant("nail43-288")
    recipe = find_recipe("fp32").model_dump(mode="json")
    folder = tmp_path_factory.mktemp("trained")
    parent = weights_path(variant)
    paths: dict[str, Path] = {}
    for kind in ("onnx", "tflite"):
        target = find_target(kind)
        paths[kind] = folder / f"{variant.name}.fp32{target.SUFFIX}"
        write_manifest(paths[kind], target.convert(variant, recipe, parent, paths[kind]))
        parent = paths["onnx"]
    return paths
