"""Open a file for the first time in a child process: its crash, hang or hunger becomes our own error."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from deploy.intake.folder import refuse
from nailcore.errors import MissingToolError
from nailcore.storage import hash_path

TRIAL_SECONDS = 60.0  # our slowest model takes half a second
TRIAL_MEMORY_BYTES = 4 << 30  # address space; our largest model takes a quarter of it
_GRACE_SECONDS = 30.0  # for the server's own start and imports
_HOME = Path(__file__).resolve().parents[2]
_lock = threading.Lock()
_passed: set[tuple[str, str, str]] = set()  # (kind, engine, SHA-256): no second trial


class _Server:
    """One helper process that forks a child for every trial, so that imports are paid once."""

    def __init__(self) -> None:
        # One thread: whatever a library starts on import would be missing in the forked child.
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        # -P and PYTHONPATH: a folder called `deploy` where the user stands must not stand in for ours.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "deploy.intake.trial_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **single, "PYTHONPATH": str(_HOME)},
            start_new_session=True,  # Ctrl-C is ours to handle
        )
        self.owner = os.getpid()

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        """The server's answer, or None when it is gone or does not answer in time."""
        sink, source = self.process.stdin, self.process.stdout
        if sink is None or source is None:
            return None
        try:
            sink.write(json.dumps(request).encode() + b"\n")
            sink.flush()
            if not select.select([source], [], [], timeout_s)[0]:
                return None
            answer = json.loads(source.readline())
        except (OSError, ValueError):
            return None
        return answer if isinstance(answer, dict) else None

    def close(self) -> None:
        """End the process; it also ends by itself when ours does, because its input closes."""
        if self.owner != os.getpid():
            return  # inherited by a fork: not ours to end
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self.process.kill()
        self.process.wait()


_server: _Server | None = None


def _close_server() -> None:
    global _server  # noqa: PLW0603 - one helper per process
    if _server is not None:
        _server.close()
        _server = None


atexit.register(_close_server)


def try_in_child(
    kind: str,
    path: Path,
    engine: str = "",
    *,
    seconds: float = TRIAL_SECONDS,
    memory_bytes: int = TRIAL_MEMORY_BYTES,
) -> None:
    """Open a file that the checks let through, execute it once on a black image, and see it end well.

    The same bytes are tried once per process. The child cannot write files and has its memory, CPU time
    and wall time bounded (memory on Linux alone: other systems ignore the limit).

    Raises:
        ArtifactError: the runtime refused the file, crashed on it, or needed too much time or memory.
        MissingToolError: the helper process itself does not start.
    """
    key = (kind, engine, hash_path(path))
    with _lock:
        if key in _passed:
            return
        limits = {"seconds": seconds, "memory": memory_bytes}
        request = {"kind": kind, "path": str(path.resolve()), "engine": engine, **limits}
        answer = _ask(request, seconds + _GRACE_SECONDS)
        if answer["verdict"] == "passed":
            _passed.add(key)
            return
    raise refuse(path, _describe(answer, seconds, memory_bytes))


def _ask(request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    global _server  # noqa: PLW0603
    for _ in range(2):
        if _server is None or _server.owner != os.getpid() or _server.process.poll() is not None:
            _server = _Server()
        answer = _server.ask(request, timeout_s)
        if answer is not None:
            if answer.get("final"):
                _close_server()
            return answer
        _close_server()
    raise MissingToolError(
        "The helper process that opens files for the first time does not answer.",
        hint="Is the machine out of memory, or may this user start no more processes?",
    )


def _describe(answer: dict[str, Any], seconds: float, memory_bytes: int) -> str:
    verdict, detail = str(answer["verdict"]), str(answer.get("detail", ""))
    if verdict == "refused":
        return f"cannot be executed: {detail}"
    if verdict == "hung":
        return f"did not finish one inference within {seconds:g} s."
    if verdict == "memory":
        return f"needs more than {memory_bytes >> 20:,} MiB for one inference."
    return f"crashes its runtime ({detail})."
