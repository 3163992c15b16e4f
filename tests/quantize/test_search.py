"""The search keeps its promise or says that it cannot, whatever the layers do together."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nailcore.facts import Interval
from quantize.search import Effect, Evaluate, Trial, search_layers

NUMBERS = st.floats(0, 5, allow_nan=False)


def additive(drops: dict[str, float], floor: float = 0.0) -> Evaluate:
    """Each rounded layer adds its drop; the interval's upper end is a tenth above."""

    def evaluate(float_layers: frozenset[str]) -> Effect:
        drop = floor + sum(value for layer, value in drops.items() if layer not in float_layers)
        return Effect(Interval(value=drop, low=drop * 0.9, high=drop * 1.1), flipped_permille=drop)

    return evaluate


@given(
    layers=st.lists(st.tuples(NUMBERS, st.floats(0, 10)), min_size=1, max_size=12),
    max_drop=st.floats(0.01, 10),
    noise=st.integers(0, 3),
)
@settings(max_examples=150)
def test_what_is_returned_was_measured_and_holds(
    layers: list[tuple[float, float]], max_drop: float, noise: int
) -> None:
    drops = {f"layer{i}": drop for i, (drop, _) in enumerate(layers)}
    costs = {f"layer{i}": cost for i, (_, cost) in enumerate(layers)}
    # Sensitivities are estimates: wrong ones may cost speed, never the promise.
    gains = {layer: drop + (i * 7 % 5) * noise for i, (layer, drop) in enumerate(drops.items())}
    evaluate = additive(drops)
    result = search_layers(gains, costs, evaluate, max_drop)
    assert result.kept
    assert evaluate(frozenset(result.float_layers)).drop_points.high <= max_drop
    assert any(set(t.float_layers) == set(result.float_layers) and t.kept for t in result.trials)


def test_nothing_stays_in_float_when_nothing_has_to() -> None:
    result = search_layers({"a": 1, "b": 2}, {"a": 1, "b": 1}, additive({"a": 0.1, "b": 0.1}), 0.5)
    assert (result.float_layers, len(result.trials), result.kept) == ((), 1, True)


def test_the_one_bad_layer_is_found_among_many_and_nothing_else_is_kept() -> None:
    drops = {f"layer{i:02}": 0.001 for i in range(60)} | {"layer42": 3.0}
    result = search_layers(drops, dict.fromkeys(drops, 1.0), additive(drops), 0.5)
    assert result.float_layers == ("layer42",)


def test_a_cheap_layer_is_preferred_to_an_expensive_one_that_saves_as_much() -> None:
    drops = {"cheap": 0.3, "dear": 0.3}
    result = search_layers(drops, {"cheap": 1.0, "dear": 50.0}, additive(drops), 0.35)
    assert result.float_layers == ("cheap",)


def test_what_a_misleading_ranking_put_in_is_taken_out_again() -> None:
    drops = {"idle": 0.0, "guilty": 1.0}
    result = search_layers({"idle": 9.0, "guilty": 1.0}, {"idle": 1, "guilty": 1}, additive(drops), 0.5)
    assert result.float_layers == ("guilty",)


def test_a_promise_that_cannot_be_kept_is_not_called_kept() -> None:
    result = search_layers({"a": 1.0}, {"a": 1.0}, additive({"a": 1.0}, floor=2.0), 0.5)
    assert not result.kept
    assert len(result.trials) == 2


def test_trials_are_bounded_and_reported_one_by_one() -> None:
    told: list[Trial] = []
    drops = {f"layer{i:02}": 1.0 for i in range(50)}
    result = search_layers(
        drops, dict.fromkeys(drops, 1.0), additive(drops), 0.5, report=told.append, max_trials=5
    )
    assert len(result.trials) == 5
    assert tuple(told) == result.trials
    assert not result.kept


@pytest.mark.parametrize("layers", [0, 1])
def test_networks_with_hardly_any_layer(layers: int) -> None:
    drops = {f"layer{i}": 0.0 for i in range(layers)}
    assert search_layers(drops, drops, additive(drops), 0.5).kept
