"""Headless Chromium under our control: found, started, fed over local HTTP, timed out, and shut down."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nailcore.errors import ArtifactError, BrowserError, MissingToolError

if TYPE_CHECKING:
    from playwright.sync_api import CDPSession, Page

BUNDLE_DIR = Path(__file__).parent / "web" / "bundle"
BROWSER_VARIABLE = "NAILTOOL_BROWSER"
INSTALL_HINT = (
    "Install Chromium or Google Chrome (Debian, Ubuntu: `sudo apt-get install chromium`; "
    f"macOS: `brew install --cask google-chrome`), or set {BROWSER_VARIABLE} to its executable."
)
START_TIMEOUT_S = 60
# Nothing leaves this machine, and no timer is slowed down because the page is not in front.
_ARGUMENTS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Cross-origin isolation: a finer performance.now, and SharedArrayBuffer for the threaded wasm build.
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",  # each load is a real one
}
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


class LocalServer:
    """HTTP on 127.0.0.1 and a free port: our page under ``/web``, folders on request."""

    def __init__(self) -> None:
        import uvicorn
        from starlette.applications import Starlette

        self._app = Starlette()
        self._mounted = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.bind(("127.0.0.1", 0))
        self.origin = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            self._app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="nailtool-http", daemon=True
        )
        self._mount("/web", BUNDLE_DIR)
        self._thread.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise BrowserError("The local web server did not start.", hint="Is 127.0.0.1 usable here?")
            time.sleep(0.01)

    def serve(self, folder: Path) -> str:
        """Serve the files of a folder from now on; returns its URL without a trailing slash."""
        self._mounted += 1
        return self._mount(f"/models/{self._mounted}", folder)

    def _mount(self, prefix: str, folder: Path) -> str:
        from starlette.responses import Response
        from starlette.routing import Mount
        from starlette.staticfiles import StaticFiles

        class IsolatedFiles(StaticFiles):
            def file_response(self, *args: Any, **kwargs: Any) -> Response:
                response = super().file_response(*args, **kwargs)
                response.headers.update(_HEADERS)
                return response

        self._app.router.routes.append(Mount(prefix, IsolatedFiles(directory=folder)))
        return self.origin + prefix

    def close(self) -> None:
        """Stop serving; waits at most a few seconds."""
        self._server.should_exit = True
        self._thread.join(timeout=5)
        self._socket.close()


class ChromiumSession:
    """One headless browser and one local server. Use it from the thread that made it."""

    def __init__(self) -> None:
        from playwright.sync_api import Error, sync_playwright

        executable = find_browser()
        self.process = os.getpid()
        self.alive = True
        self._server = LocalServer()
        self._playwright = sync_playwright().start()
        arguments = list(_ARGUMENTS)
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            arguments.append("--no-sandbox")  # Chromium's sandbox refuses to start as root
        try:
            self._browser = self._playwright.chromium.launch(
                executable_path=executable, headless=True, args=arguments, timeout=START_TIMEOUT_S * 1000
            )
        except Error as error:
            self._playwright.stop()
            self._server.close()
            raise BrowserError(
                f"{executable} is installed but did not start: {_first_line(error)}",
                hint="In a container, Chromium's sandbox may need unprivileged user namespaces; "
                "`nailtool doctor` looks at the browser.",
            ) from error
        self._cdp: CDPSession = self._browser.new_browser_cdp_session()
        self._browser_pid = next(p["id"] for p in self._processes() if p["type"] == "browser")

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the browser and of what drives it."""
        return {"chromium": self._browser.version, "playwright": version("playwright")}

    def serve(self, folder: Path) -> str:
        """URL under which the files of a folder can be loaded by the page."""
        return self._server.serve(folder)

    def open_page(self) -> Page:
        """A fresh page, in a context of its own, on which ``window.nailtool`` is ready."""
        page = self._browser.new_context().new_page()
        page.set_default_timeout(0)  # one clock: the one in _guard
        self._guard(
            lambda: (
                page.goto(f"{self._server.origin}/web/index.html"),
                page.wait_for_function("window.nailtool"),
            ),
            "opening the runner page",
            START_TIMEOUT_S,
        )
        return page

    def close_page(self, page: Page) -> None:
        """Close a page and its context; a browser that is gone already is no error."""
        from playwright.sync_api import Error

        try:
            page.context.close()
        except Error:
            self.alive = False

    def call(self, page: Page, function: str, *arguments: Any, doing: str, timeout_s: float) -> Any:
        """Await ``nailtool.<function>(*arguments)`` in the page, for at most ``timeout_s`` seconds.

        Raises:
            ArtifactError: the page's own code threw: what it was given does not work.
            BrowserError: the browser crashed, or did not answer in time (it is killed then).
        """
        expression = f"(given) => nailtool.{function}(...given)"
        return self._guard(lambda: page.evaluate(expression, list(arguments)), doing, timeout_s)

    def _guard(self, action: Any, doing: str, timeout_s: float) -> Any:
        """Playwright's evaluate has no time limit of its own, so a timer ends a browser that hangs."""
        from playwright.sync_api import Error

        fired = threading.Event()

        def stop() -> None:
            fired.set()
            os.kill(self._browser_pid, getattr(signal, "SIGKILL", signal.SIGTERM))

        timer = threading.Timer(timeout_s, stop)
        timer.start()
        try:
            return action()
        except Error as error:
            if fired.is_set():
                self.alive = False
                raise BrowserError(
                    f"Chromium did not answer within {timeout_s:g} s while {doing}; it was ended.",
                    hint="Is the machine overloaded or out of memory? Run again on a quieter one.",
                ) from error
            reason = _first_line(error)
            if any(word in reason.lower() for word in ("crashed", "closed", "disconnected")):
                self.alive = False
                raise BrowserError(
                    f"Chromium crashed while {doing}: {reason}",
                    hint="Most often it ran out of memory; close other programs and run again.",
                ) from error
            raise ArtifactError(f"Chromium refused while {doing}: {reason}") from error
        finally:
            timer.cancel()

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
        self._playwright.stop()
        self._server.close()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].removeprefix("Page.evaluate: ")


_shared: list[ChromiumSession] = []  # at most one
_borrowers = 0


def borrow_session() -> ChromiumSession:
    """The process's one browser, started when needed; give it back with ``return_session``."""
    global _borrowers  # noqa: PLW0603 - one browser per process is the point
    if _shared and (not _shared[0].alive or _shared[0].process != os.getpid()):
        dead = _shared.pop()
        _borrowers = 0
        if dead.process == os.getpid():
            dead.close()
    if not _shared:
        _shared.append(ChromiumSession())
    _borrowers += 1
    return _shared[0]


def return_session(session: ChromiumSession) -> None:
    """Give a borrowed browser back; the last one turns off the light."""
    global _borrowers  # noqa: PLW0603
    if not _shared or _shared[0] is not session:
        return  # it died and was replaced meanwhile
    _borrowers -= 1
    if _borrowers <= 0:
        _shared.pop().close()
