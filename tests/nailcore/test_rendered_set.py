"""Rendered training sets: a stopped rendering goes on, jobs change nothing, people stay on one side."""

from __future__ import annotations

from pathlib import Path

import pytest

from nailcore.data.folder import open_dataset
from nailcore.data.synth import RenderOrder, render_set
from nailcore.errors import DataError
from nailcore.storage import hash_path

ORDER = RenderOrder(count=4, subjects=3, long_side_px=160, short_side_px=120)


def test_a_stopped_rendering_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise StopError

    with pytest.raises(StopError):
        render_set(tmp_path / "cut", ORDER, progress=stop)
    assert not (tmp_path / "cut" / "annotations.json").exists()
    # A picture whose labels were never written is rendered again; so is one that was lost.
    finished = sorted((tmp_path / "cut" / "parts").iterdir())
    (tmp_path / "cut" / "images" / f"{finished[0].stem}.jpg").unlink()
    steps: list[int] = []
    render_set(tmp_path / "cut", ORDER, progress=lambda done, total: steps.append(done))
    assert steps[0] < 4 and steps[-1] == 4
    render_set(tmp_path / "whole", ORDER, jobs=2)
    for part in ("annotations.json", "split.json", "images"):
        assert hash_path(tmp_path / "cut" / part) == hash_path(tmp_path / "whole" / part)
    dataset = open_dataset(tmp_path / "whole")
    people = {which: {s.record.subject for s in dataset.part(which)} for which in ("train", "held-out")}
    assert people["train"] and people["held-out"] and not people["train"] & people["held-out"]
    assert len(people["train"] | people["held-out"]) == 3
    for sample in dataset.samples:
        labels = sample.load_labels()
        assert labels.labels == {"mask", "finger", "direction"} and len(labels.nails) >= 3
        assert (labels.finger >= 0).sum() == labels.mask.sum()
    with pytest.raises(DataError, match="rendered with other settings"):
        render_set(tmp_path / "whole", RenderOrder(count=4, subjects=2, long_side_px=160, short_side_px=120))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="exists already and is no rendered set"):
        render_set(tmp_path, ORDER)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
