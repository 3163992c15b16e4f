"""A small training for tests to start in processes of their own: FOLDER OUT STEPS."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from nailcore import train
from nailcore.checkpoint import TrainState
from nailcore.data.folder import open_dataset
from nailcore.train import TrainConfig, run_training
from nailcore.variant import Variant

TINY = Variant(
    name="nail43-64", encoder_layers=43, height_px=64, width_px=64, fusion_width=16, weights="tiny"
)


def main(folder: Path, out: Path, steps: int) -> None:
    """Train, then leave a digest of this process's own weights."""
    config = TrainConfig(steps=steps, batch=2, crop_px=64, checkpoint_every=1, threads=1, warmup_steps=1)
    states: list[TrainState] = []
    start = train.start_training

    def remember(*arguments: object, **named: object) -> TrainState:
        states.append(start(*arguments, **named))  # type: ignore[arg-type]
        return states[-1]

    train.start_training = remember
    run_training(TINY, open_dataset(folder), config, out, init=None)
    digest = hashlib.sha256()
    for parameter in states[0].network.parameters():  # not the buffers: each keeps its own statistics
        digest.update(parameter.detach().numpy().tobytes())
    rank = os.environ.get("RANK", "0")
    (out / f"rank{rank}.txt").write_text(digest.hexdigest())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
