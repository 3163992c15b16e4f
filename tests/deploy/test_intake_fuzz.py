"""A few hundred cases of the fuzzer per reader, a planted bug for each, and bit flips judged by content."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from nailcore.storage import hash_path
from tests.deploy import fuzz_readers
from tests.deploy.fuzz_readers import fuzz, judge, list_gaps, plant, run_batch
from tests.deploy.tiny_models import KINDS

CASES = {"onnx": 150, "coreml": 150, "tfjs": 300, "tflite": 150}


@pytest.fixture(scope="module")
def folder(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fuzzing folder with the models in it."""
    out = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(tiny_models["onnx"].parent, out / "models")
    return out


@pytest.mark.parametrize("kind", CASES)
def test_damaged_files_work_or_end_in_our_own_error(kind: str, folder: Path) -> None:
    counts = fuzz(kind, CASES[kind], folder)
    failed = [line for line in (folder / f"{kind}.jsonl").read_text().splitlines() if '"FAILED"' in line]
    assert not failed
    assert sum(counts.values()) == CASES[kind]
    # Damage that never breaks anything, or always, would prove nothing.
    assert counts["works"] >= 0.1 * CASES[kind]
    assert counts["refused (ArtifactError)"] >= 0.3 * CASES[kind]


def test_a_second_run_goes_on_where_the_first_one_stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuzz("tfjs", 20, folder)

    def refuse(*_: object) -> None:
        raise AssertionError("a case ran twice")

    monkeypatch.setattr(fuzz_readers, "run_batch", refuse)
    assert sum(fuzz("tfjs", 20, folder).values()) == 20


def test_gaps_cover_what_is_missing_and_nothing_else() -> None:
    done = {0, 1, 5, 6, 4999}
    gaps = list(list_gaps(range(0, 7000), done))
    covered = [case for start, stop in gaps for case in range(start, stop)]
    assert covered == [case for case in range(7000) if case not in done]
    assert max(stop - start for start, stop in gaps) == fuzz_readers.BATCH
    assert not list(list_gaps(range(0, 2), done))


def test_the_same_case_is_the_same_damage(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    for kind in ("onnx", "tflite", "tfjs"):
        sound = tiny_models[kind]
        hashes = []
        for place in ("a", "b"):
            (tmp_path / place).mkdir(exist_ok=True)
            plant(kind, sound, tmp_path / place / sound.name, 11)
            hashes.append(hash_path(tmp_path / place / sound.name))
        assert hashes[0] == hashes[1]


# -- the harness itself: planted bugs must show ----------------------------------------------------


def test_another_exception_counts_as_failed(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(*_: object) -> None:
        raise KeyError("a reader that trusts its input")

    monkeypatch.setattr(fuzz_readers, "read", stumble)
    verdict, detail = judge("onnx", tiny_models["onnx"], tiny_models["onnx"])
    assert verdict == "FAILED" and "KeyError" in detail and "test_intake_fuzz.py" in detail


def test_a_worker_that_crashes_is_seen_named_and_replaced(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "worker.py"
    # Crashes on case 1 and answers the others, as a reader with one deadly input would.
    script.write_text(
        "import json, os, signal, sys\n"
        "first, last = int(sys.argv[-3]), int(sys.argv[-1])\n"
        "for case in range(first, last):\n"
        "    if case == 1: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    print(json.dumps({'case': case, 'verdict': 'works', 'detail': '', 's': 0}), flush=True)\n"
    )
    popen = subprocess.Popen

    def start(command: list[str], **how: object) -> object:
        return popen([command[0], str(script), *command[3:]], **how)  # type: ignore[call-overload, unused-ignore]

    monkeypatch.setattr(subprocess, "Popen", start)
    entries = list(run_batch("onnx", tiny_models["onnx"], 0, 4))
    assert [entry["case"] for entry in entries] == [0, 1, 2, 3]
    assert [entry["verdict"] for entry in entries] == ["works", "FAILED", "works", "works"]
    assert "crash: SIGSEGV" in entries[1]["detail"]


def test_all_kinds_of_tiny_models_are_fuzzed() -> None:
    assert tuple(sorted(CASES)) == tuple(sorted(KINDS))
