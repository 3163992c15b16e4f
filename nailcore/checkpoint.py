"""Checkpoints of a training: everything a killed run needs to go on to the same weights."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nailcore.errors import NailtoolError, WeightsError
from nailcore.nets.weights import check_state
from nailcore.storage import write_bytes


@dataclass
class TrainState:
    """A training between two steps.

    Crops and batches are functions of (seed, step), and the network draws nothing at random after
    its initialisation: there is no other state to keep.
    """

    network: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0


def save_checkpoint(path: Path, state: TrainState, identity: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises:
        NailtoolError: the weights are no longer finite; the checkpoint before is kept.
        MissingToolError: the disk is full; the checkpoint before is kept.
    """
    broken = [n for n, t in state.network.state_dict().items() if not bool(torch.isfinite(t).all())]
    if broken:
        raise NailtoolError(
            f"At step {state.step} the weights hold NaN or infinite values ({', '.join(broken[:3])}).",
            hint="The last good checkpoint is kept; lower the learning rates and start in a new folder.",
        )
    payload = {
        "identity": identity,
        "step": state.step,
        "network": state.network.state_dict(),
        "average": state.average.state_dict(),
        "optimizer": state.optimizer.state_dict(),
    }
    # Through memory: torch's own writer hides a full disk behind a RuntimeError.
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    write_bytes(path, buffer.getvalue())


def load_checkpoint(
    path: Path, state: TrainState, identity: dict[str, Any], defaults: dict[str, Any] | None = None
) -> None:
    """Continue from a checkpoint.

    ``defaults``: values of settings that did not exist when the checkpoint was written.

    Raises:
        WeightsError: damaged, or of another training; says what differs, for another network in which layers.
    """
    try:
        payload = torch.load(path, weights_only=True, map_location="cpu")
        found, network, step = payload["identity"], payload["network"], int(payload["step"])
    except Exception as error:
        raise WeightsError(
            f"{path}: not a readable checkpoint: {error}",
            hint="It was left as it is. Move it away to start this training from the beginning.",
        ) from error
    found.get("variant", {}).pop("weights", None)  # a file's name, in checkpoints of older versions
    encoders = [found.get("variant", {}).get("encoder"), identity.get("variant", {}).get("encoder")]
    if encoders[0] != encoders[1]:
        raise WeightsError(
            f"{path}: trains the encoder {encoders[0]}, but {encoders[1]} is asked for.",
            hint="Use another --out folder, or move the checkpoint away to start again.",
        )
    # Another depth, width or decoder: name the layers before any setting.
    check_state(state.network, network, path)
    for key, values in (defaults or {}).items():
        found[key] = {**values, **found.get(key, {})}
    if found != identity:
        raise WeightsError(
            f"{path}: belongs to another training; these differ: {', '.join(_differences(found, identity))}.",
            hint="Use another --out folder, or move the checkpoint away to start again.",
        )
    state.network.load_state_dict(network)
    state.average.load_state_dict(payload["average"])
    state.optimizer.load_state_dict(payload["optimizer"])
    state.step = step


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Names of the entries that differ, with one level of nesting: ``config.seed``."""
    names = []
    for key in sorted(found.keys() | wanted.keys()):
        old, new = found.get(key), wanted.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            names += [f"{key}.{k}" for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
        else:
            names.append(key)
    return names
