"""The doctor: what it finds, what it calls missing, and that it tells how to get it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nailtool import cli, doctor, rooms
from nailtool.doctor import Library, examine, try_imports
from tests.nailtool.house import make_registry


@pytest.fixture(autouse=True)
def fake_house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = make_registry(tmp_path)
    monkeypatch.setattr(rooms, "find_registry", lambda: registry)


def run_doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor", "--json", *arguments])
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is (stop.value.code in (0, None))
    return int(stop.value.code or 0), {finding["what"]: finding for finding in document["findings"]}


def test_a_module_that_does_not_import_is_found_by_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such_part_of_it")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "deadly.py").write_text("import os\nos._exit(9)")
    found = try_imports(["json", "half_installed", "deadly", "csv"])
    assert list(found) == ["json", "half_installed", "deadly", "csv"]
    assert found["json"] == found["csv"] == ""
    assert "no_such_part_of_it" in found["half_installed"]
    assert "code 9" in found["deadly"]


def test_a_missing_library_is_exit_code_three(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    libraries = (
        Library("pydantic", "pydantic", "contracts"),
        Library("no-such-distribution", "no_such_module", "nothing"),
        Library("no-such-option", "no_such_module", "training", required=False),
    )
    monkeypatch.setattr(doctor, "LIBRARIES", libraries)
    code, findings = run_doctor(capsys, "--out", str(tmp_path))
    assert code == 3
    assert findings["pydantic"]["state"] == "ok"
    assert findings["no-such-distribution"]["state"] == "missing"
    assert "pip install" in findings["no-such-distribution"]["remedy"]
    assert findings["no-such-option"]["state"] == "absent"
    assert all(finding["remedy"] for finding in findings.values() if finding["state"] == "missing")


def test_a_machine_without_a_browser_can_do_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from deploy import chromium, display, firefox, webkit
    from nailcore.errors import MissingToolError

    def find_nothing() -> Path:
        raise MissingToolError("None here.", hint="Install it.")

    for module in (chromium, firefox, webkit):
        monkeypatch.setattr(module, "find_browser", find_nothing)
    monkeypatch.setattr(webkit, "find_driver", find_nothing)
    monkeypatch.setattr(display, "find_display_server", find_nothing)
    monkeypatch.setattr(doctor, "LIBRARIES", ())
    code, findings = run_doctor(capsys, "--out", str(tmp_path))
    assert code == 0
    for what in ("Chromium or Chrome", "Firefox", "WebKitGTK driver", "WebKitGTK browser", "Xvfb"):
        assert findings[what]["state"] == "absent", what
        assert findings[what]["remedy"] == "Install it."


def test_full_disk_missing_weights_and_unwritable_output(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "LIBRARIES", ())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)  # type: ignore[attr-defined]
    registry = rooms.find_registry()
    (registry.weights_dir / "nail43.safetensors").unlink()
    findings = {f.what: f for f in examine(tmp_path / "new" / "out", registry)}
    for what in ("disk", "output folder", "weights nail43.safetensors"):
        assert findings[what].state == "missing" and findings[what].remedy, what
    assert findings["weights nail55.safetensors"].state == "ok"
    assert not (tmp_path / "new").exists()
