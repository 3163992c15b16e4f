"""The seam to a browser: what every session offers, how its failures are named, and one session for all."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from nailcore.errors import ArtifactError, BrowserError

START_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 10.0
# The one way all drivers call the page: what the page throws comes back as a value, so that whatever a
# driver itself raises is the browser's fault.
CALL = """async (name, given) => {
  if (!globalThis.nailtool) return { gone: true };
  try { return { value: (await nailtool[name](...given)) ?? null }; }
  catch (error) { return { error: String(error?.message ?? error) }; }
}"""
_TROUBLE = "browser trouble: "  # deploy/web/src/trouble.js
_SOFTWARE = re.compile(
    r"swiftshader|llvmpipe|softpipe|swrast|lavapipe|software|basic render|\bwarp\b", re.IGNORECASE
)


class BrowserSession(Protocol):
    """One running browser with pages of ours. Use it from the thread that made it."""

    name: str  # "Chromium", "Firefox", "WebKitGTK"
    alive: bool  # False after a crash, a kill, or close
    process: int  # the process that started it; a fork must not use it

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the browser and of what drives it."""

    def serve(self, folder: Path) -> str:
        """URL under which the files of a folder can be loaded by the page."""

    def open_page(self) -> Any:
        """A fresh page on which ``window.nailtool`` is ready."""

    def close_page(self, page: Any) -> None:
        """Close a page; a browser that is gone already is no error."""

    def call(self, page: Any, function: str, *arguments: Any, doing: str, timeout_s: float) -> Any:
        """Await ``nailtool.<function>(*arguments)`` in the page, for at most ``timeout_s`` seconds.

        Raises:
            ArtifactError: the page's own code threw: what it was given does not work.
            BrowserError: the browser crashed, or did not answer in time (it is killed then).
        """

    def describe_renderer(self, renderer: str) -> tuple[str, str]:
        """(renderer for a report, whether it is a software GPU: "yes", "no" or "unknown")."""

    def close(self) -> None:
        """End browser, driver and server; safe after a crash."""


def is_software_gpu(renderer: str) -> bool:
    """Whether a renderer string names a GPU that is computed by the CPU."""
    return bool(_SOFTWARE.search(renderer))


class PageGoneError(Exception):
    """Another page answered than the one that was opened: what carried ours has crashed."""

    def __init__(self) -> None:
        super().__init__("the page is gone")


def unwrap_answer(browser: str, answer: Any, doing: str) -> Any:
    """The value inside what ``CALL`` returned; raises what the page threw, or PageGoneError."""
    if not isinstance(answer, dict) or not ({"value", "error"} & set(answer)):
        # Firefox repeats a command in the page that tells of a crash.
        raise PageGoneError
    if "error" not in answer:
        return answer["value"]
    reason = str(answer["error"])
    if reason.startswith(_TROUBLE):
        raise BrowserError(
            f"{browser} failed while {doing}: {reason.removeprefix(_TROUBLE)}",
            hint="This says nothing about the file. Try another engine; `nailtool doctor` looks at browsers.",
        )
    raise ArtifactError(f"{browser} refused while {doing}: {reason}")


def describe_crash(browser: str, doing: str, reason: str) -> BrowserError:
    """The error for a browser that ended by itself."""
    return BrowserError(
        f"{browser} crashed while {doing}: {reason}",
        hint="Most often it ran out of memory; close other programs and run again.",
    )


def describe_failed_start(browser: str, program: Path, reason: str, hint: str = "") -> BrowserError:
    """The error for a browser that is installed and does not come up."""
    return BrowserError(
        f"{browser} ({program}) is installed but did not start: {reason}",
        hint=hint or "Start it once by hand and look at what it says; `nailtool doctor` looks at browsers.",
    )


@contextmanager
def limit_time(
    browser: str, doing: str, timeout_s: float, kill: Callable[[], None]
) -> Iterator[threading.Event]:
    """Drivers have no time limit one can rely on: a timer kills the browser, which ends any call to it.

    An error of the driver that follows the kill becomes a BrowserError that says so. Yields the event
    that tells whether the timer fired.
    """
    fired = threading.Event()

    def stop() -> None:
        fired.set()
        kill()

    timer = threading.Timer(timeout_s, stop)
    timer.daemon = True
    timer.start()
    try:
        yield fired
    except Exception as error:
        if not fired.is_set() or isinstance(error, ArtifactError):
            raise
        raise BrowserError(
            f"{browser} did not answer within {timeout_s:g} s while {doing}; it was ended.",
            hint="Is the machine overloaded or out of memory? Run again on a quieter one.",
        ) from error
    finally:
        timer.cancel()


SessionT = TypeVar("SessionT", bound=BrowserSession)


class SessionPool:
    """At most one running browser per key in a process; the last borrower turns off the light."""

    def __init__(self) -> None:
        self._sessions: dict[str, BrowserSession] = {}
        self._borrowers: dict[str, int] = {}

    def borrow(self, key: str, start: Callable[[], SessionT]) -> SessionT:
        """The session of a key, started when there is none or the last one died."""
        found: Any = self._sessions.get(key)
        if found is not None and (not found.alive or found.process != os.getpid()):
            del self._sessions[key], self._borrowers[key]
            if found.process == os.getpid():
                found.close()
            found = None
        session: SessionT = found or start()
        self._sessions[key] = session
        self._borrowers[key] = self._borrowers.get(key, 0) + 1
        return session

    def give_back(self, session: BrowserSession) -> None:
        """Give a borrowed session back; one that died and was replaced meanwhile is none of ours any more."""
        for key, found in self._sessions.items():
            if found is session:
                self._borrowers[key] -= 1
                if self._borrowers[key] <= 0:
                    del self._sessions[key], self._borrowers[key]
                    session.close()
                return


POOL = SessionPool()


def first_line(error: BaseException) -> str:
    """The first line of an error's message: drivers append logs by the page."""
    line = str(error).strip().split("\n")[0]
    for prefix in ("Message:", "Page.evaluate:", "BrowserType.launch:"):
        line = line.removeprefix(prefix).strip()
    return line or "it ended"
