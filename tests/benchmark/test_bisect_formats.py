"""Bisecting CoreML packages and TF.js folders: every planted defect by torch module and cause."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmark.bisect import find_first_divergence
from deploy import find_target
from model_zoo import find_variant, weights_path
from nailcore.artifact import open_artifact
from nailcore.errors import ArtifactError
from nailcore.facts import Divergence
from nailcore.preprocess import letterbox
from nailcore.runtime import Images
from tests.benchmark.broken_tfjs import DEFECTS, FolderDefect, plant_in_folder
from tests.browser_marks import skip_without_browser
from tests.built import build_artifact, copy_artifact
from tests.deploy.broken_packages import PLANTS
from tests.photos import load_images

NAME = "nail43-288"
WEIGHTS = weights_path(find_variant(NAME))
# name in broken_packages -> (torch module, cause)
FP32_PACKAGES = {
    "flip_align_corners": ("fusion8.upsample", "corner alignment"),
    "swap_colours": ("normalize", "colour order"),
    "undilate": ("fusion16.project_f1", "dilation"),
    "lower_clip": ("low.stage4.1.layers.2", "clip bound"),
    "swap_heads": ("output.heads.fgbg", "exchanged outputs"),
    "flip_exponent_bit": ("fusion8.project_f1", "damaged weight"),
    "drop_bias": ("low.stage4.1.layers.0", "dropped bias"),
    "wrong_std": ("low.stage1.0", "normalization"),
    "wrong_epsilon": ("fusion8.project_f1", "wrong epsilon"),
    "stale_weights": ("low.stage1.0", "stale weight"),
    "shift_padding": ("high.stage4.0.layers.3", "padding"),
    "rewire_residual": ("low.stage3.1.add", "wrong input"),
}
FP16_PACKAGES = {
    "flip_lowest_bit": ("fusion8.project_f1", "damaged weight"),  # one unit in the last place of one weight
    "wrong_mean": ("normalize", "normalization"),
    "overflow": ("low.stage4.1.layers.0", "fp16 overflow"),
    "drop_relu": ("fusion16.relu", "missing activation"),
    "swap_fingers": ("output.heads.finger", "channel permutation"),
}


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Images:
    sample = load_images(tmp_path_factory.mktemp("images") / "set").samples[0]
    return letterbox(sample.load_image(), 288, 288)[None]


def bisect_package(name: str, recipe: str, photo: Images, folder: Path) -> Divergence | None:
    artifact, path = open_artifact(build_artifact(NAME, "coreml", recipe))
    broken = folder / path.name
    PLANTS[name](path, broken)
    return find_first_divergence(artifact, broken, WEIGHTS, photo)


@pytest.mark.parametrize("name", FP32_PACKAGES)
def test_the_defect_of_a_float32_package_is_named(name: str, photo: Images, tmp_path: Path) -> None:
    found = bisect_package(name, "fp32", photo, tmp_path)
    assert found is not None
    assert (found.module, found.cause) == FP32_PACKAGES[name] and found.confirmed, found.detail


@pytest.mark.parametrize("name", FP16_PACKAGES)
def test_float16_noise_hides_no_defect(name: str, photo: Images, tmp_path: Path) -> None:
    found = bisect_package(name, "fp16", photo, tmp_path)
    assert found is not None
    assert (found.module, found.cause) == FP16_PACKAGES[name] and found.confirmed, found.detail


@pytest.mark.parametrize("recipe", ["fp32", "fp16"])
def test_sound_packages_have_no_divergence(recipe: str, photo: Images) -> None:
    artifact, path = open_artifact(build_artifact(NAME, "coreml", recipe))
    assert find_first_divergence(artifact, path, WEIGHTS, photo) is None


def test_a_package_that_cannot_be_read_is_an_error_not_a_verdict(photo: Images, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"weight\.bin"):
        bisect_package("truncate_weights", "fp32", photo, tmp_path)


# -- TF.js ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def browser() -> Iterator[None]:
    """One browser for all tests: the last runner to close would end it."""
    artifact, path = open_artifact(build_artifact(NAME, "tfjs"))
    with contextlib.closing(find_target("tfjs").open_runner(artifact, path)):
        yield


@skip_without_browser
@pytest.mark.browser
@pytest.mark.parametrize("defect", DEFECTS, ids=[defect.name for defect in DEFECTS])
@pytest.mark.usefixtures("browser")
def test_the_defect_of_a_tfjs_folder_is_named(defect: FolderDefect, photo: Images, tmp_path: Path) -> None:
    manifest = build_artifact(NAME, "tfjs")
    broken = copy_artifact(manifest, tmp_path)
    plant_in_folder(broken, defect)
    found = find_first_divergence(open_artifact(manifest)[0], broken, WEIGHTS, photo)
    assert found is not None
    assert (found.module, found.cause, found.confirmed) == (defect.module, defect.cause, True), found.detail


@skip_without_browser
@pytest.mark.browser
@pytest.mark.usefixtures("browser")
def test_a_sound_tfjs_folder_has_no_divergence(photo: Images) -> None:
    artifact, path = open_artifact(build_artifact(NAME, "tfjs"))
    assert find_first_divergence(artifact, path, WEIGHTS, photo) is None
