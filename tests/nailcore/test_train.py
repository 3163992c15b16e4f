"""Training: batches are a function of seed and step, a killed run resumes exactly, faults stop it cleanly."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from nailcore.batches import BatchPipeline
from nailcore.checkpoint import TrainState, save_checkpoint
from nailcore.data.folder import Dataset, open_dataset
from nailcore.data.mixing import Batch, Phase
from nailcore.errors import MissingToolError, NailtoolError, WeightsError
from nailcore.train import (
    StepReport,
    TrainConfig,
    choose_precision,
    is_partial,
    learning_rate_factor,
    run_training,
)
from nailcore.variant import Variant

TINY = Variant(
    name="nail43-64", encoder_layers=43, height_px=64, width_px=64, fusion_width=16, weights="tiny"
)
CONFIG = TrainConfig(steps=4, batch=2, crop_px=64, checkpoint_every=1, threads=1, warmup_steps=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("photos")
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        image = np.full((90, 120, 3), rng.integers(90, 200, 3), np.uint8)
        mask = np.zeros((90, 120), np.uint8)
        cv2.ellipse(mask, (60, 45), (14, 22), 20, 0, 360, 255, -1)
        image[mask > 0] = (60, 40, 200)
        cv2.imwrite(str(root / "images" / f"{name}.png"), image)
        cv2.imwrite(str(root / "masks" / f"{name}.png"), mask)
    split = {"dataset": "x", "note": "", "groups": {"t": ["a", "b"], "h": ["c"]}, "held_out": ["h"]}
    (root / "split.json").write_text(json.dumps(split))
    return open_dataset(root)


def test_learning_rate_warms_up_then_falls() -> None:
    config = TrainConfig(steps=100, warmup_steps=10)
    factors = [learning_rate_factor(step, config) for step in range(100)]
    assert factors.index(max(factors)) in (9, 10) and max(factors) == 1.0
    assert all(a >= b for a, b in itertools.pairwise(factors[10:])) and factors[-1] < 0.02


def test_a_killed_run_resumes_to_the_same_bytes(dataset: Dataset, tmp_path: Path) -> None:
    whole = run_training(TINY, [dataset], CONFIG, tmp_path / "whole", init=None)

    def stop(report: StepReport) -> None:
        if report.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(TINY, [dataset], CONFIG, tmp_path / "cut", init=None, report=stop)
    seen: list[int] = []
    resumed = run_training(
        TINY, [dataset], CONFIG, tmp_path / "cut", init=None, report=lambda r: seen.append(r.step)
    )
    assert seen[0] == 3  # steps 1 and 2 were kept; 3 was cut before its checkpoint
    assert resumed.read_bytes() == whole.read_bytes()
    assert {p.name for p in (tmp_path / "cut").iterdir()} == {"checkpoint.pt", "tiny.safetensors"}


def test_weights_under_another_name_are_the_same_training(dataset: Dataset, tmp_path: Path) -> None:
    first = run_training(TINY, [dataset], CONFIG, tmp_path, init=None)
    renamed = TINY.model_copy(update={"weights": "renamed"})
    seen: list[int] = []
    again = run_training(
        renamed, [dataset], CONFIG, tmp_path, init=None, report=lambda r: seen.append(r.step)
    )
    assert again.name == "renamed.safetensors" and not seen
    assert again.read_bytes() == first.read_bytes()


def test_damaged_and_foreign_checkpoints_are_named_and_kept(dataset: Dataset, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 1})
    run_training(TINY, [dataset], config, tmp_path, init=None)
    checkpoint = tmp_path / "checkpoint.pt"
    other = config.model_copy(update={"seed": 1, "lr_decoder": 1e-3})
    with pytest.raises(WeightsError, match=r"these differ: config\.lr_decoder, config\.seed"):
        run_training(TINY, [dataset], other, tmp_path, init=None)
    damaged = checkpoint.read_bytes()[:200]
    checkpoint.write_bytes(damaged)
    with pytest.raises(WeightsError, match=r"checkpoint\.pt: not a readable checkpoint"):
        run_training(TINY, [dataset], config, tmp_path, init=None)
    assert checkpoint.read_bytes() == damaged


def test_a_checkpoint_of_the_other_depth_says_which_layers_differ(dataset: Dataset, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 1})
    run_training(TINY, [dataset], config, tmp_path, init=None)
    deep = TINY.model_copy(update={"encoder_layers": 55, "name": "nail55-64"})
    with pytest.raises(WeightsError, match=r"layers missing \(first: low\.stage7"):
        run_training(deep, [dataset], config, tmp_path, init=None)
    with pytest.raises(WeightsError, match=r"layers missing \(first: low\.stage7"):
        run_training(deep, [dataset], config, tmp_path / "b", init=tmp_path / "tiny.safetensors")


def test_diverging_stops_and_keeps_the_last_good_checkpoint(dataset: Dataset, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"lr_encoder": 1e30, "lr_decoder": 1e30, "steps": 30})
    with pytest.raises(NailtoolError, match=r"(became|weights hold) .*"):
        run_training(TINY, [dataset], config, tmp_path, init=None)
    assert not (tmp_path / "tiny.safetensors").exists()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["network"]
    assert all(bool(torch.isfinite(t).all()) for t in state.values())


def test_broken_weights_never_replace_a_checkpoint(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 2)
    state = TrainState(network, network, torch.optim.SGD(network.parameters(), lr=1.0), 7)
    (tmp_path / "checkpoint.pt").write_bytes(b"good")
    with torch.no_grad():
        network.bias[0] = float("inf")
    with pytest.raises(NailtoolError, match=r"step 7 the weights hold NaN or infinite values \(bias\)"):
        save_checkpoint(tmp_path / "checkpoint.pt", state, {})
    assert (tmp_path / "checkpoint.pt").read_bytes() == b"good"


def test_a_nan_in_the_loss_names_step_and_batch(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    real, calls = BatchPipeline.prepare, itertools.count()

    def spoil(self: BatchPipeline, batch: Batch) -> tuple[torch.Tensor, dict[int, object]]:
        x, targets = real(self, batch)
        return (x * float("nan") if next(calls) == 2 else x), targets

    monkeypatch.setattr(BatchPipeline, "prepare", spoil)
    with pytest.raises(NailtoolError, match=r"loss became nan at step 2 \(batch 2, seed 0\)"):
        run_training(TINY, [dataset], CONFIG, tmp_path, init=None)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2


def test_a_full_disk_keeps_the_checkpoint_before(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.model_copy(update={"steps": 3})
    run_training(TINY, [dataset], config.model_copy(update={"steps": 3}), tmp_path / "good", init=None)
    real: Callable[[Path, bytes], int] = Path.write_bytes
    written: list[str] = []

    def write(path: Path, data: bytes) -> int:
        if path.name == "checkpoint.pt":
            written.append(path.name)
            if len(written) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(MissingToolError, match="No space left"):
        run_training(TINY, [dataset], config, tmp_path, init=None)
    monkeypatch.undo()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 1
    again = run_training(TINY, [dataset], config, tmp_path, init=None)
    assert again.read_bytes() == (tmp_path / "good" / "tiny.safetensors").read_bytes()


def test_stopping_by_the_clock_keeps_a_checkpoint_and_the_average_so_far(
    dataset: Dataset, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"checkpoint_every": 100})
    stopped = run_training(TINY, [dataset], config, tmp_path, init=None, max_minutes=1e-9)
    assert is_partial(stopped) and stopped.is_file()
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint.pt", "tiny.partial.safetensors"}
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 1
    assert run_training(TINY, [dataset], config, tmp_path, init=None) == tmp_path / "tiny.safetensors"


def test_workers_make_the_same_batches(dataset: Dataset, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 2})
    alone = run_training(TINY, [dataset], config, tmp_path / "a", init=None)
    helped = run_training(
        TINY, [dataset], config.model_copy(update={"workers": 1}), tmp_path / "b", init=None
    )
    assert alone.read_bytes() == helped.read_bytes()


def test_phases_must_add_up(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="sum over the phases, 3"):
        TrainConfig(steps=4, phases=(Phase(steps=3, shares=(1.0,)),))


def test_precision_is_chosen_by_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_precision("fp32") == "32-true" and choose_precision("bf16") == "bf16-mixed"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # AVX512-BF16 alone is slower than float32 (docs/training.md): tiles decide.
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    for tiles, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda tiles=tiles: tiles)
        assert choose_precision("auto") == expected


def run_script(arguments: list[str], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_two_processes_train_one_network(dataset: Dataset, tmp_path: Path) -> None:
    """Each takes half of every batch; they agree on the weights, and only the first one writes."""
    script = Path(__file__).with_name("train_script.py")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = run_script([*torchrun, str(script), str(dataset.root), str(tmp_path / "two"), "4"], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {p.name for p in (tmp_path / "two").iterdir()} == {
        "checkpoint.pt",
        "tiny.safetensors",
        "rank0.txt",
        "rank1.txt",
    }
    ranks = [(tmp_path / "two" / f"rank{rank}.txt").read_text() for rank in range(2)]
    assert ranks[0] == ranks[1]  # the same weights at the end, to the last bit
    # A checkpoint of two processes is not one of a single process: the batches' statistics differ.
    with pytest.raises(WeightsError, match="these differ: processes"):
        run_training(TINY, dataset, CONFIG, tmp_path / "two", init=None)


def test_a_batch_that_cannot_be_shared_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    from nailcore import train

    class Fabric:
        world_size = 3

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "make_fabric", lambda _: Fabric())
        with pytest.raises(NailtoolError, match="batch of 2 cannot be shared by 3 processes"):
            run_training(TINY, dataset, CONFIG, tmp_path, init=None)
