"""The gate at the command line: what is judged, when again, what it says and how it ends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nailcore.artifact import read_manifest
from nailcore.errors import ConversionError
from nailcore.facts import read_fact
from nailcore.gate_facts import GateVerdict, Ladder
from nailtool import cli, gate_stages, pipeline, rooms
from nailtool.checks import Check, plan_checks
from nailtool.inputs import DataNode
from nailtool.stage import Stage
from nailtool.stages import Plan, Unit
from quantize import Recipe
from quantize.prepared import PreparedCard
from quantize.recipe import Activations, Calibration
from tests.nailtool.fake_parity import ORDERS
from tests.nailtool.fake_target import REFUSED
from tests.nailtool.house import make_registry
from tests.nailtool.test_cli import PIXEL


class Unprepared(Recipe):
    """A recipe of integer arithmetic whose conversion, a fake, needs no image."""

    @property
    def needs_preparation(self) -> bool:
        return False


def make_integer(name: str) -> Recipe:
    return Unprepared(
        name=name,
        summary="integers",
        targets=("onnx",),
        default=False,
        rung=2,
        weights_dtype="int8",
        compute_dtype="int8",
        activations=Activations(),
        calibration=Calibration(),
    )


def plan_fake_checks(
    plan: Plan, checks: Sequence[Check], data: DataNode, *, planned: Sequence[Unit] = ()
) -> list[Stage]:
    stages = plan_checks(plan, checks, data, planned=planned)
    return [replace(stage, job="tests.nailtool.fake_parity:write_parity") for stage in stages]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables wrap their words at 80 columns, which is what a worker process of pytest has."""
    monkeypatch.setenv("COLUMNS", "240")


@pytest.fixture(autouse=True)
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fake house with recipes that quantize and a device that tells time; two bytes of photographs."""
    registry = make_registry(tmp_path)
    stored = Recipe(
        name="int8-weights", summary="stored", targets=("onnx", "tfjs"), default=False, weights_dtype="int8"
    )
    recipes = {r.name: r for r in (stored, make_integer("int8-x"), make_integer("int8-slow"))}
    registry = replace(
        registry,
        recipes={**registry.recipes, **recipes},
        devices={**registry.devices, "timer": "tests.nailtool.fake_timer"},
    )
    monkeypatch.setattr(rooms, "find_registry", lambda: registry)
    monkeypatch.setattr(gate_stages, "plan_checks", plan_fake_checks)
    monkeypatch.setattr(pipeline, "plan_checks", plan_fake_checks)
    monkeypatch.chdir(tmp_path)
    for name in ("images", "masks"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "a.png").write_bytes(PIXEL)
    return tmp_path


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return int(stop.value.code or 0)


def build(*arguments: str) -> int:
    chosen = ("--variants", "nail43-64", "--data", "photos", "--out", "out")
    return call("build-variants", *chosen, *arguments)


def order_parity(house: Path, **orders: Any) -> None:
    """What parity says from now on of a recipe, written with _ for -."""
    found = {name.replace("_", "-"): order for name, order in orders.items()}
    (house / "weights" / ORDERS).write_text(json.dumps(found))


def read_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_quantized_file_is_built_checked_timed_and_judged(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build("--recipes", "int8-x", "--device", "timer", "--json") == 0
    document = read_json(capsys)
    assert {entry["recipe"] for entry in document["artifacts"]} == {"fp32", "int8-x"}
    (verdict,) = document["gates"]
    assert (verdict["decision"], verdict["bought"]) == (
        "shippable",
        "compute",
    )  # the fake files are no smaller
    assert verdict["speed"][0]["ratio"]["value"] == pytest.approx(0.6)
    kept = read_fact(house / "out/facts/gate/nail43-64.onnx.int8-x.json", GateVerdict)
    manifest = read_manifest(house / "out/nail43-64/nail43-64.int8-x.onnx.manifest.json")
    assert kept.artifact.sha256 == manifest.sha256 and kept.integer
    assert build("--recipes", "int8-x", "--device", "timer", "--explain", "--json") == 0
    assert read_json(capsys)["would_run"] == 0


def test_float_recipes_cost_what_they_did(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build("--explain", "--json") == 0
    names = [stage["stage"] for stage in read_json(capsys)["stages"]]
    assert names == ["nail43-64 onnx fp32", "nail43-64 tfjs fp32", "nail43-64 tfjs fp16"]
    assert build("--recipes", "int8-x", "--no-gate", "--json") == 0
    assert read_json(capsys)["gates"] == [] and not (house / "out/facts").exists()
    assert build("--recipes", "fp32,fp16", "--targets", "tfjs", "--gate", "--json") == 0
    assert [v["artifact"]["recipe"] for v in read_json(capsys)["gates"]] == ["fp32", "fp16"]


@pytest.mark.parametrize(
    "case",
    [
        ("int8-x", {"status": "failed"}, (), 1, "is not shippable: Parity failed: fgbg is off."),
        ("int8-x", {"lost": [0.0] * 8 + [9.0]}, (), 1, "the upper end crosses the limit of 1."),
        ("int8-x", {"lost": [1.0] * 10}, ("--max-drop", "0.5"), 1, "the limit of 0.5."),
        ("int8-slow", {}, ("--device", "timer"), 1, "Integer arithmetic that is not faster: 1.04"),
        ("int8-slow", {}, (), 0, "Its speed was not measured"),
        ("int8-x", {"lost": [0.1] * 3}, (), 3, "is undecided: "),
        ("int8-x", {"status": "not executed"}, (), 3, "no browser"),
        ("int8-weights", {}, ("--targets", "tfjs", "--device", "timer"), 0, "it runs onnx files only"),
    ],
)
def test_verdicts_decide_the_exit_code_and_the_file_is_written(
    case: tuple[str, dict[str, Any], tuple[str, ...], int, str],
    house: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe, order, arguments, code, told = case
    order_parity(house, **{recipe: order})
    assert build("--recipes", recipe, *arguments) == code
    said = capsys.readouterr()
    assert told in said.err + said.out
    assert list((house / "out/nail43-64").glob(f"nail43-64.{recipe}.*.manifest.json"))
    assert ("not shippable" in said.out) == (code == 1)


def test_another_limit_judges_again_and_checks_nothing_again(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order_parity(house, int8_x={"lost": [0.5] * 10})
    assert build("--recipes", "int8-x", "--quiet") == 0
    assert build("--recipes", "int8-x", "--max-drop", "0.2", "--explain", "--json") == 0
    stages = {s["stage"]: s["status"] for s in read_json(capsys)["stages"]}
    assert [name for name, status in stages.items() if status == "would run"] == [
        "gate nail43-64 onnx int8-x"
    ]
    assert build("--recipes", "int8-x", "--max-drop", "0.2", "--quiet") == 1
    path = house / "out/facts/gate/nail43-64.onnx.int8-x.json"
    path.write_text(path.read_text().replace("not shippable", "shippable"))  # a verdict that was edited
    assert build("--recipes", "int8-x", "--max-drop", "0.2", "--quiet") == 1


def test_a_report_keeps_the_limit_a_file_was_judged_by(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        "report",
        "--variants",
        "nail43-64",
        "--data",
        "photos",
        "--out",
        "out",
        "--explain",
        "--json",
    )
    assert build("--recipes", "int8-x", "--device", "timer", "--max-drop", "0.2", "--quiet") == 0
    assert call(*arguments) == 0
    stages = {s["stage"]: s for s in read_json(capsys)["stages"]}
    for name in (
        "gate nail43-64 onnx int8-x",
        "speed nail43-64 onnx timer",
        "parity nail43-64 onnx int8-x onnxruntime",
    ):
        assert stages[name]["status"] == "cached", stages[name]
    assert "gate nail43-64 onnx fp32" not in stages and "gate nail43-64 onnx int8-slow" not in stages


def test_questions_about_nothing_and_unknown_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert build("--recipes", "fp32", "--device", "timer") == 2
    assert "none of these is" in capsys.readouterr().err
    assert build("--recipes", "int8-x", "--device", "time") == 2
    assert "Did you mean timer" in capsys.readouterr().err
    assert build("--recipes", "int8-x", "--device", "cpu") == 3
    assert "It is a fake." in capsys.readouterr().err


# -- the ladder -------------------------------------------------------------------------------------
LADDER = ("ladder", "--variants", "nail43-64", "--targets", "onnx", "--out", "out")


def test_the_ladder_runs_what_is_missing_and_shows_the_rungs_that_hurt(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*LADDER) == 2
    assert "--run" in capsys.readouterr().err
    order_parity(house, int8_x={"status": "failed"})
    assert call(*LADDER, "--run", "--data", "photos", "--json") == 0
    ladder = Ladder.model_validate(read_json(capsys))
    decisions = {v.artifact.recipe: v.decision for v in ladder.verdicts}
    assert decisions == {
        "fp32": "shippable",
        "int8-weights": "shippable",
        "int8-x": "not shippable",
        "int8-slow": "not shippable",
    }
    assert not ladder.missing and all(v.speed for v in ladder.verdicts if v.fp32)
    assert call(*LADDER) == 0
    said = capsys.readouterr().out
    assert "Ship: nail43-64.int8-weights.onnx" in said and "no: parity failed" in said


def test_the_ladder_makes_everything_again_only_when_told(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*LADDER, "--force") == 2
    assert "--run" in capsys.readouterr().err
    again = (*LADDER, "--recipes", "int8-x", "--run", "--data", "photos", "--device", "none")
    told = []
    for force in ((), (), ("--force",)):
        assert call(*again, *force) == 0
        told.append("built nail43-64 onnx int8-x" in capsys.readouterr().err)
    assert told == [True, False, True]


def test_a_warning_of_the_preparation_is_said_by_every_command_that_uses_it(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = house / "out/prepared/nail43-64.int8-x"
    folder.mkdir(parents=True)
    notes = {"warning": "Calibrated on 5 images."}
    card = PreparedCard(variant="nail43-64", recipe="int8-x", weights_sha256="0" * 64, notes=notes)
    (folder / "prepared.json").write_text(card.model_dump_json())
    for _ in range(2):  # also when nothing is done again
        assert build("--recipes", "int8-x") == 0
        assert "Warning: nail43-64.int8-x: Calibrated on 5 images." in capsys.readouterr().err
    assert call(*LADDER, "--recipes", "int8-x") == 0
    assert "Calibrated on 5 images." in capsys.readouterr().err
    assert build("--recipes", "fp32") == 0
    assert "Calibrated" not in capsys.readouterr().err


def test_a_kept_ladder_is_shown_and_written_into_documents(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build("--recipes", "int8-x", "--quiet") == 0
    page = house / "page.md"
    page.write_text("<!-- which-file -->\n<!-- /which-file -->\n")
    assert call(*LADDER, "--save", "kept.json", "--update", "page.md") == 0
    said = capsys.readouterr()
    assert "nail43-64 onnx fp32" in said.err.partition("No verdict about")[2]
    assert "| onnx | nail43-64 | `int8-x` |" in page.read_text()
    assert call("ladder", "--load", "kept.json", "--markdown") == 0
    assert "#### nail43-64, onnx" in capsys.readouterr().out
    assert call("ladder", "--load", "kept.json", "--run") == 2
    capsys.readouterr()
    kept = json.loads((house / "kept.json").read_text())
    kept["verdicts"][0]["decision"] = "undecided"
    (house / "later.json").write_text(json.dumps(kept))
    assert call("ladder", "--load", "kept.json", "--load", "later.json", "--json") == 0
    merged = Ladder.model_validate(read_json(capsys))
    assert [v.decision for v in merged.verdicts] == ["undecided"], "the later verdict about a file counts"
    (house / "out/nail43-64/nail43-64.int8-x.onnx.manifest.json").unlink()
    assert call(*LADDER) == 2, "a verdict about a file that is gone is none"


def test_a_recipe_that_fails_keeps_no_other_file_from_being_timed_and_judged(
    house: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = rooms.find_registry()
    registry = replace(registry, recipes={REFUSED: make_integer(REFUSED), **registry.recipes})
    monkeypatch.setattr(rooms, "find_registry", lambda: registry)
    for times in ("once", "again"):
        assert call(*LADDER, "--run", "--data", "photos", "--json") == ConversionError.exit_code, times
        said = capsys.readouterr()
        ladder = Ladder.model_validate(json.loads(said.out))
        assert {v.artifact.recipe for v in ladder.verdicts} == {"fp32", "int8-slow", "int8-x", "int8-weights"}
        assert all(v.speed for v in ladder.verdicts if v.fp32)
        assert ladder.missing == (f"nail43-64 onnx {REFUSED}",)
        told = f"about nail43-64 onnx {REFUSED}: its conversion, check or timing failed"
        assert "refused." in said.err and told in said.err
        assert ("built speed" in said.err) == (times == "once"), "timed again"
    names = [REFUSED, "int8-x"]
    assert build("--recipes", ",".join(names), "--device", "timer", "--json") == ConversionError.exit_code
    (verdict,) = read_json(capsys)["gates"]
    assert verdict["artifact"]["recipe"] == "int8-x" and verdict["speed"]
    # The same in a report: the file's failure is told, the others are timed and judged.
    (house / f"out/nail43-64/nail43-64.{REFUSED}.onnx.manifest.json").write_text("{}")  # was there once
    (house / "out/facts/gate/nail43-64.onnx.int8-x.json").unlink()
    assert call("report", "--variants", "nail43-64", "--data", "photos", "--out", "out", "--json")
    stages = {stage["stage"]: stage["status"] for stage in read_json(capsys)["stages"]}
    assert stages[f"nail43-64 onnx {REFUSED}"] == "failed"
    assert stages["latency timer"] == "built"
    assert [stages[f"gate nail43-64 onnx {name}"] for name in names] == ["blocked", "built"]


# -- recipes ----------------------------------------------------------------------------------------
def test_recipes_are_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("recipes", "--json") == 0
    names = [recipe["name"] for recipe in read_json(capsys)["recipes"]]
    assert names == ["fp32", "fp16", "int8-slow", "int8-x", "int8-weights"]
    assert call("recipes", "int8-x") == 0
    said = capsys.readouterr().out
    assert "weights.keep_float" in said and "layers that stay in float" in said and '"int8-x"' in said
    assert call("recipes", "int8-y") == 2
    assert "Did you mean int8-x" in capsys.readouterr().err
