"""What this machine can and cannot do, found out by trying; and how to get what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
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
_IMPORT_TIMEOUT_S = 180
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
    """A library to try: its distribution, the module that has to import, and what needs it."""

    distribution: str
    module: str
    needed_for: str
    required: bool = True


LIBRARIES = (
    Library("torch", "torch", "the network, ONNX and CoreML"),
    Library("onnx", "onnx", "ONNX"),
    Library("onnxscript", "onnxscript", "ONNX"),
    Library("onnxsim", "onnxsim", "ONNX"),
    Library("onnxruntime", "onnxruntime", "parity and latency of ONNX"),
    Library("coremltools", "coremltools", "CoreML"),
    Library("tensorflow", "tensorflow", "TF.js"),
    Library("tensorflowjs", "tensorflowjs", "TF.js"),
    Library("onnx2tf", "onnx2tf", "TF.js"),
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
        _examine_chromium(),
        *_examine_other_browsers(),
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
    if not real_imports:
        return [_describe_library(library, _find_version(library), "") for library in libraries]
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        problems = list(pool.map(try_import, [library.module for library in libraries]))
    return [
        _describe_library(library, _find_version(library), problem)
        for library, problem in zip(libraries, problems, strict=True)
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


def try_import(module: str) -> str:
    """Import a module in a process of its own; returns what went wrong, "" when nothing did."""
    code = f"import {module}"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=_IMPORT_TIMEOUT_S,
            env={**os.environ, **THREAD_VARIABLES},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"did not import within {_IMPORT_TIMEOUT_S} s"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    return f"does not import: {lines[-1] if lines else f'exit code {done.returncode}'}"


def _examine_chromium() -> Finding:
    from deploy.chromium import find_browser

    needed_for = "parity and latency of TF.js"
    try:
        path = find_browser()
    except MissingToolError as error:
        # Not required: everything else works, and what is left out says so.
        return Finding(
            what="Chromium or Chrome",
            state="absent",
            found=error.message,
            needed_for=needed_for,
            remedy=error.hint,
        )
    return Finding(
        what="Chromium or Chrome",
        state="ok",
        found=f"{path} ({_ask_version(path)})",
        needed_for=needed_for,
    )


def _ask_version(path: Path) -> str:
    try:
        done = subprocess.run(
            [str(path), "--version", "--no-sandbox"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "does not tell its version"
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines else "does not tell its version"


def _examine_other_browsers() -> Iterator[Finding]:
    for what, programs in (
        ("Firefox", ("firefox", "firefox-esr")),
        ("WebKit", ("WebKitWebDriver", "safari")),
    ):
        path = next((found for found in map(shutil.which, programs) if found), None)
        yield Finding(
            what=what,
            state="absent",
            found=f"{path or 'not found'}; not used yet",
            needed_for="nothing yet",
        )


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
