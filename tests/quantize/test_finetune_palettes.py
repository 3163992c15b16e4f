"""Fine-tuning of palettes: closer to float, still palettes, nothing else moved."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from nailcore.data.folder import Dataset, open_dataset
from nailcore.data.synth import make_embedded_set
from nailcore.nets.export_form import ExportForm
from quantize.finetune import make_batches, measure_distance
from quantize.finetune_palettes import finetune_palettes
from quantize.palettes import Table, fit_table, to_half
from quantize.recipe import FineTune
from quantize.simulate import as_input
from tests.quantize.small_network import tiny_layers, tiny_network, tiny_variant

SETTINGS = FineTune(steps=15, batch=2, crop_px=64, lr=0.05)


@pytest.fixture(scope="module")
def hands(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("hands") / "set"
    make_embedded_set(folder, test_images=2, train_images=2)
    return open_dataset(folder)


def palettize(*, channel_scale: bool) -> tuple[ExportForm, dict[str, Table]]:
    """Every third kernel in tables of eight values."""
    network, tables = copy.deepcopy(tiny_network()), {}
    for name in tiny_layers()[::3]:
        weight = network.get_submodule(name).weight
        assert isinstance(weight, torch.Tensor)
        group = 8 if not channel_scale else 0
        tables[name] = fit_table(weight.detach().numpy(), 3, group, channel_scale=channel_scale)
        with torch.no_grad():
            weight.copy_(torch.from_numpy(tables[name].values))
    return network, tables


@pytest.mark.parametrize("channel_scale", [False, True])
def test_tables_learn_and_stay_tables(hands: Dataset, tmp_path: Path, channel_scale: bool) -> None:
    settings = SETTINGS.model_copy(update={"steps": 40, "lr": 0.1})
    network, tables = palettize(channel_scale=channel_scale)
    tuned, found = finetune_palettes(
        tiny_network(),
        network,
        tables,
        variant=tiny_variant(),
        dataset=hands,
        settings=settings,
        checkpoint=tmp_path / "checkpoint.pt",
    )
    images = as_input(make_batches(hands, tiny_variant(), settings)[0].images)
    with torch.no_grad():
        wanted = tiny_network()(images)
        before, after = (
            float(measure_distance(n(images), wanted, n.names)) for n in (network, tuned.network)
        )
    assert after < 0.8 * before
    for name in tiny_layers():
        kernel = tuned.network.get_submodule(name).weight
        assert isinstance(kernel, torch.Tensor)
        if name not in tables:
            assert torch.equal(kernel, network.get_submodule(name).weight)  # type: ignore[arg-type]
            continue
        np.testing.assert_array_equal(kernel.numpy(), found[name].values)
        assert found[name].bits == tables[name].bits
        assert found[name].entries.shape == tables[name].entries.shape
        np.testing.assert_array_equal(found[name].entries, to_half(np.sort(found[name].entries, axis=1)))
    assert any(not np.array_equal(found[name].entries, tables[name].entries) for name in tables)
