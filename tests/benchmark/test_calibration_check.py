"""A file calibrated through swapped colours fails, though no figure of parity would notice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmark.calibration_check import check_calibration
from nailcore.artifact import Artifact, MadeBy
from nailcore.data.folder import Dataset
from quantize.calibration import describe_samples, hash_pixels, load_samples
from tests.photos import load_images
from tests.quantize.small_network import tiny_variant

pytestmark = pytest.mark.filterwarnings("ignore::quantize.calibration.FewImagesWarning")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_images(tmp_path_factory.mktemp("photos") / "set")


def describe(dataset: Dataset, pixels: np.ndarray, **changes: object) -> Artifact:  # type: ignore[type-arg]
    made_by = MadeBy(versions={}, config={}, parent="", parent_sha256="", cpu_s=0, wall_s=0, peak_rss_bytes=0)
    said = {
        "sha256": describe_samples(dataset, dataset.samples).sha256,
        "images": [sample.name for sample in dataset.samples],
        "pixels_sha256": hash_pixels(pixels),
    }
    return Artifact(
        file="a.onnx",
        sha256="0" * 64,
        size_bytes=0,
        kind="onnx",
        variant="nail43-288",
        recipe="int8-corrected",
        input_name="image",
        input_layout="NCHW",
        output_names={},
        made_by=made_by,
        structure={"calibration": said | changes},
    )


def test_colours_in_another_order_are_caught(dataset: Dataset) -> None:
    pixels = load_samples(dataset.samples, tiny_variant())
    assert check_calibration(describe(dataset, pixels), tiny_variant(), dataset) == []
    swapped = describe(dataset, pixels[..., ::-1])
    assert "calibrated on other pixels" in check_calibration(swapped, tiny_variant(), dataset)[0]
    assert check_calibration(describe(dataset, pixels + np.uint8(1)), tiny_variant(), dataset)


def test_other_photographs_prove_nothing(dataset: Dataset, tmp_path: Path) -> None:
    pixels = load_samples(dataset.samples, tiny_variant())[..., ::-1]
    others: list[dict[str, object]] = [{"images": ["elsewhere"]}, {"sha256": "0" * 64}, {"images": []}]
    for changes in others:
        assert check_calibration(describe(dataset, pixels, **changes), tiny_variant(), dataset) == []
    plain = describe(dataset, pixels).model_copy(update={"structure": {}})
    assert check_calibration(plain, tiny_variant(), dataset) == []
