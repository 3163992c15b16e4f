"""`nailtool train`: weights, facts and card from one command; shipped only when they are better."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import model_zoo
from model_zoo.card import render_accuracy, render_card
from nailcore.data.synth import draw_few
from nailcore.errors import BusyError, DataError, NailtoolError, UnknownNameError, WeightsError
from nailcore.facts import WeightsFacts, read_fact, write_fact
from nailcore.nets import load_network
from nailcore.storage import hash_file
from nailcore.train import FREE_SETTINGS, TrainConfig, describe_training
from nailtool.cli import main
from nailtool.lock import hold_folder
from nailtool.shipping import check_shippable, ship_weights
from nailtool.training import (
    SETTING_FLAGS,
    TrainOrder,
    choose_variants,
    make_config,
    open_sources,
    parse_data,
    parse_levels,
    parse_phase,
)

SETTINGS = ["--depth", "43", "--steps", "1", "--batch", "2", "--crop", "64", "--threads", "1", "--quiet"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for name, colour in (("a", (60, 90, 200)), ("b", (200, 90, 60))):
        mask = np.zeros((80, 100), np.uint8)
        cv2.circle(mask, (50, 40), 20, 255, -1)
        image = np.full((80, 100, 3), 128, np.uint8)
        image[mask > 0] = colour
        cv2.imwrite(str(root / "images" / f"{name}.png"), image)
        cv2.imwrite(str(root / "masks" / f"{name}.png"), mask)
    split = {"dataset": "x", "note": "", "groups": {"t": ["a"], "h": ["b"]}, "held_out": ["h"]}
    (root / "split.json").write_text(json.dumps(split))
    return root


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["train", *arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    assert run("--data", str(photos), "--out", str(out), *SETTINGS) == 0
    return out


def test_weights_facts_and_card_agree(trained: Path, photos: Path) -> None:
    facts = read_fact(trained / "nail43.json", WeightsFacts)
    assert facts.sha256 == hash_file(trained / "nail43.safetensors")
    assert [a.variant for a in facts.accuracy] == ["nail43-480", "nail43-352", "nail43-288"]
    assert facts.trained_on.count == 1 and facts.accuracy[0].images.count == 1
    card = (trained / "nail43.md").read_text("utf-8")
    assert facts.sha256 in card and facts.command in card and "Only `fgbg` is trained" in card
    assert str(photos.parent) not in card and f"--data {photos.name}" in facts.command
    assert load_network(model_zoo.find_variant("nail43-288"), trained / "nail43.safetensors")


def test_the_same_command_again_finds_it_finished(trained: Path, photos: Path) -> None:
    before = (trained / "nail43.safetensors").read_bytes()
    assert run("--data", str(photos), "--out", str(trained), *SETTINGS) == 0
    assert (trained / "nail43.safetensors").read_bytes() == before


def test_weights_are_shipped_only_when_they_beat_those_that_lie_there(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_zoo, "WEIGHTS_DIR", tmp_path)
    facts = read_fact(trained / "nail43.json", WeightsFacts)
    assert ship_weights(trained, facts).startswith("Shipped")
    assert {p.name for p in tmp_path.iterdir()} == {"nail43.safetensors", "nail43.json", "nail43.md"}
    assert ship_weights(trained, facts).startswith("Not shipped")
    other = facts.accuracy[0].model_copy(
        update={"images": facts.accuracy[0].images.model_copy(update={"sha256": "0" * 64})}
    )
    with pytest.raises(NailtoolError, match="measured on other images"):
        ship_weights(trained, facts.model_copy(update={"accuracy": [other]}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depth", "54"], "Unknown depth '54'"),
        (["--crop", "100"], "crop_px: Input should be a multiple of 32"),
        (["--init", "gone.npz"], "gone.npz: no such file"),
    ],
)
def test_impossible_requests_are_refused_with_the_key_named(
    arguments: list[str], message: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--data", str(photos), "--out", str(tmp_path), *arguments) == NailtoolError.exit_code
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_refused(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with hold_folder(tmp_path):
        assert run("--data", str(photos), "--out", str(tmp_path), *SETTINGS) == BusyError.exit_code
    assert "Another nailtool command works" in capsys.readouterr().err
    assert not (tmp_path / "checkpoint.pt").exists()


def test_weights_that_no_variant_uses_are_refused_before_the_training(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("--data", str(photos), "--out", str(out), "--ship", *SETTINGS) == NailtoolError.exit_code
    told = " ".join(capsys.readouterr().err.split())
    assert "no variant uses weights called nail43" in told and "--input-px" in told and not out.exists()


def test_weights_that_were_measured_on_other_photographs_are_refused_before_the_training(
    photos: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_zoo, "WEIGHTS_DIR", tmp_path)
    facts = read_fact(trained / "nail43.json", WeightsFacts)
    order = TrainOrder(
        data=(str(photos),), depth=43, init=None, out=tmp_path / "out", settings={}, input_px=288
    )
    for sha256 in (facts.accuracy[0].images.sha256, "0" * 64):
        images = facts.accuracy[0].images.model_copy(update={"sha256": sha256})
        accuracy = [facts.accuracy[0].model_copy(update={"images": images})]
        write_fact(tmp_path / "nail43-288.json", facts.model_copy(update={"accuracy": accuracy}))
        if sha256 == "0" * 64:
            with pytest.raises(NailtoolError, match=r"nail43-288 was measured on other images"):
                check_shippable(order)
        else:
            check_shippable(order)


def test_a_shipping_that_fails_leaves_no_facts_about_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Path
) -> None:
    monkeypatch.setattr(model_zoo, "WEIGHTS_DIR", tmp_path / "zoo")
    facts = read_fact(trained / "nail43.json", WeightsFacts)
    ship_weights(trained, facts)
    better = facts.accuracy[0].nail_iou.model_copy(update={"value": 2.0})
    accuracy = [facts.accuracy[0].model_copy(update={"nail_iou": better})]
    (tmp_path / "nail43.safetensors").write_bytes(b"better")
    with pytest.raises(FileNotFoundError):  # there is no card to ship
        ship_weights(tmp_path, facts.model_copy(update={"accuracy": accuracy}))
    assert (tmp_path / "zoo" / "nail43.safetensors").read_bytes() == b"better"
    assert not (tmp_path / "zoo" / "nail43.json").exists()


def test_unknown_depths_name_the_known_ones() -> None:
    from nailtool.training import find_depth

    with pytest.raises(UnknownNameError, match="43, 55"):
        find_depth(50)


def test_data_and_phases_are_read_as_typed() -> None:
    assert parse_data("hands:0.4") == (Path("hands"), 0.4)
    assert parse_data("hands") == (Path("hands"), 1.0)
    assert parse_data("C:hands") == (Path("C:hands"), 1.0)
    assert parse_phase("2000:1,0.5") == (2000, (1.0, 0.5))
    for wrong in ("2000", "x:1", "10:a"):
        with pytest.raises(NailtoolError, match="expected STEPS:SHARE,SHARE"):
            parse_phase(wrong)


def test_sets_are_mixed_by_phases_cut_into_folds_and_stopped_by_the_clock(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hands = tmp_path / "hands"
    draw_few(hands, (5, 9), width_px=160, height_px=120)
    stems = sorted(path.stem for path in (hands / "images").iterdir())
    groups = {stem: [stem] for stem in stems}
    split = {"dataset": "hands", "note": "", "groups": groups, "held_out": [stems[1]]}
    (hands / "split.json").write_text(json.dumps(split))
    settings = ["--depth", "43", "--batch", "2", "--crop", "64", "--threads", "1", "--quiet"]
    arguments = ["--data", str(hands), "--data", str(photos), "--phase", "1:1,0", "--phase", "1:0.5,0.5"]
    arguments += ["--fold", "2/2", "--input-px", "288", "--out", str(tmp_path / "out"), *settings]
    assert run(*arguments, "--max-minutes", "0.00001") == 0
    assert not (tmp_path / "out" / "nail43-288.json").exists()
    assert (tmp_path / "out" / "nail43-288.partial.safetensors").is_file()
    assert run(*arguments) == 0
    facts = read_fact(tmp_path / "out" / "nail43-288.json", WeightsFacts)
    assert facts.heads_trained == ("fgbg", "finger", "direction") and facts.weights == "nail43-288"
    assert [s.name for s in facts.sources] == [
        "rasterised synthetic hands train",
        f"{photos.name} fold 2/2 train",
    ]
    assert facts.trained_on.count == 2 and not facts.trained_on.synthetic
    assert [a.variant for a in facts.accuracy] == ["nail43-288"] and not facts.accuracy[0].images.synthetic
    rendered = facts.accuracy_synthetic[0]
    assert rendered.images.synthetic and rendered.finger_accuracy and rendered.direction_error_median_deg
    assert "--phase 1:1,0 --phase 1:0.5,0.5" in facts.command and "--fold 2/2" in facts.command
    assert f"--data {photos.name} " in facts.command and str(tmp_path) not in facts.command
    # Fine-tuning starts from these weights and says so.
    again = ["--data", str(photos), "--init", str(tmp_path / "out" / "nail43-288.safetensors")]
    assert run(*again, "--steps", "1", "--input-px", "288", "--out", str(tmp_path / "b"), *settings) == 0
    tuned = read_fact(tmp_path / "b" / "nail43-288.json", WeightsFacts)
    assert tuned.init == "nail43-288.safetensors" and tuned.init_sha256 == facts.sha256
    assert tuned.heads_trained == ("fgbg", "finger", "direction")  # the two others were trained before
    wrong = ["--data", str(photos), "--init", "nail55-480", "--steps", "1", "--out", str(tmp_path / "c")]
    assert run(*wrong, *settings) == WeightsError.exit_code
    assert "weights of another network" in " ".join(capsys.readouterr().err.split())


def test_guesses_that_are_learnt_are_part_of_a_training(photos: Path, tmp_path: Path) -> None:
    """Otherwise a finished training is found again, and its weights are said to have learnt from them."""
    order = TrainOrder(data=(str(photos),), depth=43, init=None, out=tmp_path, settings={"steps": 1})
    variant, config = choose_variants(order)[0], make_config(order)

    def describe(least: float | None) -> dict[str, object]:
        sources = open_sources(replace(order, machine_labels=least))
        return describe_training(variant, sources, config, None, 1)

    assert describe(0.5) != describe(None) and describe(0.5) != describe(0.6)
    assert "machine_labels" not in describe(None), "checkpoints from before go on"


def test_every_setting_that_touches_the_weights_is_in_the_command(photos: Path, tmp_path: Path) -> None:
    """A plan may set any of them; the command in the facts must train the same."""
    told = {"phases", "long_side_px"}  # by --phase, --data and --input-px
    assert set(TrainConfig.model_fields) - FREE_SETTINGS - told == set(SETTING_FLAGS) - {"precision"}
    more = {
        "--weight-decay": "0.02",
        "--warmup-steps": "3",
        "--ema-decay": "0.9",
        "--level-weights": "1,0.5,0.2",
    }
    arguments = [word for pair in more.items() for word in pair]
    out = tmp_path / "out"
    assert run("--data", str(photos), "--input-px", "288", *arguments, "--out", str(out), *SETTINGS) == 0
    facts = read_fact(out / "nail43-288.json", WeightsFacts)
    assert "--weight-decay 0.02 --warmup-steps 3 --ema-decay 0.9 --level-weights 1.0,0.5,0.2" in facts.command
    assert facts.config["level_weights"] == {"4": 1.0, "8": 0.5, "16": 0.2}
    with pytest.raises(NailtoolError, match="expected three numbers"):
        parse_levels("1,2")


def copy_set(photos: Path, root: Path, held_out: list[str]) -> Path:
    shutil.copytree(photos, root)
    split = json.loads((root / "split.json").read_text())
    (root / "split.json").write_text(json.dumps({**split, "held_out": held_out}))
    return root


def test_what_could_not_be_measured_truly_is_refused_before_the_training(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*data: str) -> str:
        out = tmp_path / "out"
        arguments = [word for text in data for word in ("--data", text)]
        assert run(*arguments, "--out", str(out), *SETTINGS) == DataError.exit_code
        assert not out.exists()
        return " ".join(capsys.readouterr().err.split())

    turned = copy_set(photos, tmp_path / "turned", ["t"])
    told = refuse(str(photos), str(turned))
    assert "is held out here, and learnt as" in told and "hold both copies out" in told
    split = json.loads((turned / "split.json").read_text())
    (turned / "split.json").write_text(json.dumps({**split, "validation": ["t"]}))
    assert "the test part of its split is empty" in refuse(str(turned))
    arguments = ["--data", f"{photos}:2", "--data", str(turned), "--phase", "1:1,0"]
    assert run(*arguments, "--out", str(tmp_path / "out"), *SETTINGS) == NailtoolError.exit_code
    assert "and so does FOLDER:SHARE" in " ".join(capsys.readouterr().err.split())


def test_facts_tell_of_what_was_learnt_alone(photos: Path, tmp_path: Path) -> None:
    """Sets that no phase draws from, and heads whose loss weighs nothing, were not learnt."""
    hands = tmp_path / "hands"
    draw_few(hands, (5, 9), width_px=160, height_px=120)
    stems = sorted(path.stem for path in (hands / "images").iterdir())
    split = {"dataset": "x", "note": "", "groups": {s: [s] for s in stems}, "held_out": [stems[1]]}
    (hands / "split.json").write_text(json.dumps(split))
    arguments = ["--data", str(hands), "--data", str(photos), "--phase", "1:1,0", "--finger-weight", "0"]
    assert run(*arguments, "--input-px", "288", "--out", str(tmp_path / "out"), *SETTINGS) == 0
    facts = read_fact(tmp_path / "out" / "nail43-288.json", WeightsFacts)
    assert facts.heads_trained == ("fgbg", "direction")
    assert [s.name for s in facts.sources] == ["rasterised synthetic hands train"]
    card = render_card(facts)
    assert "No photograph was learnt from." in card and "Initialised from random weights" in card


def test_rows_of_several_sets_say_which(trained: Path) -> None:
    facts = read_fact(trained / "nail43.json", WeightsFacts)
    images = facts.accuracy[0].images.model_copy(update={"name": "other held-out"})
    other = facts.accuracy[0].model_copy(update={"images": images})
    table = render_accuracy(facts.model_copy(update={"accuracy": [facts.accuracy[0], other]}))
    assert "1 of other held-out" in table and f"1 of {facts.accuracy[0].images.name}" in table
    assert " of " not in render_accuracy(facts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part", "train"], "--part measures a file"),
        (["--fold", "1/2"], "--fold measures a file"),
        (["--whole"], "--whole is about the embedded set"),
    ],
)
def test_what_evaluate_would_pass_over_is_refused(
    arguments: list[str], message: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--data", str(photos), "--out", str(tmp_path / "out"), *arguments])
    assert ended.value.code == NailtoolError.exit_code and not (tmp_path / "out").exists()
    assert message in " ".join(capsys.readouterr().err.split())


def test_figures_of_other_images_stand_in_files_of_their_own(
    trained: Path, photos: Path, tmp_path: Path
) -> None:
    measured = ["--weights", str(trained / "nail43.safetensors"), "--data", str(photos), "--quiet"]
    for more in ([], ["--part", "train"], ["--fold", "1/2"]):
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", *measured, "--variants", "nail43-288", "--out", str(tmp_path), *more])
        assert ended.value.code == 0
    stem = f"nail43.nail43-288.{photos.name}"
    names = {path.name for path in tmp_path.glob("*.json")}
    assert names == {f"{stem}.json", f"{stem}.train.json", f"{stem}.fold-1-of-2.json"}


def test_folds_of_two_trainings_are_pooled(
    trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for number in ("1", "2"):
        arguments = ["--weights", str(trained / "nail43.safetensors"), "--data", str(photos), "--quiet"]
        arguments += ["--variants", "nail43-288", "--fold", f"{number}/2", "--out", str(tmp_path / number)]
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", *arguments])
        assert ended.value.code == 0
        files += list((tmp_path / number).glob("*.json"))
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--pool", str(files[0]), "--pool", str(files[1]), "--json"])
    assert ended.value.code == 0
    result = json.loads(capsys.readouterr().out)["accuracy"][0]
    assert result["images"]["count"] == 2 and {i["name"] for i in result["per_image"]} == {"a", "b"}
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--weights", "gone.safetensors", "--data", str(photos)])
    assert ended.value.code == NailtoolError.exit_code


def test_another_encoder_is_chosen_by_name_and_its_weights_say_so(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--encoder", "efficientnet-lite0", "--input-px", "288", "--out", str(tmp_path / "out")]
    assert run("--data", str(photos), *chosen, *SETTINGS) == 0
    facts = read_fact(tmp_path / "out" / "nail43-efficientnet-lite0-288.json", WeightsFacts)
    assert facts.encoder == "efficientnet-lite0" and "--encoder efficientnet-lite0" in facts.command
    assert "efficientnet-lite0 cascade of the depth called 43" in render_card(facts)
    weights = tmp_path / "out" / "nail43-efficientnet-lite0-288.safetensors"
    # A weights file in hand is measured with the encoder that it records.
    measured = ["evaluate", "--weights", str(weights), "--data", str(photos), "--variants", "nail43-288"]
    with pytest.raises(SystemExit) as ended:
        main([*measured, "--out", str(tmp_path / "facts"), "--json"])
    assert ended.value.code == 0
    result = json.loads(capsys.readouterr().out)["accuracy"][0]
    assert result["variant"] == "nail43efficientnetlite0-288"
    assert result["nail_iou"] == facts.accuracy[0].nail_iou.model_dump()
    # The paper's encoder cannot start from it, and a name nobody knows is refused with the known ones.
    again = ["--init", str(weights), "--out", str(tmp_path / "b"), *SETTINGS]
    assert run("--data", str(photos), *again) == WeightsError.exit_code
    assert "but mobilenetv2 is asked for" in " ".join(capsys.readouterr().err.split())
    assert run("--data", str(photos), "--encoder", "efficientnet", *again) == UnknownNameError.exit_code
    assert "efficientnet-lite0, mobilenetv2" in " ".join(capsys.readouterr().err.split())
