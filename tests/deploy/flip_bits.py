"""Flip single bits of shipped files: the hash sees every one, and what it would let through is judged.

    python -m tests.deploy.flip_bits --artifacts artifacts --data photos --flips 60

With the hash switched off (the manifest is rewritten to fit the damage) each flip ends in one of four ways:
``refused`` by the reader, ``caught`` by a limit or a gate of the parity check, ``harmless`` (no output moves
beyond its limit), or ``MISSED``.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nailcore.artifact import Artifact, manifest_path, read_manifest, write_manifest
from nailcore.errors import ArtifactError, NailtoolError
from nailcore.storage import hash_path, list_files

VARIANT = "nail43-288"
RECIPES = ("fp32", "fp16")
FILES = ("fp32.onnx", *(f"{recipe}.{end}" for end in ("tflite", "tfjs", "mlpackage") for recipe in RECIPES))


def flip(path: Path, number: int) -> str:
    """Flip one bit of a file or of a folder's files, the same for the same number; returns where."""
    rng = random.Random(f"{path.name}/{number}")  # noqa: S311 - damage, no secret
    files = list_files(path)
    # Every second flip hits a file picked evenly: graphs are a hundredth of the weights' size.
    sizes = [file.stat().st_size for file in files]
    file = rng.choice(files) if number % 2 else rng.choices(files, sizes)[0]
    data = bytearray(file.read_bytes())
    # In a single file the graph lies at the ends (TFLite) or in between (ONNX): even picks go there too.
    place, bit = rng.randrange(len(data)), rng.randrange(8)
    if len(files) == 1 and number % 4 == 1:
        place = min(place % 20_000, len(data) - 1)
    elif len(files) == 1 and number % 4 == 3:
        place = max(0, len(data) - 1 - place % 20_000)
    data[place] ^= 1 << bit
    file.write_bytes(data)
    return f"{file.name} byte {place} bit {bit}"


def count_hash_hits(path: Path, flips: int) -> int:
    """Of so many single flips, each on a sound copy, how many change the hash that the manifest holds."""
    sound = hash_path(path)
    hits = 0
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / path.name
        _copy(path, copy)
        for number in range(flips):
            flip(copy, number)
            hits += hash_path(copy) != sound
            flip(copy, number)  # the same bit again: sound as before
        if hash_path(copy) != sound:
            raise AssertionError("undoing the flips did not give the sound file back")
    return hits


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


class FlipJudge:
    """Judges flips of one artefact by the parity check, and apart from it by distance to the sound file."""

    def __init__(self, path: Path, weights: Path, dataset: Any, *, images: int = 2) -> None:
        from benchmark.limits import limits_of
        from model_zoo import find_variant

        self.path, self.weights, self.dataset = path, weights, dataset
        self.artifact: Artifact = read_manifest(manifest_path(path))
        self.limits = limits_of(self.artifact)
        self.variant = find_variant(self.artifact.variant)
        self.images = images
        self.sound = self._run(path)

    def _run(self, path: Path) -> dict[str, Any]:
        from deploy import find_target
        from nailcore.preprocess import letterbox

        runner = find_target(self.artifact.kind).open_runner(self.artifact, path)
        try:
            samples = self.dataset.part("held-out")[: self.images]
            size = (self.variant.height_px, self.variant.width_px)
            return runner.run(np.stack([letterbox(one.load_image(), *size) for one in samples]))
        finally:
            runner.close()

    def judge(self, number: int) -> tuple[str, str]:
        """(how it ended, what was flipped and why)."""
        from benchmark.parity import check_parity

        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            copy = folder / self.path.name
            _copy(self.path, copy)
            for manifest in self.path.parent.glob("*.manifest.json"):  # the parents' are asked as well
                shutil.copyfile(manifest, folder / manifest.name)
            where = flip(copy, number)
            write_manifest(copy, self.artifact.model_copy(update={"sha256": hash_path(copy)}))
            result = check_parity(manifest_path(copy), self.weights, self.dataset, "held-out")
            if result.status != "passed":
                # A file that was executed has figures; one that was refused has none.
                how = "caught" if result.outputs or result.gates or result.checks else "refused"
                return how, f"{where}: {'; '.join(result.failures)[:300]}"
            return ("MISSED" if self._moves(copy) else "harmless"), where

    def _moves(self, path: Path) -> bool:
        """Whether a file that passed is further from the sound one than a sound one may be from torch."""
        try:
            found = self._run(path)
        except NailtoolError:
            return True
        if set(found) != set(self.sound):
            return True
        flipped = np.mean(found["fgbg"].argmax(1) != self.sound["fgbg"].argmax(1))
        if 1000 * flipped > self.limits.flipped_permille:
            return True
        limit = self.limits.max_abs
        # Both may lie on opposite sides of torch, each within the limit.
        return limit is not None and any(
            float(np.abs(found[name] - value).max()) > 2 * limit for name, value in self.sound.items()
        )


def _list_flips(judge: FlipJudge, flips: int) -> Iterator[tuple[str, str]]:
    for number in range(flips):
        try:
            yield judge.judge(number)
        except ArtifactError as error:
            yield "refused", error.message


def main() -> int:
    """The experiment on real files; exit code 1 when a flip was missed."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--artifacts", type=Path, required=True, help="output folder of build-variants")
    parser.add_argument("--data", type=Path, required=True, help="data folder with held-out photographs")
    parser.add_argument("--files", default=",".join(FILES))
    parser.add_argument("--flips", type=int, default=60)
    parser.add_argument("--hashes", type=int, default=1000)
    arguments = parser.parse_args()
    from model_zoo import find_variant, weights_path
    from nailcore.data.folder import open_dataset

    weights = weights_path(find_variant(VARIANT))
    dataset = open_dataset(arguments.data)
    missed = 0
    for name in arguments.files.split(","):
        path = arguments.artifacts / VARIANT / f"{VARIANT}.{name}"
        hits = count_hash_hits(path, arguments.hashes)
        judge = FlipJudge(path, weights, dataset)
        counts: Counter[str] = Counter()
        for how, where in _list_flips(judge, arguments.flips):
            counts[how] += 1
            sys.stdout.write(f"  {name} {how} {where}\n")
            sys.stdout.flush()
        missed += counts["MISSED"] + arguments.hashes - hits
        sys.stdout.write(f"{name}: hash {hits}/{arguments.hashes}; content {json.dumps(dict(counts))}\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
