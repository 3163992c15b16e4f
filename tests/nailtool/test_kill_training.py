"""A training killed by SIGKILL goes on to the same weights; the script that says so can also say no."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.nailtool import kill_training
from tests.nailtool.kill_training import Kill


@pytest.mark.slow
def test_a_training_killed_while_saving_and_after_a_step_ends_at_the_same_weights(tmp_path: Path) -> None:
    """The long version: ``python -m tests.nailtool.kill_training --kills 10``."""
    kills, whole, cut = kill_training.run(2, 12, 0, tmp_path)
    assert cut == whole
    assert all(kill.alive for kill in kills) and kills[-1].kept_step >= 2


@pytest.mark.parametrize(
    ("cut", "alive", "code", "said"),
    [
        ("a" * 64, True, 0, "The same weights."),
        ("b" * 64, True, 1, "DIFFERENT WEIGHTS."),
        ("a" * 64, False, 2, "give more --steps"),
    ],
)
def test_other_weights_and_kills_that_came_too_late_are_no_success(  # noqa: PLR0917 - cases
    cut: str,
    alive: bool,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kills = [Kill("while saving", 3.0, 4, True, alive)]
    monkeypatch.setattr(kill_training, "run", lambda *_: (kills, "a" * 64, cut))
    assert kill_training.main(["--kills", "1"]) == code
    shown = capsys.readouterr().out
    assert said in shown and "| 1 | while saving | 3.0 | 4 of 40 | yes |" in shown


def test_a_half_written_checkpoint_is_noticed(tmp_path: Path) -> None:
    assert kill_training.read_step(tmp_path) == 0
    (tmp_path / "checkpoint.pt").write_bytes(b"PK half of it")
    with pytest.raises(Exception, match=r"."):
        kill_training.read_step(tmp_path)
