"""Accuracy-aware mixed precision: which layers to leave in float until a promise about nail IoU holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nailcore.facts import Fact, Interval

if TYPE_CHECKING:
    from nailcore.data.folder import Sample
    from nailcore.variant import Variant
    from quantize.simulate import Simulation

MAX_TRIALS = 40
RANKING_IMAGES = 12  # a layer's share of the error settles within a few; the promise is about all images


class Trial(Fact):
    """One mix that was measured."""

    float_layers: tuple[str, ...]
    cost_share: float  # of the work of all integer layers, done in float instead
    drop_points: Interval  # nail IoU, against the float network
    flipped_permille: float
    kept: bool  # whether the upper end of the drop is within the promise


class SearchResult(Fact):
    """What was chosen, and everything that was tried on the way, in order."""

    max_drop_points: float
    float_layers: tuple[str, ...]
    kept: bool  # False: not even every layer in float keeps the promise, or trials ran out
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Effect:
    """What a mix does."""

    drop_points: Interval
    flipped_permille: float


Evaluate = Callable[[frozenset[str]], Effect]
Report = Callable[[Trial], None]


@dataclass
class _Search:
    ranked: Sequence[str]
    costs: Mapping[str, float]
    evaluate: Evaluate
    max_drop_points: float
    report: Report | None
    max_trials: int
    trials: dict[frozenset[str], Trial] = field(default_factory=dict)

    @property
    def exhausted(self) -> bool:
        return len(self.trials) >= self.max_trials

    def keeps(self, mix: frozenset[str]) -> bool:
        """Measure a mix, once."""
        if mix not in self.trials:
            effect = self.evaluate(mix)
            total = sum(self.costs[layer] for layer in self.ranked) or 1.0
            trial = Trial(
                float_layers=tuple(layer for layer in self.ranked if layer in mix),
                cost_share=sum(self.costs[layer] for layer in mix) / total,
                drop_points=effect.drop_points,
                flipped_permille=effect.flipped_permille,
                kept=effect.drop_points.high <= self.max_drop_points,
            )
            self.trials[mix] = trial
            if self.report is not None:
                self.report(trial)
        return self.trials[mix].kept

    def prefix(self, count: int) -> frozenset[str]:
        return frozenset(self.ranked[:count])

    def widen(self) -> int | None:
        """The first of 0, 1, 2, 4, ... layers that keeps the promise, narrowed down; None: none does."""
        low, count = -1, 0
        while not self.keeps(self.prefix(count)):
            if count >= len(self.ranked) or self.exhausted:
                return None
            low, count = count, min(max(1, 2 * count), len(self.ranked))
        while count - low > 1 and not self.exhausted:
            middle = (low + count) // 2
            if self.keeps(self.prefix(middle)):
                count = middle
            else:
                low = middle
        return count

    def prune(self, mix: frozenset[str]) -> frozenset[str]:
        """Round again what turns out not to be needed, the most expensive first."""
        for layer in sorted(mix, key=lambda name: (-self.costs[name], name)):
            if self.exhausted:
                break
            if self.keeps(mix - {layer}):
                mix = mix - {layer}
        return mix


def search_layers(
    gains: Mapping[str, float],
    costs: Mapping[str, float],
    evaluate: Evaluate,
    max_drop_points: float,
    *,
    report: Report | None = None,
    max_trials: int = MAX_TRIALS,
) -> SearchResult:
    """A small set of layers whose staying in float keeps the promise.

    Greedy, so no proof that there is no cheaper one: layers are ranked by what each alone costs in accuracy
    for what it costs in work; the shortest beginning of that ranking that holds is found by doubling and
    halving, and what it does not need is taken out again. Whatever is returned with ``kept`` was itself
    measured.

    Args:
        gains: layer -> how much of the error its rounding causes, in any unit.
        costs: the same layers -> what that costs, in any unit, 0 or more.
        evaluate: measures a set of layers in float.
        max_drop_points: the promise, for the upper end of the drop's 95 % interval.
        report: told of every trial.
        max_trials: measurements at most.
    """
    # A share of the mean cost for everyone: a layer that costs nothing to compute still costs a
    # conversion between integers and floats on either side.
    overhead = sum(costs[layer] for layer in gains) / max(1, len(gains)) or 1.0
    ranked = sorted(gains, key=lambda layer: (-gains[layer] / (costs[layer] + overhead), layer))
    search = _Search(ranked, costs, evaluate, max_drop_points, report, max_trials)
    count = search.widen()
    mix = search.prune(search.prefix(count)) if count is not None else frozenset[str]()
    if count is None:  # the best of what was tried, and the word that it is not enough
        mix = min(search.trials, key=lambda m: (search.trials[m].drop_points.high, len(m)))
    return SearchResult(
        max_drop_points=max_drop_points,
        float_layers=tuple(layer for layer in costs if layer in mix),
        kept=search.trials[mix].kept,
        trials=tuple(search.trials.values()),
    )


def choose_float_layers(
    simulation: Simulation,
    variant: Variant,
    samples: Sequence[Sample],
    max_drop_points: float,
    *,
    costs: Mapping[str, float] | None = None,
    report: Report | None = None,
    max_trials: int = MAX_TRIALS,
) -> SearchResult:
    """Search through the simulation: which integer layers stay in float beside those that do already.

    Args:
        simulation: of the recipe; its scheme is left as it was.
        variant: of the network.
        samples: labelled images, never the ones a gate judges by.
        max_drop_points: the promise.
        costs: layer -> cost of computing it in float (milliseconds, say); default: multiplications.
        report, max_trials: as ``search_layers``.

    Raises:
        MissingToolError: the machine has not enough free memory.
        DataError: an image cannot be read.
    """
    from quantize.sensitivity import Trials, count_work, measure_image

    layers = [name for name in simulation.layers if name in simulation.plan.integer]
    if costs is None:
        work = count_work(simulation.network, layers, variant)
        costs = {layer: float(work[layer][0]) for layer in layers}
    step = max(1, len(samples) // RANKING_IMAGES)
    seen = samples[::step][:RANKING_IMAGES]
    effects = [measure_image(simulation, variant, sample, left_out=False) for sample in seen]
    gains = {layer: sum(e.only[layer].margin_error for e in effects) for layer in layers}
    trials = Trials(simulation, variant, samples)
    return search_layers(gains, costs, trials.evaluate, max_drop_points, report=report, max_trials=max_trials)
