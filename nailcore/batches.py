"""Batches on their way to the network: made in order, in processes of their own or not, put on the device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from nailcore.data.mixing import Batch, MixedBatches
from nailcore.losses import shrink_targets
from nailcore.variant import Variant


def load_batches(batches: MixedBatches, first: int, workers: int) -> Iterable[Batch]:
    """The batches from ``first`` on, in their order; made between the steps, or by ``workers`` processes."""
    steps = range(first, len(batches))
    if not workers:
        return (batches[step] for step in steps)
    from torch.utils.data import DataLoader

    loader: Iterable[Batch] = DataLoader(
        batches,  # type: ignore[arg-type]  # has __getitem__ and __len__, which is all that is used
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        prefetch_factor=3,
        worker_init_fn=_calm_worker,
    )
    return loader


def _calm_worker(_: int) -> None:
    """One thread per worker: there are several workers."""
    import cv2

    cv2.setNumThreads(1)


class BatchPipeline:
    """From bytes on the CPU to normalised images and labels at every stride on the device."""

    def __init__(self, variant: Variant, strides: Iterable[int], device: torch.device) -> None:
        self.mean = torch.tensor(variant.mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(variant.std, device=device).view(1, 3, 1, 1)
        self.strides = tuple(sorted(strides))
        self.device = device

    def prepare(self, batch: Batch) -> tuple[torch.Tensor, dict[int, Any]]:
        """Images (N, 3, S, S) in the network's range, channels last, and targets by stride."""
        images = torch.from_numpy(batch.images).to(self.device).permute(0, 3, 1, 2)
        x = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        targets = shrink_targets(
            torch.from_numpy(batch.masks).to(self.device).float(),
            torch.from_numpy(batch.fingers).to(self.device),
            torch.from_numpy(batch.directions).to(self.device),
            self.strides,
        )
        return x, targets
