"""The README's commands run, in the order they are printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from model_zoo import WEIGHTS_DIR, load_variants
from model_zoo.card import render_accuracy, render_labels
from nailcore.facts import WeightsFacts, read_fact
from tests.browser_marks import skip_without_browser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def commands(kind: str) -> list[str]:
    """Lines of the fenced blocks opened by exactly this info string; ``sh`` blocks need your own photos."""
    blocks = re.findall(rf"^```{kind}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = shlex.split(line)
    assert program == "nailtool"
    return subprocess.run(
        [sys.executable, "-m", "nailtool", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_printed_command_succeeds_in_order(folder: Path) -> None:
    lines = commands("bash")
    assert len(lines) >= 8
    for line in lines:
        done = run(line, folder)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        if line.endswith("--explain"):
            assert "0 of" in done.stdout, done.stdout
        if line.startswith("nailtool parity-check"):
            assert "SYNTHETIC" in done.stderr
    reports = list((folder / "reports").glob("*.html"))
    assert len(reports) == 1 and "synthetic" in reports[0].read_text("utf-8").lower()


@skip_without_browser
@pytest.mark.browser
@pytest.mark.slow
def test_browser_commands_succeed(folder: Path) -> None:
    """Needs what the commands before it built."""
    for line in commands("bash browser"):
        done = run(line, folder)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.parametrize(("block", "render"), [("accuracy", render_accuracy), ("labels", render_labels)])
def test_a_table_of_accuracy_is_that_of_the_shipped_facts(block: str, render: Callable[..., str]) -> None:
    names = dict.fromkeys(v.weights for v in load_variants().values())
    facts = [read_fact(WEIGHTS_DIR / f"{name}.json", WeightsFacts) for name in names]
    printed = README.partition(f"<!-- {block} -->\n")[2].partition(f"\n<!-- /{block} -->")[0]
    assert printed == render(*facts)


@pytest.mark.slow
def test_encoder_weights_made_as_the_docs_say_are_read(tmp_path: Path) -> None:
    """The script but for the download: random values under the same names."""
    from nailcore.nets.cascade import build_cascade
    from nailcore.nets.weights import init_encoders

    page = (ROOT / "docs" / "training.md").read_text("utf-8")
    script = page.partition("## Encoder weights")[2].partition("```python\n")[2].partition("```")[0]
    assert 'weights="imagenet"' in script
    script = script.replace('weights="imagenet"', "weights=None")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = init_encoders(build_cascade(load_variants()["nail55-480"]), tmp_path / "mobilenet_v2.npz")
    assert loaded > 60


def test_every_relative_link_leads_somewhere() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    broken = [
        f"{page.name}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8"))
        if not (page.parent / link).exists()
    ]
    assert not broken


def test_every_command_of_the_table_exists_and_none_is_missing() -> None:
    from nailtool.cli import make_app

    app = make_app()
    known = {c.name for c in app.registered_commands}
    for group in app.registered_groups:
        assert group.typer_instance is not None
        known |= {f"{group.name} {c.name}" for c in group.typer_instance.registered_commands}
    named = set(
        re.findall(r"`([a-z-]+(?: [a-z]+)?)`", "".join(re.findall(r"^\| `.*?\|", README, re.MULTILINE)))
    )
    assert named == known
