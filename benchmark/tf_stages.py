"""Child process of the conversion stages: freezes, runs and converts with TensorFlow, away from torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from nailcore.errors import ConversionError
from nailcore.runtime import Images, Logits

F32 = npt.NDArray[np.float32]
TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Order:
    """What the child makes of one ONNX file."""

    onnx: str
    variant: str
    images: str  # .npy, (N, H, W, 3) uint8
    frozen: str  # .npz to write: logits of the frozen graph by output name, (N, C, h, w)
    # (target, what to write, recipe, options of the target's convert)
    files: Sequence[tuple[str, str, Mapping[str, Any], Mapping[str, Any]]]


def run_child(order: Order, scratch: Path) -> Logits:
    """Carry the order out in a fresh process; returns the frozen graph's logits.

    Raises:
        ConversionError: the child failed; its last words are in the message.
    """
    request = scratch / "order.json"
    request.write_text(json.dumps(asdict(order)), "utf-8")
    root = Path(__file__).parents[1]
    child = subprocess.run(
        [sys.executable, "-m", "benchmark.tf_stages", str(request)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if child.returncode:
        last = child.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ConversionError(f"{order.variant}: the TensorFlow stages failed: {last[0]}")
    with np.load(order.frozen) as archive:
        return {name: archive[name] for name in archive.files}


def _run_frozen(model: Any, images: Images, names: Sequence[str]) -> dict[str, F32]:
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.import_graph_def(model.graph, name="")
        config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
        with tf.compat.v1.Session(graph=graph, config=config) as session:
            fetches = [f"{model.output_nodes[name]}:0" for name in names]
            batches = [
                session.run(fetches, {f"{model.input_node}:0": image[None].astype(np.float32)})
                for image in images
            ]
    return {
        name: np.concatenate([batch[place] for batch in batches]).transpose(0, 3, 1, 2)
        for place, name in enumerate(names)
    }


def main(request: Path) -> None:
    """Freeze, run and convert as the order says; errors leave by their message on stderr."""
    from deploy import find_target
    from deploy.onnx_to_tf import freeze_onnx, quiet_native_logs
    from model_zoo import find_variant
    from nailcore.artifact import write_manifest

    order = Order(**json.loads(request.read_text("utf-8")))
    variant, parent = find_variant(order.variant), Path(order.onnx)
    names = tuple(output.name for output in variant.outputs)
    with quiet_native_logs():
        model = freeze_onnx(parent, names)
        logits = _run_frozen(model, np.load(order.images), names)
    np.savez(order.frozen, **cast(dict[str, Any], logits))
    for kind, file, recipe, options in order.files:
        out = Path(file)
        write_manifest(out, find_target(kind).convert(variant, dict(recipe), parent, out, **options))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
