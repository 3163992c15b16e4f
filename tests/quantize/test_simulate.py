"""Fake quantization: exact when off, close with many levels, where the pairs of the ONNX file stand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nailcore.errors import NailtoolError, UnknownNameError
from quantize import find_recipe
from quantize.ranges import Range, choose_affine
from quantize.recipe import Activations
from quantize.rounding import make_grid, measure_scale, round_straight_through, round_tensor, round_weight
from quantize.simulate import IMAGE, Scheme, Simulation, align_means, as_input, list_steps
from tests.quantize.small_network import tiny_images, tiny_layers, tiny_network, tiny_ranges

ENDS = st.floats(-100, 100, allow_nan=False, width=32)


def all_float() -> Scheme:
    return Scheme(keep_float=frozenset(tiny_layers()), glue=False)


def run(scheme: Scheme) -> list[torch.Tensor]:
    with torch.inference_mode():
        return list(Simulation(tiny_network(), scheme, tiny_ranges())(as_input(tiny_images())))


def distance(scheme: Scheme) -> float:
    with torch.inference_mode():
        clean = tiny_network()(as_input(tiny_images()))[0]
    return float((run(scheme)[0] - clean).abs().mean())


def test_with_everything_in_float_it_is_the_network_bit_for_bit() -> None:
    with torch.inference_mode():
        expected = tiny_network()(as_input(tiny_images()))
    assert all(torch.equal(a, b) for a, b in zip(run(all_float()), expected, strict=True))


def test_more_levels_come_closer_and_sixteen_bits_are_nearly_float() -> None:
    errors = [distance(Scheme(weight_bits=bits, activation_bits=bits)) for bits in (6, 8, 16)]
    assert errors[0] > 2 * errors[1] > 0
    assert errors[2] < errors[1] / 50


def test_one_scale_for_depthwise_kernels_is_far_worse_than_one_per_channel() -> None:
    assert distance(Scheme(per_channel=False)) > 3 * distance(Scheme())


def test_activations_are_fused_and_every_tensor_has_a_name() -> None:
    steps = {step.name: step for step in list_steps(tiny_network())}
    assert steps["network.high.stage1.0"].activation == "relu6"
    assert steps["network.fusion8.add"].activation == "relu"
    assert steps["network.low.stage3.1.layers.6"].activation == ""
    assert steps["network.output.heads.fgbg"].inputs == ("network.output.refine.0",)
    assert {source for step in steps.values() for source in step.inputs} <= {*steps, IMAGE}


def test_a_float_layer_among_integer_ones_still_reads_and_writes_rounded_tensors() -> None:
    layer = "network.low.stage4.1.layers.3"
    simulation = Simulation(tiny_network(), Scheme().without(layer), tiny_ranges())
    assert layer not in simulation.plan.integer
    assert {layer, "network.low.stage4.1.layers.0"} <= simulation.plan.rounded


def test_a_layer_rounded_alone_rounds_its_own_tensors_and_no_others() -> None:
    layer = "network.low.stage4.1.layers.3"
    simulation = Simulation(tiny_network(), Scheme().only(layer, tiny_layers()), tiny_ranges())
    assert simulation.plan.integer == {layer}
    assert simulation.plan.rounded == {layer, "network.low.stage4.1.layers.0"}


def test_recomputing_what_changed_gives_what_a_whole_pass_gives() -> None:
    simulation = Simulation(tiny_network(), Scheme(), tiny_ranges())
    x = as_input(tiny_images(1))
    with torch.inference_mode():
        values, plan = simulation.run_all(x), simulation.plan
        for layer in ("network.high.stage1.0", "network.fusion8.project_f1", "network.output.heads.fgbg"):
            simulation.set_scheme(Scheme().without(layer))
            found, expected = simulation.run_changed(values, plan), simulation(x)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            assert not torch.equal(found[0], values[simulation.outputs[0]])


def test_an_unknown_layer_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(UnknownNameError, match=r"network\.high\.stage3\.0\.layers\.3"):
        Simulation(tiny_network(), Scheme(keep_float=frozenset({"network.high.stage3.0.layers.2"})), {})


def test_a_tensor_without_a_range_is_named() -> None:
    ranges = {name: ends for name, ends in tiny_ranges().items() if name != "network.fusion16.add"}
    with pytest.raises(NailtoolError, match=r"network\.fusion16\.add"):
        Simulation(tiny_network(), Scheme(), ranges)


def test_a_recipe_in_float_has_nothing_to_simulate() -> None:
    with pytest.raises(NailtoolError, match="computes in float"):
        Scheme.of(find_recipe("fp32"), tiny_layers())


def test_aligned_means_are_the_float_networks_and_bring_the_logits_closer() -> None:
    scheme = Scheme(weight_bits=5)
    images = as_input(tiny_images())
    aligned = copy.deepcopy(tiny_network())
    simulation = Simulation(aligned, scheme, tiny_ranges())
    shifts = align_means(simulation, Simulation(tiny_network(), all_float(), {}), images)
    assert set(shifts) == set(tiny_layers())
    head = "network.output.heads.fgbg"
    with torch.inference_mode():
        clean = tiny_network()(images)[0]
        found = simulation(images)[0]
        before = Simulation(tiny_network(), scheme, tiny_ranges())(images)[0]
    levels = (tiny_ranges()[head][1] - tiny_ranges()[head][0]) / 255
    assert float((found.mean((0, 2, 3)) - clean.mean((0, 2, 3))).abs().max()) < levels
    assert float((found - clean).abs().mean()) < 0.8 * float((before - clean).abs().mean())


# -- grids ------------------------------------------------------------------------------------------
@given(low=ENDS, high=ENDS, symmetric=st.booleans())
def test_grids_of_eight_bits_are_those_of_the_file(low: float, high: float, symmetric: bool) -> None:
    ends = (min(low, high), max(low, high))
    grid = make_grid(*ends, symmetric=symmetric)
    affine = choose_affine(Range(*ends), Activations(symmetric=symmetric))
    assert grid.scale == pytest.approx(float(affine.scale), rel=1e-6)
    assert grid.zero_point == affine.zero_point


@given(low=st.floats(-50, 0), high=st.floats(0.01, 50), bits=st.integers(2, 12), seed=st.integers(0, 99))
@settings(max_examples=50)
def test_rounding_is_idempotent_keeps_zero_and_errs_by_half_a_level(
    low: float, high: float, bits: int, seed: int
) -> None:
    grid = make_grid(low, high, bits)
    x = torch.from_numpy(np.random.default_rng(seed).uniform(grid.low, grid.high, 200)).float()
    rounded = round_tensor(x.clone(), grid)
    assert torch.allclose(round_tensor(rounded.clone(), grid), rounded, atol=1e-5 * grid.scale)
    assert float((rounded - x).abs().max()) <= grid.scale * 0.5001
    assert float(round_tensor(torch.zeros(1), grid)) == 0.0


def test_gradients_pass_where_values_are_inside_and_stop_where_they_are_clipped() -> None:
    x = torch.tensor([-1.0, 0.3, 2.0, 5.9, 6.5], requires_grad=True)
    rounded = round_straight_through(x, make_grid(0.0, 6.0))
    rounded.backward(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0]
    assert torch.equal(rounded.detach(), round_tensor(x.detach().clone(), make_grid(0.0, 6.0)))


@given(seed=st.integers(0, 99), per_channel=st.booleans())
@settings(max_examples=30)
def test_a_kernel_on_its_grid_is_found_again(seed: int, per_channel: bool) -> None:
    """So that whoever quantizes a fine-tuned kernel changes nothing."""
    weight = torch.from_numpy(np.random.default_rng(seed).normal(size=(5, 3, 3, 3))).float()
    rounded = round_weight(weight, per_channel=per_channel)
    assert torch.allclose(round_weight(rounded, per_channel=per_channel), rounded, atol=1e-7)
    assert float((rounded - weight).abs().max()) <= float(measure_scale(weight, per_channel=False)) * 0.5001
