"""The house rules that no linter knows: first lines, names, traces of a machine, imports that work."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("nailcore", "model_zoo", "quantize", "deploy", "benchmark", "nailtool")


def tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def sources() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def test_line_one_of_each_source_is_a_one_sentence_docstring() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path in [*sources(), *sorted((ROOT / "tests").rglob("*.py"))]
        if not re.match(r'^""".+[.!?)`]"""$|^""".+[.:]$', path.read_text("utf-8").split("\n", 1)[0])
    ]
    assert not wrong


def test_no_file_is_named_for_nothing() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [str(p) for p in sources() if p.stem in vague]


def test_nothing_tells_of_the_machine_it_was_written_on() -> None:
    folders = rb"|".join((rb"work/", rb"root/", rb"home/[a-z]"))
    traces = re.compile(rb"(?:^|[\s\"'(=:])/(?:" + folders + rb")|[a-z0-9.-]+/simple/|registry\.npmjs")
    found = []
    for path in tracked_files():
        if path != Path(__file__) and traces.search(path.read_bytes()):
            found.append(str(path.relative_to(ROOT)))
    assert not found


def test_every_room_is_packaged_and_every_module_imports_nothing_heavy() -> None:
    """`nailtool --help` and the report must not pay for torch or TensorFlow."""
    heavy = ["torch", "tensorflow", "coremltools", "onnx", "onnxruntime", "cv2", "playwright", "sklearn"]
    modules = ["nailtool.cli", "nailtool.pipeline", "benchmark.report", "deploy", "model_zoo", "quantize"]
    code = f"import sys, {', '.join(modules)}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "modules",
    [
        ("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime"),
        ("torch", "coremltools", "sklearn"),
        ("tensorflow", "tf_keras", "tensorflow_decision_forests", "tensorflowjs", "onnx2tf"),
        ("ai_edge_litert.interpreter",),
        ("playwright.sync_api", "starlette", "uvicorn", "cv2", "safetensors", "pytask"),
    ],
    ids=lambda m: m[0],
)
def test_the_pinned_set_really_imports(modules: tuple[str, ...]) -> None:
    """`pip check` passes on sets that fail at import."""
    code = "; ".join(f"import {module}" for module in modules)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
