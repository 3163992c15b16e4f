"""Browsers that hang, crash, are missing, or lack a GPU: one clear message each, in bounded time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy import browser, chromium, display, firefox, tfjs, webkit
from deploy.browser import PageGoneError, SessionPool, is_software_gpu, unwrap_answer
from deploy.chromium import ChromiumSession
from deploy.firefox import FirefoxSession
from deploy.tfjs_engines import BROWSER_ENGINES, find_browser_engine
from deploy.tfjs_runner import check_precision, describe_backend
from deploy.webkit import WebKitSession
from nailcore.errors import ArtifactError, BrowserError, MissingToolError, NailtoolError, UnknownNameError
from tests.browser_marks import SKIP_WITHOUT
from tests.deploy.test_process_group import PATIENCE_S, is_gone, make_program, wait_until

SESSIONS: dict[str, Callable[[], Any]] = {
    "chromium": ChromiumSession,
    "firefox": FirefoxSession,
    "webkit": WebKitSession,
}
INSTALLED = [pytest.param(name, marks=[pytest.mark.browser, SKIP_WITHOUT[name]]) for name in SESSIONS]
# The process that carries the page, by the name the system shows.
PAGE_PROCESSES = {"firefox": ("Web Content", "Isolated Web Co"), "webkit": ("WebKitWebProcess",)}
INJECTED = "nailtool.spin = () => { for (;;); }; nailtool.wait = () => new Promise(() => {}); null"


def inject(session: Any, page: Any) -> None:
    """Functions a page of ours never has."""
    if isinstance(session, ChromiumSession):
        page.evaluate(INJECTED)
    elif isinstance(session, FirefoxSession):
        session._evaluate(page, INJECTED)
    else:
        session._driver.execute_script(INJECTED)


def find_page_processes(session: Any) -> list[int]:
    if isinstance(session, ChromiumSession):
        return [p["id"] for p in session._processes() if p["type"] == "renderer"]
    names = PAGE_PROCESSES["firefox" if isinstance(session, FirefoxSession) else "webkit"]
    found = []
    for child in psutil.Process(session._group._reaper.pid).children(recursive=True):
        try:
            found += [child.pid] if child.name() in names else []
        except psutil.NoSuchProcess:
            continue
    return found


def list_our_processes() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True) if not is_gone(child.pid)}


# -- failures of a running browser ----------------------------------------------------------------


@pytest.mark.parametrize("name", INSTALLED)
def test_errors_of_the_page_and_answers_that_never_come(name: str) -> None:
    """One browser for both: the second ends it."""
    before = list_our_processes()
    session = SESSIONS[name]()
    try:
        page = session.open_page()
        with pytest.raises(ArtifactError, match="refused while asking: no backend steam"):
            session.call(page, "startBackend", "steam", doing="asking", timeout_s=60)
        assert session.alive
        inject(session, page)
        started = time.monotonic()
        with pytest.raises(BrowserError, match="did not answer within 1 s while waiting; it was ended"):
            session.call(page, "wait", doing="waiting", timeout_s=1)
        assert time.monotonic() - started < PATIENCE_S
        assert not session.alive
        session.close_page(page)  # no error, and no wait
    finally:
        session.close()
    # Playwright's driver may serve sessions of other tests in this process.
    wait_until(
        lambda: not [p for p in list_our_processes() - before if "node" not in psutil.Process(p).name()]
    )


@pytest.mark.parametrize("name", INSTALLED)
def test_a_page_that_dies_is_a_crash_and_no_verdict(name: str) -> None:
    session = SESSIONS[name]()
    try:
        page = session.open_page()
        inject(session, page)
        victims = find_page_processes(session)
        assert victims
        killers = [threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)) for pid in victims]
        for killer in killers:
            killer.start()
        with pytest.raises(BrowserError, match="crashed while waiting"):
            session.call(page, "wait", doing="waiting", timeout_s=60)
        for killer in killers:
            killer.join()
        assert not session.alive
    finally:
        session.close()


@pytest.mark.browser
@SKIP_WITHOUT["webkit"]
@pytest.mark.parametrize("victim", ["WebKitWebDriver", "MiniBrowser"])
def test_a_driver_or_browser_killed_mid_run_is_a_crash(victim: str) -> None:
    session = WebKitSession()
    try:
        page = session.open_page()
        inject(session, page)
        processes = psutil.Process(session._group._reaper.pid).children(recursive=True)
        (pid,) = [p.pid for p in processes if p.name() == victim]
        threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
        with pytest.raises(BrowserError, match="crashed while waiting"):
            session.call(page, "wait", doing="waiting", timeout_s=60)
    finally:
        session.close()


@pytest.mark.browser
@SKIP_WITHOUT["chromium"]
def test_a_page_that_spins_is_ended_and_the_next_browser_works() -> None:
    session = chromium.borrow_session()
    page = session.open_page()
    inject(session, page)
    with pytest.raises(BrowserError, match="did not answer within 1 s"):
        session.call(page, "spin", doing="spinning", timeout_s=1)
    again = chromium.borrow_session()
    assert again is not session and again.alive
    chromium.return_session(again)


@pytest.mark.browser
@SKIP_WITHOUT["chromium"]
def test_a_killed_owner_takes_chromium_along() -> None:
    """Firefox and WebKitGTK run under the reaper, which test_process_group.py looks at."""
    script = (
        "import time\nfrom deploy.chromium import ChromiumSession\n"
        "session = ChromiumSession()\nprint(session._browser_process.pid, flush=True)\ntime.sleep(600)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert not is_gone(pid)
    owner.kill()
    owner.wait(PATIENCE_S)
    wait_until(lambda: is_gone(pid))
    owner.stdout.close()


# -- browsers that do not start -------------------------------------------------------------------

VARIABLES = {
    "chromium": chromium.BROWSER_VARIABLE,
    "firefox": firefox.BROWSER_VARIABLE,
    "webkit": webkit.DRIVER_VARIABLE,
}


@pytest.mark.skipif(sys.platform != "linux", reason="fake programs are shell scripts for Linux")
@pytest.mark.parametrize("body", ["exec sleep 600", "echo no such luck >&2; exit 9"], ids=["sleeps", "ends"])
@pytest.mark.parametrize("name", SESSIONS)
def test_a_program_that_is_no_browser_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, body: str
) -> None:
    fake = make_program(tmp_path / "fake", body)
    monkeypatch.setenv(VARIABLES[name], str(fake))
    monkeypatch.setattr(browser, "START_TIMEOUT_S", 1.0)
    if name == "webkit":
        monkeypatch.setattr(webkit, "find_browser", lambda: fake)
        monkeypatch.setattr(webkit, "VirtualDisplay", FakeDisplay)
        monkeypatch.setattr(webkit, "find_display_server", lambda: fake)
    before = list_our_processes()
    started = time.monotonic()
    with pytest.raises(BrowserError, match=r"fake\) is installed but did not start"):
        SESSIONS[name]()
    assert time.monotonic() - started < PATIENCE_S
    wait_until(
        lambda: not [p for p in list_our_processes() - before if "node" not in psutil.Process(p).name()]
    )


class FakeDisplay:
    """A display nothing is drawn on."""

    def __init__(self) -> None:
        self.environment = {"DISPLAY": ":0"}

    def close(self) -> None:
        """Nothing was started."""


@pytest.mark.parametrize("engine", BROWSER_ENGINES)
def test_an_engine_without_its_browser_is_not_run_and_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: str
) -> None:
    for variable in (*VARIABLES.values(), "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(chromium, "_PLACES", {})
    monkeypatch.setattr(firefox, "_PLACES", {})
    obstacle = tfjs.find_obstacle(engine)
    assert obstacle is not None
    assert engine in obstacle.what and obstacle.reason
    if sys.platform == "linux":
        assert "apt-get install" in obstacle.remedy
    with pytest.raises(MissingToolError):
        find_browser_engine(engine).borrow()


@pytest.mark.skipif(sys.platform != "linux", reason="virtual displays are for Linux")
def test_firefox_asks_for_a_display_only_when_it_draws(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(firefox.BROWSER_VARIABLE, str(make_program(tmp_path / "firefox", "exit 0")))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    assert tfjs.find_obstacle("firefox-wasm") is None
    obstacle = tfjs.find_obstacle("firefox-webgl")
    assert obstacle is not None and obstacle.remedy == display.INSTALL_HINT
    monkeypatch.setenv("DISPLAY", ":7")
    assert tfjs.find_obstacle("firefox-webgl") is None


@pytest.mark.parametrize("variable", VARIABLES.values())
def test_a_variable_that_names_no_file_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "absent"))
    obstacles = [tfjs.find_obstacle(engine.name) for engine in tfjs.ENGINES]
    reasons = {obstacle.reason for obstacle in obstacles if obstacle is not None}
    assert f"{variable} is '{tmp_path / 'absent'}', which is no file." in reasons


def test_an_unknown_engine_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean chromium-webgl"):
        tfjs.find_obstacle("chromium-webg1")


# -- GPUs -----------------------------------------------------------------------------------------


def start_without_webgl(name: str) -> Any:
    if name == "chromium":
        return ChromiumSession(arguments=["--disable-3d-apis"])
    return FirefoxSession(preferences={"webgl.disabled": True})


@pytest.mark.parametrize("name", INSTALLED[:2])
def test_a_browser_without_webgl_tells_its_reason(name: str) -> None:
    session = start_without_webgl(name)
    try:
        found = session.call(session.open_page(), "startBackend", "webgl", doing="starting", timeout_s=60)
        assert set(found) == {"unavailable"} and len(found["unavailable"]) > 10
        found = session.call(session.open_page(), "startBackend", "webgpu", doing="starting", timeout_s=60)
        assert "WebGPU" in found["unavailable"]
    finally:
        session.close()


@pytest.mark.parametrize(
    ("renderer", "software"),
    [
        (
            "ANGLE (Google, Vulkan 1.3.0 (SwiftShader Device (Subzero) (0x0000C0DE)), SwiftShader driver)",
            True,
        ),
        ("google swiftshader", True),
        ("llvmpipe, or similar", True),
        ("Mesa/X.org llvmpipe (LLVM 15.0.6, 256 bits)", True),
        ("ANGLE (Microsoft, Microsoft Basic Render Driver Direct3D11)", True),
        ("ANGLE (NVIDIA, NVIDIA GeForce RTX 4090 Direct3D11)", False),
        ("Adreno (TM) 740", False),
        ("Mali-G715", False),
        ("Radeon R9 200 Series, or similar", False),
    ],
)
def test_software_gpus_are_known_by_name(renderer: str, software: bool) -> None:
    assert is_software_gpu(renderer) is software


WEBGL = {
    "backend": "webgl",
    "webglVersion": 2,
    "float32Textures": False,
    "forcedFloat16": True,
    "keepsFloat32": False,
    "crossOriginIsolated": True,
}


def test_forced_float16_must_show_in_the_numbers() -> None:
    engine = find_browser_engine("chromium-webgl-fp16")
    check_precision(engine, "Chromium", WEBGL)
    for lie in ({"keepsFloat32": True}, {"forcedFloat16": False}):
        with pytest.raises(BrowserError, match="still computes in 32 bits"):
            check_precision(engine, "Chromium", WEBGL | lie)
    assert describe_backend(WEBGL)["float textures"] == "16 bit (forced)"
    assert describe_backend(WEBGL | {"forcedFloat16": False})["float textures"] == "16 bit"


# -- the seam -------------------------------------------------------------------------------------


def test_answers_are_told_apart() -> None:
    assert unwrap_answer("X", {"value": None}, "asking") is None
    with pytest.raises(ArtifactError, match="X refused while asking: broken"):
        unwrap_answer("X", {"error": "broken"}, "asking")
    with pytest.raises(BrowserError, match="X failed while asking: it lost its GPU context"):
        unwrap_answer("X", {"error": "browser trouble: it lost its GPU context"}, "asking")
    for other in (None, {}, {"gone": True}, "text"):
        with pytest.raises(PageGoneError):
            unwrap_answer("X", other, "asking")


class FakeSession:
    """A session that only counts."""

    name = "Fake"

    def __init__(self) -> None:
        self.alive = True
        self.process = os.getpid()
        self.closed = 0

    def close(self) -> None:
        """Count."""
        self.alive = False
        self.closed += 1


def test_one_session_per_key_until_it_dies_or_nobody_needs_it() -> None:
    pool = SessionPool()
    start: Any = FakeSession
    first = pool.borrow("a", start)
    assert pool.borrow("a", start) is first
    assert pool.borrow("b", start) is not first
    pool.give_back(first)
    assert first.closed == 0
    first.alive = False
    second = pool.borrow("a", start)
    assert second is not first and first.closed == 1
    pool.give_back(first)  # the dead one's last borrower comes late
    assert second.closed == 0
    pool.give_back(second)
    assert second.closed == 1


def test_a_fork_starts_its_own_session() -> None:
    pool = SessionPool()
    start: Any = FakeSession
    parents = pool.borrow("a", start)
    parents.process = -1  # as a fork would see it
    assert pool.borrow("a", start) is not parents
    assert parents.closed == 0  # it is still in use over there


def test_an_error_that_is_not_a_timeout_passes_the_clock() -> None:
    with pytest.raises(ValueError, match="ours"), browser.limit_time("X", "working", 60, lambda: None):
        raise ValueError("ours")
    fired = threading.Event()
    with (
        pytest.raises(NailtoolError, match=r"X did not answer within 0\.01 s while working"),
        browser.limit_time("X", "working", 0.01, fired.set),
    ):
        assert fired.wait(PATIENCE_S)
        raise OSError("the line is dead")
