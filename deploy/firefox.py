"""Headless Firefox under our control: WebDriver BiDi on its own socket, throw-away profile, no telemetry."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy import browser
from deploy.browser import CALL, POOL, PageGoneError, describe_crash, first_line, limit_time, unwrap_answer
from deploy.display import VirtualDisplay, find_display_server, has_display
from deploy.process_group import ProcessGroup
from deploy.web_server import LocalServer
from nailcore.errors import MissingToolError, NailtoolError

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

NAME = "Firefox"
BROWSER_VARIABLE = "NAILTOOL_FIREFOX"
INSTALL_HINT = (
    "Install Firefox (Debian: `sudo apt-get install firefox-esr`; macOS: `brew install --cask firefox`), "
    f"or set {BROWSER_VARIABLE} to its executable."
)
_NAMES = ("firefox-esr", "firefox")
_PLACES = {"darwin": ("/Applications/Firefox.app/Contents/MacOS/firefox",)}
_ENDPOINT = "WebDriverBiDiServer.json"  # where Firefox writes the port it chose, inside its profile
# Firefox's own list for automation is applied with --remote-debugging-port; these close what it leaves open.
_PREFERENCES: dict[str, bool | int | str] = {
    "app.normandy.enabled": False,
    "app.update.disabledForTesting": True,
    "browser.aboutConfig.showWarning": False,
    "browser.safebrowsing.blockedURIs.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "browser.sessionstore.resume_from_crash": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.page": 0,
    "browser.tabs.crashReporting.sendReport": False,
    "captivedetect.canonicalURL": "",
    "datareporting.healthreport.uploadEnabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "dom.max_script_run_time": 0,  # no question about slow scripts; our clock decides
    "dom.push.connection.enabled": False,
    "extensions.getAddons.cache.enabled": False,
    "extensions.systemAddon.update.enabled": False,
    "extensions.update.enabled": False,
    "geo.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "network.dns.disablePrefetch": True,
    "network.prefetch-next": False,
    "network.proxy.type": 0,
    "privacy.reduceTimerPrecision": False,
    "services.settings.server": "data:,",  # remote settings: no certificates, no blocklists, no experiments
    "toolkit.telemetry.enabled": False,
    "toolkit.telemetry.server": "data:,",
    "webgl.force-enabled": True,  # software GPUs are on Firefox's blocklist
}
_ENVIRONMENT = {
    "HOME": "{scratch}",
    "MOZ_CRASHREPORTER_DISABLE": "1",  # its helper would live outside our process group
    "MOZ_DATA_REPORTING": "0",
}


def find_browser() -> Path:
    """The executable of an installed Firefox.

    Raises:
        MissingToolError: none is installed, or NAILTOOL_FIREFOX names no file.
    """
    chosen = os.environ.get(BROWSER_VARIABLE)
    if chosen:
        if Path(chosen).is_file():
            return Path(chosen)
        raise MissingToolError(
            f"{BROWSER_VARIABLE} is '{chosen}', which is no file.",
            hint=f"Correct or unset {BROWSER_VARIABLE}. {INSTALL_HINT}",
        )
    if sys.platform == "win32":
        raise MissingToolError(
            "Firefox is driven on Linux and macOS only.", hint="Use the Chromium engines here."
        )
    for name in _NAMES:
        if found := shutil.which(name):
            return Path(found)
    for place in _PLACES.get(sys.platform, ()):
        if Path(place).is_file():
            return Path(place)
    raise MissingToolError("No Firefox found on this machine.", hint=INSTALL_HINT)


def check_tools(*, gpu: bool) -> None:
    """Cheap look whether a session could start.

    Raises:
        MissingToolError: Firefox, or the display its WebGL needs, is missing.
    """
    find_browser()
    if gpu and _needs_display():
        find_display_server()


def _needs_display() -> bool:
    return sys.platform == "linux" and not has_display()


class FirefoxSession:
    """One Firefox and one local server; see :class:`deploy.browser.BrowserSession`.

    Args:
        gpu: offer WebGL. Headless Firefox has none, so it then draws on a display: the session's own, or
            a virtual one.
        preferences: added to those of the throw-away profile.
    """

    name = NAME

    def __init__(
        self, *, gpu: bool = False, preferences: Mapping[str, bool | int | str] | None = None
    ) -> None:
        self._executable = find_browser()
        check_tools(gpu=gpu)
        self.process = os.getpid()
        self.alive = True
        self._next_id = 0
        with contextlib.ExitStack() as stack:
            self._server = LocalServer()
            stack.callback(self._server.close)
            environment = dict(_ENVIRONMENT)
            if gpu and _needs_display():
                display = VirtualDisplay()
                stack.callback(display.close)
                environment |= display.environment
            self._group = self._launch(gpu, environment, {**_PREFERENCES, **(preferences or {})})
            stack.callback(self._group.kill)
            self._socket = self._connect(stack)
            self._version = self._start_session()
            self._resources = stack.pop_all()

    def _launch(
        self, gpu: bool, environment: Mapping[str, str], preferences: Mapping[str, bool | int | str]
    ) -> ProcessGroup:
        lines = [f"user_pref({json.dumps(key)}, {json.dumps(value)});" for key, value in preferences.items()]
        arguments = ["--no-remote", "--remote-debugging-port=0", "--profile", "{scratch}"]
        command = [str(self._executable), *([] if gpu else ["--headless"]), *arguments]
        return ProcessGroup(command, environment=environment, files={"user.js": "\n".join(lines) + "\n"})

    def _connect(self, stack: contextlib.ExitStack) -> ClientConnection:
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        endpoint = self._group.scratch / _ENDPOINT
        deadline = time.monotonic() + browser.START_TIMEOUT_S
        problem = f"it opened no WebDriver BiDi socket within {browser.START_TIMEOUT_S:g} s"
        while time.monotonic() < deadline and self._group.running:
            try:
                place = json.loads(endpoint.read_text("utf-8"))
                opening = connect(
                    f"ws://{place['ws_host']}:{place['ws_port']}/session",
                    proxy=None,
                    compression=None,
                    max_size=None,
                    ping_interval=None,
                    open_timeout=max(deadline - time.monotonic(), 0.1),
                    close_timeout=1,
                )
                return stack.enter_context(opening)
            except (OSError, ValueError, KeyError, WebSocketException) as error:
                if endpoint.exists():
                    problem = first_line(error)
                time.sleep(0.05)
        if not self._group.running:
            problem = f"it ended with code {self._group.exit_code}"
        said = self._group.last_words
        raise browser.describe_failed_start(NAME, self._executable, f"{problem}{said}")

    def _start_session(self) -> str:
        with self._guard("starting a WebDriver session", browser.START_TIMEOUT_S):
            capabilities = self._command("session.new", capabilities={})["capabilities"]
        return str(capabilities.get("browserVersion", "unknown"))

    def _command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one BiDi command and wait for its answer; whatever else arrives is of no interest."""
        self._next_id += 1
        number = self._next_id
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                if message.get("type") == "error":
                    raise _BidiError(f"{message.get('error')}: {message.get('message')}")
                result: dict[str, Any] = message["result"]
                return result

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the browser and of what drives it."""
        return {"firefox": self._version, "websockets": version("websockets")}

    def serve(self, folder: Path) -> str:
        """URL under which the files of a folder can be loaded by the page."""
        return self._server.serve(folder)

    def open_page(self) -> str:
        """A fresh tab on which ``window.nailtool`` is ready; returns its browsing context."""
        with self._guard("opening the runner page", browser.START_TIMEOUT_S):
            context = str(self._command("browsingContext.create", type="tab")["context"])
            self._command("browsingContext.navigate", context=context, url=self._server.page, wait="complete")
            while not self._evaluate(context, "Boolean(window.nailtool)"):
                time.sleep(0.05)
        return context

    def _evaluate(self, context: str, expression: str) -> Any:
        found = self._command(
            "script.evaluate", expression=expression, target={"context": context}, awaitPromise=True
        )
        if found["type"] == "exception":
            raise _BidiError(str(found["exceptionDetails"].get("text")))
        return found["result"].get("value")

    def close_page(self, page: str) -> None:
        """Close a tab; a browser that is gone already is no error."""
        if not self.alive:
            return
        with contextlib.suppress(NailtoolError), self._guard("closing a page", browser.CLOSE_TIMEOUT_S):
            self._command("browsingContext.close", context=page)

    def call(self, page: str, function: str, *arguments: Any, doing: str, timeout_s: float) -> Any:
        """Await ``nailtool.<function>(*arguments)`` in the page; see the protocol for its errors."""
        given = f"{json.dumps(function)}, {json.dumps(list(arguments))}"
        with self._guard(doing, timeout_s):
            text = self._evaluate(page, f"({CALL})({given}).then(JSON.stringify)")
            return unwrap_answer(NAME, json.loads(text), doing)

    def describe_renderer(self, renderer: str) -> tuple[str, str]:
        """Firefox rounds renderer names to families ("llvmpipe, or similar") and keeps their kind."""
        return renderer, "yes" if browser.is_software_gpu(renderer) else "no"

    @contextlib.contextmanager
    def _guard(self, doing: str, timeout_s: float) -> Iterator[None]:
        from websockets.exceptions import WebSocketException

        with limit_time(NAME, doing, timeout_s, self._kill) as fired:
            try:
                yield
            except (OSError, EOFError, WebSocketException, _BidiError, PageGoneError) as error:
                self._kill()
                if fired.is_set():
                    raise
                raise describe_crash(NAME, doing, first_line(error)) from error

    def _kill(self) -> None:
        self.alive = False
        self._group.kill()

    def close(self) -> None:
        """End browser, display and server; safe after a crash."""
        self.alive = False
        self._group.kill()  # before the socket is closed: no goodbye to wait for
        self._resources.close()


class _BidiError(Exception):
    """The browser answered a command with an error: ours are right, so it is in no state to go on."""


def borrow_session(*, gpu: bool = False) -> FirefoxSession:
    """The process's one Firefox of a kind, started when needed."""
    return POOL.borrow(f"firefox {'gpu' if gpu else 'cpu'}", lambda: FirefoxSession(gpu=gpu))
