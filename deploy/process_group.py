"""Foreign programs that never outlive us: own group, own scratch folder, gone at exit, Ctrl-C or kill -9."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

_REAPER = Path(__file__).parent / "reaper.py"
_GRACE_S = 10.0
_MAX_OUTPUT_BYTES = 1_000_000
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy")
_alive: weakref.WeakSet[ProcessGroup] = weakref.WeakSet()


class ProcessGroup:
    """A running program and all it starts; POSIX only.

    Args:
        command: program and arguments; ``{scratch}`` in an argument is replaced by its scratch folder.
        environment: added to ours, from which proxies are taken away: nothing it needs lies beyond them.
        files: name -> text, to lie in the scratch folder when the program starts.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        files: Mapping[str, str] | None = None,
    ) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix="nailtool-"))
        for name, text in (files or {}).items():
            (self.scratch / name).write_text(text, "utf-8")
        # Nameless, so there is nothing to clear up; open as long as someone may ask for the last words.
        self._log = tempfile.TemporaryFile(prefix="nailtool-")  # noqa: SIM115
        ours = {key: value for key, value in os.environ.items() if key.lower() not in _PROXIES}
        places = {key: value.format(scratch=self.scratch) for key, value in (environment or {}).items()}
        arguments = [argument.format(scratch=self.scratch) for argument in command]
        # The reaper has a session of its own: Ctrl-C in the terminal reaches us, and we end it.
        self._reaper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_REAPER), str(self.scratch), *arguments],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            env={**ours, **places},
            start_new_session=True,
        )
        self._owner = os.getpid()
        _alive.add(self)

    @property
    def running(self) -> bool:
        """False once the program ended, for whatever reason."""
        return self._reaper.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The program's exit code; None while it runs."""
        return self._reaper.poll()

    def read_output(self) -> str:
        """All it wrote so far to both of its streams."""
        return os.pread(self._log.fileno(), _MAX_OUTPUT_BYTES, 0).decode("utf-8", "replace")

    @property
    def last_words(self) -> str:
        """The end of its output in one line, with a colon before it; "" for nothing."""
        lines = self.read_output().strip().splitlines()
        return f": {' '.join(line.strip() for line in lines[-3:])[-300:]}" if lines else ""

    def kill(self) -> None:
        """End the program, all it started, and its scratch folder; safe from any thread, and twice."""
        if self._owner != os.getpid():
            return  # a fork inherited the object, not the processes
        if self._reaper.stdin and not self._reaper.stdin.closed:
            with contextlib.suppress(OSError):
                self._reaper.stdin.close()
        try:
            self._reaper.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._reaper.pid, signal.SIGKILL)
            self._reaper.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)
        _alive.discard(self)


@atexit.register
def _kill_all() -> None:
    for group in list(_alive):
        group.kill()
