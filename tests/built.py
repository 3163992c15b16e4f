"""Artefacts that several test modules look at, built once per session; copy before you break one."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import quantize
from deploy import find_target
from model_zoo import find_variant, weights_path
from nailcore.artifact import artifact_path, manifest_path, open_artifact, write_manifest
from nailcore.data.folder import Dataset, open_dataset
from nailcore.data.synth import make_embedded_set
from quantize.prepare import prepare

CALIBRATION_IMAGES = 3


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="nailtool-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def build_artifact(variant_name: str, kind: str, recipe_name: str = "fp32") -> Path:
    """The manifest of a shipped variant's artefact, with those of its parents beside it."""
    variant, target = find_variant(variant_name), find_target(kind)
    parent = weights_path(variant)
    if target.PARENT != "weights":
        _, parent = open_artifact(build_artifact(variant_name, target.PARENT))
    path = artifact_path(_folder(), variant_name, recipe_name, target.SUFFIX)
    recipe = quantize.find_recipe(recipe_name)
    options = {"prepared": prepare_recipe(variant_name, recipe_name)} if recipe.needs_preparation else {}
    return write_manifest(
        path, target.convert(variant, recipe.model_dump(mode="json"), parent, path, **options)
    )


@cache
def load_hands() -> Dataset:
    """Three rendered hands to calibrate recipes on, three of other people to judge them by."""
    root = _folder() / "hands"
    make_embedded_set(root, test_images=CALIBRATION_IMAGES, train_images=CALIBRATION_IMAGES)
    return open_dataset(root)


@cache
def prepare_recipe(variant_name: str, recipe_name: str) -> Path:
    """What a recipe prepares, where the pipeline would put it."""
    variant = find_variant(variant_name)
    folder = _folder() / "prepared" / f"{variant_name}.{recipe_name}"
    folder.parent.mkdir(exist_ok=True)
    recipe = quantize.find_recipe(recipe_name)
    if recipe.finetune is not None:  # that it is done shows after a few steps; what it gains is measured
        recipe = recipe.model_copy(update={"finetune": recipe.finetune.model_copy(update={"steps": 3})})
    prepare(variant, recipe, weights_path(variant), load_hands(), folder, lambda _done, _all: None)
    return folder


def copy_artifact(manifest: Path, folder: Path) -> Path:
    """The artefact's own file or folder, copied into ``folder``; returns the copy."""
    artifact, path = open_artifact(manifest)
    copy = folder / artifact.file
    if path.is_dir():
        shutil.copytree(path, copy)
    else:
        shutil.copyfile(path, copy)
    shutil.copyfile(manifest, manifest_path(copy))
    return copy
