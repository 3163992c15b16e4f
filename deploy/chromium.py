"""Headless Chromium under our control: found, started, driven by Playwright, timed out, and shut down."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from deploy import browser
from deploy.browser import CALL, POOL, PageGoneError, describe_crash, first_line, limit_time, unwrap_answer
from deploy.web_server import LocalServer
from nailcore.errors import MissingToolError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, CDPSession, Page, Playwright

NAME = "Chromium"
BROWSER_VARIABLE = "NAILTOOL_BROWSER"
INSTALL_HINT = (
    "Install Chromium or Google Chrome (Debian, Ubuntu: `sudo apt-get install chromium`; "
    f"macOS: `brew install --cask google-chrome`), or set {BROWSER_VARIABLE} to its executable."
)
# Nothing leaves this machine, and no timer is slowed down because the page is not in front.
_ARGUMENTS = (
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_NO_GPU = ("--disable-gpu",)
# A real GPU where there is one, else SwiftShader; on Linux WebGPU shows an adapter only when forced.
_GPU = ("--enable-unsafe-swiftshader", "--enable-unsafe-webgpu")
_CALL = f"([name, given]) => ({CALL})(name, given)"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_PLACES = {
    "darwin": (
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
    ),
    "win32": (
        r"C:\Program Files\Google\Chrome\Application\chrome.exe",
        r"C:\Program Files (x86)\Google\Chrome\Application\chrome.exe",
    ),
}


def find_browser() -> Path:
    """The executable of an installed Chromium or Chrome.

    Raises:
        MissingToolError: none is installed, or NAILTOOL_BROWSER names no file.
    """
    chosen = os.environ.get(BROWSER_VARIABLE)
    if chosen:
        if Path(chosen).is_file():
            return Path(chosen)
        raise MissingToolError(
            f"{BROWSER_VARIABLE} is '{chosen}', which is no file.",
            hint=f"Correct or unset {BROWSER_VARIABLE}. {INSTALL_HINT}",
        )
    for name in _NAMES:
        if found := shutil.which(name):
            return Path(found)
    for place in _PLACES.get(sys.platform, ()):
        if Path(place).is_file():
            return Path(place)
    raise MissingToolError("No Chromium or Chrome found on this machine.", hint=INSTALL_HINT)


class ChromiumSession:
    """One headless browser and one local server; see :class:`deploy.browser.BrowserSession`.

    Args:
        gpu: offer WebGL and WebGPU; without, the browser starts without its GPU process' hardware paths.
        arguments: further switches for the browser.
    """

    name = NAME

    def __init__(self, *, gpu: bool = False, arguments: Sequence[str] = ()) -> None:
        self._executable = find_browser()
        self.process = os.getpid()
        self.alive = True
        self._browser_process: psutil.Process | None = None
        switches = [*_ARGUMENTS, *(_GPU if gpu else _NO_GPU), *arguments]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            switches.append("--no-sandbox")  # Chromium's sandbox refuses to start as root
        with contextlib.ExitStack() as stack:
            self._server = LocalServer()
            stack.callback(self._server.close)
            # Sockets and locks that a killed browser leaves behind.
            scratch = tempfile.TemporaryDirectory(prefix="nailtool-", ignore_cleanup_errors=True)
            stack.enter_context(scratch)
            driver = _borrow_driver()
            stack.callback(_return_driver)
            self._browser = self._launch(driver, switches, scratch.name)
            self._resources = stack.pop_all()
        self._cdp: CDPSession = self._browser.new_browser_cdp_session()
        pid = next(p["id"] for p in self._processes() if p["type"] == "browser")
        self._browser_process = psutil.Process(pid)

    def _launch(self, driver: Playwright, switches: list[str], scratch: str) -> Browser:
        from playwright.sync_api import Error

        try:
            return driver.chromium.launch(
                executable_path=self._executable,
                headless=True,
                args=switches,
                env={**os.environ, "TMPDIR": scratch},
                timeout=browser.START_TIMEOUT_S * 1000,
            )
        except Error as error:
            raise browser.describe_failed_start(
                NAME,
                self._executable,
                first_line(error),
                "In a container, Chromium's sandbox may need unprivileged user namespaces; "
                "`nailtool doctor` looks at the browser.",
            ) from error

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the browser and of what drives it."""
        return {"chromium": self._browser.version, "playwright": version("playwright")}

    def serve(self, folder: Path) -> str:
        """URL under which the files of a folder can be loaded by the page."""
        return self._server.serve(folder)

    def open_page(self) -> Page:
        """A fresh page, in a context of its own, on which ``window.nailtool`` is ready."""
        with self._guard("opening the runner page", browser.START_TIMEOUT_S):
            page = self._browser.new_context().new_page()
            page.set_default_timeout(0)  # one clock: the guard's
            page.goto(self._server.page)
            page.wait_for_function("window.nailtool")
        return page

    def close_page(self, page: Page) -> None:
        """Close a page and its context; a browser that is gone already is no error."""
        from playwright.sync_api import Error

        try:
            page.context.close()
        except Error:
            self.alive = False

    def call(self, page: Page, function: str, *arguments: Any, doing: str, timeout_s: float) -> Any:
        """Await ``nailtool.<function>(*arguments)`` in the page; see the protocol for its errors."""
        with self._guard(doing, timeout_s):
            return unwrap_answer(NAME, page.evaluate(_CALL, [function, list(arguments)]), doing)

    def describe_renderer(self, renderer: str) -> tuple[str, str]:
        """Chromium tells the truth about its renderer."""
        return renderer, "yes" if browser.is_software_gpu(renderer) else "no"

    @contextlib.contextmanager
    def _guard(self, doing: str, timeout_s: float) -> Iterator[None]:
        from playwright.sync_api import Error

        with limit_time(NAME, doing, timeout_s, self._kill) as fired:
            try:
                yield
            except (Error, PageGoneError) as error:
                self._kill()
                if fired.is_set():
                    raise
                raise describe_crash(NAME, doing, first_line(error)) from error

    def _kill(self) -> None:
        self.alive = False
        process, self._browser_process = self._browser_process, None
        # By its start time, too: its number may be another's by now, and a group is killed as a whole.
        if process is None or not process.is_running():
            return
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            # Playwright gives the browser a group of its own where there are groups.
            if hasattr(os, "killpg") and (group := os.getpgid(process.pid)) != os.getpgrp():
                os.killpg(group, signal.SIGKILL)
            else:
                process.kill()

    def _processes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._cdp.send("SystemInfo.getProcessInfo")["processInfo"]
        return found

    def read_renderer_cpu_s(self) -> float:
        """CPU seconds used so far by all renderer processes together (their worker threads included)."""
        return sum(float(p["cpuTime"]) for p in self._processes() if p["type"] == "renderer")

    def close(self) -> None:
        """End browser, driver and server; safe after a crash."""
        from playwright.sync_api import Error

        self.alive = False
        # Ctrl-C reaches the driver too; asyncio would report its end once more, after our own message.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        with contextlib.suppress(Error):  # it may be gone already, which is what we want
            self._browser.close()
        self._kill()
        self._resources.close()


# Playwright's synchronous interface allows one driver per thread; sessions of different kinds share it.
_driver: list[tuple[int, Playwright]] = []
_driver_users = 0


def _borrow_driver() -> Playwright:
    global _driver_users  # noqa: PLW0603 - one driver per process is the point
    from playwright.sync_api import sync_playwright

    if _driver and _driver[0][0] != os.getpid():
        _driver.clear()  # inherited by a fork
        _driver_users = 0
    if not _driver:
        _driver.append((os.getpid(), sync_playwright().start()))
    _driver_users += 1
    return _driver[0][1]


def _return_driver() -> None:
    global _driver_users  # noqa: PLW0603
    _driver_users -= 1
    if _driver_users <= 0 and _driver:
        _driver.pop()[1].stop()


def borrow_session(*, gpu: bool = False) -> ChromiumSession:
    """The process's one browser of a kind, started when needed; give it back with ``return_session``."""
    return POOL.borrow(f"chromium {'gpu' if gpu else 'cpu'}", lambda: ChromiumSession(gpu=gpu))


def return_session(session: ChromiumSession) -> None:
    """Give a borrowed browser back; the last one turns off the light."""
    POOL.give_back(session)
