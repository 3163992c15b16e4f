"""`nailtool sensitivity` and `nailtool search` at the command line: results, resuming, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nailcore.data.synth import draw_few
from nailcore.facts import read_fact
from nailtool.sensitivity import SensitivityRequest, measure_sensitivity, result_path
from quantize import find_recipe, load_recipe
from quantize.sensitivity_facts import SensitivityResult
from tests.nailtool.small_sensitivity import VARIANT, command, make_order

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def hands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hands") / "set"
    draw_few(folder, (5, 9))
    return folder


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command(*arguments)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )


def test_a_killed_measurement_goes_on_with_the_images_that_are_left(hands: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [
            sys.executable,
            *command("sensitivity", "--data", str(hands), "--out", str(out), "--jobs", "1", "-q"),
        ],
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    folder = out / "sensitivity" / f"{VARIANT}.int8-per-channel"
    journal = out / ".nailtool" / "pytask.lock.journal"
    deadline = time.monotonic() + 400
    while not (list(folder.glob("*.json")) and journal.is_file() and "sensitivity" in journal.read_text()):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    first = [path.stem for path in folder.glob("*.json")]
    assert not (out / "sensitivity" / f"{VARIANT}.int8-per-channel.json").exists()

    order = make_order(out, hands)
    variants = tuple(order.registry.variants.values())
    request = SensitivityRequest(variants, find_recipe("int8-per-channel"), hands)
    results = {r.stage.name.rpartition(" ")[2]: r.status for r in measure_sensitivity(order, request)}
    assert results[first[0]] == "cached"
    assert sorted(results.values()).count("built") == 2  # the other image, and the pooling
    result = read_fact(result_path(order.plan, request, variants[0]), SensitivityResult)
    assert result.images.count == 2
    assert len(result.layers) == 65
    assert result_path(order.plan, request, variants[0]).with_suffix(".svg").is_file()
    again = measure_sensitivity(order, request)
    assert {r.status for r in again} == {"cached"}


def test_a_search_writes_a_recipe_that_loads_and_says_what_it_tried(hands: Path, tmp_path: Path) -> None:
    done = run(
        "search", "--data", str(hands), "--out", str(tmp_path), "--max-drop", "20", "--jobs", "1", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["search"][VARIANT]
    assert found["kept"]
    assert found["trials"][0]["float_layers"] == []
    recipe = load_recipe(tmp_path / "search" / f"int8-per-channel-{VARIANT}.toml")
    assert list(recipe.weights.keep_float) == found["float_layers"]
    assert recipe.compute_dtype == "int8"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--recipe", "fp32"), "computes in float"),
        (("--recipe", "int8-per-chanel"), "int8-per-channel"),
        (("--part", "trian"), "train"),
        (("--variants", "nail43-65"), VARIANT),
    ],
)
def test_wrong_requests_are_refused_with_what_is_allowed(
    hands: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = run("sensitivity", "--data", str(hands), "--out", str(tmp_path), *arguments)
    assert done.returncode == 2
    assert words in done.stderr
