"""The command line: messages, exit codes, JSON, and what it must not import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nailcore.errors import NailtoolError
from nailtool import cli, rooms
from nailtool.boundary import EXIT_CRASH
from nailtool.shadow import HOME, find_shadow
from tests.nailtool.house import command, make_registry

HEAVY = ("torch", "tensorflow", "cv2", "numpy", "pydantic", "onnx", "pytask", "rich", "psutil", "playwright")


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
