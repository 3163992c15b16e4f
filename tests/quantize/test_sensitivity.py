"""Sensitivity: what one image says, pooling, the plot, and the guard against full memory."""

from __future__ import annotations

from types import SimpleNamespace
from xml.etree import ElementTree as ET

import numpy as np
import psutil
import pytest
import torch

from nailcore.data.folder import Dataset, Sample, open_dataset
from nailcore.data.synth import draw_few
from nailcore.errors import MissingToolError
from nailcore.facts import ImageSet
from nailcore.measure import describe_machine
from quantize.search import choose_float_layers
from quantize.sensitivity import Trials, check_memory, count_work, measure_image, measure_whole, summarise
from quantize.sensitivity_facts import ImageEffects, SensitivityResult
from quantize.sensitivity_plot import draw_sensitivity
from quantize.simulate import Scheme, Simulation
from tests.quantize.small_network import tiny_layers, tiny_network, tiny_ranges, tiny_variant

# Few levels and one scale per kernel: rounding shows even on images of 64 px.
COARSE = Scheme(weight_bits=5, activation_bits=8)


@pytest.fixture(scope="module")
def hands(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("hands") / "set"
    draw_few(folder, (5, 9))
    return open_dataset(folder)


@pytest.fixture(scope="module")
def effects(hands: Dataset) -> list[ImageEffects]:
    simulation = Simulation(tiny_network(), COARSE, tiny_ranges())
    return [measure_image(simulation, tiny_variant(), sample) for sample in hands.samples]


def test_every_layer_is_tried_both_ways_and_the_scheme_is_left_as_it_was(hands: Dataset) -> None:
    simulation = Simulation(tiny_network(), COARSE, tiny_ranges())
    seen: list[tuple[int, int]] = []
    found = measure_image(
        simulation, tiny_variant(), hands.samples[0], lambda done, total: seen.append((done, total))
    )
    assert set(found.only) == set(found.without) == set(tiny_layers())
    assert seen == [(k, 2 * len(tiny_layers())) for k in range(1, 2 * len(tiny_layers()) + 1)]
    assert simulation.scheme == COARSE


def test_shortcuts_give_what_whole_passes_give(hands: Dataset, effects: list[ImageEffects]) -> None:
    """Only what a change reaches is computed again: the counts must be those of a pass from the image on."""
    simulation = Simulation(tiny_network(), COARSE, tiny_ranges())
    trials = Trials(simulation, tiny_variant(), hands.samples)
    for layer in tiny_layers()[::16]:
        flipped = sum(effect.without[layer].flipped for effect in effects)
        pixels = sum(effect.pixels for effect in effects)
        assert trials.evaluate(frozenset({layer})).flipped_permille == pytest.approx(1000 * flipped / pixels)
    drop, permille = measure_whole(effects)
    whole = trials.evaluate(frozenset())
    assert whole.drop_points == drop
    assert whole.flipped_permille == pytest.approx(permille)
    assert trials.evaluate(frozenset(tiny_layers())).flipped_permille < permille


def test_a_layer_that_is_made_bad_comes_first(hands: Dataset) -> None:
    """One kernel is rounded to multiples of a half, all others as before."""
    bad = "network.fusion8.project_f2"
    simulation = Simulation(tiny_network(), COARSE, tiny_ranges())
    original = simulation._round_kernel

    def worse(name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        kernel, bias = original(name)
        return (kernel.mul(2).round().div(2), bias) if name == bad else (kernel, bias)

    simulation._round_kernel = worse  # type: ignore[method-assign]
    found = [measure_image(simulation, tiny_variant(), sample, left_out=False) for sample in hands.samples]
    errors = {layer: sum(e.only[layer].margin_error for e in found) for layer in tiny_layers()}
    assert max(errors, key=lambda layer: errors[layer]) == bad


def make_result(effects: list[ImageEffects]) -> SensitivityResult:
    work = count_work(tiny_network(), tiny_layers(), tiny_variant())
    drop, flipped = measure_whole(effects)
    return SensitivityResult(
        variant="nail43-64",
        recipe="int8 <&>",
        weights_sha256="",
        prepared_sha256="",
        part="train",
        images=ImageSet(name="hands", sha256="", count=len(effects), synthetic=True),
        drop_points=drop,
        flipped_permille=flipped,
        layers=summarise(effects, work),
        runtime="torch",
        versions={},
        machine=describe_machine(),
        cpu_s=0.0,
    )


def test_pooling_ranks_layers_and_counts_their_work(effects: list[ImageEffects]) -> None:
    result = make_result(effects)
    assert [layer.layer for layer in result.layers] == list(tiny_layers())
    ranked = result.rank()
    shares = [layer.only_share for layer in ranked]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0
    first = next(layer for layer in result.layers if layer.layer == "network.high.stage1.0")
    assert (first.weights, first.macs) == (32 * 3 * 9, 32 * 3 * 9 * 32 * 32)
    assert SensitivityResult.model_validate_json(result.model_dump_json()) == result


def test_the_plot_is_xml_with_a_row_per_layer(effects: list[ImageEffects]) -> None:
    result = make_result(effects)
    root = ET.fromstring(draw_sensitivity(result))  # noqa: S314 - our own
    words = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert sum(word.startswith(("high.", "low.", "fusion", "output.")) for word in words) == len(
        result.layers
    )
    assert any("synthetic" in word for word in words)
    widths = [float(bar.attrib["width"]) for bar in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert len(widths) == 2 * len(result.layers)
    assert np.isfinite(widths).all()


def test_a_search_through_the_simulation_keeps_its_promise(hands: Dataset) -> None:
    simulation = Simulation(tiny_network(), COARSE, tiny_ranges())
    found = choose_float_layers(simulation, tiny_variant(), hands.samples, 0.5, max_trials=8)
    assert found.trials[0].float_layers == ()
    if found.kept:
        drop = Trials(simulation, tiny_variant(), hands.samples).evaluate(frozenset(found.float_layers))
        assert drop.drop_points.high <= 0.5
    assert simulation.scheme == COARSE


def test_too_little_memory_is_said_before_it_is_used(hands: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = Simulation(tiny_network(), COARSE, tiny_ranges())
    variant = tiny_variant().model_copy(update={"height_px": 480, "width_px": 480})
    check_memory(simulation, variant, passes=1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=50_000_000))
    sample: Sample = hands.samples[0]
    with pytest.raises(MissingToolError, match=r"0\.[1-9] GB at once, and 0\.1 GB are free"):
        measure_image(simulation, variant, sample)
