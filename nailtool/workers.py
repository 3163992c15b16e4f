"""Worker processes: heavy libraries are imported once per worker, and never torch beside tensorflow."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nailcore.errors import NailtoolError
from nailtool.stage import Cost

# One thread per worker: two workers on two cores beat two threads each, and a busy machine punishes
# spinning threads tenfold.
THREAD_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
RECYCLE_RSS_BYTES = 1_200_000_000  # a worker above this is replaced before its next stage: 2 GB is the limit
RECYCLE_STAGES = 8
_GRACE_S = 2.0


class StageCrashError(Exception):
    """An unexpected exception inside a stage: a defect, not a user's mistake."""

    def __init__(self, summary: str, log: str) -> None:
        super().__init__(summary, log)
        self.summary = summary
        self.log = log

    def __str__(self) -> str:
        return f"{self.summary} (traceback in {self.log})"


class WorkerDiedError(NailtoolError):
    """A worker process ended in the middle of a stage: killed, or out of memory."""


Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Request:
    """One call to make in a worker; its output goes to ``log``."""

    job: str
    arguments: Mapping[str, Any]
    log: Path


@dataclass(frozen=True)
class Reply:
    """The end of one call."""

    error: Exception | None
    cost: Cost
    rss_bytes: int


def _split_cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # Linux: forget this process's peak


def _read_memory() -> tuple[int, int]:
    """(resident, peak resident) bytes of this process."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text("ascii")
        found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status, re.MULTILINE))
        if len(found) == 2:
            return int(found["VmRSS"]) * 1024, int(found["VmHWM"]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_bytes = peak if sys.platform == "darwin" else peak * 1024
    return peak_bytes, peak_bytes


def _end_with_parent(lifeline: int) -> None:
    """Leave nothing behind when the command itself is killed: take the browsers along, too."""

    def watch() -> None:
        os.read(lifeline, 1)  # nothing is ever written: this returns when the parent is gone
        _kill_children(os.getpid())
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _kill_children(pid: int) -> None:
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()


def serve(channel: int, lifeline: int) -> None:
    """The worker's main loop: one request after the other until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _end_with_parent(lifeline)
    pipe = Connection(channel)
    while True:
        try:
            request = pipe.recv()
        except (EOFError, OSError):
            return
        if request is None:
            return
        pipe.send(_answer(request, lambda done, total: pipe.send((done, total))))


def _answer(request: Request, progress: Progress) -> Reply:
    _reset_peak()
    cpu_s, wall_s = _split_cpu(), time.perf_counter()
    error: Exception | None = None
    with _output_to(request.log):
        try:
            module, _, name = request.job.partition(":")
            job = getattr(importlib.import_module(module), name)
            job(progress=progress, **request.arguments)
        except NailtoolError as known:
            traceback.print_exc()
            error = known
        except Exception as unexpected:
            traceback.print_exc()
            error = StageCrashError(f"{type(unexpected).__name__}: {unexpected}", str(request.log))
    rss, peak = _read_memory()
    cost = Cost(_split_cpu() - cpu_s, time.perf_counter() - wall_s, peak)
    return Reply(error, cost, rss)


@contextlib.contextmanager
def _output_to(log: Path) -> Any:
    """Send everything the libraries print, from Python or from C, to a file: stdout stays ours."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as stream:
        sys.stdout.flush()
        sys.stderr.flush()
        saved = [(fd, os.dup(fd)) for fd in (1, 2)]
        for fd, _ in saved:
            os.dup2(stream.fileno(), fd)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for fd, copy in saved:
                os.dup2(copy, fd)
                os.close(copy)


class Worker:
    """One process that runs requests of one family, one at a time.

    A plain subprocess, not one of `multiprocessing`: that would import the caller's main module again,
    which costs a second under pytest and starts a user's script anew when it has no main guard.
    """

    def __init__(self, family: str, log_dir: Path) -> None:
        self.family = family
        self.affinity = ""  # of the last stage it took
        self.stages_done = 0
        self.rss_bytes = 0
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        log_dir.mkdir(parents=True, exist_ok=True)
        code = f"from nailtool.workers import serve; serve({theirs.fileno()}, {lifeline})"
        # -P and our own path: what this process imports, the worker imports, wherever it was started.
        environment = {
            **os.environ,
            **THREAD_VARIABLES,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        with (log_dir / f"worker.{family.replace(' ', '.')}.log").open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                pass_fds=(theirs.fileno(), lifeline),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C on the terminal does not reach it
            )
        theirs.close()
        os.close(lifeline)
        self.pipe = Connection(ours.detach())

    @property
    def worn_out(self) -> bool:
        """Whether it should be replaced before its next request."""
        return self.stages_done >= RECYCLE_STAGES or self.rss_bytes > RECYCLE_RSS_BYTES

    def submit(self, request: Request) -> None:
        """Start a request; its messages arrive on ``pipe``."""
        self.pipe.send(request)

    def receive(self) -> Reply | tuple[int, int]:
        """The next message.

        Raises:
            WorkerDiedError: the process ended without an answer.
        """
        try:
            message = self.pipe.recv()
        except (EOFError, OSError) as error:
            self._wait()
            raise WorkerDiedError(_describe_exit(self.process.returncode)) from error
        if isinstance(message, Reply):
            self.stages_done += 1
            self.rss_bytes = message.rss_bytes
            return message
        done, total = message
        return int(done), int(total)

    def close(self) -> None:
        """Let an idle worker end."""
        with contextlib.suppress(OSError):
            self.pipe.send(None)
            self._wait()
        self.kill()

    def kill(self) -> None:
        """End the process and everything it started, now."""
        if self.process.poll() is None:
            _kill_children(self.process.pid)
            self.process.kill()
        self._wait()
        if not self.pipe.closed:
            self.pipe.close()
            os.close(self._lifeline)

    def _wait(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE_S)


def _describe_exit(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        why = "; the system may have run out of memory" if name == "SIGKILL" else ""
        return f"its worker process was ended by {name}{why}."
    return f"its worker process ended with code {code} before it was done."
