"""Images a second of the loader alone, the step alone and both: ``python -m benchmark.training_speed``."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from pydantic import Field

from benchmark.program import run_program
from nailcore.data.folder import Dataset, open_dataset
from nailcore.data.mixing import Batch, MixedBatches
from nailcore.facts import Fact, ImageSet, Machine
from nailcore.train import TrainConfig
from nailcore.variant import Variant

PREFETCH = 3  # batches that each worker makes ahead (see nailcore.batches.load_batches)
LIMIT_SHARE = 0.1  # of the training's time spent waiting for batches: then the loader is the bottleneck


class Pace(Fact):
    """How fast one part runs: medians over the rounds, and each round."""

    images_per_s: float
    cpu_ms_per_image: float  # of this process and its workers
    images_per_s_by_round: list[float]
    cpu_ms_per_image_by_round: list[float]


class TrainingSpeed(Fact):
    """The loader alone, the step alone on a batch that is there already, and the training as it runs."""

    variant: str
    encoder: str
    batch: int
    crop_px: int
    crops: str
    precision: str
    device: str
    threads: int
    workers: int
    frozen_stages: int  # of both encoders
    rounds: int
    steps_per_round: int
    data: list[ImageSet]
    loading: Pace
    step: Pace
    both: Pace
    waited_share: float  # of the training's time, waiting for a batch
    machine: Machine
    versions: dict[str, str]
    measured_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def loader_is_bottleneck(self) -> bool:
        """With workers: the step waits. Without: loading takes more CPU than the step."""
        if self.workers:
            return self.waited_share > LIMIT_SHARE
        return self.loading.cpu_ms_per_image > self.step.cpu_ms_per_image


class _OneBatch(MixedBatches):
    """The same batch for every step: costs nothing to load."""

    def __init__(self, batch: Batch, steps: int) -> None:
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        return self.batch


def _cpu_s() -> float:
    """CPU-seconds of this process and its children."""
    return time.process_time() + _children_cpu_s()


def _children_cpu_s() -> float:
    import psutil

    # Of children the kernel tells whole hundredths alone; of itself a process knows more.
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return float(sum(t.user + t.system for t in times))


def _wait_for_workers(quiet_s: float = 0.1, most_s: float = 30.0) -> None:
    """Return once the children use no CPU time: all that can be made ahead has been made."""
    import psutil

    deadline = time.monotonic() + most_s
    while psutil.Process().children(recursive=True) and time.monotonic() < deadline:
        before = _children_cpu_s()
        time.sleep(quiet_s)
        if _children_cpu_s() - before < quiet_s / 10:
            return


class _Meter:
    """One part, advanced a few steps at a time so that all parts see the same load of the machine."""

    def __init__(self, items: Iterator[float], skip: int) -> None:
        self.items, self.skip = items, skip
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []
        self.waited_s = 0.0

    def advance(self, steps: int) -> None:
        """Drop what was made ahead while the other parts ran, then time ``steps``."""
        _wait_for_workers()  # of other parts, which make batches ahead: their CPU time would count here
        for _ in itertools.islice(self.items, self.skip):
            pass
        wall, cpu = time.perf_counter(), _cpu_s()
        self.waited_s += sum(itertools.islice(self.items, steps))
        self.wall_s.append(time.perf_counter() - wall)
        self.cpu_s.append(_cpu_s() - cpu)

    def describe(self, images: int) -> Pace:
        """Per image, for so many images a round."""
        speeds = [images / wall for wall in self.wall_s]
        costs = [1000 * cpu / images for cpu in self.cpu_s]
        return Pace(
            images_per_s=float(np.median(speeds)),
            cpu_ms_per_image=float(np.median(costs)),
            images_per_s_by_round=speeds,
            cpu_ms_per_image_by_round=costs,
        )


def measure_speed(
    variant: Variant,
    sources: Sequence[Dataset],
    config: TrainConfig,
    rounds: int,
    steps: int,
    *,
    init: Path | None = None,
) -> TrainingSpeed:
    """Loader, step and both in turn, round by round after one round of warming up.

    ``config.steps`` and its phases are replaced. With ``init`` the first encoder stages are frozen, as in
    any training that starts from pretrained weights; without it nothing is, and a step costs more.

    Raises:
        DataError: a data set cannot be learnt from.
    """
    import torch

    from nailcore.batches import load_batches
    from nailcore.data.mixing import PhotoStore
    from nailcore.measure import describe_machine, find_versions
    from nailcore.train import choose_precision, make_fabric, run_steps, start_training

    skip = PREFETCH * config.workers + 1 if config.workers else 0
    if config.workers:  # batches come in bursts, one of each worker: only whole bursts tell the pace
        steps = config.workers * max(2, -(-steps // config.workers))
    total = (rounds + 1) * (steps + skip)
    config = config.model_copy(update={"steps": total, "phases": ()})
    if config.threads:
        import cv2

        torch.set_num_threads(config.threads)
        cv2.setNumThreads(config.threads)
    stores = [PhotoStore(source) for source in sources]
    batches = MixedBatches(
        stores, config.list_phases(len(stores)), config.batch, config.describe_crops(), config.seed
    )
    fabric = make_fabric(config)

    def train(data: MixedBatches, workers: int) -> Iterator[float]:
        state = start_training(variant, config, init)
        settings = config.model_copy(update={"workers": workers})
        for report in run_steps(fabric, data, state, settings, variant):
            yield report.loader_s

    meters = {
        "loading": _Meter((0.0 for _ in load_batches(batches, 0, config.workers)), skip),
        "step": _Meter(train(_OneBatch(batches[0], total), 0), 0),
        "both": _Meter(train(batches, config.workers), skip),
    }
    for number in range(rounds + 1):
        for meter in meters.values():
            meter.advance(steps)
        if number == 0:  # caches, thread pools and worker processes are warm now
            for meter in meters.values():
                meter.wall_s, meter.cpu_s, meter.waited_s = [], [], 0.0
    images = steps * config.batch
    return TrainingSpeed(
        variant=variant.name,
        encoder=variant.encoder,
        batch=config.batch,
        crop_px=config.crop_px,
        crops=config.crops,
        precision=choose_precision(config.precision),
        device=torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        threads=torch.get_num_threads(),
        workers=config.workers,
        frozen_stages=0 if init is None else config.frozen_stages,
        rounds=rounds,
        steps_per_round=steps,
        data=[source.describe("train") for source in sources],
        loading=meters["loading"].describe(images),
        step=meters["step"].describe(images),
        both=meters["both"].describe(images),
        waited_share=meters["both"].waited_s / sum(meters["both"].wall_s),
        machine=describe_machine(),
        versions=find_versions(("torch", "lightning-fabric", "opencv-python-headless", "numpy")),
    )


def render_markdown(speed: TrainingSpeed) -> str:
    """The table of docs/training.md."""
    versions = ", ".join(f"{name} {version}" for name, version in speed.versions.items())
    device = "" if speed.device == "cpu" else f"{speed.device}, "
    verdict = "is the bottleneck" if speed.loader_is_bottleneck else "is not the bottleneck"
    lines = [
        f"{speed.variant} ({speed.encoder}), batches of {speed.batch} crops of {speed.crop_px} px by "
        f"{speed.crops}, {speed.precision}; {device}{speed.machine.cpu}, {speed.machine.cores} cores, "
        f"{speed.threads} thread{'s' if speed.threads > 1 else ''}, {speed.workers} workers, "
        f"{speed.frozen_stages} encoder stages frozen; {versions}. "
        f"Medians of {speed.rounds} interleaved rounds of {speed.steps_per_round} batches.",
        "",
        "| part | images/s | CPU-ms per image |",
        "|---|---|---|",
    ]
    for name, pace in (("loading alone", speed.loading), ("step alone", speed.step), ("both", speed.both)):
        lines.append(f"| {name} | {pace.images_per_s:.1f} | {pace.cpu_ms_per_image:.1f} |")
    waited = f"{100 * speed.waited_share:.0f} % of the training's time goes by waiting for batches"
    lines += ["", f"{waited}: the loader {verdict}."]
    return "\n".join(lines) + "\n"


def main(  # noqa: PLR0917 - options of a command
    data: Annotated[list[Path], typer.Option(help="Data folder with a train part; repeat it to mix.")],
    depth: Annotated[int, typer.Option(help="Encoder layers: 55 or 43.")] = 55,
    encoder: Annotated[str, typer.Option(help="As `nailtool train --encoder`.")] = "mobilenetv2",
    batch: Annotated[int, typer.Option(min=1)] = 8,
    crop: Annotated[int, typer.Option(help="Crop side in px.")] = 320,
    crops: Annotated[str, typer.Option(help="opencv or kornia.")] = "opencv",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="0: as torch chooses.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Processes that make crops.")] = 0,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Batches in each round.")] = 4,
    init: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="As `nailtool train --init`; a file.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write everything as JSON.")] = None,
) -> None:
    """Time loading alone, the step alone and both, interleaved; print one table."""
    from model_zoo import load_variants
    from nailcore.facts import write_fact
    from nailcore.nets.encoder import with_encoder

    found = [variant for variant in load_variants().values() if variant.encoder_layers == depth]
    if not found:
        raise typer.BadParameter(f"no variant has {depth} layers", param_hint="--depth")
    config = TrainConfig.model_validate(
        {
            "batch": batch,
            "crop_px": crop,
            "crops": crops,
            "precision": precision,
            "threads": threads,
            "workers": workers,
        }
    )
    sources = [open_dataset(folder) for folder in data]
    speed = measure_speed(with_encoder(found[0], encoder), sources, config, rounds, steps, init=init)
    typer.echo(render_markdown(speed))
    if out is not None:
        write_fact(out, speed)


if __name__ == "__main__":
    run_program(main)
