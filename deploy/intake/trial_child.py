"""The helper process behind ``trial``: for each request a forked child opens and executes one file."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_MAX_DETAIL = 500
_MAX_INPUT_ELEMENTS = 1 << 26


def try_onnx(path: str, _engine: str) -> None:
    """Execute an ONNX file once; raises whatever onnxruntime raises."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds: dict[str, Any] = {}
    for one in session.get_inputs():
        dtype = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(float16)": np.float16}
        if one.type not in dtype:
            raise ValueError(f"input '{one.name}' is a {one.type}; expected an image")
        sides = [side if isinstance(side, int) and side > 0 else 1 for side in one.shape]
        feeds[one.name] = np.zeros(_bounded(sides, one.name), dtype[one.type])
    values = session.run(None, feeds)
    for output, value in zip(session.get_outputs(), values, strict=True):
        declared = [side for side in output.shape or () if isinstance(side, int)]
        if declared and len(declared) == value.ndim and list(value.shape) != declared:
            raise ValueError(f"output '{output.name}' has shape {list(value.shape)}, declared {declared}")


def try_tflite(path: str, engine: str) -> None:
    """Execute a TFLite file once with the engine's kernels; raises whatever LiteRT raises."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kernels = OpResolverType.BUILTIN_REF if engine == "litert-reference" else OpResolverType.AUTO
    interpreter = Interpreter(
        model_content=Path(path).read_bytes(), num_threads=1, experimental_op_resolver_type=kernels
    )
    for one in interpreter.get_input_details():
        _bounded([int(side) for side in one["shape"]], str(one["name"]))
    interpreter.allocate_tensors()
    for one in interpreter.get_input_details():
        interpreter.set_tensor(one["index"], np.zeros(one["shape"], one["dtype"]))
    interpreter.invoke()
    for one in interpreter.get_output_details():
        interpreter.get_tensor(one["index"])


def _bounded(shape: list[int], name: str) -> list[int]:
    if math.prod(shape) > _MAX_INPUT_ELEMENTS:
        raise ValueError(f"input '{name}' has shape {shape}, larger than any image")
    return shape


_TRIALS: dict[str, tuple[Callable[[str, str], None], str]] = {
    "onnx": (try_onnx, "onnxruntime"),
    "tflite": (try_tflite, "ai_edge_litert.interpreter"),
}


def _limit(seconds: float, memory_bytes: int) -> None:
    """What this process may take: no core dump, no written file, bounded time and address space."""
    import resource

    whole = math.ceil(seconds)
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CPU: whole,
        resource.RLIMIT_AS: memory_bytes,
    }
    for limit, value in wanted.items():
        with contextlib.suppress(ValueError, OSError):  # macOS refuses to bound the address space
            resource.setrlimit(limit, (value, value))


def _run_trial(request: dict[str, Any]) -> dict[str, Any]:
    try:
        _TRIALS[request["kind"]][0](request["path"], request["engine"])
    except MemoryError:
        return {"verdict": "memory"}
    except Exception as error:  # native runtimes raise many unrelated types
        detail = " ".join(str(error).split())[:_MAX_DETAIL]
        if "bad_alloc" in detail or "Failed to allocate memory" in detail:
            return {"verdict": "memory"}
        return {"verdict": "refused", "detail": detail or type(error).__name__}
    return {"verdict": "passed"}


def _fork_trial(request: dict[str, Any]) -> dict[str, Any]:
    """One child, one trial; however it ends, this process lives on."""
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(source)
        try:
            _limit(request["seconds"], request["memory"])
            os.write(sink, json.dumps(_run_trial(request)).encode())
        finally:
            os._exit(0)  # no cleanup of a runtime that may be in any state
    os.close(sink)
    deadline = time.monotonic() + float(request["seconds"])
    answer = _read_until(source, deadline)
    os.close(source)
    hung = answer is None and time.monotonic() >= deadline
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if answer is not None:
        return answer
    if hung or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return {"verdict": "hung"}
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return {"verdict": "crashed", "detail": signal.Signals(number).name if number else "it ended"}


def _read_until(source: int, deadline: float) -> dict[str, Any] | None:
    """The child's answer; None when it ends without one or the time is over."""
    parts: list[bytes] = []
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([source], [], [], left)[0]:
            return None
        part = os.read(source, 65536)
        if not part:
            break
        parts.append(part)
    try:
        answer = json.loads(b"".join(parts))
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def main() -> None:
    """Answer requests, one JSON line each, until the input closes."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # native code prints where it likes; the answers have a channel of their own
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if sys.platform == "linux":
            importlib.import_module(_TRIALS[request["kind"]][1])  # once, before the fork
            answer = _fork_trial(request)
        else:
            # Elsewhere forking after system libraries have started is not safe: one process per trial.
            _limit(request["seconds"], request["memory"])
            answer = {**_run_trial(request), "final": True}
        answers.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
