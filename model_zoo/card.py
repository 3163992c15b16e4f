"""The model card: written from the facts of a weights file, never by hand."""

from __future__ import annotations

from nailcore.facts import AccuracyResult, Interval, WeightsFacts


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _row(accuracy: AccuracyResult) -> str:
    return (
        f"| {accuracy.variant} | {_percent(accuracy.miou)} | {_percent(accuracy.nail_iou)} "
        f"| {_percent(accuracy.boundary_f)} |"
    )


def render_accuracy(*facts: WeightsFacts) -> str:
    """The accuracy table of one or several weights files, as the cards and the README print it."""
    rows = [_row(accuracy) for one in facts for accuracy in one.accuracy]
    return "\n".join(["| variant | mIoU | nail IoU | boundary F |", "|---|---|---|---|", *rows])


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


def render_card(facts: WeightsFacts) -> str:
    """Markdown from the facts; mIoU figures in points with 95 % bootstrap intervals."""
    first = facts.accuracy[0]
    kind = "synthetic images" if first.images.synthetic else "photographs"
    worst = sorted((i for i in first.per_image if i.nail_iou is not None), key=lambda i: i.nail_iou or 0)
    config = "\n".join(f"| `{key}` | {value} |" for key, value in facts.config.items())
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return f"""# {facts.weights}

Nail segmentation, {facts.encoder} cascade with {facts.encoder_layers} layers, fusion width
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

## How it was made

- Command: `{facts.command}`
- Trained on {facts.trained_on.count} images ({facts.trained_on.name}, content hash
  `{facts.trained_on.sha256[:16]}…`)
- Encoder initialised from `{facts.init}` (SHA-256 `{facts.init_sha256[:16]}…`)
- On {facts.machine.cpu}, {facts.machine.cores} cores, {facts.machine.system}; {versions}

| setting | value |
|---|---|
{config}

## Limits

- {facts.trained_on.count} photographs are few. The intervals say how unsure the figures are on photos *like
  these*; they say nothing of other cameras, other light or nail art.
- Skin tones, ages and nail lengths are not balanced in the training set, and no slice by them was measured.
- Training and held-out photos share their source (and partly a room), though no photo shoot is in both
  parts: expect less on photographs of an unrelated source.
- Masks come at 1/4 of the input's resolution and are upsampled bilinearly.
"""
