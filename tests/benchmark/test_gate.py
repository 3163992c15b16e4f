"""The gate refuses what costs too much or is slower, and never takes what is not known for good."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.gate import judge_file
from benchmark.gate_rules import TABLE, load_rules
from benchmark.limits import LIMITS_FILE
from benchmark.speed import MIN_ROUNDS, bootstrap_ratio, compare_speed
from nailcore.errors import NailtoolError
from nailcore.gate_facts import GateVerdict, SpeedRatio, Unmeasured
from tests.benchmark.gate_cases import judge, make_file, make_parity, make_run

FILE, FP32 = make_file(), make_file("fp32")
STORED = make_file("palette-8", integer=False)
RULES = load_rules()
WHEN = {"judged_at": "2031-02-03"}


def same(one: GateVerdict, other: GateVerdict) -> bool:
    return one.model_copy(update=WHEN) == other.model_copy(update=WHEN)


# -- accuracy ---------------------------------------------------------------------------------------
def test_a_small_sure_drop_and_a_faster_file_is_shippable() -> None:
    verdict = judge(FILE)
    assert (verdict.decision, verdict.refusals, verdict.unknowns, verdict.notes) == ("shippable", [], [], [])
    assert verdict.bought == "both" and verdict.bought_text == "both"
    assert verdict.size_ratio == pytest.approx(0.3) and verdict.artifact.sha256 == FILE.sha256
    assert verdict.fp32 is not None and verdict.fp32.sha256 == FP32.sha256
    assert (verdict.rung, verdict.integer, verdict.summary) == (2, True, "what int8-x does")
    assert same(verdict, judge(FILE)), "the same facts give the same verdict"


def test_an_interval_that_crosses_the_limit_is_refused_though_its_middle_keeps_it() -> None:
    verdict = judge(FILE, lost=(0.0, 0.0, 0.0, 4.0))
    assert verdict.accuracy is not None
    drop = verdict.accuracy.drop_points
    assert drop.value < RULES.max_drop_points < drop.high
    assert verdict.decision == "not shippable"
    (sentence,) = verdict.refusals
    assert (
        f"[{drop.low:.2f}, {drop.high:.2f}]" in sentence
        and "limit of 1" in sentence
        and "13 photographs" in sentence
    )


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 8), st.floats(0.1, 8))
def test_the_limit_alone_decides_about_the_drop(lost: float, limit: float) -> None:
    parity = make_parity(FILE, lost=(lost, 0.0, lost / 2))
    verdict = judge_file(FILE, FP32, parity, load_rules(limit), runs=[make_run([(FP32, 40.0), (FILE, 20.0)])])
    assert parity.accuracy is not None
    assert (verdict.decision == "shippable") == (parity.accuracy.drop_points.high <= limit)


def test_a_failed_parity_is_refused_with_its_figures() -> None:
    verdict = judge(FILE, status="failed")
    assert verdict.decision == "not shippable" and verdict.parity == "failed"
    assert "Parity failed: output 'fgbg' flips too much." in verdict.refusals[0]


def test_too_few_images_leave_the_verdict_open() -> None:
    verdict = judge_file(FILE, FP32, make_parity(FILE, images=RULES.min_images - 1), RULES)
    assert verdict.decision == "undecided" and "too few for an interval" in verdict.unknowns[0]


def test_few_and_synthetic_images_are_said() -> None:
    parity = make_parity(FILE, synthetic=True, part_of="whole")
    verdict = judge_file(FILE, FP32, parity, RULES)
    assert verdict.decision == "shippable"
    assert any("synthetic" in note for note in verdict.notes)
    assert any("a part of the images alone" in note for note in verdict.notes)


# -- what is not known ------------------------------------------------------------------------------
def test_a_fact_about_another_file_counts_as_none() -> None:
    stale = make_parity(FILE).model_copy(update={"artifact": make_parity(STORED).artifact})
    run = make_run([(FP32, 40.0), (make_file("int8-older"), 20.0)])
    verdict = judge_file(FILE, FP32, stale, RULES, runs=[run])
    assert verdict.decision == "undecided" and (verdict.parity, verdict.weights_sha256) == ("unknown", "")
    assert verdict.accuracy is None and verdict.speed == []
    assert "another file" in verdict.unknowns[0] and "built anew" in verdict.unknowns[1]
    assert verdict.bought_text == "size (speed not measured here)"


@pytest.mark.parametrize("parity", [None, make_parity(FILE, status="not executed")])
def test_without_figures_there_is_no_verdict(parity: object) -> None:
    verdict = judge_file(FILE, FP32, parity, RULES)  # type: ignore[arg-type]
    assert verdict.decision == "undecided" and verdict.accuracy is None


def test_an_older_fact_without_a_drop_leaves_the_verdict_open() -> None:
    parity = make_parity(FILE).model_copy(update={"accuracy": None})
    verdict = judge_file(FILE, FP32, parity, RULES)
    assert verdict.decision == "undecided" and "check its parity again" in verdict.unknowns[0]


def test_without_an_fp32_file_nothing_tells_what_was_bought() -> None:
    verdict = judge_file(FILE, None, make_parity(FILE), RULES)
    assert verdict.decision == "undecided" and verdict.bought is None and verdict.size_ratio is None


def test_a_refusal_stands_whatever_else_is_not_known() -> None:
    parity = make_parity(FILE, lost=(9.0,))
    asked = Unmeasured(device="cpu", reason="it was busy", asked_for=True)
    verdict = judge_file(FILE, FP32, parity, RULES, unmeasured=[asked])
    assert verdict.decision == "not shippable" and verdict.unknowns


# -- speed ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("share", [1.0, 1.02, 1.3])
def test_integer_arithmetic_that_is_not_faster_is_refused(share: float) -> None:
    verdict = judge(FILE, speed=share)
    assert verdict.decision == "not shippable" and verdict.bought == "size"
    assert "not faster" in verdict.refusals[0] and "CPU-ms on cpu" in verdict.refusals[0]


def test_a_file_that_only_stores_may_be_as_fast_but_not_slower() -> None:
    assert judge(STORED, speed=1.0).decision == "shippable"
    slower = judge(STORED, speed=1.2)
    assert slower.decision == "not shippable" and slower.refusals[0].startswith("Slower than its fp32")


def test_a_speed_nobody_asked_for_is_said_and_not_assumed() -> None:
    verdict = judge(FILE, speed=None)
    assert verdict.decision == "shippable" and verdict.bought == "size"
    assert verdict.notes == ["Its speed was not measured: no device was asked for."]


def test_a_device_that_runs_no_such_file_is_noted_one_that_failed_keeps_it_open() -> None:
    other = Unmeasured(device="cpu", reason="it runs onnx files only", asked_for=False)
    verdict = judge_file(FILE, FP32, make_parity(FILE), RULES, unmeasured=[other])
    assert verdict.decision == "shippable" and "onnx files only" in verdict.notes[0]
    run = make_run([(FP32, 40.0), (FILE, 20.0)])
    slowing = run.measurements[1]
    samples = [ms * (1 if n < len(slowing.cpu_ms) // 2 else 2) for n, ms in enumerate(slowing.cpu_ms)]
    slowing = slowing.model_copy(update={"cpu_ms": samples})
    throttled = run.model_copy(update={"measurements": [run.measurements[0], slowing]})
    verdict = judge_file(FILE, FP32, make_parity(FILE), RULES, runs=[throttled])
    assert verdict.decision == "undecided" and verdict.speed == []
    assert "ratio went from 0.5" in verdict.unknowns[0] and "--force" in verdict.unknowns[0]


def test_a_measurement_that_may_not_be_ranked_is_not_paired_either() -> None:
    """In a loaded browser 16-bit storage once came out at 0.81 of fp32's time, with the same arithmetic."""
    busy = make_run([(FP32, 40.0), (FILE, 20.0)], invalid=["drift: CPU time went from 20 to 31 ms"])
    verdict = judge_file(FILE, FP32, make_parity(FILE), RULES, runs=[busy])
    assert verdict.decision == "undecided" and verdict.bought == "size"
    assert "drift" in verdict.unknowns[0] and "--force" in verdict.unknowns[0]


def test_fp32_itself_is_compared_with_nothing() -> None:
    verdict = judge(FP32, speed=1.0)
    assert verdict.decision == "shippable" and verdict.bought is None and verdict.bought_text == "–"


# -- labels -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("size", "speed", "label"),
    [
        (0.3, 0.6, "both"),
        (0.3, 1.0, "size"),
        (0.3, 0.97, "size"),  # within what two runs of one file differ by
        (0.95, 0.6, "compute"),
        (0.95, 1.0, "neither"),
        (0.3, None, "size (speed not measured here)"),
        (0.95, None, "neither (speed not measured here)"),
    ],
)
def test_labels_follow_from_measurement(size: float, speed: float | None, label: str) -> None:
    assert judge(make_file("palette-8", size=size, integer=False), speed=speed).bought_text == label


# -- pairing ----------------------------------------------------------------------------------------
def test_rounds_are_paired_so_that_a_busy_minute_cancels() -> None:
    found = compare_speed(make_run([(FP32, 40.0), (FILE, 24.0)], noise=0.0), FILE.sha256, FP32.sha256)
    assert isinstance(found, SpeedRatio)
    assert (found.ratio.low, found.ratio.value, found.ratio.high) == pytest.approx((0.6, 0.6, 0.6))
    assert found.rounds == 16 and found.threads == "1"


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(1, 100), st.floats(1, 100)), min_size=MIN_ROUNDS, max_size=20))
def test_exchanging_both_files_inverts_the_interval(rounds: list[tuple[float, float]]) -> None:
    odd = rounds if len(rounds) % 2 else rounds[:-1]  # the median of an even number is a mean of two
    ours, theirs = np.array([a for a, _ in odd]), np.array([b for _, b in odd])
    one, other = bootstrap_ratio(ours, theirs), bootstrap_ratio(theirs, ours)
    assert one.value == pytest.approx(1 / other.value) and one.low <= one.value <= one.high


def test_too_few_or_unequal_rounds_and_software_gpus_are_no_comparison() -> None:
    few = make_run([(FP32, 40.0), (FILE, 20.0)], rounds=MIN_ROUNDS - 1)
    assert "rounds in common" in str(compare_speed(few, FILE.sha256, FP32.sha256))
    run = make_run([(FP32, 40.0), (FILE, 20.0)])
    gpu = run.measurements[1].model_copy(update={"software_gpu": True})
    run = run.model_copy(update={"measurements": [run.measurements[0], gpu]})
    assert "GPU" in str(compare_speed(run, FILE.sha256, FP32.sha256))


# -- rules ------------------------------------------------------------------------------------------
def test_rules_are_those_of_the_file_and_a_limit_replaces_one() -> None:
    assert RULES.max_drop_points == 1.0 and RULES.reason
    asked = load_rules(0.3)
    assert asked.max_drop_points == 0.3 and asked.bought_size_ratio == RULES.bought_size_ratio
    assert "asked for" in asked.reason


def test_rules_that_make_no_sense_are_named(tmp_path: Path) -> None:
    with pytest.raises(NailtoolError, match="max_drop_points"):
        load_rules(-1.0)
    damaged = tmp_path / "limits.toml"
    damaged.write_text(LIMITS_FILE.read_text("utf-8").replace("bought_cpu_ratio = ", "bought_gpu_ratio = "))
    with pytest.raises(NailtoolError, match="bought_cpu_ratio"):
        load_rules(path=damaged)
    damaged.write_text(LIMITS_FILE.read_text("utf-8").replace(f'["{TABLE}"]', '["gates.other"]'))
    with pytest.raises(NailtoolError, match=TABLE):
        load_rules(path=damaged)
