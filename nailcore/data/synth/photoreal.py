"""The photoreal renderer: scenes go to Blender's Cycles in a process of its own, and come back as light."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

import numpy as np

from nailcore.data.synth.develop import develop
from nailcore.data.synth.drawing import SUPERSAMPLING, Drawing
from nailcore.data.synth.render import Rendering, find_scene
from nailcore.data.synth.scene import Scene
from nailcore.data.synth.staging import SAMPLES, write_job
from nailcore.data.synth.subdivision import F32
from nailcore.errors import DataError, MissingToolError

SCRIPT = Path(__file__).parent / "blender" / "worker.py"
BLENDER_VERSION = "5.0.1"
VARIABLE = "NAILTOOL_BLENDER_PYTHON"
INSTALL = (
    "Blender's Python module needs an older numpy than nailtool, so give it an environment of its own:\n"
    f"  python3.11 -m venv blender && blender/bin/pip install bpy=={BLENDER_VERSION}\n"
    f"and name its Python: --blender-python blender/bin/python, or {VARIABLE}. It is about 800 MB."
)


def find_blender_python(given: Path | None = None) -> Path:
    """The Python that can import ``bpy``: the one given, the one of the environment variable, or our own.

    Raises:
        MissingToolError: none of them; the hint says how to install it.
    """
    named = given or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is None:
        if find_spec("bpy") is None:
            raise MissingToolError("The photoreal renderer needs Blender's module bpy.", hint=INSTALL)
        return Path(sys.executable)
    if shutil.which(str(named)) is None:
        raise MissingToolError(f"{named}: no program that can be started.", hint=INSTALL)
    return named


@dataclass
class Blender:
    """A Blender process that renders one job after the other; use it as a context manager."""

    python: Path
    version: str = ""
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)
    _scratch: Path | None = field(default=None, repr=False)

    def __enter__(self) -> Blender:
        self._scratch = Path(tempfile.mkdtemp(prefix="nailtool-blender-"))
        log = (self._scratch / "log.txt").open("w", encoding="utf-8")
        # -E, -s: no other environment's packages. One thread each: pictures do not depend on the machine.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        with log:
            self._process = subprocess.Popen(
                [str(self.python), "-E", "-s", str(SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=environment,
            )
        try:
            self.version = str(self._read()["ready"])
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()  # it holds nothing that would have to be saved
            self._process.communicate()
            self._process = None
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def render_light(
        self, scene: Scene, drawing: Drawing, *, samples: int = SAMPLES, labels: bool = False
    ) -> F32:
        """(H, W, 3) linear light; with ``labels``, part k in the colour (k + 1) / 255.

        Raises:
            MissingToolError: Blender ended, or could not render the scene.
        """
        if self._process is None or self._scratch is None or self._process.stdin is None:
            raise RuntimeError("Blender is used outside its `with` block")
        folder = self._scratch / "job"
        write_job(folder, scene, drawing, samples=samples, labels=labels)
        try:
            self._process.stdin.write(f"{folder}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._describe_end() from None
        answer = self._read()
        if "done" not in answer:
            raise MissingToolError(
                f"Blender {self.version} could not render seed {scene.seed}: {answer.get('failed')}.",
                hint=f"nailtool was tried with bpy {BLENDER_VERSION}.\n{self._tail()}",
            )
        return np.asarray(np.load(folder / "linear.npy"), dtype=np.float32)

    def _read(self) -> dict[str, str]:
        pipe = self._process.stdout if self._process is not None else None
        line = pipe.readline() if pipe is not None else ""
        try:
            answer = json.loads(line)
        except json.JSONDecodeError:
            raise self._describe_end(line) from None
        return dict(answer)

    def _describe_end(self, line: str = "") -> MissingToolError:
        """What became of a process that no longer answers, or not what was asked."""
        if self._process is not None and line:
            self._process.kill()
            return MissingToolError(f"{self.python}: Blender answered '{line.strip()[:80]}'.", hint=INSTALL)
        code = self._process.wait() if self._process is not None else None
        return MissingToolError(
            f"{self.python}: Blender ended with code {code}.", hint=f"{self._tail()}\n{INSTALL}".strip()
        )

    def _tail(self) -> str:
        log = self._scratch / "log.txt" if self._scratch is not None else None
        lines = log.read_text("utf-8", errors="replace").splitlines() if log and log.is_file() else []
        return "\n".join(lines[-4:])


def render_photoreal(
    blender: Blender,
    seed: int,
    *,
    subject_seed: int | None = None,
    width_px: int = 640,
    height_px: int = 480,
    samples: int = SAMPLES,
) -> Rendering:
    """The scene that the rasteriser would draw from the same arguments, photographed; equal labels.

    Raises:
        DataError: no scene with enough visible nails.
        MissingToolError: Blender ended, or could not render it.
    """
    scene, drawing = find_scene(seed, subject_seed=subject_seed, width_px=width_px, height_px=height_px)
    light = blender.render_light(scene, drawing, samples=samples)
    if light.shape[:2] != drawing.nail_index.shape:
        raise DataError(f"Blender returned {light.shape} for a picture of {drawing.nail_index.shape}.")
    image = develop(scene.sensor, light, find_cover(scene, drawing))
    return Rendering(scene, image, drawing.nail_index, drawing.nails)


def find_cover(scene: Scene, drawing: Drawing) -> F32:
    """(H, W) share of each pixel that shows a hand or what it wears."""
    camera, scale = scene.camera, SUPERSAMPLING
    wide = camera.width_px * scale
    y, x = drawing.fragments.pixels // wide // scale, drawing.fragments.pixels % wide // scale
    count = np.bincount(y * camera.width_px + x, minlength=camera.height_px * camera.width_px)
    return (count.reshape(camera.height_px, camera.width_px) / scale**2).astype(np.float32)
