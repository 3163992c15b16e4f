"""The pipeline over fake targets: what runs, what does not, why, and what survives accidents."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nailcore.artifact import open_artifact
from nailcore.errors import ConversionError, MissingToolError, UnknownNameError, WeightsError
from nailcore.facts import Skipped
from nailcore.runtime import Engine
from nailtool import executors, inputs, lock
from nailtool.checks import list_checks, plan_checks
from nailtool.command_line import shorten_command
from nailtool.defaults import DEFAULT_SETTINGS
from nailtool.parity_stages import parity_stage
from nailtool.pipeline import describe_data, find_built, run_plan
from nailtool.sources import hash_sources
from nailtool.stages import Unit
from nailtool.workers import StageCrashError, WorkerDiedError
from tests.nailtool.house import all_units, make_order, run, statuses


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

    inputs.find_version.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda _: "99.1")
        found = explain(tmp_path)
    inputs.find_version.cache_clear()
    assert len(found) == 6
    old = inputs.find_version("numpy")
    assert found["nail55-64 onnx fp32"] == (f"tool numpy changed: {old} → 99.1",)

    with monkeypatch.context() as patch:
        patch.setattr(
            inputs, "hash_sources", lambda entries: hash_sources(entries) | {"deploy/new.py": "0" * 64}
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
    assert result.reasons == ("variant nail43-64 changed: fusion_width 128 → 32",)


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
            parity_stage(plan, unit, data, Engine("onnxruntime"), {}),
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


def test_a_check_per_unit_and_engine_that_is_asked_for(tmp_path: Path) -> None:
    order = make_order(tmp_path)
    run(order)
    plan, units = order.plan, all_units(order)

    def names(engines: str | None) -> list[str]:
        return [check.stage_name for check in list_checks(plan, units, engines)]

    usual, every = names(None), names("all")
    assert len(usual) == len(set(usual)) == 6 and not any("webgl" in name for name in usual)
    assert set(usual) < set(every) and len(every) == 10
    assert names("fake-webgl") == [name for name in every if name.endswith("fake-webgl")]
    assert len(names("fake-webgl, onnxruntime")) == 6
    with pytest.raises(UnknownNameError, match="fake-wasm"):
        names("fake-wasn")
    data = plan.data_node(None)
    stages = plan_checks(plan, list_checks(plan, units, "all"), data)
    products = [node.name for stage in stages for node in stage.products]
    assert len(set(products)) == 20
    assert "facts/parity/nail55-64.tfjs.fp16.fake-webgl.json" in products
    # What rounds is also proven against its sibling that does not.
    (rounded,) = [s for s in stages if s.name == "parity nail55-64 tfjs fp16 fake-wasm"]
    assert "nail55-64/nail55-64.fp32.tfjs" in {node.name for node in rounded.inputs}


def test_a_verdict_depends_on_the_browser_and_on_how_many_images_an_engine_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = make_order(tmp_path)
    run(order)
    plan, unit = order.plan, all_units(order)[0]
    target = plan.find_target(unit.kind)

    def state(engine: Engine) -> dict[str, object]:
        stage = parity_stage(
            plan, unit, plan.data_node(None), engine, executors.describe_place(target, engine)
        )
        return {node.name: node.state() for node in stage.inputs}

    monkeypatch.setattr(executors, "_describe_browser", lambda module: f"{module} 1")
    assert executors.describe_place(target, Engine("onnxruntime")) == {}
    assert executors.describe_place(target, Engine("mil-reference")) == {}
    before = state(Engine("chromium-wasm"))
    assert before["browser"] == "deploy.chromium 1"
    monkeypatch.setattr(executors, "_describe_browser", lambda module: f"{module} 2")
    assert state(Engine("chromium-wasm"))["browser"] == "deploy.chromium 2"
    lacking = Skipped(what="it", reason="no display", remedy="install one")
    monkeypatch.setattr(target, "find_obstacle", lambda name: lacking, raising=False)
    assert state(Engine("chromium-wasm"))["obstacle"] == "no display"
    monkeypatch.setattr(target, "find_obstacle", lambda name: None, raising=False)
    assert state(Engine("chromium-wasm"))["obstacle"] == "none"
    assert state(Engine("chromium-wasm", image_limit=3))["engine"] != before["engine"]


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
