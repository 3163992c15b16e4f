"""What is not measured here, why, and how to get it: from skipped facts and from files without a result."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from benchmark.report.bundle import ReportInput
from benchmark.report.tables import FileRow, VariantRow
from benchmark.report.wording import join_words, write_count_of
from nailcore.facts import Skipped

# Where each kind of file is timed; a kind that is not listed has no device of ours.
_DEVICE_OF_KIND = {"onnx": "cpu", "tflite": "cpu", "tfjs": "chromium"}

CORE_ML = "coreml"  # the kind, and the engine that is Core ML itself


def find_gaps(report: ReportInput, variants: Sequence[VariantRow]) -> list[Skipped]:
    """Everything a reader could miss in this report, most specific first."""
    files = [file for variant in variants for file in variant.files]
    return [
        *report.skipped,
        *_find_missing_accuracy(variants),
        *_find_missing_parity(files),
        *_find_unjudged(files),
        *_find_unexecuted(files),
        *_find_missing_mac(files),
        *_find_missing_latency(files),
        *_find_missing_devices(report),
    ]


def _find_missing_accuracy(variants: Sequence[VariantRow]) -> list[Skipped]:
    missing = [variant.name for variant in variants if variant.accuracy is None]
    if not missing:
        return []
    return [
        Skipped(
            what=f"Accuracy of {join_words(missing, most=6)}",
            reason="No current accuracy result belongs to the weights these files were made from.",
            remedy="Run `nailtool report` again; it measures what is missing.",
        )
    ]


def _find_missing_parity(files: Sequence[FileRow]) -> list[Skipped]:
    missing = [file.artifact.label for file in files if not file.parities]
    if not missing:
        return []
    return [
        Skipped(
            what=f"Parity of {join_words(missing, most=6)}",
            reason="No current parity result belongs to these files.",
            remedy="Run `nailtool parity-check`.",
        )
    ]


def _find_unjudged(files: Sequence[FileRow]) -> list[Skipped]:
    """Quantized files that nobody asked the gate about."""
    missing = [file.artifact for file in files if file.gate is None and _is_quantized(file)]
    if not missing:
        return []
    recipes = ",".join(dict.fromkeys(artifact.recipe for artifact in missing))
    return [
        Skipped(
            what=f"What {join_words([artifact.label for artifact in missing], most=6)} cost and bought",
            reason="No current verdict of the gate belongs to these files.",
            remedy=f"Run `nailtool build-variants --recipes {recipes} --device cpu`.",
        )
    ]


def _is_quantized(file: FileRow) -> bool:
    recipe = file.artifact.made_by.config.get("recipe")
    dtype = recipe.get("weights_dtype") if isinstance(recipe, dict) else None
    return isinstance(dtype, str) and not dtype.startswith("float")


def _find_unexecuted(files: Sequence[FileRow]) -> list[Skipped]:
    """Files an engine could not execute here, one entry per engine and reason."""
    groups: dict[tuple[str, str, str], list[FileRow]] = defaultdict(list)
    for file in files:
        for parity in file.parities:
            if parity.status == "not executed":
                reason, _, remedy = parity.note.partition("\n")
                reason = reason.removeprefix(f"{file.artifact.label}: ").replace(
                    file.artifact.file, "the file"
                )
                groups[parity.engine, reason, remedy].append(file)
    found = []
    for (engine, reason, remedy), members in sorted(groups.items(), key=lambda entry: entry[0]):
        kind = members[0].artifact.kind
        found.append(
            Skipped(
                what=f"{write_count_of(len(members), f'{kind} file')} in {engine}",
                reason=reason or "Not executed: only the structure of these files was checked.",
                remedy=remedy or f"Run `nailtool parity-check --engines {engine}` where it can be executed.",
            )
        )
    return found


def _find_missing_mac(files: Sequence[FileRow]) -> list[Skipped]:
    """What Core ML itself makes of packages that were executed by the MIL reference alone."""
    alone = [
        file
        for file in files
        if file.artifact.kind == CORE_ML and CORE_ML not in {parity.engine for parity in file.parities}
    ]
    if not alone:
        return []
    return [
        Skipped(
            what=f"What Core ML itself computes for {write_count_of(len(alone), 'coreml file')}",
            reason="Core ML executes on macOS only. The MIL reference computes what a file says, not what "
            "Apple's processors make of it.",
            remedy="On a Mac, run `nailtool parity-check --targets coreml`, or record outputs there and hand "
            "them in with `--golden`.",
        )
    ]


def _find_missing_latency(files: Sequence[FileRow]) -> list[Skipped]:
    """Per kind of file: no latency at all, or files left out on a device that timed others of the kind."""
    by_kind: dict[str, list[FileRow]] = defaultdict(list)
    for file in files:
        by_kind[file.artifact.kind].append(file)
    found = []
    for kind, members in sorted(by_kind.items()):
        devices = {m.device for file in members for m in file.latency}
        command = f"Run `nailtool benchmark --device {_DEVICE_OF_KIND.get(kind, '')}`."
        if not devices and kind in _DEVICE_OF_KIND:
            what = f"Latency of {write_count_of(len(members), f'{kind} file')}"
            found.append(Skipped(what=what, reason="No current latency belongs to them.", remedy=command))
        elif not devices and kind == "coreml":
            found.append(
                Skipped(
                    what=f"Latency of {write_count_of(len(members), 'coreml file')}",
                    reason="Core ML runs on Apple hardware only, and no such device took part.",
                    remedy="Open the package in Xcode and make a performance report on the device.",
                )
            )
        for device in sorted(devices):
            missing = [f.artifact.label for f in members if device not in {m.device for m in f.latency}]
            if missing:
                what = f"Latency on {device} of {join_words(missing, most=6)}"
                reason = f"No current latency belongs to {'it' if len(missing) == 1 else 'them'}."
                command = f"Run `nailtool benchmark --device {device}`."
                found.append(Skipped(what=what, reason=reason, remedy=command))
    return found


def _find_missing_devices(report: ReportInput) -> list[Skipped]:
    """Devices and engines readers ask for that no row of this report speaks of."""
    present = " ".join(f"{m.device} {m.runtime}" for m in report.latency if not m.software_gpu).lower()
    return [gap for words, gap in _ASKED_FOR if not any(word in present for word in words)]


_ASKED_FOR: tuple[tuple[tuple[str, ...], Skipped], ...] = (
    (
        ("iphone", "ipad"),
        Skipped(
            what="iPhone and iPad",
            reason="No Apple device took part; times of another processor do not carry over to one.",
            remedy="Time the Core ML package with Xcode's performance report on the device itself.",
        ),
    ),
    (
        ("webgl", "webgpu"),
        Skipped(
            what="WebGL and WebGPU",
            reason="No browser ran on a hardware GPU; a software-rendered one says nothing about speed.",
            remedy="Serve the TF.js folder to a browser on a machine with a GPU and time it there.",
        ),
    ),
    (
        ("firefox",),
        Skipped(
            what="Firefox",
            reason="Browser figures here come from no Firefox; engines differ in their WebAssembly speed.",
            remedy="Serve the TF.js folder to Firefox on the device of interest and time it there.",
        ),
    ),
    (
        ("webkit", "safari"),
        Skipped(
            what="WebKit (the engine of Safari)",
            reason="Browser figures here come from no WebKit; Chromium does not stand in for Safari.",
            remedy="Serve the TF.js folder to Safari on the device of interest and time it there.",
        ),
    ),
)
