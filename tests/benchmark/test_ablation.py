"""The ablation: every cell trained and measured once, gains paired by image, and interrupted runs go on."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmark.ablation import AblationOrder, list_gains, render_markdown, run_ablation
from nailcore.data.folder import Dataset, open_dataset
from nailcore.nets.cascade import build_cascade
from nailcore.nets.single_branch import build_single_branch
from nailcore.train import StepReport, TrainConfig
from nailcore.variant import Variant

TINY = Variant(
    name="nail43-64", encoder_layers=43, height_px=64, width_px=64, fusion_width=16, weights="tiny"
)
CONFIG = TrainConfig(steps=1, batch=2, crop_px=64, threads=1, warmup_steps=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("photos")
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for number, name in enumerate("abc"):
        mask = np.zeros((60, 80), np.uint8)
        cv2.circle(mask, (40, 30), 12 + number, 255, -1)
        image = np.full((60, 80, 3), 120, np.uint8)
        image[mask > 0] = (40, 40, 200)
        cv2.imwrite(str(root / "images" / f"{name}.png"), image)
        cv2.imwrite(str(root / "masks" / f"{name}.png"), mask)
    split = {"dataset": "x", "note": "", "groups": {n: [n] for n in "abc"}, "held_out": ["b", "c"]}
    (root / "split.json").write_text(json.dumps(split))
    return open_dataset(root)


def test_every_cell_is_trained_once_and_found_again(dataset: Dataset, tmp_path: Path) -> None:
    order = AblationOrder(TINY, (dataset,), dataset, CONFIG, None, 1, tmp_path)
    steps: list[str] = []

    def note(name: str, report: StepReport) -> None:
        steps.append(name)
        if len(steps) == 3 and report.step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_ablation(order, note)
    result = run_ablation(order, note)
    # The two finished cells are not trained again; the one that was cut is.
    assert steps == [
        "cascade-lmp-seed0",
        "cascade-weighted-seed0",
        "single-branch-lmp-seed0",
        "single-branch-lmp-seed0",
        "single-branch-weighted-seed0",
    ]
    assert [(c.network, c.loss) for c in result.cells] == [
        ("cascade", "lmp"),
        ("cascade", "weighted"),
        ("single branch", "lmp"),
        ("single branch", "weighted"),
    ]
    assert result.images.count == 2 and len(result.gains) == 6
    text = render_markdown(result)
    assert "| one seed |" in text and "| yes |" not in text  # images alone say nothing of another training
    assert set(result.weights_sha256) == {f"{c.network} {c.loss}" for c in result.cells}
    assert "| single branch | 20 × |" in text and "| LMP over 20 × | cascade |" in text
    assert run_ablation(order, note).cells == result.cells and len(steps) == 5


def test_gains_compare_the_same_images() -> None:
    """One side is better by the same little on every image: the interval must not contain 0."""
    rng = np.random.default_rng(0)
    tp = rng.uniform(100, 10_000, 12)
    worse = np.stack([tp, 0.3 * tp, 0.2 * tp, 50 * tp], axis=1)
    better = np.stack([1.02 * tp, 0.3 * tp, 0.18 * tp, 50 * tp], axis=1)
    cells = {
        ("cascade", "lmp"): [better, better],
        ("cascade", "weighted"): [worse, worse],
        ("single branch", "lmp"): [worse, worse],
        ("single branch", "weighted"): [worse, worse],
    }
    gains = {(g.better, g.given): g.nail_iou for g in list_gains(cells)}
    assert gains["lmp", "cascade"].low > 0 and gains["cascade", "lmp"].low > 0
    assert gains["lmp", "single branch"].value == gains["lmp", "single branch"].high == 0
    assert gains["cascade", "weighted"].low == 0
    whole = gains["lmp", "cascade"].value
    assert gains["lmp", "all"].value == pytest.approx(whole / 2)


def test_the_single_branch_lacks_only_the_high_resolution_image() -> None:
    torch.manual_seed(0)
    cascade, single = build_cascade(TINY).eval(), build_single_branch(TINY).eval()
    kept = {name for name, _ in single.named_parameters()} - {name for name, _ in cascade.named_parameters()}
    assert {name.split(".")[0] for name in kept} == {"branch8"}
    gone = {name.split(".")[0] for name, _ in cascade.named_parameters()} - {
        name.split(".")[0] for name, _ in single.named_parameters()
    }
    assert gone == {"high", "fusion8"}
    x = torch.randn(1, 3, 64, 96)
    shapes = [
        {
            stride: {n: tuple(t.shape) for n, t in level.items()}
            for stride, level in net.forward_levels(x).items()
        }
        for net in (cascade, single)
    ]
    assert shapes[0] == shapes[1]
    # It sees the half-size image alone: a checkerboard of single pixels is grey to it.
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 2.0 - 1
    with torch.no_grad():
        grey = single(torch.zeros(1, 3, 64, 64))["fgbg"]
        assert torch.allclose(single(board.expand(1, 3, 64, 64))["fgbg"], grey, atol=1e-5)
        assert not torch.allclose(
            cascade(board.expand(1, 3, 64, 64))["fgbg"], cascade(torch.zeros(1, 3, 64, 64))["fgbg"], atol=1e-5
        )
