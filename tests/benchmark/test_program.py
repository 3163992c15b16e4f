"""Benchmark programs end with one message and nailtool's exit code when an input is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmark import encoder_comparison, training_speed
from benchmark.program import run_program

Case = tuple[Callable[..., None], tuple[str, ...], str]


@pytest.mark.parametrize(
    "case",
    [
        (encoder_comparison.main, ("--out", "out", "--init", "resnet=[x]"), "expected ENCODER=FILE"),
        (training_speed.main, (), "no such folder"),
        (training_speed.main, ("--crop", "33"), "Impossible settings: crop_px"),
    ],
)
def test_a_wrong_input_is_told_without_a_traceback(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main, arguments, message = case
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["program", "--data", "none", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_program(main)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert message in said.err and "Traceback" not in said.err and not said.out
    assert not list(tmp_path.iterdir())
