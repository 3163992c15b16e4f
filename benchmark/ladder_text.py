"""The ladder as Markdown, and the blocks of README and docs that are written from it alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmark.ladder import LadderGroup, LadderRow, group_rungs, rank_kind, rank_variant
from nailcore.errors import NailtoolError
from nailcore.gate_facts import Ladder
from nailcore.storage import write_text

NOT_MEASURED = "–"


def write_row(row: LadderRow) -> list[str]:
    """Cells of one file, under ``COLUMNS``."""
    verdict = row.verdict
    accuracy, flipped = verdict.accuracy, verdict.flipped_permille
    reasons = f": {', '.join(row.short_reasons)}" if row.short_reasons else ""
    return [
        str(verdict.rung or NOT_MEASURED),
        row.recipe,
        f"{100 * accuracy.miou.value:.1f}" if accuracy else NOT_MEASURED,
        f"{100 * accuracy.nail_iou.value:.1f}" if accuracy else NOT_MEASURED,
        accuracy.drop_points.tell(2) if accuracy else NOT_MEASURED,
        NOT_MEASURED if flipped is None else f"{flipped:.2f}",
        f"{verdict.artifact.size_bytes / 1e6:.2f}",
        NOT_MEASURED if verdict.size_ratio is None else f"{verdict.size_ratio:.2f}",
        NOT_MEASURED if row.cpu_ms is None else f"{row.cpu_ms:.1f}",
        row.speed.ratio.tell(2) if row.speed else NOT_MEASURED,
        verdict.bought_text,
        f"{verdict.decision}{reasons}",
    ]


COLUMNS = (
    "rung",
    "recipe",
    "mIoU",
    "nail IoU",
    "drop, points [95 %]",
    "flipped ‰",
    "MB",
    "× fp32",
    "CPU-ms",
    "× fp32 [95 %]",
    "bought",
    "verdict",
)


def write_short_row(row: LadderRow) -> list[str]:
    """The same for a terminal's width, under ``SHORT_COLUMNS``: the order says the rung."""
    verdicts = {"shippable": "yes", "not shippable": "no", "undecided": "undecided"}
    reasons = f": {', '.join(row.short_reasons)}" if row.short_reasons else ""
    cells = write_row(row)[1:-2]
    return [*cells, row.verdict.bought or NOT_MEASURED, verdicts[row.verdict.decision] + reasons]


SHORT_COLUMNS = (
    "recipe",
    "mIoU",
    "nail IoU",
    "drop [95 %]",
    "flip ‰",
    "MB",
    "× fp32",
    "CPU-ms",
    "× fp32 [95 %]",
    "bought",
    "shippable",
)


def render_tables(ladder: Ladder) -> str:
    """One Markdown table per variant and target, the file to ship in bold."""
    return "\n\n".join(_render_group(group) for group in group_rungs(ladder.verdicts))


def _render_group(group: LadderGroup) -> str:
    lines = [f"#### {group.variant}, {group.kind}", "", *_head(COLUMNS)]
    for row in group.rows:
        cells = write_row(row)
        if group.best is row.verdict:
            cells[1] = f"**{cells[1]}**"
        lines.append(f"| {' | '.join(cells)} |")
    timed = f"CPU-ms: {group.device}." if group.device else "Speed: not measured here."
    return "\n".join([*lines, "", timed])


def _head(columns: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]


def render_answer(ladder: Ladder) -> str:
    """Which file to ship, a row per target and variant, and what the figures rest on."""
    columns = (
        "target",
        "variant",
        "file",
        "MB",
        "× fp32",
        "nail-IoU drop, points",
        "CPU-ms × fp32",
        "bought",
    )
    groups = group_rungs(ladder.verdicts)
    groups.sort(key=lambda group: (rank_kind(group.kind), rank_variant(group.variant)))
    lines = _head(columns)
    for group in groups:
        lines.append(f"| {' | '.join(_answer(group))} |")
    return "\n".join([*lines, "", describe_basis(ladder)])


def _answer(group: LadderGroup) -> list[str]:
    best = group.best
    if best is None:
        return [group.kind, group.variant, "none is shippable", *[NOT_MEASURED] * 5]
    return [
        group.kind,
        group.variant,
        f"`{best.artifact.recipe}`",
        f"{best.artifact.size_bytes / 1e6:.2f}",
        NOT_MEASURED if best.size_ratio is None else f"{best.size_ratio:.2f}",
        best.accuracy.drop_points.tell(2) if best.accuracy else NOT_MEASURED,
        best.speed[0].ratio.tell(2) if best.speed else NOT_MEASURED,
        best.bought_text,
    ]


def describe_basis(ladder: Ladder) -> str:
    """Images, weights, machine and limit behind the figures, in a paragraph."""
    images = {v.images.sha256: v.images for v in ladder.verdicts if v.images}
    kinds = [
        f"{i.count} {'synthetic images' if i.synthetic else 'photographs'} ({i.name})"
        for i in images.values()
    ]
    weights = sorted({v.weights_sha256 for v in ladder.verdicts if v.weights_sha256})
    machines = sorted({s.machine.cpu for v in ladder.verdicts for s in v.speed})
    limits = sorted({f"{v.rules.max_drop_points:g}" for v in ladder.verdicts})
    measured = " and ".join(kinds) or "no image"
    timed = f" CPU-ms on {' and '.join(machines)}." if machines else ""
    return (
        f"Measured on {measured}; weights {', '.join(f'`{sha[:12]}`' for sha in weights)}.{timed} "
        "Shippable: parity passed, and the upper end of the paired 95 % interval of the drop is at most "
        f"{' or '.join(limits)} points of nail IoU."
    )


BLOCKS: dict[str, Callable[[Ladder], str]] = {"ladder": render_tables, "which-file": render_answer}


def update_blocks(path: Path, ladder: Ladder) -> list[str]:
    """Write a document's blocks ``<!-- name -->`` to ``<!-- /name -->`` anew; returns their names.

    Raises:
        NailtoolError: the document is missing or has no such block.
    """
    if not path.is_file():
        raise NailtoolError(
            f"{path}: no such file.", hint="Give a Markdown file that has a block to be written."
        )
    text, found = path.read_text("utf-8"), []
    for name, render in BLOCKS.items():
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if start and end:
            found.append(name)
            text = f"{before}{start}{render(ladder)}\n{end}{after}"
    if not found:
        words = " or ".join(f"<!-- {name} --> … <!-- /{name} -->" for name in BLOCKS)
        raise NailtoolError(f"{path}: has no block to be written.", hint=f"Add {words}.")
    write_text(path, text)
    return found
