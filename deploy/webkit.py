"""WebKitGTK under our control: Selenium, WebKitWebDriver and MiniBrowser on a virtual display of their own.

It is the engine family of Safari, never Safari: it reports a masked renderer and Safari's user agent, and
nothing here may be labelled as a product of Apple.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy import browser
from deploy.browser import CALL, POOL, PageGoneError, describe_crash, first_line, limit_time, unwrap_answer
from deploy.display import VirtualDisplay, find_display_server
from deploy.process_group import ProcessGroup
from deploy.web_server import LocalServer
from nailcore.errors import MissingToolError, NailtoolError

if TYPE_CHECKING:
    from selenium.webdriver.remote.webdriver import WebDriver

NAME = "WebKitGTK"
DRIVER_VARIABLE = "NAILTOOL_WEBKIT_DRIVER"
INSTALL_HINT = (
    "Install WebKitGTK's driver and its small browser (Debian, Ubuntu: "
    f"`sudo apt-get install webkit2gtk-driver`), or set {DRIVER_VARIABLE} to WebKitWebDriver."
)
_BROWSERS = (
    "usr/lib/*/webkit*gtk-*/MiniBrowser",
    "usr/lib*/webkit*gtk-*/MiniBrowser",
    "usr/libexec/webkit*gtk-*/MiniBrowser",
)
# Settings, caches and profiles of a user are neither read nor written.
_ENVIRONMENT = {
    "HOME": "{scratch}",
    "XDG_CACHE_HOME": "{scratch}",
    "XDG_CONFIG_HOME": "{scratch}",
    "XDG_DATA_HOME": "{scratch}",
    "XDG_RUNTIME_DIR": "{scratch}",
    "GSETTINGS_BACKEND": "memory",
    "NO_AT_BRIDGE": "1",
}
_EXECUTE = f"const done = arguments[2]; ({CALL})(arguments[0], arguments[1]).then(done);"


def find_driver() -> Path:
    """The WebKitWebDriver program.

    Raises:
        MissingToolError: it is not installed, or NAILTOOL_WEBKIT_DRIVER names no file.
    """
    chosen = os.environ.get(DRIVER_VARIABLE)
    if chosen:
        if Path(chosen).is_file():
            return Path(chosen)
        raise MissingToolError(
            f"{DRIVER_VARIABLE} is '{chosen}', which is no file.",
            hint=f"Correct or unset {DRIVER_VARIABLE}. {INSTALL_HINT}",
        )
    if sys.platform != "linux":
        raise MissingToolError(
            "WebKitGTK runs on Linux only.", hint="Run parity on Linux as well, or use other engines here."
        )
    if found := shutil.which("WebKitWebDriver"):
        return Path(found)
    raise MissingToolError("WebKitGTK's driver (WebKitWebDriver) is not installed.", hint=INSTALL_HINT)


def find_browser() -> Path:
    """The MiniBrowser program that belongs to the driver; raises MissingToolError."""
    for pattern in _BROWSERS:
        if found := sorted(Path("/").glob(pattern)):
            return found[-1]
    raise MissingToolError("WebKitGTK's MiniBrowser is not installed.", hint=INSTALL_HINT)


def check_tools() -> None:
    """Cheap look whether a session could start; raises MissingToolError naming what is missing."""
    find_driver()
    find_browser()
    find_display_server()


class WebKitSession:
    """One MiniBrowser and one local server; see :class:`deploy.browser.BrowserSession`.

    There is one page at a time: opening the next one replaces it.
    """

    name = NAME

    def __init__(self) -> None:
        self._driver_program = find_driver()
        check_tools()
        self.process = os.getpid()
        self.alive = True
        with contextlib.ExitStack() as stack:
            self._server = LocalServer()
            stack.callback(self._server.close)
            display = VirtualDisplay()
            stack.callback(display.close)
            port = _find_free_port()
            self._group = ProcessGroup(
                [str(self._driver_program), f"--port={port}"],
                environment={**_ENVIRONMENT, **display.environment},
            )
            stack.callback(self._group.kill)
            self._wait_for_driver(port)
            self._driver = self._start_session(port)
            self._resources = stack.pop_all()
        self._version = str(self._driver.capabilities.get("browserVersion", "unknown"))

    def _wait_for_driver(self, port: int) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + browser.START_TIMEOUT_S
        problem = f"it did not answer within {browser.START_TIMEOUT_S:g} s"
        while time.monotonic() < deadline and self._group.running:
            try:
                with opener.open(f"http://127.0.0.1:{port}/status", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        if not self._group.running:
            problem = f"it ended with code {self._group.exit_code}"
        said = self._group.last_words
        raise browser.describe_failed_start(NAME, self._driver_program, f"{problem}{said}")

    def _start_session(self, port: int) -> WebDriver:
        from selenium import webdriver
        from selenium.webdriver.common.proxy import Proxy
        from selenium.webdriver.remote.client_config import ClientConfig
        from selenium.webdriver.remote.remote_connection import RemoteConnection
        from selenium.webdriver.webkitgtk.options import Options

        options = Options()
        options.binary_location = str(find_browser())
        options.add_argument("--automation")
        direct = ClientConfig(f"http://127.0.0.1:{port}", proxy=Proxy({"proxyType": "direct"}))
        with self._guard("starting a WebDriver session", browser.START_TIMEOUT_S):
            return webdriver.Remote(RemoteConnection(client_config=direct), options=options)

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the browser and of what drives it."""
        return {"webkitgtk": self._version, "selenium": version("selenium")}

    def serve(self, folder: Path) -> str:
        """URL under which the files of a folder can be loaded by the page."""
        return self._server.serve(folder)

    def open_page(self) -> str:
        """The one page, loaded afresh, on which ``window.nailtool`` is ready; returns its window handle."""
        with self._guard("opening the runner page", browser.START_TIMEOUT_S):
            self._driver.get(self._server.page)
            while not self._driver.execute_script("return Boolean(window.nailtool)"):
                time.sleep(0.05)
            return self._driver.current_window_handle

    def close_page(self, page: str) -> None:
        """Leave the page, which frees what it holds; a browser that is gone already is no error."""
        if not self.alive:
            return
        with contextlib.suppress(NailtoolError), self._guard("closing a page", browser.CLOSE_TIMEOUT_S):
            self._driver.get("about:blank")

    def call(self, page: str, function: str, *arguments: Any, doing: str, timeout_s: float) -> Any:
        """Await ``nailtool.<function>(*arguments)`` in the page; see the protocol for its errors."""
        with self._guard(doing, timeout_s):
            self._driver.set_script_timeout(2 * timeout_s)  # one clock: the guard's
            answer = self._driver.execute_async_script(_EXECUTE, function, list(arguments))
            return unwrap_answer(NAME, answer, doing)

    def describe_renderer(self, renderer: str) -> tuple[str, str]:
        """WebKit masks its GPU ("Apple GPU" everywhere); our display makes it draw in software."""
        return f"masked by WebKit: {renderer}", "yes"

    @contextlib.contextmanager
    def _guard(self, doing: str, timeout_s: float) -> Iterator[None]:
        from selenium.common.exceptions import WebDriverException
        from urllib3.exceptions import HTTPError

        with limit_time(NAME, doing, timeout_s, self._kill) as fired:
            try:
                yield
            except (WebDriverException, HTTPError, OSError, PageGoneError) as error:
                self._kill()
                if fired.is_set():
                    raise
                raise describe_crash(NAME, doing, first_line(error)) from error

    def _kill(self) -> None:
        self.alive = False
        self._group.kill()

    def close(self) -> None:
        """End browser, display and server; safe after a crash."""
        self._kill()
        self._resources.close()


def _find_free_port() -> int:
    """The driver must be told a port: it takes 0 for its default."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def borrow_session() -> WebKitSession:
    """The process's one WebKitGTK, started when needed."""
    return POOL.borrow("webkit", WebKitSession)
