"""Every registered encoder serves the cascade; weights know theirs; a new one is one class and one line."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from nailcore.data.folder import Dataset, open_dataset
from nailcore.errors import WeightsError
from nailcore.nets.cascade import build_cascade
from nailcore.nets.efficientnet_lite import NORM_ENTRIES, EfficientNetLite0Prefix, list_names
from nailcore.nets.encoder import ENCODERS, as_encoder, build_encoders
from nailcore.nets.export_form import ExportForm
from nailcore.nets.staged import StagedPrefix
from nailcore.nets.weights import init_encoders, load_weights, read_encoder, save_weights
from nailcore.train import TrainConfig, run_training
from nailcore.variant import Variant
from tests.nailcore.test_nets import scramble

LITE = Variant(
    name="lite43-64",
    encoder="efficientnet-lite0",
    encoder_layers=43,
    height_px=64,
    width_px=64,
    fusion_width=16,
    weights="lite",
)
CONFIG = TrainConfig(steps=1, batch=2, crop_px=64, threads=1, warmup_steps=1, frozen_stages=2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("photos")
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for name in ("a", "b"):
        mask = np.zeros((64, 80), np.uint8)
        cv2.circle(mask, (40, 30), 14, 255, -1)
        cv2.imwrite(str(root / "images" / f"{name}.png"), np.full((64, 80, 3), 120, np.uint8))
        cv2.imwrite(str(root / "masks" / f"{name}.png"), mask)
    split = {"dataset": "x", "note": "", "groups": {"a": ["a"], "b": ["b"]}, "held_out": ["b"]}
    (root / "split.json").write_text(json.dumps(split))
    return open_dataset(root)


@pytest.mark.parametrize("layers", [43, 55])
@pytest.mark.parametrize("name", ENCODERS)
def test_branches_give_the_maps_that_the_cascade_asks_for(name: str, layers: int) -> None:
    high, low = (branch.eval() for branch in build_encoders(name, layers))
    x = torch.zeros(1, 3, 96, 64)
    for branch, strides in ((high, (8,)), (low, (8, 16))):
        channels = as_encoder(branch).channels
        expected = {s: (1, channels[s], 96 // s, 64 // s) for s in strides}
        assert {s: tuple(m.shape) for s, m in branch(x).items()} == expected
        as_encoder(branch).freeze(8)  # more stages than the high branch has
        assert not any(p.requires_grad for p in branch.parameters())
        assert not any(m.training for m in branch.train().modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("name", ENCODERS)
def test_export_form_equals_the_network(name: str) -> None:
    variant = LITE.model_copy(update={"encoder": name})
    network = build_cascade(variant).eval()
    scramble(network)
    image = torch.randint(0, 256, (1, 3, 64, 96), generator=torch.Generator().manual_seed(1)).float()
    form = ExportForm(network, variant).eval()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in form.modules())
    with torch.no_grad():
        expected, found = network((image - 127.5) / 127.5), form(image)
    for output, value in zip(variant.outputs, found, strict=True):
        torch.testing.assert_close(value, expected[output.name], atol=2e-4, rtol=2e-4)


def test_deep_stages_of_efficientnet_keep_their_resolution_by_dilation() -> None:
    _, low = build_encoders("efficientnet-lite0", 55)
    convolutions = [(n, m) for n, m in low.named_modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 48
    assert {n.split(".")[0] for n, m in convolutions if m.dilation != (1, 1)} == {"stage7", "stage8"}
    strided = [n.split(".")[0] for n, m in convolutions if m.stride != (1, 1)]
    assert strided == ["stage1", "stage3", "stage4", "stage5"]


def fake_classifier(path: Path) -> dict[str, torch.Tensor]:
    """A state dict as the public classifier's file holds it, head and counters included."""
    own = EfficientNetLite0Prefix(8).state_dict()
    state = {"_fc.weight": torch.zeros(1000, 1280), "_bn0.num_batches_tracked": torch.tensor(1)}
    for conv, norm, their_conv, their_norm in list_names(8):
        state[f"{their_conv}.weight"] = torch.randn_like(own[f"{conv}.weight"])
        for entry in NORM_ENTRIES:
            state[f"{their_norm}.{entry}"] = torch.rand_like(own[f"{norm}.{entry}"])
    torch.save(state, path)
    return state


def test_a_classifiers_weights_arrive_in_both_branches(tmp_path: Path) -> None:
    state = fake_classifier(tmp_path / "lite.pth")
    network = build_cascade(LITE)
    assert init_encoders(network, tmp_path / "lite.pth") == 15 + 33
    for branch in (network.high, network.low):
        stem = branch.get_submodule("stage1.0").get_parameter("weight")
        assert torch.equal(stem, state["_conv_stem.weight"])
        # The third block of all is the second of stage 3.
        project = branch.get_submodule("stage3.1.layers.6").get_parameter("weight")
        assert torch.equal(project, state["_blocks.2._project_conv.weight"])
        norm = branch.get_submodule("stage4.0.layers.4").get_buffer("running_var")
        assert torch.equal(norm, state["_blocks.3._bn1.running_var"])


def test_files_that_initialise_another_encoder_are_named(tmp_path: Path) -> None:
    fake_classifier(tmp_path / "lite.pth")
    np.savez(tmp_path / "keras.npz", **{"Conv1/kernel": np.zeros((3, 3, 3, 32), np.float32)})
    mobile = build_cascade(LITE.model_copy(update={"encoder": "mobilenetv2"}))
    with pytest.raises(WeightsError, match=r"lite\.pth: .*(not a readable .npz|holds no 'Conv1/kernel')"):
        init_encoders(mobile, tmp_path / "lite.pth")
    with pytest.raises(WeightsError, match=r"keras\.npz: not a readable state dict of EfficientNet-Lite0"):
        init_encoders(build_cascade(LITE), tmp_path / "keras.npz")
    torch.save({"features.0.0.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth: holds no '_conv_stem\.weight'"):
        init_encoders(build_cascade(LITE), tmp_path / "other.pth")
    torch.save({"_conv_stem.weight": torch.zeros(40, 3, 3, 3)}, tmp_path / "lite3.pth")
    with pytest.raises(WeightsError, match=r"'_conv_stem\.weight' is \(40, 3, 3, 3\), expected \(32"):
        init_encoders(build_cascade(LITE), tmp_path / "lite3.pth")


def test_weights_record_their_encoder_and_another_one_is_one_clear_error(
    dataset: Dataset, tmp_path: Path
) -> None:
    fake_classifier(tmp_path / "lite.pth")
    weights = run_training(LITE, dataset, CONFIG, tmp_path / "out", init=tmp_path / "lite.pth")
    assert read_encoder(weights) == "efficientnet-lite0"
    assert load_weights(LITE, weights)
    mobile = LITE.model_copy(update={"encoder": "mobilenetv2"})
    said = r"holds the encoder efficientnet-lite0, but mobilenetv2 is asked for"
    with pytest.raises(WeightsError, match=said):
        load_weights(mobile, weights)
    with pytest.raises(WeightsError, match=said):
        run_training(mobile, dataset, CONFIG, tmp_path / "b", init=weights)
    with pytest.raises(WeightsError, match=r"trains the encoder efficientnet-lite0, but mobilenetv2 is"):
        run_training(mobile, dataset, CONFIG, tmp_path / "out", init=None)
    # Files from before there was a choice say nothing: they hold the paper's encoder.
    save_weights(build_cascade(mobile), tmp_path / "old.safetensors", {"steps": "1"})
    assert load_weights(mobile, tmp_path / "old.safetensors")
    with pytest.raises(WeightsError, match="holds the encoder mobilenetv2, but efficientnet-lite0 is"):
        load_weights(LITE, tmp_path / "old.safetensors")


class Plain(StagedPrefix):
    """The least an encoder can be."""

    def __init__(self, last: int) -> None:
        sizes, strides = (3, 8, 8, 12, 16, 20, 20, 24, 24), (2, 1, 2, 2, 2, 1, 1, 1)
        stages = [
            nn.Sequential(nn.Conv2d(sizes[i], sizes[i + 1], 3, strides[i], 1), nn.BatchNorm2d(sizes[i + 1]))
            for i in range(last)
        ]
        super().__init__(stages, sizes[1 : last + 1])

    def load_init(self, path: Path) -> int:
        raise WeightsError(f"{path}: nobody trained this one.")


def test_a_new_encoder_is_one_class_and_one_line(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENCODERS, "plain", Plain)
    variant = LITE.model_copy(update={"encoder": "plain", "weights": "plain"})
    weights = run_training(variant, dataset, CONFIG, tmp_path, init=None)
    assert read_encoder(weights) == "plain"
    assert ExportForm(load_weights(variant, weights), variant)(torch.zeros(1, 3, 64, 64))[0].shape[2:] == (
        16,
        16,
    )
