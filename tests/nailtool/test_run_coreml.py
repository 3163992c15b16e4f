"""`nailtool run-coreml`: a photograph through one's own and other people's packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from deploy.coremltools_import import import_coremltools
from deploy.mil import load_package
from deploy.mil.photo import Feeding, draw_labels, feed_photo, label_map
from nailcore.data.folder import read_image
from nailcore.errors import DataError
from nailtool.cli import main
from tests.deploy.mil_builder import convert_module

HEIGHT, WIDTH = 12, 16


class Masks(torch.nn.Module):
    """Red above a limit, as two channels; and the mean."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        red = x[:, :1]
        return torch.cat([0.5 - red, red - 0.5], 1), x.mean((2, 3))


@pytest.fixture(scope="module")
def tensor_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "masks.mlpackage"
    ct = import_coremltools()
    convert_module(
        Masks(),
        [torch.zeros(1, 3, HEIGHT, WIDTH)],
        path,
        outputs=[ct.TensorType(name="mask"), ct.TensorType(name="mean")],
    )
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Left half red, right half blue, saved lying on its side with an EXIF orientation."""
    upright = np.zeros((60, 80, 3), np.uint8)
    upright[:, :40, 0], upright[:, 40:, 2] = 255, 255
    stored = np.rot90(upright)  # turned left; orientation 6 turns it right again
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    done, data = cv2.imencode(".jpg", cv2.cvtColor(np.ascontiguousarray(stored), cv2.COLOR_RGB2BGR))
    assert done
    # A JPEG's first segment may be EXIF: big-endian TIFF with one entry, 0x0112 = 6.
    tiff = (
        b"MM\x00\x2a\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
    )
    segment = b"Exif\x00\x00" + tiff
    jpeg = data.tobytes()
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + jpeg[2:])
    return path


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["run-coreml", *arguments])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_a_tensor_model_is_fed_and_drawn(
    tensor_model: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run([str(tensor_model), str(photo), "--out", str(tmp_path), "--json"], capsys)
    assert code == 0, err
    told: dict[str, Any] = json.loads(out)
    assert told["engine"] == "MIL reference"
    assert "not what Apple's hardware" in told["note"]
    assert any("resized to 16×12 px" in note for note in told["feeding"])
    assert any("NCHW" in note and "0.00392157" in note for note in told["feeding"])
    assert [o["name"] for o in told["outputs"]] == ["mask", "mean"]
    assert [Path(f).name for f in told["files"]] == ["photo.npz", "photo.mask.png"]
    stored = np.load(tmp_path / "photo.npz")
    assert stored["mask"].shape == (1, 2, HEIGHT, WIDTH)
    # EXIF applied: red is on the left, so the second channel wins there.
    labels = stored["mask"][0].argmax(0)
    assert labels[:, : WIDTH // 2 - 1].all()
    assert not labels[:, WIDTH // 2 + 1 :].any()
    np.testing.assert_allclose(stored["mean"][0], [0.5, 0.0, 0.5], atol=0.03)
    picture = cv2.imread(str(tmp_path / "photo.mask.png"))
    assert picture is not None
    assert picture.shape == (HEIGHT, WIDTH, 3)


def test_scale_and_bias_change_what_is_fed(
    tensor_model: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--scale", "0.00784313725,0.00784313725,0.00784313725", "--bias=-1,0,1", "--fit", "stretch"]
    code, _, err = run([str(tensor_model), str(photo), "--out", str(tmp_path), *options], capsys)
    assert code == 0
    assert "stretched" in err
    np.testing.assert_allclose(np.load(tmp_path / "photo.npz")["mean"][0], [0.0, 0.0, 2.0], atol=0.06)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scale", "1,2"], "expected one number, or three"),
        (["--bias", "nan"], "expected one number"),
        (["--size", "12"], "HEIGHTxWIDTH"),
        (["--size", "24x32"], "allowed: (1, 3, 12, 16)"),
        (["--layout", "nhwc"], "neither 1 nor 3 channels"),
    ],
)
def test_options_that_do_not_fit(
    tensor_model: Path, photo: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run([str(tensor_model), str(photo), *options], capsys)
    assert code == 2
    assert message in " ".join(err.split())


def test_what_is_not_there(tensor_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run([str(tmp_path / "none.mlpackage"), str(tmp_path / "none.jpg")], capsys)
    assert (code, "none.mlpackage" in err) == (2, True)
    code, _, err = run([str(tensor_model), str(tmp_path / "none.jpg")], capsys)
    assert (code, "none.jpg" in err) == (2, True)


def test_two_inputs_are_more_than_a_photograph(tmp_path: Path) -> None:
    class Both(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    zeros = torch.zeros(1, 3, 4, 4)
    model = convert_module(Both(), [zeros, zeros], tmp_path / "both.mlpackage")
    with pytest.raises(DataError, match="needs 2 inputs"):
        feed_photo(model, np.zeros((4, 4, 3), np.uint8), Feeding())


def test_maps_are_recognised_and_drawn() -> None:
    logits = np.zeros((1, 3, 2, 4), np.float32)
    logits[0, 2, :, 2:] = 1
    found = label_map("y", logits, "nchw")
    assert found is not None
    assert found[0].tolist() == [[0, 0, 2, 2]] * 2
    turned = label_map("y", logits.transpose(0, 2, 3, 1), "nhwc")
    assert turned is not None
    np.testing.assert_array_equal(turned[0], found[0])
    probability = label_map("y", np.array([[[[0.2, 0.7], [0.4, 0.6]]]], np.float32), "nchw")
    assert probability is not None
    assert probability[0].tolist() == [[0, 1], [0, 1]]
    assert probability[1] == "'y' > 0.5"
    margin = label_map("y", np.array([[[-1.0, 0.2], [0.4, 3.0]]], np.float32), "nchw")
    assert margin is not None
    assert margin[0].tolist() == [[0, 1], [1, 1]]
    classes = label_map("y", np.array([[[1, 0], [2, 0]]], np.int32), "nchw")
    assert classes is not None
    assert classes[0].tolist() == [[1, 0], [2, 0]]
    assert label_map("y", np.zeros((1, 10), np.float32), "nchw") is None
    assert label_map("y", np.array("red"), "nchw") is None
    shown = np.full((4, 8, 3), 100, np.uint8)
    drawn = draw_labels(shown, found[0])
    np.testing.assert_array_equal(drawn[:, :4], shown[:, :4])
    assert (drawn[:, 4:] != shown[:, 4:]).any(-1).all()


def test_an_image_model_gets_its_pixels_as_they_are(tmp_path: Path) -> None:
    ct = import_coremltools()
    path = tmp_path / "image.mlpackage"
    image = ct.ImageType("x0", shape=(1, 3, HEIGHT, WIDTH), color_layout=ct.colorlayout.BGR)
    convert_module(Masks(), [torch.zeros(1, 3, HEIGHT, WIDTH)], path, inputs=[image])
    photo = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    fed = feed_photo(load_package(path), photo, Feeding())
    np.testing.assert_array_equal(fed.inputs["x0"], photo)
    assert "BGR" in fed.notes[1]


class Negative(torch.nn.Module):
    """255 minus each channel, and 200 more than may be in the last one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 255.0 - x + torch.tensor([0.0, 0.0, 200.0]).reshape(1, 3, 1, 1)


@pytest.mark.parametrize("space", ["RGB", "BGR"])
def test_an_image_output_is_written_as_the_picture_it_is(
    space: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ct = import_coremltools()
    layout = getattr(ct.colorlayout, space)
    path = tmp_path / "negative.mlpackage"
    convert_module(
        Negative(),
        [torch.zeros(1, 3, HEIGHT, WIDTH)],
        path,
        opset=16,
        inputs=[ct.ImageType("x0", shape=(1, 3, HEIGHT, WIDTH), color_layout=layout)],
        outputs=[ct.ImageType("picture", color_layout=layout)],
    )
    code, _, _ = run([str(path), str(photo), "--out", str(tmp_path / "out")], capsys)
    assert code == 0
    picture = cv2.imread(str(tmp_path / "out" / "photo.picture.png"))
    assert picture is not None
    drawn = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    shown = feed_photo(load_package(path), read_image(photo), Feeding()).shown
    wanted = 255 - shown.astype(int)
    wanted[..., 2 if space == "RGB" else 0] += 200  # the program's last channel
    np.testing.assert_array_equal(drawn, wanted.clip(0, 255))
