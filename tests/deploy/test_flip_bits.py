"""Single bit flips in trained files: what the hash would let through must be judged by content."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmark import parity
from model_zoo import find_variant, weights_path
from nailcore.artifact import manifest_path
from nailcore.data.folder import Dataset
from nailcore.storage import hash_path
from tests.deploy import flip_bits
from tests.deploy.flip_bits import FlipJudge, count_hash_hits, flip
from tests.photos import load_images

WEIGHTS = weights_path(find_variant(flip_bits.VARIANT))
FLIPS = 8


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_images(tmp_path_factory.mktemp("images") / "set")


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_no_flip_that_moves_an_output_passes(
    kind: str, trained_files: dict[str, Path], images: Dataset
) -> None:
    judge = FlipJudge(trained_files[kind], WEIGHTS, images)
    ends = [judge.judge(number) for number in range(FLIPS)]
    assert not [where for how, where in ends if how == "MISSED"]
    assert {how for how, _ in ends} - {"harmless"}, "no flip mattered: the sample proves nothing"


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_the_hash_sees_every_flip_of_a_trained_file(kind: str, trained_files: dict[str, Path]) -> None:
    assert count_hash_hits(trained_files[kind], 50) == 50


def test_a_flip_is_undone_by_the_same_flip(trained_files: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copy(trained_files["onnx"], tmp_path))
    sound = hash_path(copy)
    assert flip(copy, 3) == flip(copy, 3)
    assert hash_path(copy) == sound


def test_a_check_that_sees_nothing_is_caught_out(
    trained_files: dict[str, Path], images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = parity.check_parity(manifest_path(trained_files["onnx"]), WEIGHTS, images, "held-out")
    assert sound.status == "passed"
    judge = FlipJudge(trained_files["onnx"], WEIGHTS, images)
    caught = next(n for n in range(60) if judge.judge(n)[0] == "caught")

    def see_nothing(*_: Any, **__: Any) -> Any:
        return sound

    monkeypatch.setattr(parity, "check_parity", see_nothing)
    assert judge.judge(caught)[0] == "MISSED"
