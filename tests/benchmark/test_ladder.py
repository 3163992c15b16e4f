"""The ladder: rungs in order with those that hurt, the file to ship, and documents that cannot drift."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.ladder import choose_file, group_rungs
from benchmark.ladder_text import COLUMNS, render_answer, render_tables, update_blocks, write_row
from nailcore.errors import NailtoolError
from nailcore.facts import read_fact, write_fact
from nailcore.gate_facts import GateVerdict, Ladder
from tests.benchmark.gate_cases import judge, make_file, make_ladder


def test_rungs_stand_in_order_with_fp32_first_and_its_own_time() -> None:
    (group,) = group_rungs(list(reversed(make_ladder())))
    assert [row.recipe for row in group.rows] == [
        "fp32",
        "int8-per-tensor",
        "int8-per-channel",
        "int8-equalized",
        "int8-slow",
    ]
    fp32 = group.rows[0]
    assert fp32.is_reference and fp32.speed is None
    assert fp32.cpu_ms == group.rows[1].verdict.speed[0].fp32_cpu_ms
    assert [row.short_reasons for row in group.rows] == [
        [],
        ["parity failed", "drop"],
        [],
        [],
        ["not faster"],
    ]
    assert group.device == "a runtime, 1 thread, Examplium 9000"


def test_groups_go_from_deep_and_large_to_shallow_and_small() -> None:
    verdicts = [v for name in ("nail43-288", "nail55-288", "nail55-480") for v in make_ladder(name)]
    verdicts += make_ladder("nail55-480", "coreml", timed=False)
    groups = [(group.variant, group.kind) for group in group_rungs(verdicts)]
    assert groups == [
        ("nail55-480", "onnx"),
        ("nail55-480", "coreml"),
        ("nail55-288", "onnx"),
        ("nail43-288", "onnx"),
    ]


def test_the_surest_of_the_fastest_is_shipped() -> None:
    best = choose_file(make_ladder())
    assert best is not None and best.artifact.recipe == "int8-equalized"


@pytest.mark.parametrize(
    ("files", "best"),
    [
        ([("palette-4", 0.14, 0.8), ("palette-6", 0.2, 0.3)], "palette-4"),
        ([("palette-4", 0.14, 3.0), ("palette-6", 0.2, 0.3)], "palette-6"),
        ([("a", 0.27, 0.5), ("b", 0.275, 0.1)], "b"),  # about as small: the better mask
        ([("a", 0.27, 5.0)], ""),
    ],
)
def test_where_nothing_bought_compute_the_smallest_is_shipped(
    files: list[tuple[str, float, float]], best: str
) -> None:
    verdicts = [
        judge(make_file(name, size=size, integer=False), lost=(lost,), speed=None)
        for name, size, lost in files
    ]
    found = choose_file(verdicts)
    assert (found.artifact.recipe if found else "") == best


def render(verdicts: list[GateVerdict]) -> tuple[str, str]:
    ladder = Ladder(verdicts=verdicts, tool_version="9.9.9")
    return render_tables(ladder), render_answer(ladder)


def test_markdown_tables_hold_every_file_and_name_what_the_figures_rest_on() -> None:
    tables, answer = render([*make_ladder(), *make_ladder("nail43-288", "coreml", timed=False)])
    rows = [line for line in tables.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 * (1 + 5) and all(line.count("|") == len(COLUMNS) + 1 for line in rows)
    assert "| **int8-equalized** |" in tables and "not shippable: parity failed, drop" in tables
    assert "size (speed not measured here)" in tables and "Speed: not measured here." in tables
    assert "13 photographs" in answer and "at most 1 points" in answer and "`int8-equalized`" in answer
    assert "Examplium 9000" in answer and "-0.00" not in tables + answer


def test_a_variant_without_a_shippable_file_says_so() -> None:
    _, answer = render([judge(make_file(), lost=(9.0,))])
    assert "| onnx | nail55-480 | none is shippable |" in answer


def test_a_saved_ladder_renders_the_same_without_single_images(tmp_path: Path) -> None:
    ladder = Ladder(verdicts=make_ladder(), tool_version="9.9.9")
    path = tmp_path / "ladder.json"
    write_fact(path, ladder.without_images())
    kept = read_fact(path, Ladder)
    assert render_tables(kept) == render_tables(ladder) and render_answer(kept) == render_answer(ladder)
    assert all(v.accuracy and v.accuracy.per_image == [] for v in kept.verdicts)
    assert "photo-01" not in path.read_text()


def test_blocks_of_a_document_are_written_anew_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- ladder -->\nold\n<!-- /ladder -->\nbetween\n<!-- which-file -->\n<!-- /which-file -->\n"
    )
    ladder = Ladder(verdicts=make_ladder(), tool_version="9.9.9")
    assert update_blocks(page, ladder) == ["ladder", "which-file"]
    written = page.read_text()
    assert written == (
        f"before\n<!-- ladder -->\n{render_tables(ladder)}\n<!-- /ladder -->\nbetween\n"
        f"<!-- which-file -->\n{render_answer(ladder)}\n<!-- /which-file -->\n"
    )
    update_blocks(page, ladder)
    assert page.read_text() == written
    page.write_text("no block")
    with pytest.raises(NailtoolError, match="has no block"):
        update_blocks(page, ladder)
    with pytest.raises(NailtoolError, match="no such file"):
        update_blocks(tmp_path / "other.md", ladder)


def test_cells_fit_their_columns() -> None:
    (group,) = group_rungs(make_ladder())
    assert {len(write_row(row)) for row in group.rows} == {len(COLUMNS)}
