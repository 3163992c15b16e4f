"""`nailtool retrain`: a plan runs from rendered hands to delivered weights, goes on, and folds share."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import model_zoo
from nailcore.data.synth import draw_few
from nailcore.errors import ArtifactError, NailtoolError, UnknownNameError
from nailcore.facts import AccuracyResult, WeightsFacts, read_fact
from nailcore.storage import hash_file
from nailtool.cli import main
from nailtool.family_card import render_family, write_family
from nailtool.plan import load_plan
from nailtool.retraining import RetrainOrder, list_trainings
from nailtool.retraining_facts import RetrainingResult
from nailtool.training import choose_variants, make_config

# name of a shipped plan -> (how many of its stages see no photograph, all of its stages)
SHIPPED = {
    "nail43": (1, ["1-rendered", "2-photos", "3-photos-more"]),
    "nail55": (2, ["1-rendered", "2-longer", "3-photos", "4-photos-more", "5-photos-last"]),
}
PLAN = """
name = "tiny"
depth = 43
[hands]
count = 4
subjects = 4
[settings]
batch = 2
crop_px = 64
warmup_steps = 1
[[stages]]
name = "rendered"
steps = 2
hands = 1.0
photos = 0.0
[[stages]]
name = "mixed"
steps = 2
hands = 0.5
photos = 0.5
settings = { lr_decoder = 1e-3 }
[sizes]
px = [288]
steps = 1
hands = 0.0
photos = 1.0
settings = { crop_px = 64 }
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for name in ("a", "b"):
        mask = np.zeros((80, 100), np.uint8)
        cv2.circle(mask, (50, 40), 20, 255, -1)
        image = np.full((80, 100, 3), 128, np.uint8)
        image[mask > 0] = (60, 90, 200)
        cv2.imwrite(str(root / "images" / f"{name}.png"), image)
        cv2.imwrite(str(root / "masks" / f"{name}.png"), mask)
    split = {"dataset": "x", "note": "", "groups": {"t": ["a"], "h": ["b"]}, "held_out": ["h"]}
    (root / "split.json").write_text(json.dumps(split))
    return root


@pytest.fixture(scope="module")
def hands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rendered") / "hands"
    draw_few(root, (5, 9), width_px=160, height_px=120)
    stems = sorted(path.stem for path in (root / "images").iterdir())
    split = {"dataset": "hands", "note": "", "groups": {s: [s] for s in stems}, "held_out": [stems[1]]}
    (root / "split.json").write_text(json.dumps(split))
    return root


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "tiny.toml"
    path.write_text(PLAN)
    return path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["retrain", *arguments, "--threads", "1", "--quiet"])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def done(photos: Path, hands: Path, plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan stopped by the clock, then gone on with."""
    out = tmp_path_factory.mktemp("out")
    arguments = ["--plan", str(plan), "--photos", str(photos), "--hands", str(hands), "--out", str(out)]
    assert run(*arguments, "--max-minutes", "0.00001") == 0
    assert not (out / "retraining.json").exists()
    assert run(*arguments) == 0
    return out


def test_stages_follow_each_other_to_the_delivered_weights(done: Path) -> None:
    result = read_fact(done / "retraining.json", RetrainingResult)
    assert [s.folder for s in result.stages] == ["1-rendered", "2-mixed", "3-size-288"]
    first, mixed, sized = result.stages
    assert first.init == "random" and mixed.init_sha256 == first.sha256 and sized.init_sha256 == mixed.sha256
    facts = read_fact(done / "weights" / "nail43-288.json", WeightsFacts)
    assert facts.sha256 == sized.sha256 == hash_file(done / "weights" / "nail43-288.safetensors")
    # The last stage saw photographs alone, but its heads learnt fingers before.
    assert facts.heads_trained == ("fgbg", "finger", "direction")
    assert {p.name for p in (done / "weights").iterdir()} == {
        f"{stem}{suffix}" for stem in ("nail43", "nail43-288") for suffix in (".safetensors", ".json", ".md")
    }
    table = (done / "retraining.md").read_text("utf-8")
    assert f"| 1-rendered | 2 | random | `{first.sha256[:12]}…` |" in table
    row = f"| 2-mixed | 2 | `{first.sha256[:12]}…` | `{mixed.sha256[:12]}…` | nail43-480 | 1 photographs |"
    assert row in table
    assert {f.images.synthetic for f in mixed.figures} == {True, False}
    mixed_facts = read_fact(done / "2-mixed" / "nail43.json", WeightsFacts)
    assert mixed_facts.config["lr_decoder"] == 1e-3 and mixed_facts.config["batch"] == 2


def test_the_same_command_trains_nothing_twice(
    done: Path, photos: Path, hands: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nailtool import retraining

    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(retraining, "train_depth", refuse)
    before = read_fact(done / "retraining.json", RetrainingResult)
    arguments = ["--plan", str(plan), "--photos", str(photos), "--hands", str(hands), "--out", str(done)]
    assert run(*arguments) == 0
    assert read_fact(done / "retraining.json", RetrainingResult).stages == before.stages
    # Weights that changed behind its back are not taken for finished ones.
    weights = done / "3-size-288" / "nail43-288.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    try:
        assert run(*arguments) == 70
    finally:
        weights.write_bytes(good)


def test_folds_share_the_stages_before_photographs_and_are_pooled(
    done: Path, photos: Path, hands: Path, plan: Path
) -> None:
    shared = done / "1-rendered" / "nail43.safetensors"
    before = shared.stat().st_mtime_ns
    arguments = ["--plan", str(plan), "--photos", str(photos), "--hands", str(hands), "--out", str(done)]
    assert run(*arguments, "--folds", "2", "--sizes", "none") == 0
    assert shared.stat().st_mtime_ns == before
    result = read_fact(done / "cross-validation.json", RetrainingResult)
    assert [s.folder for s in result.stages] == ["1-rendered", "fold-1-of-2/2-mixed", "fold-2-of-2/2-mixed"]
    assert result.stages[1].init_sha256 == result.stages[2].init_sha256 == result.stages[0].sha256
    pooled = read_fact(done / "cross-validation" / "2-mixed.nail43-288.json", AccuracyResult)
    assert {image.name for image in pooled.per_image} == {"a", "b"}
    # Folds are measured on their photographs alone; the hands are the same for all.
    assert not any(f.images.synthetic for s in result.stages[1:] for f in s.figures)
    assert "## 2 folds, pooled" in (done / "cross-validation.md").read_text("utf-8")
    # What the plan itself made stays.
    assert read_fact(done / "retraining.json", RetrainingResult).folds == 0
    # Pooled figures of other stages, of an earlier run, would stand on the card as if they were of these.
    stale = done / "cross-validation" / "3-more.nail43-288.json"
    stale.write_bytes((done / "cross-validation" / "2-mixed.nail43-288.json").read_bytes())
    assert run(*arguments, "--folds", "2", "--sizes", "none") == 0
    assert not stale.exists() and len(list(stale.parent.glob("*.json"))) == 3


def test_the_card_tells_what_was_measured_and_what_was_not(done: Path, tmp_path: Path) -> None:
    """After the folds above; the facts are copied so that the card can be written again from them."""
    out = tmp_path / "evidence"
    (out / "cross-validation").mkdir(parents=True)
    (out / "cross-validation" / "old.json").write_text("{}")
    (out / "ablation").mkdir()
    (out / "ablation" / "notes.json").write_text("{}")
    with pytest.raises(SystemExit) as ended:
        main(["card", str(done), "--out", str(out), "--name", "tiny", "--quiet"])
    assert not ended.value.code
    text = (out / "README.md").read_text("utf-8")
    mixed = read_fact(done / "retraining.json", RetrainingResult).stages[1]
    assert (
        f"| `{mixed.sha256[:12]}…` | nail43-480 |" in text
        and "2 folds of these stages: 1-rendered (2 steps), 2-mixed (2 steps)." in text
    )
    assert "nail43-480 by kind of image, 2 images of" in text and "| nail size |" in text
    assert "--photos PHOTOS --init FILE --out FOLDER --folds 2 --sizes none`." in text
    assert "--photos PHOTOS --init FILE --out FOLDER --sizes 288`." in text  # the stages
    missing = text[text.index("## Not measured here") :]
    assert (
        "`nailtool ablate --variant VARIANT --data PHOTOS --init FILE --out FOLDER/ablation`" in missing
        and "Cross-validation" not in missing
    )
    kept = {path.relative_to(out).as_posix() for path in out.rglob("*.json")}
    assert {"retraining.json", "cross-validation.json", "cross-validation/2-mixed.nail43-288.json"} <= kept
    assert "cross-validation/old.json" not in kept and "ablation/notes.json" in kept
    assert render_family(out, "tiny") == text
    # A damaged fact is named, and the card that was there stays.
    (out / "cross-validation.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"cross-validation\.json"):
        write_family(out, out, "tiny")
    assert (out / "README.md").read_text("utf-8") == text
    stored = json.loads((out / "retraining.json").read_text())
    (out / "cross-validation.json").unlink()
    for sizes, options in ((None, "--until mixed"), ({**stored["plan"]["sizes"], "px": []}, "--sizes none")):
        other = {**stored, "plan": {**stored["plan"], "sizes": sizes}, "machine_labels": 0.6, "smoke": True}
        (out / "retraining.json").write_text(json.dumps(other))
        assert f"--out FOLDER {options} --machine-labels 0.6 --smoke`." in render_family(out, "tiny")
    (out / "retraining.json").write_text(json.dumps({**stored, "plan": {"name": "tiny"}}))
    with pytest.raises(ArtifactError, match=r"retraining\.json: holds a plan that is none"):
        render_family(out, "tiny")
    with pytest.raises(NailtoolError, match=r"holds none of retraining\.json"):
        render_family(tmp_path / "elsewhere", "tiny")


@pytest.mark.slow
def test_hands_are_rendered_where_none_are_given(photos: Path, plan: Path, tmp_path: Path) -> None:
    arguments = ["--plan", str(plan), "--photos", str(photos), "--out", str(tmp_path), "--sizes", "none"]
    assert run(*arguments, "--max-minutes", "0.0001") == 0
    assert len(list((tmp_path / "hands" / "images").iterdir())) == 4


def test_every_shipped_plan_has_its_expectation() -> None:
    assert set(SHIPPED) == {path.stem for path in (model_zoo.ROOT / "plans").glob("*.toml")}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_plans_hold_possible_settings_and_known_sizes(name: str) -> None:
    once, stages = SHIPPED[name]
    plan = load_plan(name)
    assert plan.name == name
    for smoke in (False, True):
        order = RetrainOrder(plan.shrink() if smoke else plan, Path("photos"), None, Path("out"))
        trainings = list_trainings(order)
        assert [t.order.out.name for t in trainings][: len(stages)] == stages
        sized = [t.order for t in trainings if t.order.input_px]
        assert all(o.settings["crop_px"] == (64 if smoke else o.input_px) for o in sized)
        for training in trainings:
            config = make_config(training.order)
            assert (config.steps == 2) is smoke and choose_variants(training.order)
    folded = list_trainings(RetrainOrder(plan, Path("photos"), None, Path("out"), folds=5))
    assert len(folded) == once + 5 * (len(stages) - once + 3)  # the rendered stages once
    assert [t.order.fold for t in folded][: once + 1] == [""] * once + ["1/5"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("depth = 43", "depth = 44"), r"depth: .*43 or 55.*found 44"),
        (("batch = 2", "steps = 9"), r"settings must not hold steps"),
        (("batch = 2", "checkpoint_every = 9"), r"must not hold checkpoint_every.*takes --checkpoint-every"),
        (("hands = 0.5", "hand = 0.5"), r"stages\.1\.hands: Field required"),
        (("hands = 1.0", "hands = 0.0"), r"hands and photos are both 0"),
        (('name = "mixed"', 'name = "rendered"'), r"two stages have one name"),
        (("batch = 2", "batch ="), r"not valid TOML"),
        (("batch = 2", "batches = 2"), r"batches: Extra inputs are not permitted"),
        (("px = [288]", "px = [300]"), r"Unknown input size '300'; known: 288, 352, 480"),
    ],
)
def test_a_wrong_plan_is_refused_by_its_key_before_any_work(
    change: tuple[str, str],
    message: str,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import re

    plan = tmp_path / "wrong.toml"
    assert change[0] in PLAN
    plan.write_text(PLAN.replace(*change))
    out = tmp_path / "out"
    assert run("--plan", str(plan), "--photos", str(photos), "--out", str(out)) == NailtoolError.exit_code
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert not out.exists()


def test_data_and_weights_that_would_fail_hours_later_are_refused_before_any_work(
    photos: Path, hands: Path, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    out = tmp_path / "out"

    def refuse(*arguments: str) -> str:
        assert run("--plan", str(plan), "--out", str(out), *arguments)
        assert not out.exists()
        return " ".join(capsys.readouterr().err.split())

    unsplit = tmp_path / "unsplit"
    shutil.copytree(photos, unsplit)
    (unsplit / "split.json").unlink()
    assert "no written split" in refuse("--photos", str(unsplit), "--hands", str(hands))
    split = {"dataset": "x", "note": "", "groups": {"t": ["a"], "v": ["b"]}, "held_out": ["v"]}
    (unsplit / "split.json").write_text(json.dumps({**split, "validation": ["v"]}))
    assert "the test part of its split is empty" in refuse("--photos", str(unsplit), "--hands", str(hands))
    assert "holds photographs, but --hands" in refuse("--photos", str(photos), "--hands", str(photos))
    assert "holds rendered images, but --photos" in refuse("--photos", str(hands))
    known = ("--photos", str(photos), "--hands", str(hands), "--folds", "2", "--until", "rendered")
    assert "no stage of this plan learns from any" in refuse(*known)
    deeper = model_zoo.find_variant("nail55-480").weights
    told = refuse("--photos", str(photos), "--hands", str(hands), "--init", deeper)
    assert "another network" in told or "layers" in told


def test_unknown_plans_sizes_and_a_dry_run(
    photos: Path, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--plan", "nail5", "--photos", str(photos)) == UnknownNameError.exit_code
    assert "nail43, nail55" in capsys.readouterr().err
    assert run("--photos", str(photos), "--sizes", "300") == UnknownNameError.exit_code
    assert run("--photos", str(photos), "--folds", "1") == NailtoolError.exit_code
    capsys.readouterr()
    out = tmp_path / "out"
    dry = ("--plan", str(plan), "--photos", str(photos), "--dry-run", "--json", "--out", str(out))
    assert run(*dry) == 0
    rows = json.loads(capsys.readouterr().out)["trainings"]
    assert [row["folder"] for row in rows] == ["1-rendered", "2-mixed", "3-size-288"]
    assert [row["init"] for row in rows] == ["random", "1-rendered", "2-mixed"] and not out.exists()
    assert run("--photos", str(photos), "--sizes", "480", "--dry-run", "--json", "--out", str(out)) == 0
    rows = json.loads(capsys.readouterr().out)["trainings"]
    stages = SHIPPED["nail55"][1]
    assert [row["folder"] for row in rows] == [*stages, "6-size-480"]
    assert [row["init"] for row in rows] == ["random", *stages] and not out.exists()
    assert run(*dry, "--until", "mixed", "--folds", "2") == 0
    rows = json.loads(capsys.readouterr().out)["trainings"]
    assert [row["folder"] for row in rows] == ["1-rendered", "fold-1-of-2/2-mixed", "fold-2-of-2/2-mixed"]
    assert run(*dry, "--until", "mixe") == UnknownNameError.exit_code
    assert "known: mixed, rendered. → Did you mean mixed?" in " ".join(capsys.readouterr().err.split())
    assert run(*dry, "--until", "mixed", "--sizes", "288") == NailtoolError.exit_code


def test_a_plan_without_sizes_takes_none_and_refuses_others() -> None:
    plan = load_plan("nail55").model_copy(update={"sizes": None})
    assert plan.choose_sizes(()) == plan
    with pytest.raises(UnknownNameError, match="known: none"):
        plan.choose_sizes((480,))
