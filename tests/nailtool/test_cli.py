"""The command line: messages, exit codes, JSON, and what it must not import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from nailcore.artifact import read_manifest
from nailcore.errors import NailtoolError
from nailcore.facts import ArtifactRef, ParityResult, write_fact
from nailcore.storage import write_text
from nailtool import cli, pipeline, rooms
from nailtool.boundary import EXIT_CRASH
from nailtool.checks import find_failed_parity, list_checks, plan_checks
from nailtool.pipeline import Order
from nailtool.shadow import HOME, find_shadow
from nailtool.stage import StageResult
from nailtool.stages import Unit
from tests.nailtool.house import command, make_registry

HEAVY = ("torch", "tensorflow", "cv2", "numpy", "pydantic", "onnx", "pytask", "rich", "psutil", "playwright")

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154081d6360"
    "000000020001cfc835e50000000049454e44ae426082"
)


@pytest.fixture(autouse=True)
def fake_house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = make_registry(tmp_path)
    monkeypatch.setattr(rooms, "find_registry", lambda: registry)
    monkeypatch.chdir(tmp_path)


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return int(stop.value.code or 0)


def run_process(*arguments: str, cwd: Path = HOME, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": path} if path else dict(os.environ)
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom nailtool.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    code = stop.code\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules], code)"
    )
    done = run_process("-c", code)
    assert done.stdout.splitlines()[-1] == "HEAVY [] 0", done.stderr
    assert "build-variants" in done.stdout


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    app = cli.make_app()
    names = [command.name for command in app.registered_commands]
    assert {"build-variants", "parity-check", "evaluate", "benchmark", "report", "doctor"} <= set(names)
    for name in names:
        assert name is not None
        assert call(name, "--help") == 0
        said = capsys.readouterr().out
        assert f"Example: nailtool {name}" in said, said
        assert "--json" in said and "--quiet" in said


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (("build-variants", "--variants", "nail55-46"), "nail55-64"),
        (("build-variants", "--targets", "onxx"), "onnx"),
        (("build-variants", "--recipes", "fp61"), "fp16"),
        (("benchmark", "--device", "gpu,cpu"), "cpu"),
        (("evaluate", "--variants", "nail44-64"), "nail43-64"),
    ],
)
def test_unknown_names_suggest_the_nearest(
    arguments: tuple[str, ...], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == 2
    said = capsys.readouterr()
    assert near in said.err and "Unknown" in said.err and "Traceback" not in said.err
    assert said.out == ""


def test_an_empty_selection_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("build-variants", "--targets", "onnx", "--recipes", "fp16") == 2
    assert "No artefact matches" in capsys.readouterr().err


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("build-variants", "--json", "--out", "out") == 0
    first = json.loads(capsys.readouterr().out)
    assert first["built"] == 6 and first["failed"] == 0
    assert {entry["status"] for entry in first["artifacts"]} == {"built"}
    assert all(len(entry["sha256"]) == 64 for entry in first["artifacts"])
    assert call("build-variants", "--json", "--quiet", "--out", "out") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["cached"] == 6
    assert said.err == ""
    assert call("build-variants", "--explain", "--json", "--out", "out") == 0
    assert json.loads(capsys.readouterr().out)["would_run"] == 0
    assert call("build-variants", "--list", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["artifacts"]) == 6


def test_an_error_is_a_document_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("parity-check", "--json", "--out", "nothing") == 2
    said = capsys.readouterr()
    error = json.loads(said.out)["error"]
    assert error["kind"] == "ArtifactError" and error["exit_code"] == 2
    assert "build-variants" in error["hint"] and "build-variants" in said.err


def test_nothing_to_do_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("build-variants", "--out", "out") == 0
    said = capsys.readouterr()
    assert "6 of 6 artefacts were stale" in said.out
    assert "[  6/6]" in said.err
    assert call("build-variants", "--out", "out") == 0
    assert "Nothing to do: 6 artefacts are up to date" in capsys.readouterr().out


def test_failures_are_named_at_the_end(tmp_path: Path) -> None:
    weights = tmp_path / "weights" / "nail55.safetensors"
    weights.write_text("refuse")
    done = run_process(*command(tmp_path, "build-variants", "--out", str(tmp_path / "out")))
    assert done.returncode == 2
    assert "nail55-64 onnx fp32 failed: nail55-64: refused.\n→ Ask again." in done.stderr
    assert "nail55-64 tfjs fp16" in done.stderr.partition("Not run")[2]
    weights.write_text("crash")
    done = run_process(*command(tmp_path, "build-variants", "--out", str(tmp_path / "out")))
    assert done.returncode == EXIT_CRASH
    assert "KeyError: 'surprise'" in done.stderr and "Traceback" not in done.stderr


def test_a_defect_of_ours_is_a_short_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def explode() -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(rooms, "find_registry", explode)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert call("build-variants") == EXIT_CRASH
    said = capsys.readouterr().err
    assert "RuntimeError: a defect" in said and "Traceback" not in said
    logs = list(tmp_path.rglob("nailtool-crash-*.log"))
    assert len(logs) == 1 and "explode" in logs[0].read_text()


def test_an_interrupt_anywhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rooms, "find_registry", interrupt)
    assert call("build-variants") == 130
    assert "run the same command to resume" in capsys.readouterr().err


def test_usage_errors_end_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("build-variants", "--nonsense") == 2
    assert "--nonsense" in capsys.readouterr().err


def test_a_missing_data_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate", "--data", "nowhere") == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_device_in_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("build-variants", "--quiet", "--out", "out") == 0
    assert call("benchmark", "--out", "out") == 3
    said = capsys.readouterr().err
    assert "It is a fake." in said and "Use a real one." in said
    assert call("devices", "--json") == 0
    devices = json.loads(capsys.readouterr().out)["devices"]
    assert devices[0]["usable"] is False and devices[0]["runs"] == ["onnx"]


def test_a_damaged_artefact_fails_parity(tmp_path: Path) -> None:
    assert call("build-variants", "--quiet", "--out", "out", "--targets", "onnx") == 0
    for name in ("images", "masks"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "a.png").write_bytes(PIXEL)
    path = tmp_path / "out" / "nail43-64" / "nail43-64.fp32.onnx"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    arguments = ("parity-check", "--out", "out", "--data", "photos", "--variants", "nail43-64")
    done = run_process(*command(tmp_path, *arguments), cwd=tmp_path, path=str(HOME))
    assert done.returncode == 1, done.stderr
    assert (
        "nail43-64 onnx fp32 failed in onnxruntime" in done.stderr
        and "bytes changed since it was built" in done.stderr
    )


def test_an_unknown_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("build-variants", "--quiet", "--out", "out") == 0
    assert call("parity-check", "--out", "out", "--engines", "fake-webgpu") == 2
    assert "fake-webgl" in capsys.readouterr().err


@pytest.mark.parametrize(
    "case",
    [
        ("passed", "passed", (), 0, "synthetic"),
        ("passed", "not executed", (), 0, "Not executed: 4 of 6"),
        ("passed", "not executed", ("--targets", "onnx,tfjs"), 3, "no browser"),
        ("passed", "not executed", ("--engines", "all"), 0, "not run: fake-webgl"),
        ("passed", "not executed", ("--engines", "onnxruntime,fake-webgl"), 3, "no browser"),
        ("not executed", "not executed", (), 3, "no browser"),
        ("failed", "not executed", (), 1, "nail55-64 onnx fp32 failed in onnxruntime: fgbg is off"),
    ],
)
def test_verdicts_decide_the_exit_code(
    case: tuple[str, str, tuple[str, ...], int, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    onnx, tfjs, arguments, code, said = case
    assert call("build-variants", "--quiet", "--out", "out") == 0

    def check(
        order: Order, units: Sequence[Unit], data: Path | None, engines: str | None, **_: object
    ) -> list[StageResult]:
        statuses = {"onnx": onnx, "tfjs": tfjs}
        plan = order.plan
        checks = list_checks(plan, units, engines)
        for item in checks:
            fact = make_parity(item.unit, statuses[item.unit.kind], item.engine.name)
            write_fact(plan.parity_fact(item.unit, item.engine.name), fact)
        stages = plan_checks(plan, checks, plan.data_node(data))
        return [StageResult(stage, "built") for stage in stages]

    monkeypatch.setattr(pipeline, "check_parity", check)
    assert call("parity-check", "--out", "out", *arguments) == code
    captured = capsys.readouterr()
    assert said in captured.err or said in captured.out.lower()
    assert code == 0 or said in captured.err
    plan = Order(rooms.find_registry(), out_dir=Path("out")).plan
    failed = find_failed_parity(plan)
    assert bool(failed) == (code == 1)
    for manifest in Path("out").glob("*/*.onnx.manifest.json"):  # verdicts about files that are gone
        artifact = read_manifest(manifest).model_copy(update={"sha256": "0" * 64})
        write_text(manifest, artifact.model_dump_json())
    assert find_failed_parity(plan) == []


def test_a_failure_in_any_engine_counts_if_it_saw_the_same_images(tmp_path: Path) -> None:
    assert call("build-variants", "--quiet", "--out", "out") == 0
    plan = Order(rooms.find_registry(), out_dir=tmp_path / "out").plan
    registry = plan.registry
    units = plan.list_units(registry.variants.values(), registry.targets, registry.recipes.values())
    for check in list_checks(plan, units):
        write_fact(
            plan.parity_fact(check.unit, check.engine.name),
            make_parity(check.unit, "passed", check.engine.name),
        )
    unit = next(unit for unit in units if unit.name == "nail43-64 tfjs fp16")
    path = plan.parity_fact(unit, "fake-webgl")
    failed = make_parity(unit, "failed", "fake-webgl")
    for sha256, part_of, counts in (("a", "", True), ("b", "a", True), ("b", "c", False), ("b", "", False)):
        images = failed.images.model_copy(update={"sha256": sha256, "part_of_sha256": part_of})
        write_fact(path, failed.model_copy(update={"images": images}))
        assert find_failed_parity(plan) == (["nail43-64 tfjs fp16"] if counts else []), (sha256, part_of)


def make_parity(unit: Unit, status: str, engine: str) -> ParityResult:
    return ParityResult.model_validate(
        {
            "artifact": ArtifactRef.of(read_manifest(unit.manifest)).model_dump(),
            "weights_sha256": "",
            "status": status,
            "runtime": "none",
            "versions": {},
            "machine": {"cpu": "", "cores": 1, "memory_bytes": 1, "system": "", "python": ""},
            "engine": engine,
            "images": {"name": "synthetic", "sha256": "a", "count": 1, "synthetic": True},
            "limits": {"max_abs": None, "flipped_permille": 1, "reason": ""},
            "failures": ["fgbg is off"] if status == "failed" else [],
            "note": "no browser" if status == "not executed" else "",
        }
    )


def test_a_foreign_folder_that_shadows_a_room_is_named(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign" / "deploy"
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").write_text("")
    done = run_process("-m", "nailtool", "doctor", cwd=tmp_path, path=f"{foreign.parent}{os.pathsep}{HOME}")
    assert done.returncode == 2
    assert str(foreign) in done.stderr and "shadows" in done.stderr


def test_our_own_rooms_are_siblings(tmp_path: Path) -> None:
    assert find_shadow() is None
    assert find_shadow(rooms=("no_such_room",)) is not None
    found = find_shadow(home=tmp_path)
    assert found is not None and "nailcore" in found[0]


def test_the_public_names_are_the_intended_ones() -> None:
    import nailtool

    assert sorted(nailtool.__all__) == nailtool.__all__
    for name in nailtool.__all__:
        assert getattr(nailtool, name) is not None
    assert nailtool.NailtoolError is NailtoolError
    with pytest.raises(AttributeError):
        _ = nailtool.no_such_name
