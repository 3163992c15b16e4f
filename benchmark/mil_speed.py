"""How fast the MIL reference is beside torch on the same nets: `python -m benchmark.mil_speed PACKAGES`."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmark.program import reporting
from nailcore.artifact import manifest_path, open_artifact

LIMIT = 3.0  # CPU time of the reference over torch's, issue 4


def time_pair(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median CPU milliseconds of two functions, called in turn so that both meet the same load."""
    samples: tuple[list[float], list[float]] = ([], [])
    for run in (first, second):
        run()  # the first call allocates and fills caches
    for _ in range(rounds):
        for run, kept in zip((first, second), samples, strict=True):
            began = time.process_time()
            run()
            kept.append(1e3 * (time.process_time() - began))
    return statistics.median(samples[0]), statistics.median(samples[1])


def measure_package(path: Path, rounds: int) -> tuple[str, float, float]:
    """One built package beside its torch network: label, reference's and torch's CPU milliseconds.

    Raises:
        NailtoolError: no manifest beside it, or a file that cannot be executed.
    """
    import torch

    from deploy.mil import load_package
    from model_zoo import find_variant, weights_path
    from nailcore.nets import load_network

    artifact, file = open_artifact(manifest_path(path))
    variant = find_variant(artifact.variant)
    network = load_network(variant, weights_path(variant))
    model = load_package(file)
    shape = (variant.height_px, variant.width_px, 3)
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()

    def run_torch() -> object:
        with torch.inference_mode():
            return network(tensor)

    reference, own = time_pair(lambda: model.run({artifact.input_name: image}), run_torch, rounds)
    return artifact.label, reference, own


def main() -> None:
    """Print a row per package; exit code 1 when one is slower than the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", nargs="+", type=Path, help="built .mlpackage folders with manifests")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    import sys

    import torch

    torch.set_num_threads(1)
    slow = False
    for path in options.packages:
        with reporting():
            label, reference, own = measure_package(path, options.rounds)
        ratio = reference / own
        slow |= ratio > LIMIT
        sys.stdout.write(
            f"{label:28} MIL reference {reference:7.1f} CPU-ms  torch {own:7.1f} CPU-ms  ratio {ratio:.2f}\n"
        )
    raise SystemExit(int(slow))


if __name__ == "__main__":
    main()
