"""The cascade: depths counted from the module graph, sizes, export form, weights on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from model_zoo import load_variants
from nailcore.errors import UnknownNameError, WeightsError
from nailcore.nets.cascade import Cascade, Fusion, build_cascade
from nailcore.nets.encoder import build_encoders
from nailcore.nets.export_form import ExportForm
from nailcore.nets.mobilenetv2 import MobileNetV2Prefix, keras_names
from nailcore.nets.weights import init_encoders, load_weights, save_weights

VARIANTS = load_variants()


def count_convolutions(module: nn.Module) -> int:
    return sum(isinstance(m, nn.Conv2d) for m in module.modules())


def paper_layers(network: Cascade) -> int:
    """Low branch plus the two convolutions of each fusion module; heads and high branch apart."""
    fusion = sum(
        count_convolutions(f) - count_convolutions(f.branch)
        for f in network.modules()
        if isinstance(f, Fusion)
    )
    return count_convolutions(network.low) + fusion


def scramble(network: nn.Module, seed: int = 0) -> None:
    """Give BatchNorm statistics that a wrong fold would expose."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean += 0.1 * torch.randn(module.num_features, generator=generator)
            module.running_var *= 0.5 + torch.rand(module.num_features, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(module.bias, -0.2, 0.2, generator=generator)


@pytest.mark.parametrize("name", VARIANTS)
def test_declared_depth_is_counted_from_the_module_graph(name: str) -> None:
    variant = VARIANTS[name]
    assert paper_layers(build_cascade(variant)) == variant.encoder_layers


@pytest.mark.parametrize("layers", [43, 55])
def test_maps_have_the_paper_sizes_and_stage_7_keeps_its_resolution(layers: int) -> None:
    high, low = build_encoders("mobilenetv2", layers)
    x = torch.zeros(1, 3, 96, 64)
    assert {s: tuple(m.shape[2:]) for s, m in high(x).items()} == {8: (12, 8)}
    assert {s: tuple(m.shape[2:]) for s, m in low(x).items()} == {8: (12, 8), 16: (6, 4)}


def test_dilation_sits_in_stages_7_and_8_and_the_fusion_modules_alone() -> None:
    network = build_cascade(VARIANTS["nail55-480"])
    dilated = {n for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.dilation != (1, 1)}
    assert {n.split(".")[1] for n in dilated if n.startswith("low.")} == {"stage7", "stage8"}
    assert {n for n in dilated if not n.startswith("low.")} == {"fusion16.project_f1", "fusion8.project_f1"}


@pytest.mark.parametrize("name", ["nail55-288", "nail43-288"])
def test_export_form_equals_the_network_it_was_made_from(name: str) -> None:
    variant = VARIANTS[name]
    network = build_cascade(variant).eval()
    scramble(network)
    image = torch.randint(0, 256, (2, 3, 96, 128), generator=torch.Generator().manual_seed(1)).float()
    with torch.no_grad():
        expected = network((image - 127.5) / 127.5)
        found = dict(
            zip(ExportForm(network, variant).names, ExportForm(network, variant)(image), strict=True)
        )
    assert list(found) == [o.name for o in variant.outputs]
    for output in variant.outputs:
        assert found[output.name].shape == (2, output.channels, 24, 32)
        torch.testing.assert_close(found[output.name], expected[output.name], atol=2e-4, rtol=2e-4)


def test_heads_on_the_coarser_map_give_logits_of_the_same_size() -> None:
    variant = VARIANTS["nail43-288"].model_copy(update={"heads_stride": 8})
    network, fine = build_cascade(variant).eval(), build_cascade(VARIANTS["nail43-288"]).eval()
    fine.load_state_dict(network.state_dict())
    image = torch.randint(0, 256, (1, 3, 96, 128), generator=torch.Generator().manual_seed(1)).float()
    with torch.no_grad():
        logits, levels = network(image), network.forward_levels(image)
        exported = ExportForm(network, variant)(image * 127.5 + 127.5)
        assert not torch.equal(fine(image)["fgbg"], logits["fgbg"])
    for output, found in zip(variant.outputs, exported, strict=True):
        assert found.shape == logits[output.name].shape == (1, output.channels, 24, 32)
        torch.testing.assert_close(levels[4][output.name], logits[output.name])
        torch.testing.assert_close(found, logits[output.name], atol=2e-3, rtol=2e-3)


def test_export_form_has_no_batchnorm_no_training_heads_and_leaves_its_source_alone() -> None:
    variant = VARIANTS["nail43-288"]
    network = build_cascade(variant)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    form = ExportForm(network, variant)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in form.modules())
    assert not any("branch" in name for name, _ in form.named_modules())
    after = network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_frozen_stages_stay_frozen_in_training_mode() -> None:
    prefix = MobileNetV2Prefix(6)
    prefix.freeze(2)
    prefix.train()
    frozen = [prefix.get_submodule(f"stage{i}") for i in (1, 2)]
    assert not any(p.requires_grad for stage in frozen for p in stage.parameters())
    assert not any(m.training for stage in frozen for m in stage.modules())
    assert prefix.get_submodule("stage3").training


def test_unknown_encoder_names_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="mobilenetv2"):
        build_encoders("mobilenetv3", 55)


def fake_keras_file(path: Path, last: int) -> dict[str, npt.NDArray[np.float64]]:
    prefix = MobileNetV2Prefix(last)
    rng = np.random.default_rng(0)
    arrays: dict[str, npt.NDArray[np.float64]] = {}
    for ours, conv, norm in keras_names(last):
        weight = prefix.get_submodule(ours).get_parameter("weight")
        o, i, h, w = weight.shape
        depthwise = i == 1
        arrays[f"{conv}/kernel"] = rng.normal(size=(h, w, o, 1) if depthwise else (h, w, i, o))
        for key in ("gamma", "beta", "moving_mean", "moving_variance"):
            arrays[f"{norm}/{key}"] = rng.uniform(0.5, 1, o)
    np.savez(path, **arrays)
    return arrays


def test_keras_kernels_arrive_transposed_in_both_branches(tmp_path: Path) -> None:
    arrays = fake_keras_file(tmp_path / "init.npz", 6)
    network = build_cascade(VARIANTS["nail43-288"])
    assert init_encoders(network, tmp_path / "init.npz") == 39 + 18
    for branch in (network.high, network.low):
        first = branch.get_submodule("stage1.0").get_parameter("weight").detach().numpy()
        np.testing.assert_allclose(first[5, 2], arrays["Conv1/kernel"][:, :, 2, 5], rtol=1e-6)
        depthwise = branch.get_submodule("stage2.0.layers.0").get_parameter("weight").detach().numpy()
        np.testing.assert_allclose(
            depthwise[7, 0], arrays["expanded_conv_depthwise/kernel"][:, :, 7, 0], rtol=1e-6
        )


def test_init_file_problems_are_named(tmp_path: Path) -> None:
    network = build_cascade(VARIANTS["nail43-288"])
    with pytest.raises(WeightsError, match=r"gone\.npz"):
        init_encoders(network, tmp_path / "gone.npz")
    for content in (b"PK not a zip", b"", b"PK\x03\x04 cut", b"text"):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(WeightsError, match="not a readable"):
            init_encoders(network, tmp_path / "bad.npz")
    arrays = fake_keras_file(tmp_path / "init.npz", 6)
    del arrays["block_3_expand/kernel"]
    np.savez(tmp_path / "short.npz", **arrays)
    with pytest.raises(WeightsError, match="block_3_expand/kernel"):
        init_encoders(network, tmp_path / "short.npz")


def test_weights_round_trip_and_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    variant = VARIANTS["nail43-288"]
    network = build_cascade(variant)
    for name in ("a", "b"):
        save_weights(network, tmp_path / f"{name}.safetensors", {"steps": "1"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    loaded = load_weights(variant, tmp_path / "a.safetensors")
    assert all(
        torch.equal(a, b)
        for a, b in zip(network.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def test_weights_of_the_other_depth_missing_or_damaged_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "nail43.safetensors"
    save_weights(build_cascade(VARIANTS["nail43-288"]), path, {})
    with pytest.raises(WeightsError, match=r"(?s)stage7.*other depth"):
        load_weights(VARIANTS["nail55-288"], path)
    with pytest.raises(WeightsError, match="no weights file"):
        load_weights(VARIANTS["nail43-288"], tmp_path / "gone.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="not a readable safetensors"):
        load_weights(VARIANTS["nail43-288"], path)


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    network = build_cascade(VARIANTS["nail43-288"])
    with torch.no_grad():
        next(network.parameters())[0, 0, 0, 0] = float("nan")
    save_weights(network, tmp_path / "nan.safetensors", {})
    with pytest.raises(WeightsError, match="NaN"):
        load_weights(VARIANTS["nail43-288"], tmp_path / "nan.safetensors")


def test_a_separable_decoder_exports_to_the_same_function() -> None:
    variant = VARIANTS["nail43-288"].model_copy(update={"fusion_conv": "separable", "fusion_width": 16})
    network = build_cascade(variant).eval()
    scramble(network)
    export = ExportForm(network, variant).eval()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in export.modules())
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (variant.mean, variant.std))
    expected = network((x - mean) / std)
    for name, found in zip(export.names, export(x), strict=True):
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-4 * scale)
