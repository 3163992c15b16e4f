"""Palettes: tables that fit, plans that keep their size, rounding that heeds what a layer sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_zoo import find_variant, weights_path
from nailcore.errors import ArtifactError, NailtoolError, UnknownNameError
from nailcore.nets import ExportForm, load_network
from quantize import Recipe
from quantize.layer_names import list_convolutions
from quantize.palette_fit import (
    Choice,
    Statistics,
    fit_codes,
    fit_layer,
    measure_curvature,
    measure_error,
    measure_statistics,
    round_layers,
)
from quantize.palette_plan import SMALL_VALUES, estimate_size, plan_bits
from quantize.palettes import Codes, Table, find_group_size, fit_entries, fit_table, load_tables, save_tables

VARIANT = find_variant("nail43-288")
RECIPE = {"name": "p", "summary": "s", "targets": ("coreml",), "weights_dtype": "palette4"}


def draw_kernel(seed: int, shape: tuple[int, ...] = (16, 8, 1, 1)) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    loudness = np.exp(rng.normal(0, 1.5, (shape[0], 1, 1, 1)))  # channels as uneven as depthwise kernels'
    return np.asarray(rng.standard_normal(shape) * loudness, np.float32)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 3, 4, 6]))
def test_fitted_entries_serve_no_worse_than_even_ones(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    values, weights = rng.standard_normal(300) ** 3, rng.random(300) + 0.1
    entries = fit_entries(values, weights, bits)
    even = np.linspace(values.min(), values.max(), 2**bits)

    def loss(table: npt.NDArray[np.float64]) -> float:
        return float((weights * np.abs(values[:, None] - table).min(1) ** 2).sum())

    assert len(entries) == 2**bits
    assert (np.diff(entries) >= 0).all()
    assert loss(entries) <= loss(even) * 1.001


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([0, 4, 5, 16]), st.booleans())
def test_a_table_holds_the_nearest_entry_of_its_group(seed: int, group_size: int, scaled: bool) -> None:
    kernel = draw_kernel(seed)
    table = fit_table(kernel, 4, group_size, channel_scale=scaled)
    assert table.bits == 4
    assert len(table.entries) == 16 // find_group_size(16, group_size)
    size = 16 // len(table.entries)
    scale = np.ones(16) if table.scale is None else table.scale
    for o in range(16):
        entries = table.entries[o // size] * scale[o]
        best = np.abs(kernel[o].reshape(-1, 1) - entries).min(1)
        found = np.abs(kernel[o] - table.values[o]).reshape(-1)
        assert np.allclose(found, best, rtol=1e-3, atol=1e-6)


def test_a_scale_per_channel_serves_uneven_channels() -> None:
    kernel = draw_kernel(1, (64, 16, 1, 1))
    norms = np.linalg.norm(kernel.reshape(64, -1), axis=1)

    def noise(table: Table) -> float:
        loss = np.linalg.norm((table.values - kernel).reshape(64, -1), axis=1)
        return float(np.mean(loss / norms))

    assert noise(fit_table(kernel, 4, channel_scale=True)) < 0.3 * noise(fit_table(kernel, 4))


def test_tables_survive_a_file_and_damage_is_told(tmp_path: Path) -> None:
    tables: dict[str, Table | Codes] = {
        "a.b": fit_table(draw_kernel(0), 3, 4, channel_scale=True),
        "c": fit_table(draw_kernel(1), 6),
        "d": fit_codes(draw_kernel(2), np.eye(8)),
    }
    path = tmp_path / "p.safetensors"
    save_tables(path, tables)
    found = load_tables(path)
    assert {n: type(t) for n, t in found.items()} == {n: type(t) for n, t in tables.items()}
    assert all(np.array_equal(found[name].values, table.values) for name, table in tables.items())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_tables(path)


@pytest.mark.parametrize("depthwise", [False, True])
def test_rounding_for_the_activations_beats_rounding_for_the_weights(depthwise: bool) -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(16, 16, 3, padding=1, groups=16 if depthwise else 1)
    mixing = torch.randn(16, 16) if not depthwise else torch.eye(16)
    smooth = torch.nn.functional.avg_pool2d(torch.randn(2, 16, 40, 40), 5, 1)  # neighbours correlate
    inputs = torch.einsum("oi,nihw->nohw", mixing, smooth).relu()
    curvature, kernel = measure_curvature(conv, inputs), conv.weight.detach().numpy()
    influence = np.ones(16)
    choice = Choice(3, channel_scale=True)
    plain = fit_table(kernel, 3, channel_scale=True)
    fitted = fit_layer(kernel, curvature, influence, choice)

    def error(table: Table) -> float:
        return measure_error((table.values - kernel).astype(np.float64).reshape(16, -1), curvature, influence)

    assert error(fitted) < 0.7 * error(plain)
    # What it minimises is what the layer's output is off by.
    rounded = torch.nn.functional.conv2d(
        inputs, torch.from_numpy(fitted.values - kernel), None, padding=1, groups=conv.groups
    )
    found = float(rounded.square().mean((0, 2, 3)).sum())
    assert found == pytest.approx(error(fitted), rel=0.15)


@pytest.fixture(scope="module")
def network() -> ExportForm:
    return load_network(VARIANT, weights_path(VARIANT))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.nn.functional.interpolate(torch.rand(2, 3, 16, 16) * 255, size=(96, 96), mode="bilinear")


@pytest.fixture(scope="module")
def statistics(network: ExportForm, images: torch.Tensor) -> Statistics:
    return measure_statistics(network, images)


def test_every_layer_has_statistics(network: ExportForm, statistics: Statistics) -> None:
    names = set(list_convolutions(network))
    assert set(statistics.curvature) == set(statistics.influence) == set(statistics.outputs) == names
    assert all(np.isfinite(value).all() for value in statistics.curvature.values())
    # The nail logits depend on every layer but the other two heads.
    deaf = {name for name, value in statistics.influence.items() if not value.any()}
    assert deaf == {"network.output.heads.finger", "network.output.heads.direction"}


@pytest.mark.parametrize("ratio", [0.15, 0.2, 0.26])
def test_a_plan_keeps_its_size(network: ExportForm, statistics: Statistics, ratio: float) -> None:
    recipe = Recipe.model_validate(
        {**RECIPE, "weights": {"granularity": "per-tensor", "channel_scale": True, "size_ratio": ratio}}
    )
    choices = plan_bits(network, recipe, statistics)
    kernels = {name: conv.weight for name, conv in list_convolutions(network).items()}
    assert set(choices) == {name for name, kernel in kernels.items() if kernel.numel() > SMALL_VALUES}
    size = sum(estimate_size(tuple(kernels[n].shape), c) for n, c in choices.items() if isinstance(c, Choice))
    assert size < ratio * 4 * sum(kernel.numel() for kernel in kernels.values())


def test_a_size_nothing_reaches_and_a_layer_nobody_has_are_refused(
    network: ExportForm, statistics: Statistics
) -> None:
    tiny = {**RECIPE, "weights": {"granularity": "per-tensor", "size_ratio": 0.02}}
    with pytest.raises(NailtoolError, match="fewest bits"):
        plan_bits(network, Recipe.model_validate(tiny), statistics)
    odd = {**RECIPE, "weights": {"granularity": "per-tensor", "keep_float": ("network.nowhere",)}}
    with pytest.raises(UnknownNameError):
        plan_bits(network, Recipe.model_validate(odd), statistics)


def test_rounded_layers_keep_the_mean_of_every_channel(images: torch.Tensor, statistics: Statistics) -> None:
    network = load_network(VARIANT, weights_path(VARIANT))
    names = [n for n, conv in list_convolutions(network).items() if conv.weight.numel() > SMALL_VALUES]
    tables = round_layers(network, images, dict.fromkeys(names, Choice(3, channel_scale=True)), statistics)
    layers = list_convolutions(network)
    assert set(tables) == set(names)
    for name, table in tables.items():
        assert np.array_equal(layers[name].weight.numpy(), table.values)
    after = measure_statistics(network, images)
    name = "network.output.refine.0"
    assert torch.allclose(after.outputs[name], statistics.outputs[name], atol=1e-3)
