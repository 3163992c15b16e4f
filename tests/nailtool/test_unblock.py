"""The second pass after a failure: what it runs, and what stays blocked."""

from __future__ import annotations

from pathlib import Path

from nailtool.nodes import FileNode
from nailtool.stage import Stage, StageResult, Status
from nailtool.unblock import list_made, run_unblocked
from tests.nailtool.house import all_units, make_order


def node(name: str) -> FileNode:
    return FileNode(name, Path(name))


def stage(name: str, *inputs: str, products: tuple[str, ...] = ()) -> Stage:
    made = tuple(map(node, products or (f"{name} made",)))
    return Stage(name, "light", "x:y", {}, tuple(map(node, inputs)), made)


def results(**statuses: Status) -> list[StageResult]:
    return [StageResult(stage(name), status) for name, status in statuses.items()]


class Runner:
    """Remembers what it was asked to run; everything succeeds."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def __call__(self, stages: list[Stage]) -> list[StageResult]:
        self.ran += [one.name for one in stages]
        return [StageResult(one, "built") for one in stages]


def statuses(found: list[StageResult]) -> dict[str, str]:
    return {result.stage.name: result.status for result in found}


def test_what_no_longer_needs_the_failed_one_runs_and_what_needs_it_stays_blocked() -> None:
    first = results(good="built", bad="failed", speed="blocked", judge_good="blocked", judge_bad="blocked")
    again = [
        stage("speed", "good made"),
        stage("judge_good", "good made", "speed made"),
        stage("judge_bad", "bad made", "speed made"),
    ]
    run = Runner()
    found = run_unblocked(first, lambda: again, run)
    assert run.ran == ["speed", "judge_good"]
    assert statuses(found) == {
        "good": "built",
        "bad": "failed",
        "speed": "built",
        "judge_good": "built",
        "judge_bad": "blocked",
    }


def test_a_stage_that_failed_itself_is_not_tried_again() -> None:
    first = results(good="built", speed="failed", judge="blocked")
    run = Runner()
    again = [stage("speed", "good made"), stage("judge", "good made", "speed made")]
    assert run_unblocked(first, lambda: again, run) == first and not run.ran


def test_nothing_is_planned_where_nothing_is_blocked_and_nothing_run_where_all_failed() -> None:
    def refuse() -> list[Stage]:
        raise AssertionError("planned")

    for first in (results(good="built"), results(a="cached", b="failed"), results(a="would run")):
        assert run_unblocked(first, refuse, Runner()) == first
    first, run = results(bad="failed", speed="blocked"), Runner()
    assert run_unblocked(first, list, run) == first and not run.ran


def test_units_that_failed_or_waited_for_one_that_did_are_not_made(tmp_path: Path) -> None:
    units = all_units(make_order(tmp_path))
    first, second, *_ = units
    lost = [StageResult(stage(first.name), "failed"), StageResult(stage(second.name), "blocked")]
    assert list_made(units, lost) == tuple(units[2:])
