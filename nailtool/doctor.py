"""What this machine can and cannot do, found out by trying; and how to get what is missing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from nailcore.errors import MissingToolError
from nailtool.lock import MINIMUM_FREE_BYTES
from nailtool.rooms import Registry
from nailtool.workers import THREAD_VARIABLES

State = Literal["ok", "missing", "absent"]  # absent: optional here, or another kind of machine
_IMPORT_TIMEOUT_S = 300  # a cold disk and a busy machine together
_MINIMUM_MEMORY_BYTES = 4_000_000_000  # two workers of up to 1.7 GB


class Finding(BaseModel):
    """One line of the doctor's report."""

    model_config = ConfigDict(frozen=True)
    what: str
    state: State
    found: str
    needed_for: str
    remedy: str = ""


@dataclass(frozen=True)
class Library:
    """A library to try: its distribution, the module that has to import, and what needs it.

    Libraries of one family work in one process, so they are tried in one.
    """

    distribution: str
    module: str
    needed_for: str
    required: bool = True
    family: str = "torch"


LIBRARIES = (
    Library("torch", "torch", "the network, ONNX and CoreML"),
    Library("onnx", "onnx", "ONNX"),
    Library("onnxscript", "onnxscript", "ONNX"),
    Library("onnxsim", "onnxsim", "ONNX"),
    Library("onnxruntime", "onnxruntime", "parity and latency of ONNX"),
    Library("coremltools", "coremltools", "CoreML"),
    Library("tensorflow", "tensorflow", "TF.js", family="tensorflow"),
    Library("tensorflowjs", "tensorflowjs", "TF.js", family="tensorflow"),
    Library("onnx2tf", "onnx2tf", "TF.js", family="tensorflow"),
    Library("opencv-python-headless", "cv2", "images"),
    Library("playwright", "playwright.sync_api", "driving a browser"),
    Library("lightning-fabric", "lightning_fabric", "training", required=False),
)


def examine(out_dir: Path, registry: Registry, *, real_imports: bool = True) -> list[Finding]:
    """Look at everything the commands rely on.

    With ``real_imports`` every library is imported in a process of its own: a version number says
    nothing about whether its parts fit together.
    """
    return [
        _examine_python(),
        *_examine_libraries(LIBRARIES, real_imports=real_imports),
        *_examine_browsers(),
        _examine_mac(),
        _examine_gpu(),
        _examine_memory(),
        _examine_disk(out_dir),
        _examine_output(out_dir),
        *_examine_weights(registry),
    ]


def _examine_python() -> Finding:
    good = sys.version_info[:2] == (3, 11)
    return Finding(
        what="Python",
        state="ok" if good else "missing",
        found=f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        needed_for="everything",
        remedy=""
        if good
        else "Python 3.11 is needed: the converters share no set of wheels for another one.",
    )


def _examine_libraries(libraries: Sequence[Library], *, real_imports: bool) -> list[Finding]:
    problems: dict[str, str] = {}
    if real_imports:
        families: dict[str, list[str]] = {}
        for library in libraries:
            families.setdefault(library.family, []).append(library.module)
        with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
            for found in pool.map(try_imports, families.values()):
                problems |= found
    return [
        _describe_library(library, _find_version(library), problems.get(library.module, ""))
        for library in libraries
    ]


def _find_version(library: Library) -> str:
    try:
        return importlib.metadata.version(library.distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _describe_library(library: Library, version: str, problem: str) -> Finding:
    name = library.distribution
    good = bool(version) and not problem
    extra = "nailtool" if library.required else "nailtool[train]"
    return Finding(
        what=name,
        state="ok" if good else "missing" if library.required else "absent",
        found=f"{version or 'not installed'}{f'; {problem}' if problem and version else ''}",
        needed_for=library.needed_for,
        remedy="" if good else f"Reinstall with the pinned versions: pip install '{extra}'.",
    )


_TRY = """
import importlib, json, sys
for module in sys.argv[1:]:
    try:
        importlib.import_module(module)
        problem = ""
    except BaseException as error:
        problem = f"does not import: {type(error).__name__}: {error}"
    print(json.dumps(["nailtool", module, problem]), flush=True)
"""


def try_imports(modules: Sequence[str]) -> dict[str, str]:
    """Import modules one after the other in one process; returns what went wrong with each, "" for nothing.

    A module that takes the process down is named, and those behind it are tried in another process.
    """
    environment = {**os.environ, **THREAD_VARIABLES}
    problem = ""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRY, *modules],
            capture_output=True,
            text=True,
            timeout=_IMPORT_TIMEOUT_S,
            env=environment,
            check=False,
        )
        said, problem = done.stdout, f"does not import: the process ended with code {done.returncode}"
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode() if isinstance(error.stdout, bytes) else ""
        problem = f"did not import within {_IMPORT_TIMEOUT_S} s"
    found: dict[str, str] = {}
    for line in said.splitlines():
        if line.startswith('["nailtool", '):
            _, module, trouble = json.loads(line)
            found[module] = trouble
    rest = [module for module in modules if module not in found]
    if rest:
        found[rest[0]] = problem
        found |= try_imports(rest[1:]) if rest[1:] else {}
    return found


def _examine_browsers() -> Iterator[Finding]:
    """None is required: everything else works without, and what is left out says so."""
    from deploy import chromium, display, firefox, webkit

    rows: tuple[tuple[str, Callable[[], Path], str, bool], ...] = (
        ("Chromium or Chrome", chromium.find_browser, "parity and latency of TF.js", True),
        ("Firefox", firefox.find_browser, "parity of TF.js in Firefox", True),
        ("WebKitGTK driver", webkit.find_driver, "parity of TF.js in WebKitGTK", False),
        ("WebKitGTK browser", webkit.find_browser, "parity of TF.js in WebKitGTK", False),
        ("Xvfb", display.find_display_server, "WebKitGTK, and WebGL in Firefox", False),
    )
    for what, find, needed_for, tells_version in rows:
        try:
            path = find()
        except MissingToolError as error:
            yield Finding(
                what=what, state="absent", found=error.message, needed_for=needed_for, remedy=error.hint
            )
            continue
        found = f"{path} ({_ask_version(path)})" if tells_version else str(path)
        yield Finding(what=what, state="ok", found=found, needed_for=needed_for)


def _ask_version(path: Path) -> str:
    try:
        done = subprocess.run(
            [str(path), "--version", "--no-sandbox"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "does not tell its version"
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines else "does not tell its version"


def _examine_mac() -> Finding:
    mac = sys.platform == "darwin"
    return Finding(
        what="macOS",
        state="ok" if mac else "absent",
        found=f"macOS {platform.mac_ver()[0]}" if mac else f"this is {platform.system()}",
        needed_for="executing CoreML packages; converting them works anywhere",
        remedy=""
        if mac
        else "CoreML packages are built and checked structurally here; to execute them, use a Mac.",
    )


def _examine_gpu() -> Finding:
    program = shutil.which("nvidia-smi")
    names = ""
    if program:
        done = subprocess.run(
            [program, "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        names = ", ".join(done.stdout.strip().splitlines()) if done.returncode == 0 else ""
    return Finding(
        what="GPU",
        state="ok" if names else "absent",
        found=names or "no NVIDIA GPU found",
        needed_for="faster training only",
    )


def _examine_memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    good = memory.total >= _MINIMUM_MEMORY_BYTES
    return Finding(
        what="memory",
        state="ok" if good else "absent",
        found=f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f} GB",
        needed_for="two converters at once: about 4 GB",
        remedy="" if good else "Use --jobs 1.",
    )


def _nearest_existing(path: Path) -> Path:
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path


def _examine_disk(out_dir: Path) -> Finding:
    free = shutil.disk_usage(_nearest_existing(out_dir)).free
    good = free >= MINIMUM_FREE_BYTES
    return Finding(
        what="disk",
        state="ok" if good else "missing",
        found=f"{free / 1e9:.1f} GB free",
        needed_for=f"artefacts and scratch space: {MINIMUM_FREE_BYTES / 1e9:.1f} GB",
        remedy="" if good else "Free some disk space, or choose another folder with --out.",
    )


def _examine_output(out_dir: Path) -> Finding:
    """Writing is tried, not deduced from permission bits; nothing is left behind."""
    place = _nearest_existing(out_dir)
    try:
        with tempfile.TemporaryFile(dir=place):
            problem = ""
    except OSError as error:
        problem = error.strerror or str(error)
    return Finding(
        what="output folder",
        state="missing" if problem else "ok",
        found=f"{out_dir}: {problem or 'can be written to'}",
        needed_for="everything that is built",
        remedy="Choose a folder you may write to with --out." if problem else "",
    )


def _examine_weights(registry: Registry) -> Iterator[Finding]:
    for path in dict.fromkeys(registry.weights_path(variant) for variant in registry.variants.values()):
        good = path.is_file()
        yield Finding(
            what=f"weights {path.name}",
            state="ok" if good else "missing",
            found=f"{path.stat().st_size / 1e6:.1f} MB" if good else "not there",
            needed_for="building variants",
            remedy="" if good else "Install nailtool again, or train them with `nailtool train`.",
        )
