"""The report's ladder: verdicts about the files there now, with figures and reasons, and nothing stale."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.report.rungs import draw_rungs
from tests.benchmark.gate_cases import make_ladder
from tests.benchmark.ladder_facts import add_ladder
from tests.benchmark.report_facts import fact_path, sha, write_out_tree
from tests.benchmark.test_report import build, change, replace_artifact

NAME = "nail55-480"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    images = write_out_tree(tmp_path, names=(NAME,), synthetic=False)
    add_ladder(tmp_path, NAME, images)
    return tmp_path


def test_every_rung_is_shown_with_its_verdict_and_the_file_to_ship(root: Path) -> None:
    report, page = build(root)
    assert not report.stale and not report.damaged and page.unclosed == []
    assert page.find("section", id="ladder") and len(report.gates) == 9
    for words in (
        "nail55-480 onnx ship int8-equalized",
        "nail55-480 coreml ship palette-6 Speed not measured here",
        "✗ not shippable parity failed, drop",
        "✗ not shippable not faster",
        "Nail-IoU points lost, limit 1",
        "6 shippable",
        "3 not shippable",
        "The gate refuses 2 more files.",
        "Why 3 files are not shippable or undecided",
        "Integer arithmetic that is not faster: 1.0",
    ):
        assert words in page.text, words
    assert "Do not ship nail55-480 onnx int8-per-tensor: it failed the checks." in page.text
    drops = [a for tag, a in page.elements if tag == "svg" and a.get("class") == "drop"]
    assert len(drops) == 9 and all("95 % interval" in a["aria-label"] for a in drops)


def test_without_verdicts_there_is_no_ladder(tmp_path: Path) -> None:
    write_out_tree(tmp_path, names=(NAME,))
    _, page = build(tmp_path)
    assert not page.find("section", id="ladder") and "#ladder" not in str(page.elements)


def test_verdicts_about_other_files_weights_or_images_are_stale(root: Path) -> None:
    gate = fact_path(root, "gate", NAME, "onnx", "int8-equalized")
    change(gate, weights_sha256=sha("others"))
    replace_artifact(root, NAME, f"{NAME}.palette-6.mlpackage")
    change(fact_path(root, "gate", NAME, "onnx", "int8-slow"), images=None)
    other = {"name": "others", "sha256": sha("others"), "count": 9, "synthetic": False}
    change(fact_path(root, "gate", NAME, "coreml", "palette-4"), images=other)
    report, page = build(root)
    told = {fact.what: fact.reason for fact in report.stale if fact.what.startswith("Verdict")}
    assert set(told) == {
        f"Verdict about {NAME} onnx int8-equalized",
        f"Verdict about {NAME} coreml palette-6",
        f"Verdict about {NAME} coreml palette-4",
    }
    assert "other weights" in told[f"Verdict about {NAME} onnx int8-equalized"]
    assert "ship int8-per-channel" in page.text
    assert "cost and bought" in page.text and "--recipes int8-equalized,palette-4,palette-6" in page.text


def test_verdicts_fall_with_the_fp32_file_they_were_compared_with(root: Path) -> None:
    replace_artifact(root, NAME, f"{NAME}.fp32.onnx")
    report, _ = build(root)
    assert {v.artifact.kind for v in report.gates} == {"coreml"}


def test_intervals_beyond_the_lane_are_cut_and_stay_inside_it() -> None:
    table = draw_rungs(make_ladder())
    assert table is not None and draw_rungs([]) is None
    marks = {rung.row.recipe: rung.mark for part in table.groups for rung in part.rungs}
    worst, good = marks["int8-per-tensor"], marks["int8-per-channel"]
    assert worst is not None and worst.beyond and not worst.value_inside
    assert (
        good is not None and not good.cut_right and good.low_x <= good.value_x <= good.high_x < table.limit_x
    )
    assert table.zero_x < table.limit_x
