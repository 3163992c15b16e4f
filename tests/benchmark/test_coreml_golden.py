"""Goldens of CoreML: bound to one file and one set of images, compared beside the MIL reference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmark.coreml_golden import GoldenRunner, app, card_path, compare, record, record_runner
from deploy.coreml_runners import MilRunner
from model_zoo import find_variant, weights_path
from nailcore.artifact import open_artifact
from nailcore.data.folder import Dataset, Split, open_dataset
from nailcore.errors import ArtifactError, DataError, MissingToolError, UnknownNameError
from nailcore.runtime import Images, Logits
from tests.built import build_artifact
from tests.photos import load_images

VARIANT = find_variant("nail43-288")
WEIGHTS = weights_path(VARIANT)


class FakeCoreML(MilRunner):
    """The MIL reference under CoreML's name, wrong by ``bias`` in one output."""

    bias = 0.0

    def run(self, images: Images) -> Logits:
        found = super().run(images)
        found["direction"][:, 0, 3, 5] += self.bias
        return found


@pytest.fixture(scope="module")
def manifest() -> Path:
    return build_artifact(VARIANT.name, "coreml", "fp16")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    whole = load_images(tmp_path_factory.mktemp("images") / "set")
    return Dataset(whole.root, whole.card, whole.samples[:2], None)


def write_golden(
    manifest: Path, images: Dataset, out: Path, bias: float = 0.0, split: Split = "held-out"
) -> Path:
    artifact, path = open_artifact(manifest)
    runner = FakeCoreML(artifact, path)
    runner.bias, runner.runtime = bias, "CoreML, macOS 15.1, ALL"
    runner.versions = {"macOS": "15.1", "coremltools": "9.0"}
    runner.settings = {"compute units": "ALL"}
    record_runner(runner, artifact, images, split, out)
    return out


@pytest.fixture(scope="module")
def golden(manifest: Path, images: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_golden(manifest, images, tmp_path_factory.mktemp("golden") / "golden.npz")


def test_a_golden_tells_whose_answers_it_holds(golden: Path, manifest: Path, images: Dataset) -> None:
    artifact, _ = open_artifact(manifest)
    card = json.loads(card_path(golden).read_text("utf-8"))
    assert card["artifact"]["sha256"] == artifact.sha256
    assert card["images"]["sha256"] == images.describe("held-out").sha256
    assert set(card["pixels_sha256"]) == {sample.name for sample in images.samples}
    assert card["versions"]["macOS"] == "15.1" and card["settings"]["compute units"] == "ALL"


def test_coreml_stands_beside_the_mil_reference(golden: Path, manifest: Path, images: Dataset) -> None:
    found = compare(golden, manifest, WEIGHTS, images, "held-out")
    assert found.coreml.runtime == "CoreML, macOS 15.1, ALL (recorded)"
    assert found.mil_reference.runtime == "MIL reference (fp16 emulated, fp32 accumulation)"
    assert found.coreml.outputs == found.mil_reference.outputs
    assert all(output.max_abs == 0 for output in found.coreml_against_mil.outputs)
    assert not found.failures


def test_a_planted_deviation_shows_in_its_output_alone(
    manifest: Path, images: Dataset, tmp_path: Path
) -> None:
    golden = write_golden(manifest, images, tmp_path / "off.npz", bias=0.75)
    found = compare(golden, manifest, WEIGHTS, images, "held-out")
    losses = {output.name: output.max_abs for output in found.coreml_against_mil.outputs}
    assert losses == {"fgbg": 0.0, "finger": 0.0, "direction": pytest.approx(0.75)}


def test_a_golden_of_another_file_is_refused_by_name(golden: Path, images: Dataset) -> None:
    other = build_artifact(VARIANT.name, "coreml", "fp32")
    sha256 = open_artifact(other)[0].sha256[:12]
    with pytest.raises(ArtifactError, match=rf"golden\.npz: recorded from nail43-288 coreml fp16 .*{sha256}"):
        compare(golden, other, WEIGHTS, images, "held-out")


def test_a_golden_of_other_images_is_refused_by_name(golden: Path, manifest: Path, images: Dataset) -> None:
    fewer = Dataset(images.root, images.card, images.samples[:1], None)
    with pytest.raises(DataError, match=r"recorded on .* \(2 images, .*, not on .* \(1 images"):
        compare(golden, manifest, WEIGHTS, fewer, "held-out")


def test_an_image_decoded_otherwise_gets_no_answer(golden: Path, manifest: Path) -> None:
    artifact, _ = open_artifact(manifest)
    image = np.zeros((1, VARIANT.height_px, VARIANT.width_px, 3), np.uint8)
    with pytest.raises(DataError, match="holds no answer to this image"):
        GoldenRunner(golden, artifact).run(image)


@pytest.mark.parametrize("damage", ["arrays", "no arrays", "card", "no card"])
def test_a_damaged_golden_is_named(damage: str, golden: Path, manifest: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.npz"
    data = bytearray(golden.read_bytes())
    if damage == "arrays":
        data[len(data) // 2] ^= 1
    if damage != "no arrays":
        copy.write_bytes(bytes(data))
    text = card_path(golden).read_text("utf-8")
    if damage != "no card":
        card_path(copy).write_text(text[: len(text) // 2] if damage == "card" else text, "utf-8")
    with pytest.raises(ArtifactError, match=r"copy\.(npz|json)") as caught:
        GoldenRunner(copy, open_artifact(manifest)[0])
    assert "coreml_golden record" in caught.value.hint


def test_recording_needs_a_mac_and_known_compute_units(
    manifest: Path, images: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.coreml_runners.sys.platform", "linux")
    with pytest.raises(MissingToolError, match="executes on macOS only"):
        record(manifest, images, "held-out", tmp_path / "golden.npz")
    with pytest.raises(UnknownNameError, match="compute units"):
        record(manifest, images, "held-out", tmp_path / "golden.npz", compute_units="GPU")
    assert not list(tmp_path.iterdir())


def test_the_command_line_compares_and_ends_with_our_exit_codes(
    golden: Path, manifest: Path, images: Dataset, tmp_path: Path
) -> None:
    model = str(open_artifact(manifest)[1])
    whole = write_golden(manifest, open_dataset(images.root), tmp_path / "whole.npz", split="all")
    options = ["--data", str(images.root), "--split", "all"]
    done = CliRunner().invoke(app, ["compare", str(whole), model, *options])
    assert done.exit_code == 0, done.output
    assert "CoreML, macOS 15.1, ALL (recorded), against torch:" in done.output
    refused = CliRunner().invoke(app, ["compare", str(golden), model, *options])
    assert refused.exit_code == 2 and "recorded on" in refused.output
    mac = CliRunner().invoke(app, ["record", model, *options, "--out", str(tmp_path / "new.npz")])
    assert mac.exit_code == 3 and "macOS only" in mac.output
    unknown = CliRunner().invoke(app, ["compare", str(golden), model, "--data", model, "--split", "exam"])
    assert unknown.exit_code == 2 and "held-out" in unknown.output
