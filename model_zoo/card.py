"""The model card: written from the facts of a weights file, never by hand."""

from __future__ import annotations

from collections.abc import Sequence

from nailcore.facts import AccuracyResult, Interval, WeightsFacts


def _percent(interval: Interval) -> str:
    return interval.tell(scale=100)


def _row(accuracy: AccuracyResult) -> str:
    return (
        f"| {accuracy.variant} | {_percent(accuracy.miou)} | {_percent(accuracy.nail_iou)} "
        f"| {_percent(accuracy.boundary_f)} |"
    )


def render_accuracy(*facts: WeightsFacts) -> str:
    """The accuracy table of one or several weights files, as the cards and the README print it.

    Which images a row is about stands in it where weights were measured on several sets.
    """
    measured = [accuracy for one in facts for accuracy in one.accuracy]
    if len({accuracy.images.name for accuracy in measured}) > 1:
        return _render_areas(measured)
    rows = map(_row, measured)
    return "\n".join(["| variant | mIoU | nail IoU | boundary F |", "|---|---|---|---|", *rows])


def _share(interval: Interval | None) -> str:
    return "–" if interval is None else _percent(interval)


def _degrees(interval: Interval | None) -> str:
    return "–" if interval is None else interval.tell(unit="°")


def _kind(accuracy: AccuracyResult) -> str:
    return f"{accuracy.images.count} {'rendered' if accuracy.images.synthetic else 'photographs'}"


def render_labels(*facts: WeightsFacts) -> str:
    """Fingers and directions of weights files on the images that carry these labels, photographs first."""
    lines = ["| variant | images | right finger | direction error, median | p90 |", "|---|---|---|---|---|"]
    photographs = [accuracy for one in facts for accuracy in one.accuracy]
    for accuracy in (*photographs, *(a for one in facts for a in one.accuracy_synthetic)):
        finger, median, p90 = (
            accuracy.finger_accuracy,
            accuracy.direction_error_median_deg,
            accuracy.direction_error_p90_deg,
        )
        if finger is not None or median is not None:
            angles = f"{_degrees(median)} | {_degrees(p90)}"
            lines.append(f"| {accuracy.variant} | {_kind(accuracy)} | {_share(finger)} | {angles} |")
    return "\n".join(lines)


def _nail_row(accuracy: AccuracyResult) -> str:
    shares = [accuracy.nail_recall, accuracy.finger_accuracy, accuracy.finger_accuracy_alone]
    angles = [accuracy.direction_error_median_deg, accuracy.direction_error_p90_deg]
    cells = [accuracy.variant, _kind(accuracy), *map(_share, shares), *map(_degrees, angles)]
    return f"| {' | '.join(cells)} |"


def render_nails(facts: WeightsFacts) -> str:
    """Tables per nail, of rendered hands and by kind of image; empty for facts that hold none of it."""
    measured = [a for a in (*facts.accuracy, *facts.accuracy_synthetic) if a.nail_recall is not None]
    if not measured:
        return ""
    lines = ["## Per nail", "", _render_found(measured)]
    if facts.accuracy_synthetic:
        rows = "\n".join(_row(a) for a in facts.accuracy_synthetic)
        lines += ["## Accuracy on rendered hands of people never trained on", ""]
        lines += ["| variant | mIoU | nail IoU | boundary F |", "|---|---|---|---|", rows, ""]
    lines += [f"## By kind of image ({measured[0].variant}, {measured[0].images.name})", ""]
    return "\n".join([*lines, render_slices(measured[0])]) + "\n\n"


def render_measured(measured: Sequence[AccuracyResult]) -> str:
    """Both tables of any images: areas and edges, and per nail."""
    return "\n".join([_render_areas(measured), "", _render_found(measured)])


def _render_areas(measured: Sequence[AccuracyResult]) -> str:
    lines = ["| variant | images | mIoU | nail IoU | boundary F |", "|---|---|---|---|---|"]
    for accuracy in measured:
        name, _, rest = _row(accuracy).removeprefix("| ").partition(" | ")
        lines.append(f"| {name} | {accuracy.images.count} of {accuracy.images.name} | {rest}")
    return "\n".join(lines)


def _render_found(measured: Sequence[AccuracyResult]) -> str:
    lines = [
        "Found: a predicted blob overlaps the nail with IoU 0.5 or more. Finger and direction are judged",
        "inside annotated nails, where the images carry these labels; fingers are named together for an",
        "image, as try-on does it (no hand has two thumbs), and, for comparison, each nail alone.",
        "",
        "| variant | images | found | right finger | named alone | direction error, median | p90 |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(_nail_row, measured)]) + "\n"


def render_slices(accuracy: AccuracyResult) -> str:
    """One table: mIoU, nail IoU and nails found by nail size, skin tone and brightness."""
    lines = [
        "Skin tone is the typology angle of the skin as photographed: a dark exposure makes it darker.",
        "",
        "| by | slice | images | nails | mIoU | nail IoU | found |",
        "|---|---|---|---|---|---|---|",
    ]
    for part in accuracy.slices:
        lines.append(
            f"| {part.by} | {part.name} | {part.images} | {part.nails} | {_percent(part.miou)} "
            f"| {_percent(part.nail_iou)} | {_share(part.nail_recall)} |"
        )
    return "\n".join(lines)


def _describe_heads(facts: WeightsFacts) -> str:
    untrained = [name for name in ("fgbg", "finger", "direction") if name not in facts.heads_trained]
    if not untrained:
        return "All three heads are trained."
    names = " and ".join(f"`{name}`" for name in untrained)
    return (
        f"**Only {', '.join(f'`{n}`' for n in facts.heads_trained)} is trained.** {names} hold their "
        "random initialisation, because the training images carry masks alone: their outputs mean "
        "nothing yet, and serve to check that every conversion keeps them."
    )


def _describe_depth(facts: WeightsFacts) -> str:
    if facts.encoder == "mobilenetv2":
        return f"with {facts.encoder_layers} layers"
    return f"of the depth called {facts.encoder_layers} (that many layers with MobileNetV2)"


def render_card(facts: WeightsFacts) -> str:
    """Markdown from the facts; mIoU figures in points with 95 % bootstrap intervals."""
    first = facts.accuracy[0]
    kind = "synthetic images" if first.images.synthetic else "photographs"
    worst = sorted((i for i in first.per_image if i.nail_iou is not None), key=lambda i: i.nail_iou or 0)
    photographs = sum(s.count for s in facts.sources or [facts.trained_on] if not s.synthetic)
    slices = "the slices above hold few images" if first.slices else "no slice by them was measured"
    few = f"{photographs} photographs are few." if photographs else "No photograph was learnt from."
    began = f"`{facts.init}` (SHA-256 `{facts.init_sha256[:16]}…`)" if facts.init_sha256 else "random weights"
    config = "\n".join(f"| `{key}` | {value} |" for key, value in facts.config.items())
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return f"""# {facts.weights}

Nail segmentation, {facts.encoder} cascade {_describe_depth(facts)}, fusion width
{facts.fusion_width}, {facts.parameters:,} parameters in export form.
Written by `nailtool train` on {facts.trained_at[:10]}; do not edit.

- File: `{facts.weights}.safetensors`, {facts.size_bytes:,} bytes, SHA-256 `{facts.sha256}`
- {_describe_heads(facts)}

## Accuracy on {kind} held out of the training

{first.images.count} {kind} ({first.images.name}, content hash `{first.images.sha256[:16]}…`), measured at
each photo's own size. Points with 95 % percentile bootstrap intervals over images. mIoU is the mean of
the nail's and the background's IoU, pooled over all pixels; boundary F allows 2 px at a long side of 480 px.

{render_accuracy(facts)}

Worst images at {first.variant}: {", ".join(f"{i.name[:8]} {100 * (i.nail_iou or 0):.0f}" for i in worst[:3])}
(nail IoU); median {100 * (worst[len(worst) // 2].nail_iou or 0):.0f}.

{render_nails(facts)}## How it was made

- Command: `{facts.command}`
- Trained on {facts.trained_on.count} images ({facts.trained_on.name}, content hash
  `{facts.trained_on.sha256[:16]}…`)
- Initialised from {began}
- On {facts.machine.cpu}, {facts.machine.cores} cores, {facts.machine.system}; {versions}

| setting | value |
|---|---|
{config}

## Limits

- {few} The intervals say how unsure the figures are on images *like these*; they say
  nothing of other cameras, other light or nail art.
- Skin tones, ages and nail lengths are not balanced in the training set, and {slices}.
- Training and held-out images come from the same sets: expect less on photographs of an unrelated source.
- Masks come at 1/4 of the input's resolution and are upsampled bilinearly.
"""
