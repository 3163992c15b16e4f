"""Foreign programs end with us: on request, when we end, on Ctrl-C, and when we are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from deploy import display
from deploy.display import VirtualDisplay
from deploy.process_group import ProcessGroup
from nailcore.errors import BrowserError, MissingToolError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX")
# A program with a grandchild: what a browser looks like from outside. It tells both process numbers.
FAMILY = ("sh", "-c", "sleep 600 & echo $$ $!; wait")
PATIENCE_S = 30.0


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def read_family(group: ProcessGroup) -> list[int]:
    wait_until(lambda: len(group.read_output().split()) == 2)
    return [int(word) for word in group.read_output().split()]


def test_kill_ends_the_whole_family_and_clears_up() -> None:
    group = ProcessGroup(FAMILY, files={"settings.txt": "yes"})
    assert (group.scratch / "settings.txt").read_text() == "yes"
    pids = read_family(group)
    assert group.running and not any(map(is_gone, pids))
    group.kill()
    assert all(map(is_gone, pids))
    assert not group.scratch.exists() and not group.running
    group.kill()  # twice is no error


def test_a_program_that_ends_takes_its_family_along() -> None:
    group = ProcessGroup(("sh", "-c", "sleep 600 & echo $$ $!; exit 7"))
    pids = read_family(group)
    wait_until(lambda: not group.running)
    assert group.exit_code == 7
    wait_until(lambda: all(map(is_gone, pids)))
    group.kill()


def test_placeholders_and_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://nowhere.invalid")
    monkeypatch.setenv("http_proxy", "http://nowhere.invalid")
    group = ProcessGroup(("sh", "-c", "echo $1; env", "sh", "{scratch}/x"), environment={"HOME": "{scratch}"})
    wait_until(lambda: not group.running)
    said = group.read_output().splitlines()
    assert said[0] == f"{group.scratch}/x"
    assert f"HOME={group.scratch}" in said
    assert not [line for line in said if "nowhere" in line]
    group.kill()


def test_a_program_that_does_not_exist_says_so() -> None:
    group = ProcessGroup(("no-such-program-at-all",))
    wait_until(lambda: not group.running)
    assert group.exit_code == 127
    assert "no-such-program-at-all" in group.last_words
    group.kill()


# A shell may start us with Ctrl-C ignored, which children inherit.
_OWNER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from deploy.process_group import ProcessGroup
group = ProcessGroup({family!r})
while len(group.read_output().split()) < 2:
    time.sleep(0.02)
print(group.read_output().strip(), group.scratch, flush=True)
{then}
"""


@pytest.mark.parametrize(
    ("then", "ending"),
    [
        ("", None),
        ("raise SystemExit(3)", None),
        ("time.sleep(600)", signal.SIGINT),
        ("time.sleep(600)", signal.SIGTERM),
        ("time.sleep(600)", signal.SIGKILL),
    ],
    ids=["returns", "exits", "Ctrl-C", "SIGTERM", "kill -9"],
)
def test_nothing_outlives_its_owner(then: str, ending: signal.Signals | None) -> None:
    script = _OWNER.format(family=FAMILY, then=then)
    owner = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert owner.stdout is not None
    first, second, scratch = owner.stdout.readline().split()
    if ending is not None:
        owner.send_signal(ending)
    owner.wait(PATIENCE_S)
    wait_until(lambda: is_gone(int(first)) and is_gone(int(second)))
    wait_until(lambda: not Path(scratch).exists())
    owner.stdout.close()


def make_program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_no_virtual_display_is_a_missing_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match="apt-get install xvfb"):
        VirtualDisplay()


@pytest.mark.parametrize(
    ("body", "reason"), [("exec sleep 600", "within 0.5 s"), ("echo broken; exit 1", "broken")]
)
def test_a_display_that_does_not_start_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, reason: str
) -> None:
    make_program(tmp_path / "Xvfb", body)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(display, "START_TIMEOUT_S", 0.5)
    with pytest.raises(BrowserError, match=reason):
        VirtualDisplay()
    assert not [child for child in psutil.Process().children() if "reaper" in " ".join(child.cmdline())]
