"""Runs one program in a process group of its own and ends all of it when the parent's pipe closes.

Started by path (``python reaper.py SCRATCH PROGRAM ARGUMENT...``), so it imports nothing of ours. Standard
input is the lifeline: it closes when the parent lets go of it, is killed, or dies. SCRATCH goes with them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

_PR_SET_CHILD_SUBREAPER = 36
_LAST_RESORT_S = 5.0


def _adopt_orphans() -> None:
    """On Linux, grandchildren whose parent died become ours to bury: containers often have no init."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _bury() -> None:
    """Wait for all that was killed, so that nothing is left for an init that may not exist."""
    deadline = time.monotonic() + _LAST_RESORT_S
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.02)


def _main(scratch: str, command: list[str]) -> int:
    _adopt_orphans()
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, cwd=scratch)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        shutil.rmtree(scratch, ignore_errors=True)
        return 127

    def watch() -> None:
        sys.stdin.buffer.read()  # returns at the end of the lifeline
        _kill(child.pid)

    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    _kill(child.pid)  # what it left running
    _bury()
    shutil.rmtree(scratch, ignore_errors=True)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    code = _main(sys.argv[1], sys.argv[2:])
    sys.stdout.flush()
    os._exit(code)  # the watcher may still sit in a read, which an orderly exit would trip over
