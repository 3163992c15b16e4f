"""Kill a training again and again, resume it, compare its weights with those of one that nobody touched."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nailcore.storage import hash_file

WEIGHTS = "nail43-288.safetensors"
PARTIAL = "nail43-288.partial.safetensors"
WAYS = ("while saving", "after a step", "anywhere")
LIMIT_S = 1200.0


@dataclass(frozen=True)
class Kill:
    """One SIGKILL and what it left behind."""

    way: str
    after_s: float
    kept_step: int  # of the checkpoint in the folder; 0: none yet
    cut_write: bool  # a half-written file lies beside it
    alive: bool  # False: the training ended before the kill


def make_data(folder: Path) -> None:
    """Three rendered hands with all labels, one of them held out."""
    from nailcore.data.synth import draw_few

    draw_few(folder, (5, 9, 12), width_px=160, height_px=120)
    stems = sorted(path.stem for path in (folder / "images").iterdir())
    split = {"dataset": "hands", "note": "", "groups": {s: [s] for s in stems}, "held_out": [stems[2]]}
    (folder / "split.json").write_text(json.dumps(split))


def start(data: Path, out: Path, steps: int, seed: int) -> subprocess.Popen[bytes]:
    """The command as a user types it, a checkpoint after each step."""
    command = [sys.executable, "-m", "nailtool", "train", "--data", str(data), "--out", str(out)]
    command += ["--depth", "43", "--input-px", "288", "--steps", str(steps), "--batch", "2", "--crop", "64"]
    command += ["--seed", str(seed), "--checkpoint-every", "1", "--threads", "1", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL
    )


def read_step(out: Path) -> int:
    """The step of the checkpoint in a folder; 0 without one. A half-written checkpoint is an error."""
    import torch

    path = out / "checkpoint.pt"
    return int(torch.load(path, weights_only=True)["step"]) if path.exists() else 0


def _is_saving(out: Path) -> bool:
    return any(path.suffix == ".tmp" for path in out.glob(".*.tmp"))


def _mark(out: Path) -> int:
    path = out / "checkpoint.pt"
    return path.stat().st_mtime_ns if path.exists() else 0


def wait_for(way: str, process: subprocess.Popen[bytes], out: Path, rng: np.random.Generator) -> None:
    """Return at a random moment of the given kind, or when the process has ended."""
    if way == "anywhere":  # also before the first step, while libraries load
        deadline = time.monotonic() + rng.uniform(1, 15)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        return
    saved = int(rng.integers(1, 3))  # steps further than before
    while process.poll() is None and saved:
        before = _mark(out)
        while process.poll() is None and _mark(out) == before:
            time.sleep(0.001)
        saved -= 1
    if way == "after a step":
        time.sleep(rng.uniform(0, 0.3))
        return
    while process.poll() is None and not _is_saving(out):
        pass  # the window is a few milliseconds wide
    time.sleep(rng.uniform(0, 0.02))


def kill_once(  # noqa: PLR0917 - named at its one call
    way: str, data: Path, out: Path, steps: int, seed: int, rng: np.random.Generator
) -> Kill:
    """Start or resume the training and kill it."""
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    process = start(data, out, steps, seed)
    try:
        wait_for(way, process, out, rng)
        alive = process.poll() is None
    finally:
        process.kill()  # SIGKILL: nothing of ours can catch it
        process.wait()
    after_s = time.monotonic() - started
    return Kill(way, after_s, read_step(out), _is_saving(out), alive)


def finish(data: Path, out: Path, steps: int, seed: int) -> str:
    """Run (or go on) to the end; SHA-256 of the weights."""
    process = start(data, out, steps, seed)
    if process.wait(LIMIT_S) != 0:
        raise RuntimeError(f"the training ended with exit code {process.returncode}")
    left = [path.name for path in (out / PARTIAL, *out.glob(".*.tmp")) if path.exists()]
    if left:
        raise RuntimeError(f"the finished training left {', '.join(left)}")
    return hash_file(out / WEIGHTS)


def run(kills: int, steps: int, seed: int, folder: Path) -> tuple[list[Kill], str, str]:
    """The kills, the hash of the weights trained in one go, and that of the killed training."""
    rng = np.random.default_rng(seed)
    make_data(folder / "hands")
    whole = finish(folder / "hands", folder / "whole", steps, seed)
    done: list[Kill] = []
    for number in range(kills):
        way = WAYS[number % len(WAYS)]
        done.append(kill_once(way, folder / "hands", folder / "cut", steps, seed, rng))
        print(f"{number + 1:3}  {done[-1]}", file=sys.stderr, flush=True)  # noqa: T201
    return done, whole, finish(folder / "hands", folder / "cut", steps, seed)


def render(kills: Sequence[Kill], whole: str, cut: str, steps: int) -> str:
    """The table, and the verdict."""
    lines = [
        "| kill | moment | after, s | step kept | write cut | was running |",
        "|---|---|---|---|---|---|",
    ]
    for number, kill in enumerate(kills, start=1):
        facts = (kill.way, f"{kill.after_s:.1f}", f"{kill.kept_step} of {steps}")
        marks = ("yes" if kill.cut_write else "no", "yes" if kill.alive else "no")
        lines.append(f"| {number} | {' | '.join((*facts, *marks))} |")
    lines += ["", f"In one go: SHA-256 {whole}", f"Killed:    SHA-256 {cut}"]
    lines.append("The same weights." if whole == cut else "DIFFERENT WEIGHTS.")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """0: the same weights; 1: others; 2: not every kill met a running training."""
    parser = argparse.ArgumentParser(prog="python -m tests.nailtool.kill_training", description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40, help="of the training, with a checkpoint each")
    parser.add_argument("--seed", type=int, default=0, help="of the training and of the moments")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        kills, whole, cut = run(options.kills, options.steps, options.seed, Path(scratch))
    print(render(kills, whole, cut, options.steps))  # noqa: T201
    if whole != cut:
        return 1
    if not all(kill.alive for kill in kills):
        print("Some kills came after the end: give more --steps.")  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
