"""Reading files nobody vouches for: everything is checked here before a runtime's own parser sees a byte.

The order is always the same: sizes by ``stat`` alone, names and paths, structure within bounds, declared
shapes against stored bytes; and for runtimes that live in this process and are written in C++, one trial in
a child process with bounded memory and time, because no check of ours can promise that they never crash.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from deploy.intake.folder import MAX_ARTIFACT_BYTES
from deploy.intake.zips import open_or_unpack, unpack_zip
from nailcore.errors import ArtifactError, UnknownNameError

__all__ = ["KINDS", "MAX_ARTIFACT_BYTES", "check_intake", "open_or_unpack", "unpack_zip"]

# kind -> module with check(path), and whether its runtime shares our process
_CHECKS = {
    "onnx": ("deploy.intake.onnx_file", True),
    "tflite": ("deploy.intake.tflite_model", True),
    "tfjs": ("deploy.intake.tfjs_folder", False),  # executed inside a browser's own sandbox
    "coreml": ("deploy.intake.coreml_folder", False),  # executed by our own code and torch
}
KINDS = tuple(_CHECKS)


def check_intake(kind: str, path: Path, engine: str = "", *, trial: bool = True) -> None:
    """Refuse a file or folder that cannot be opened safely; a sound one passes silently.

    Args:
        kind: "onnx", "coreml", "tfjs" or "tflite".
        path: the file, or the folder for kinds that are folders.
        engine: what will execute it (see the target's ENGINES); "" for the usual one.
        trial: also open and execute it once in a child process where the runtime is native code.

    Raises:
        ArtifactError: one sentence with what was found and where, and what was expected.
        UnknownNameError: no such kind.
    """
    if kind not in _CHECKS:
        raise UnknownNameError("artefact kind", kind, KINDS)
    module, native = _CHECKS[kind]
    try:
        importlib.import_module(module).check(path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except MemoryError as error:
        raise ArtifactError(f"{path}: too large for the memory of this machine.") from error
    if native and trial:
        from deploy.intake.trial import try_in_child

        try_in_child(kind, path, engine)
