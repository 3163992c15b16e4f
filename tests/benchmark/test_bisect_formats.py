"""Bisecting CoreML packages and TF.js folders: every planted defect by torch module and cause."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from benchmark.bisect import find_first_divergence
from deploy import find_target
from deploy.tflite_file import read_tflite
from model_zoo import find_variant, weights_path
from nailcore.artifact import open_artifact
from nailcore.divergence_facts import Divergence
from nailcore.errors import ArtifactError
from nailcore.nets import load_network
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
    "wrong_epsilon": ("low.stage5.0.layers.3", "wrong epsilon"),
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
    # Of the second image activations reach their clip: a clip that is missing shows.
    sample = load_images(tmp_path_factory.mktemp("images") / "set").samples[1]
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


# -- TFLite --------------------------------------------------------------------------------------
def swap_bytes(path: Path, old: npt.NDArray[np.float32], new: npt.NDArray[np.float32]) -> None:
    """Replace a stored array, found by its own bytes, which must be there once."""
    data = path.read_bytes()
    assert data.count(old.tobytes()) == 1 and new.nbytes == old.nbytes
    path.write_bytes(data.replace(old.tobytes(), np.ascontiguousarray(new, np.float32).tobytes()))


def kernel_of(module: str) -> npt.NDArray[np.float32]:
    """A trained kernel as TFLite stores it: (out, kh, kw, in), depthwise (1, kh, kw, channels)."""
    weight = read_module(module).weight.detach().numpy()
    order = (1, 2, 3, 0) if weight.shape[1] == 1 and weight.shape[0] > 1 else (0, 2, 3, 1)
    return np.ascontiguousarray(weight.transpose(order))


@cache
def read_module(module: str) -> Any:
    return load_network(find_variant(NAME), WEIGHTS).network.get_submodule(module)


def edit_kernel(module: str, edit: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda path: swap_bytes(path, kernel_of(module), edit(kernel_of(module)))


def edit_bias(module: str, edit: Callable[[Any], Any]) -> Callable[[Path], None]:
    bias = read_module(module).bias.detach().numpy()
    return lambda path: swap_bytes(path, bias, edit(bias))


# name -> (torch module, cause, what is edited, how)
TFLITE: dict[str, tuple[str, str, Callable[..., Callable[[Path], None]], Callable[[Any], Any]]] = {
    "dropped bias": ("low.stage5.1.layers.0", "dropped bias", edit_bias, np.zeros_like),
    "changed bias": ("low.stage6.1.layers.0", "changed bias", edit_bias, lambda b: b + 0.1),
    "transposed": ("fusion8.project_f1", "transposed weight", edit_kernel, lambda w: w.swapaxes(1, 2)),
    "sign flipped": ("low.stage6.2.layers.6", "sign-flipped weight", edit_kernel, np.negative),
    "stale": ("low.stage6.0.layers.0", "stale weight", edit_kernel, lambda w: w + 0.01 * np.sign(w)),
    "finger order": ("output.heads.finger", "channel permutation", edit_kernel, lambda w: w[::-1]),
}


@pytest.mark.parametrize("name", TFLITE)
def test_the_defect_of_a_tflite_file_is_named(name: str, photo: Images, tmp_path: Path) -> None:
    module, cause, edit, how = TFLITE[name]
    manifest = build_artifact(NAME, "tflite")
    broken = copy_artifact(manifest, tmp_path)
    edit(module, how)(broken)
    found = find_first_divergence(open_artifact(manifest)[0], broken, WEIGHTS, photo)
    assert found is not None
    assert (found.module, found.cause, found.confirmed) == (module, cause, True), found.detail


@pytest.mark.parametrize("recipe", ["fp32", "fp16"])
def test_sound_tflite_files_have_no_divergence(recipe: str, photo: Images) -> None:
    artifact, path = open_artifact(build_artifact(NAME, "tflite", recipe))
    assert find_first_divergence(artifact, path, WEIGHTS, photo) is None


def test_corrected_biases_are_no_divergence_and_a_dropped_one_is(photo: Images, tmp_path: Path) -> None:
    manifest = build_artifact(NAME, "tflite", "int8-weights")
    artifact, path = open_artifact(manifest)
    assert find_first_divergence(artifact, path, WEIGHTS, photo) is None

    module = "low.stage5.1.layers.0"
    trained = read_module(module).bias.detach().numpy()
    stored = [tensor.constant for tensor in read_tflite(path.read_bytes()).tensors]
    biases = [v for v in stored if v is not None and v.shape == trained.shape and v.dtype == np.float32]
    corrected = min(biases, key=lambda values: float(np.abs(values - trained).max()))
    assert np.abs(corrected - trained).max() > 1e-4
    broken = copy_artifact(manifest, tmp_path)
    swap_bytes(broken, corrected, np.zeros_like(corrected))
    found = find_first_divergence(artifact, broken, WEIGHTS, photo)
    assert found is not None
    assert (found.module, found.cause) == (module, "dropped bias"), found.detail


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
