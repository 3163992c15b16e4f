"""Fuzz the readers: each case damages a tiny model and either works or ends in an error of ours.

    python -m tests.deploy.fuzz_readers --cases 10000 --out fuzz

A kind may name an engine, `tfjs+chromium-wasm`: then that one executes what the reader lets through.
Case 417 of a kind is the same damage on every machine. Cases run in worker processes, so that a crash or a
hang is seen, kept (its bytes lie below ``failures``) and does not end the run. A second call goes on where
the first one stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path
from typing import IO, Any

from tests.deploy import mutations
from tests.deploy.tiny_models import KINDS, make_image, make_models, read_model

CASE_SECONDS = 120.0  # twice what a trial in a child may take; more counts as hung
START_SECONDS = 600.0  # imports, on a busy machine
WORKER_MEMORY_BYTES = 8 << 30
BATCH = 2000  # cases per worker: a leak must not decide about a later case
HOME = Path(__file__).resolve().parents[2]


# -- one case --------------------------------------------------------------------------------------


def plant(kind: str, source: Path, target: Path, case: int) -> None:
    """Copy a sound model to ``target`` and damage it as case number ``case`` says."""
    kind = kind.partition("+")[0]
    rng = random.Random(f"{kind}/{case}")  # noqa: S311 - damage, no secret
    if source.is_dir():
        shutil.copytree(source, target)
        _damage_folder(kind, target, rng)
        return
    data = source.read_bytes()
    by_structure = rng.random() < 0.5
    if by_structure and kind == "tflite":
        target.write_bytes(mutations.damage_tflite(data, rng))
    elif by_structure:
        import onnx

        target.write_bytes(_damage_proto(onnx.ModelProto(), data, rng))
    else:
        target.write_bytes(mutations.damage_bytes(data, rng))


def _damage_folder(kind: str, folder: Path, rng: random.Random) -> None:
    roll = rng.random()
    if roll < 0.08:
        mutations.damage_folder(folder, rng)
        return
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    named = {path.suffix: path for path in files}
    if (roll < 0.55 and kind == "tfjs") or roll < 0.15:
        named[".json"].write_text(mutations.damage_json(named[".json"].read_text("utf-8"), rng), "utf-8")
    elif roll < 0.65 and kind == "coreml":
        from deploy.coremltools_import import import_coremltools

        import_coremltools()
        from coremltools.proto import Model_pb2

        model = named[".mlmodel"]
        model.write_bytes(_damage_proto(Model_pb2.Model(), model.read_bytes(), rng))
    else:
        file = rng.choice(files)
        file.write_bytes(mutations.damage_bytes(file.read_bytes(), rng))


def _damage_proto(message: Any, data: bytes, rng: random.Random) -> bytes:
    message.ParseFromString(data)
    try:
        mutations.damage_message(message, rng)
        return bytes(message.SerializeToString())
    except ValueError:  # text that is no UTF-8 and the like cannot be written
        return mutations.damage_bytes(data, rng)


def read(kind: str, sound: Path, path: Path) -> None:
    """Everything a reader does with a file: open, describe, trace, execute."""
    artifact, image = read_model(sound), make_image()
    if kind == "tfjs":
        from deploy.tfjs_graph import GraphModel

        model: Any = GraphModel(path)
        for layer in model.list_layers():
            model.read_weight(layer.name)
        return
    if kind == "coreml":
        from deploy.mil import load_package

        package: Any = load_package(path)
        package.run({artifact.input_name: image})
        for layer in package.layers:
            package.read_weight(layer.name)
        return
    from deploy import find_target

    kind, _, engine = kind.partition("+")
    runner: Any = find_target(kind).open_runner(artifact, path, engine)
    runner.run(image)
    layers = runner.list_layers()
    for layer in layers:
        runner.read_weight(layer.name)
    runner.trace(image, [layer.name for layer in layers[::7]])
    runner.close()


def judge(kind: str, sound: Path, path: Path) -> tuple[str, str]:
    """("works" | "refused" | "FAILED", detail): only errors about the file are a good end."""
    from nailcore.errors import BrowserError, BusyError, MissingToolError, NailtoolError

    try:
        read(kind, sound, path)
    except (MissingToolError, BusyError, BrowserError) as error:
        return "FAILED", f"{type(error).__name__}: {error}"
    except NailtoolError as error:
        message = str(error)
        how = "in the child" if "crashes its runtime" in message or "did not finish" in message else ""
        how = how or ("memory" if "MiB for one inference" in message else type(error).__name__)
        return "refused", f"{how}: {error.message[:200]}"
    except Exception as error:
        import traceback

        place = traceback.extract_tb(error.__traceback__)[-1]
        return (
            "FAILED",
            f"{type(error).__name__}: {str(error)[:200]} ({Path(place.filename).name}:{place.lineno})",
        )
    return "works", ""


# -- workers ---------------------------------------------------------------------------------------


def work(kind: str, sound: Path, first: int, last: int) -> None:
    """Run cases one by one and print a line per case, in JSON."""
    if "+" not in kind:  # a browser reserves far more than it uses
        resource.setrlimit(resource.RLIMIT_AS, (WORKER_MEMORY_BYTES, WORKER_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    if kind == "coreml":
        from deploy.coremltools_import import import_coremltools

        import_coremltools()
    lines.write("{}\n")  # ready: from here on a case is timed
    for case in range(first, last):
        with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
            path = Path(scratch) / sound.name
            plant(kind, sound, path, case)
            started = time.perf_counter()
            verdict, detail = judge(kind, sound, path)
        seconds = round(time.perf_counter() - started, 3)
        lines.write(json.dumps({"case": case, "verdict": verdict, "detail": detail, "s": seconds}) + "\n")


def run_batch(kind: str, sound: Path, first: int, last: int) -> Iterator[dict[str, Any]]:
    """Results of the cases; a worker that dies or hangs is replaced after its case."""
    while first < last:
        # A file for what it says: a pipe that nobody reads would block a noisy worker.
        with tempfile.TemporaryFile() as said:
            worker = _start_worker(kind, sound, first, last, said)
            for answer in _read_lines(worker):
                yield answer
                first = int(answer["case"]) + 1
            ended = worker.poll()
            worker.kill()
            worker.communicate()
            said.seek(0)
            last_words = said.read().decode("utf-8", "replace")[-300:]
        if first < last:
            how = "hang" if ended is None else f"crash: {_name(ended)}"
            yield {"case": first, "verdict": "FAILED", "detail": f"{how} {last_words}", "s": 0.0}
            first += 1


def _start_worker(kind: str, sound: Path, first: int, last: int, said: IO[bytes]) -> subprocess.Popen[bytes]:
    arguments = ["--work", kind, "--model", str(sound), "--first", str(first), "--cases", str(last)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.deploy.fuzz_readers", *arguments],
        stdout=subprocess.PIPE,
        stderr=said,
        cwd=HOME,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"},
    )


def _name(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _read_lines(worker: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """Lines until the worker ends or is silent for too long."""
    stream = worker.stdout
    if stream is None:
        return
    pending = b""
    patience_s = START_SECONDS
    while select.select([stream], [], [], patience_s)[0]:
        patience_s = CASE_SECONDS
        part = os.read(stream.fileno(), 65536)
        if not part:
            worker.wait()
            return
        *lines, pending = (pending + part).split(b"\n")
        yield from (answer for answer in map(json.loads, lines) if answer)


def fuzz(kind: str, cases: int, folder: Path, *, first: int = 0) -> Counter[str]:
    """Run the cases that ``folder`` does not know yet; returns how many ended in which way.

    ``folder/<kind>.jsonl`` holds a line per case, ``folder/failures`` the bytes of those that failed.
    """
    sound = make_models(folder / "models")[kind.partition("+")[0]]
    log = folder / f"{kind}.jsonl"
    done: dict[int, dict[str, Any]] = {}
    if log.is_file():
        with contextlib.suppress(ValueError):  # a last line cut short by an interruption
            for line in log.read_text("utf-8").splitlines():
                entry = json.loads(line)
                done[entry["case"]] = entry
    with log.open("a", encoding="utf-8") as stream:
        for start, stop in list_gaps(range(first, first + cases), done):
            for entry in run_batch(kind, sound, start, stop):
                done[entry["case"]] = entry
                stream.write(json.dumps(entry) + "\n")
                stream.flush()
                if entry["verdict"] == "FAILED":
                    keep(kind, sound, folder, entry["case"])
    return summarise([done[case] for case in range(first, first + cases)])


def list_gaps(wanted: range, done: Container[int]) -> Iterator[tuple[int, int]]:
    """Runs of cases that are not done yet, as (first, one past the last), none longer than a batch."""
    start: int | None = None
    for case in range(wanted.start, wanted.stop + 1):
        missing = case < wanted.stop and case not in done
        if start is not None and (not missing or case - start == BATCH):
            yield start, case
            start = None
        if missing and start is None:
            start = case


def keep(kind: str, sound: Path, folder: Path, case: int) -> Path:
    """Write the damaged model of a case below ``failures``."""
    target = folder / "failures" / f"{kind}-{case}{sound.suffix}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        plant(kind, sound, target, case)
    return target


def summarise(entries: list[dict[str, Any]]) -> Counter[str]:
    """Cases by how they ended; refusals by who refused."""
    counts: Counter[str] = Counter()
    for entry in entries:
        how = f" ({entry['detail'].partition(':')[0]})" if entry["verdict"] == "refused" else ""
        counts[f"{entry['verdict']}{how}"] += 1
    return counts


def main() -> int:
    """The command line; exit code 1 when a case failed."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--out", type=Path, default=Path("fuzz"))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.model, arguments.first, arguments.cases)
        return 0
    failed = 0
    for kind in arguments.kinds.split(","):
        counts = fuzz(kind, arguments.cases, arguments.out, first=arguments.first)
        failed += counts["FAILED"]
        sys.stdout.write(f"{kind}: {json.dumps(dict(counts.most_common()))}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
