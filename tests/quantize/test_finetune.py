"""Fine-tuning: it lowers the distance, resumes to the same weights, and leaves kernels on their grids."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from nailcore.data.folder import Dataset, open_dataset
from nailcore.data.synth import draw_few
from nailcore.errors import DataError, NailtoolError, WeightsError
from quantize import finetune
from quantize.finetune import (
    FineTuned,
    LevelKernels,
    finetune_quantized,
    hash_network,
    make_batches,
    measure_distance,
)
from quantize.recipe import FineTune
from quantize.rounding import round_weight
from quantize.simulate import Scheme, Simulation, as_input
from tests.quantize.small_network import tiny_images, tiny_layers, tiny_network, tiny_ranges, tiny_variant

SETTINGS = FineTune(steps=6, batch=2, crop_px=64, lr=0.02)


@pytest.fixture(scope="module")
def hands(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("hands") / "set"
    draw_few(folder, (5, 9))
    return open_dataset(folder)


def tune(hands: Dataset, checkpoint: Path, settings: FineTune = SETTINGS) -> FineTuned:
    return finetune_quantized(
        copy.deepcopy(tiny_network()),
        Scheme(weight_bits=5),
        tiny_ranges(),
        variant=tiny_variant(),
        dataset=hands,
        settings=settings,
        checkpoint=checkpoint,
    )


def test_the_rounded_network_comes_closer_to_the_float_one(hands: Dataset, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"steps": 40, "lr": 0.01})
    tuned = tune(hands, tmp_path / "checkpoint.pt", settings)
    teacher = tiny_network()
    images = as_input(make_batches(hands, tiny_variant(), settings)[0].images)
    with torch.no_grad():
        wanted = teacher(images)
        distances = [
            float(
                measure_distance(Simulation(n, Scheme(weight_bits=5), tiny_ranges())(images), wanted, n.names)
            )
            for n in (teacher, tuned.network)
        ]
    assert distances[1] < 0.8 * distances[0]
    assert not (tmp_path / "checkpoint.pt").exists()


def test_kernels_end_on_their_grids_with_their_scales_unchanged(hands: Dataset, tmp_path: Path) -> None:
    """Whoever quantizes the network afterwards finds the very levels that were trained."""
    tuned = tune(hands, tmp_path / "checkpoint.pt")
    for name in tiny_layers():
        kernel = tuned.network.get_submodule(name).weight
        assert isinstance(kernel, torch.Tensor)
        assert torch.allclose(round_weight(kernel, 5), kernel, atol=1e-6 * float(kernel.abs().max()))


def test_a_killed_run_goes_on_to_the_same_weights(
    hands: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "CHECKPOINT_EVERY", 2)
    whole = tune(hands, tmp_path / "whole.pt")
    original = finetune._check_finite

    def killed(value: float, step: int, settings: FineTune) -> None:
        if step == 5:
            raise KeyboardInterrupt
        original(value, step, settings)

    monkeypatch.setattr(finetune, "_check_finite", killed)
    with pytest.raises(KeyboardInterrupt):
        tune(hands, tmp_path / "killed.pt")
    monkeypatch.setattr(finetune, "_check_finite", original)
    assert (tmp_path / "killed.pt").exists()
    resumed = tune(hands, tmp_path / "killed.pt")
    assert hash_network(resumed.network) == hash_network(whole.network)


def test_a_checkpoint_of_another_fine_tuning_is_refused(
    hands: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "CHECKPOINT_EVERY", 1)
    monkeypatch.setattr(Path, "unlink", lambda *_args, **_more: None)
    tune(hands, tmp_path / "checkpoint.pt", SETTINGS.model_copy(update={"steps": 2}))
    with pytest.raises(WeightsError, match=r"settings\.seed"):
        tune(hands, tmp_path / "checkpoint.pt", SETTINGS.model_copy(update={"steps": 2, "seed": 1}))


def test_a_loss_that_is_not_a_number_stops_it_and_says_where(
    hands: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "measure_distance", lambda found, *_: found[0].sum() * float("nan"))
    with pytest.raises(NailtoolError, match="became nan in step 0"):
        tune(hands, tmp_path / "checkpoint.pt")


def test_photographs_without_a_split_are_not_trained_on(hands: Dataset, tmp_path: Path) -> None:
    card = hands.card.model_copy(update={"synthetic": False})
    photographs = Dataset(hands.root, card, hands.samples, None)
    with pytest.raises(DataError, match="no written split"):
        tune(photographs, tmp_path / "checkpoint.pt")


def test_gradients_reach_every_kernel_but_not_what_carries_the_scale() -> None:
    simulation = Simulation(copy.deepcopy(tiny_network()), Scheme(), tiny_ranges())
    kernels = LevelKernels(simulation)
    simulation.trained = kernels
    images = as_input(tiny_images(1))
    with torch.no_grad():
        wanted = tiny_network()(images)
    measure_distance(simulation(images), wanted, tiny_network().names).backward()  # type: ignore[no-untyped-call]
    still = []
    for name in tiny_layers():
        gradient = kernels.levels[name.replace(".", "/")].grad
        assert gradient is not None
        assert not gradient[kernels.pinned[name]].any()
        if not gradient.any():
            still.append(name)
    assert not still


def test_the_distance_is_zero_for_the_teacher_itself_and_counts_every_head() -> None:
    torch.manual_seed(0)
    logits = (torch.randn(2, 2, 8, 8), torch.randn(2, 10, 8, 8), torch.randn(2, 2, 8, 8))
    names = ("fgbg", "finger", "direction")
    assert float(measure_distance(logits, logits, names)) == pytest.approx(0, abs=1e-6)
    for place in range(3):
        found = [value.clone() for value in logits]
        found[place][:, 0] += 0.5
        assert float(measure_distance(tuple(found), logits, names)) > 1e-3
