"""A virtual display (Xvfb) for browsers that draw only on one; no window ever shows."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

from deploy.process_group import ProcessGroup
from nailcore.errors import BrowserError, MissingToolError

INSTALL_HINT = "Install a virtual display (Debian, Ubuntu: `sudo apt-get install xvfb libgl1-mesa-dri`)."
START_TIMEOUT_S = 30.0


def find_display_server() -> Path:
    """The Xvfb program.

    Raises:
        MissingToolError: it is not installed.
    """
    if found := shutil.which("Xvfb"):
        return Path(found)
    raise MissingToolError("No virtual display: Xvfb is not installed.", hint=INSTALL_HINT)


class VirtualDisplay:
    """One Xvfb on a display number of its own choice; drawing is done by the CPU."""

    def __init__(self) -> None:
        program = find_display_server()
        # -displayfd makes the server itself look for a free number: no race between two of us.
        self._group = ProcessGroup(
            [str(program), "-displayfd", "1", "-screen", "0", "1280x1024x24", "-nolisten", "tcp", "-noreset"]
        )
        self.name = f":{self._read_number()}"

    def _read_number(self) -> int:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._group.running:
            if found := re.search(r"^(\d+)\n", self._group.read_output(), re.MULTILINE):
                return int(found[1])
            time.sleep(0.02)
        said = self._group.last_words
        self.close()
        raise BrowserError(
            f"Xvfb is installed but did not start within {START_TIMEOUT_S:g} s{said}",
            hint="Is /tmp writable, and the machine not overloaded? Xvfb keeps its socket in /tmp/.X11-unix.",
        )

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs in its environment to draw here, in software whatever GPU there is."""
        return {
            "DISPLAY": self.name,
            "WAYLAND_DISPLAY": "",
            "GDK_BACKEND": "x11",
            "LIBGL_ALWAYS_SOFTWARE": "1",
        }

    def close(self) -> None:
        """End the server."""
        self._group.kill()


def has_display() -> bool:
    """Whether this session can show windows."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
