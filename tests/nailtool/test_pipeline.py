"""The pipeline over fake targets: what runs, what does not, why, and what survives accidents."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from nailcore.artifact import open_artifact
from nailcore.errors import BusyError, ConversionError, MissingToolError, WeightsError
from nailtool import lock, stages
from nailtool.command_line import shorten_command
from nailtool.defaults import DEFAULT_SETTINGS
from nailtool.nodes import FileNode
from nailtool.pipeline import Order, build_variants, describe_data, find_built, run_plan
from nailtool.sources import hash_sources
from nailtool.stage import StageResult
from nailtool.stages import Unit
from nailtool.workers import StageCrashError, WorkerDiedError
from tests.nailtool.house import command, make_registry

ROOT = Path(__file__).resolve().parents[2]


def make_order(tmp_path: Path, *, explain: bool = False, deep: str = "go", force: bool = False) -> Order:
    registry = make_registry(tmp_path, deep=deep)
    return Order(registry, out_dir=tmp_path / "out", jobs=2, explain=explain, force=force)


def all_units(order: Order) -> list[Unit]:
    registry = order.registry
    return order.plan.list_units(registry.variants.values(), registry.targets, registry.recipes.values())


def run(order: Order, units: list[Unit] | None = None) -> dict[str, StageResult]:
    results = build_variants(order, units or all_units(order))
    return {result.stage.name: result for result in results}


def statuses(results: dict[str, StageResult]) -> dict[str, str]:
    return {name: result.status for name, result in results.items()}


def explain(tmp_path: Path) -> dict[str, tuple[str, ...]]:
    results = run(make_order(tmp_path, explain=True))
    return {name: result.reasons for name, result in results.items() if result.status != "cached"}


def test_builds_everything_once_and_then_nothing(tmp_path: Path) -> None:
    order = make_order(tmp_path)
    first = run(order)
    assert set(statuses(first).values()) == {"built"}
    assert len(first) == 6
    assert first["nail55-64 onnx fp32"].reasons == ("never built in this folder",)
    for unit in all_units(order):
        open_artifact(unit.manifest)
    stamps = {unit.name: unit.manifest.stat().st_mtime_ns for unit in all_units(order)}
    second = run(order)
    assert set(statuses(second).values()) == {"cached"}
    assert stamps == {unit.name: unit.manifest.stat().st_mtime_ns for unit in all_units(order)}


def test_a_part_of_the_selection_brings_its_parents_and_forgets_nothing(tmp_path: Path) -> None:
    order = make_order(tmp_path)
    child = next(unit for unit in all_units(order) if unit.name == "nail43-64 tfjs fp16")
    assert statuses(run(order, [child])) == {"nail43-64 onnx fp32": "built", "nail43-64 tfjs fp16": "built"}
    results = statuses(run(order))
    assert results["nail43-64 tfjs fp16"] == "cached"
    assert results["nail55-64 onnx fp32"] == "built"


def test_explain_touches_nothing(tmp_path: Path) -> None:
    order = make_order(tmp_path, explain=True)
    assert set(statuses(run(order)).values()) == {"would run"}
    with pytest.raises(Exception, match="build-variants"):
        find_built(all_units(order))


@pytest.mark.parametrize("keep_timestamp", [True, False])
def test_a_tampered_artefact_is_named_and_rebuilt(tmp_path: Path, keep_timestamp: bool) -> None:
    order = make_order(tmp_path)
    run(order)
    unit = next(unit for unit in all_units(order) if unit.name == "nail55-64 onnx fp32")
    before = unit.path.stat()
    content = unit.path.read_bytes()
    unit.path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    if keep_timestamp:
        os.utime(unit.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    reasons = explain(tmp_path)
    assert reasons["nail55-64 onnx fp32"] == ("nail55-64/nail55-64.fp32.onnx was changed after it was built",)
    assert reasons["nail55-64 tfjs fp32"] == ("depends on nail55-64 onnx fp32, which would run first",)
    assert "nail43-64 onnx fp32" not in reasons
    results = statuses(run(order))
    assert results["nail55-64 onnx fp32"] == "built"
    # The rebuilt parent has the bytes it had before: what was made from it is still right.
    assert results["nail55-64 tfjs fp32"] == "cached"
    assert unit.path.read_bytes() == content
    open_artifact(unit.manifest)


def test_a_damaged_manifest_is_named_and_rebuilt(tmp_path: Path) -> None:
    order = make_order(tmp_path)
    run(order)
    unit = all_units(order)[0]
    unit.manifest.write_text("{")
    assert explain(tmp_path)[unit.name][0].endswith(".manifest.json was changed after it was built")
    assert statuses(run(order))[unit.name] == "built"
    open_artifact(unit.manifest)


def test_explain_names_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = make_order(tmp_path)
    run(order)
    units = {unit.name: unit for unit in all_units(order)}
    units["nail43-64 tfjs fp16"].manifest.unlink()
    (order.registry.weights_dir / "nail55.safetensors").write_text("go elsewhere")
    reasons = explain(tmp_path)
    assert reasons["nail43-64 tfjs fp16"] == ("nail43-64/nail43-64.fp16.tfjs.manifest.json is missing",)
    assert reasons["nail55-64 onnx fp32"] == ("weights nail55.safetensors changed",)
    run(order)

    stages._version.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda _: "99.1")
        found = explain(tmp_path)
    stages._version.cache_clear()
    assert len(found) == 6
    old = stages._version("numpy")
    assert found["nail55-64 onnx fp32"] == (f"tool numpy changed: {old} → 99.1",)

    with monkeypatch.context() as patch:
        patch.setattr(
            stages, "hash_sources", lambda entries: hash_sources(entries) | {"deploy/new.py": "0" * 64}
        )
        assert explain(tmp_path)["nail55-64 onnx fp32"] == ("source deploy/new.py is new",)
    assert explain(tmp_path) == {}


def test_explain_shows_the_key_of_a_changed_declaration(tmp_path: Path) -> None:
    order = make_order(tmp_path)
    run(order)
    variants = dict(order.registry.variants)
    variants["nail43-64"] = variants["nail43-64"].model_copy(update={"fusion_width": 32})
    changed = replace(order, registry=replace(order.registry, variants=variants), explain=True)
    result = run(changed)["nail43-64 onnx fp32"]
    assert result.reasons == ("variant nail43-64 changed: fusion_width 64 → 32",)


def test_facts_beside_the_weights_are_an_input(tmp_path: Path) -> None:
    order = make_order(tmp_path)
    run(order)
    facts = order.registry.weights_dir / "nail55.json"
    for change in (lambda: facts.write_text("{}"), lambda: facts.write_text("{ }"), facts.unlink):
        change()
        (reason,) = explain(tmp_path)["nail55-64 onnx fp32"]
        assert reason.startswith("facts nail55.json changed")
        assert statuses(run(order))["nail55-64 onnx fp32"] == "built"
        assert explain(tmp_path) == {}


def test_a_measurement_sees_the_declaration_and_the_written_split(
    tmp_path: Path,
) -> None:
    order = make_order(tmp_path)
    run(order)
    unit, data = all_units(order)[0], order.plan.data_node(None)

    def inputs(unit: Unit) -> list[dict[str, object]]:
        plan = order.plan
        made = (
            plan.parity_stage(unit, data, ""),
            plan.accuracy_stage(unit.variant, data),
            plan.report_stage(tmp_path / "r", data, {"source_sha256": ""}),
        )
        return [{node.name: node.state() for node in stage.inputs} for stage in made]

    for found in inputs(unit):
        assert "nailcore/data/splits/nails_cc0.json" in str(found["source"])
    changed = unit.variant.model_copy(update={"fusion_width": 32})
    name = f"variant {unit.variant.name}"
    parity, accuracy, _ = inputs(unit)
    other_parity, other_accuracy, _ = inputs(replace(unit, variant=changed))
    assert parity[name] != other_parity[name] and accuracy[name] != other_accuracy[name]


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


def test_a_failing_stage_stops_only_what_depends_on_it(tmp_path: Path) -> None:
    results = run(make_order(tmp_path, deep="refuse"))
    assert results["nail55-64 onnx fp32"].status == "failed"
    assert isinstance(results["nail55-64 onnx fp32"].error, ConversionError)
    assert results["nail55-64 tfjs fp16"].status == "blocked"
    assert results["nail43-64 tfjs fp16"].status == "built"
    assert not list((tmp_path / "out").rglob(".*.tmp"))


def test_a_dying_worker_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    results = run(make_order(tmp_path, deep="die"))
    error = results["nail55-64 onnx fp32"].error
    assert isinstance(error, WorkerDiedError)
    assert "nail55-64 onnx fp32" in error.message and "SIGKILL" in error.message
    assert results["nail43-64 tfjs fp16"].status == "built"


def test_a_crash_names_its_log(tmp_path: Path) -> None:
    error = run(make_order(tmp_path, deep="crash"))["nail55-64 onnx fp32"].error
    assert isinstance(error, StageCrashError)
    assert "surprise" in str(error)
    log = Path(error.log).read_text()
    assert "Traceback" in log and "the converter prints to standard output" in log


def test_damaged_records_mean_building_again(tmp_path: Path) -> None:
    order = make_order(tmp_path)
    run(order)
    books = lock.state_dir(tmp_path / "out") / "pytask.lock"
    books.write_text("not toml [")
    results = run(order)
    assert set(statuses(results).values()) == {"built"}
    assert results["nail55-64 onnx fp32"].reasons == ("no record of how it was built",)
    assert set(statuses(run(order)).values()) == {"cached"}


def test_force_runs_again(tmp_path: Path) -> None:
    run(make_order(tmp_path))
    results = run(make_order(tmp_path, force=True))
    assert set(statuses(results).values()) == {"built"}
    assert results["nail55-64 onnx fp32"].reasons == ("asked to run again",)


def test_missing_weights_are_said_before_anything_runs(tmp_path: Path) -> None:
    order = make_order(tmp_path)
    (order.registry.weights_dir / "nail43.safetensors").unlink()
    with pytest.raises(WeightsError, match="nail43"):
        run(order)


def test_a_full_disk_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("U", (), {"free": 1000})())
    with pytest.raises(MissingToolError, match="free"):
        run(make_order(tmp_path))
    assert not list((tmp_path / "out").glob("nail*"))


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


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (["report", "--data", "/srv/ada/my photos", "--jobs", "2"], "report --data 'my photos' --jobs 2"),
        (["report", "--out=/srv/ada/out/", "--json"], "report --out=out --json"),
        (["report", "--out", "~/builds", "--variants", "a,b"], "report --out builds --variants a,b"),
        (["report", "--reports-dir", "C:\\Users\\ada\\r"], "report --reports-dir r"),
        (["train", "--data", "."], f"train --data {Path.cwd().name}"),
    ],
)
def test_a_command_is_quoted_without_the_folders_of_its_machine(typed: list[str], shown: str) -> None:
    assert shorten_command(typed) == f"nailtool {shown}"


def test_synthetic_images_are_not_called_photographs(tmp_path: Path) -> None:
    assert "synthetic" in describe_data(None)
    assert describe_data(tmp_path) == f"photographs of the folder '{tmp_path.name}'"
    (tmp_path / "dataset.json").write_text('{"name": "x", "synthetic": true}')
    assert describe_data(tmp_path) == f"synthetic images of the folder '{tmp_path.name}'"


def test_a_latency_measured_otherwise_is_not_up_to_date(tmp_path: Path) -> None:
    order = make_order(tmp_path)
    unit = all_units(order)[0]
    run(order, [unit])

    def measure(
        *, rounds: int = DEFAULT_SETTINGS["rounds"], threads: int = 1, force: bool = False, browser: str = "1"
    ) -> str:
        settings = {"rounds": rounds, "threads": threads}
        stage = order.plan.latency_stage("cpu", [unit], settings, {"browser": browser})
        (result,) = run_plan(replace(order, force=force), [stage])
        assert result.error is None
        return result.status

    assert [measure(), measure()] == ["built", "cached"]
    for other in ({"rounds": 1}, {"threads": 4}, {"browser": "2"}):
        measure(**other, force=True)
        assert [measure(), measure()] == ["built", "cached"], other
    measure(rounds=30, force=True)
    assert measure() == "cached"
    (unit.path.parent / "busy").touch()
    measure(force=True)
    assert measure() == "cached"  # an invalid row is shown as invalid; measuring again would never end


def test_an_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(Exception, match="output folder"):
        run(make_order(tmp_path))


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
