"""Interruption and locking: what a stopped or killed command leaves, and two commands in one folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nailcore.artifact import open_artifact
from nailcore.errors import BusyError
from nailtool import lock
from nailtool.nodes import FileNode
from tests.nailtool.house import all_units, command, make_order, run, statuses

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("interrupted", ["explain", "run"])
def test_control_c_while_staleness_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: str
) -> None:
    order = make_order(tmp_path, explain=interrupted == "explain")
    calls = 0

    def interrupt(node: FileNode) -> str:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return "0" * 64

    with monkeypatch.context() as patch:
        patch.setattr(FileNode, "state", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(order)
    assert not list((tmp_path / "out").rglob("*.onnx"))
    assert set(statuses(run(make_order(tmp_path))).values()) == {"built"}


def test_two_commands_in_one_folder(tmp_path: Path) -> None:
    with lock.hold_folder(tmp_path / "out"), pytest.raises(BusyError, match=str(os.getpid())):
        run(make_order(tmp_path))
    assert set(statuses(run(make_order(tmp_path))).values()) == {"built"}


def test_only_our_own_scratch_is_cleared(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ours = [
        "nail55-64/.nail55-64.fp32.tfjs.ab12cd_9.tmp",
        "retired-64/.retired-64.fp32.onnx.ab12cd_9.tmp",
        "facts/latency/cpu/.x.json.ab12cd_9.tmp",
        ".nailtool/.x.ab12cd_9.tmp",
        ".embedded.ab12cd_9.tmp",
    ]
    foreign = [
        ".precious.ab12cd_9.tmp",
        "project/.precious.ab12cd_9.tmp",
        "project/nail55-64/.precious.ab12cd_9.tmp",
        "nail55-64/.precious.tmp",
        "nail55-64/.precious.UPPER123.tmp",
        "nail55-64/deeper/.precious.ab12cd_9.tmp",
    ]
    for name in (*ours, *foreign):
        (out / name).mkdir(parents=True)
        (out / name / "content").write_text("")
    (out / "retired-64" / "retired-64.fp32.onnx.manifest.json").write_text("{}")
    run(make_order(tmp_path, explain=True))
    assert all((out / name).is_dir() for name in (*ours, *foreign))
    run(make_order(tmp_path))
    assert [name for name in ours if (out / name).exists()] == []
    assert [name for name in foreign if not (out / name / "content").exists()] == []


def test_a_folder_moved_aside_when_the_run_was_killed_is_moved_back(tmp_path: Path) -> None:
    order = make_order(tmp_path)
    run(order)
    unit = next(unit for unit in all_units(order) if unit.name == "nail55-64 tfjs fp16")
    scratch = unit.path.with_name(f".{unit.path.name}.ab12cd_9.tmp")
    scratch.mkdir()
    unit.path.rename(scratch / ".old")
    assert set(statuses(run(order)).values()) == {"cached"}
    open_artifact(unit.manifest)
    assert not scratch.exists()


@pytest.fixture
def sleeping_build(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A build whose deep variant never ends; yielded when everything else is done."""
    process = subprocess.Popen(
        [sys.executable, *command(tmp_path, "build-variants", "--out", str(tmp_path / "out"), deep="sleep")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background job, CI among them, ignores Ctrl-C and would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
    )
    done = tmp_path / "out" / "nail43-64" / "nail43-64.fp16.tfjs.manifest.json"
    half = tmp_path / "out" / "nail55-64"
    deadline = time.monotonic() + 120
    while not (done.exists() and list(half.glob(".*.tmp"))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def assert_resumes(tmp_path: Path) -> None:
    (tmp_path / "weights" / "nail55.safetensors").write_text("go nail55")
    results = statuses(run(make_order(tmp_path)))
    assert results["nail55-64 onnx fp32"] == "built"
    assert results["nail43-64 onnx fp32"] == results["nail43-64 tfjs fp32"] == "cached"
    assert not list((tmp_path / "out").rglob(".*.tmp"))


def wait_until_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive


def test_control_c_keeps_what_is_finished(sleeping_build: subprocess.Popen[str], tmp_path: Path) -> None:
    children = psutil.Process(sleeping_build.pid).children(recursive=True)
    assert children
    os.killpg(sleeping_build.pid, signal.SIGINT)
    _, said = sleeping_build.communicate(timeout=60)
    assert sleeping_build.returncode == 130
    assert "finished artefacts are kept" in said and "Traceback" not in said
    wait_until_gone(children)
    assert_resumes(tmp_path)


def test_a_killed_build_leaves_no_process_and_resumes(
    sleeping_build: subprocess.Popen[str], tmp_path: Path
) -> None:
    children = psutil.Process(sleeping_build.pid).children(recursive=True)
    sleeping_build.kill()
    sleeping_build.wait(60)
    wait_until_gone(children)
    assert_resumes(tmp_path)


def test_a_second_build_meanwhile_is_refused(sleeping_build: subprocess.Popen[str], tmp_path: Path) -> None:
    second = subprocess.run(
        [sys.executable, *command(tmp_path, "build-variants", "--out", str(tmp_path / "out"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 4
    assert str(sleeping_build.pid) in second.stderr
