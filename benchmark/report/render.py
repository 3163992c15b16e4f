"""Render a report's bundle to one HTML file that needs nothing from outside."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path
from statistics import median

import jinja2
from markupsafe import Markup, escape

from benchmark.report import wording
from benchmark.report.bundle import Overlay, ReportInput
from benchmark.report.gaps import find_gaps
from benchmark.report.overlays import rank_image
from benchmark.report.plot import draw_panels
from benchmark.report.rungs import draw_rungs
from benchmark.report.strips import draw_strips
from benchmark.report.tables import (
    group_devices,
    group_engines,
    join_variants,
    list_image_sets,
    list_machines,
)
from benchmark.report.verdict import reach_verdict
from nailcore.facts import AccuracyResult, ParityResult
from nailcore.storage import write_text


@cache
def _open_templates() -> jinja2.Environment:
    # A folder loader, not a package loader: templates lie beside this file, as their source does.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(wording.FILTERS)
    environment.filters["data_uri"] = _write_data_uri
    environment.filters["prose"] = _write_prose
    return environment


def render_report(report: ReportInput) -> str:
    """One self-contained HTML document: no script, no font, no link to another host.

    A pure function of the bundle: equal bundles give equal text.
    """
    variants = join_variants(report)
    groups = group_devices(variants)
    image_sets = list_image_sets(report)
    template = _open_templates().get_template("template.html.j2")
    return template.render(
        report=report,
        context=report.context,
        verdict=reach_verdict(report, variants),
        variants=variants,
        engines=group_engines(variants),
        rungs=draw_rungs(report.gates),
        panels=draw_panels(groups),
        strip_tables=[draw_strips(group) for group in groups],
        slowest_ms={g.device: max(t.measurement.median_wall_ms for t in g.timed) for g in groups},
        gaps=find_gaps(report, variants),
        image_sets=image_sets,
        machines=list_machines(report),
        accuracy_is_synthetic=any(result.images.synthetic for result in report.accuracy),
        galleries=_group_overlays(report),
        versions=_merge_versions(report),
        weights_files=_group_weights(report),
    )


def write_report(path: Path, html: str) -> None:
    """Write the document as UTF-8, atomically."""
    write_text(path, html)


def _write_prose(text: str) -> Markup:
    """Escaped text with its `quoted` parts as code, as our messages write commands and file names."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # an unpaired mark: leave all as they stand
        return escape(text)
    code = Markup("<code>{}</code>")
    return Markup("").join(code.format(p) if i % 2 else escape(p) for i, p in enumerate(parts))


def _write_data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"


def _group_overlays(report: ReportInput) -> list[tuple[AccuracyResult, list[Overlay], str]]:
    """Per variant with overlays: its accuracy, its overlays worst first, and the spread in words."""
    results = {result.variant: result for result in report.accuracy}
    galleries = []
    for name in dict.fromkeys(overlay.variant for overlay in report.overlays):
        result = results.get(name)
        if result is not None:
            overlays = [overlay for overlay in report.overlays if overlay.variant == name]
            galleries.append((result, overlays, _describe_spread(result)))
    return galleries


def _describe_spread(result: AccuracyResult) -> str:
    ranked = sorted(result.per_image, key=rank_image)
    ious = [record.nail_iou for record in ranked if record.nail_iou is not None]
    if not ious:
        return "No image of this set shows a nail."
    without = len(ranked) - len(ious)
    text = (
        f"Nail IoU per image: worst {ious[0]:.3f} ({ranked[0].name}), "
        f"median {median(ious):.3f}, best {ious[-1]:.3f}, over {wording.write_count_of(len(ious), 'image')}."
    )
    return text + (f" {wording.write_count_of(without, 'image')} without nails." if without else "")


def _group_weights(report: ReportInput) -> list[tuple[str, str, str, str]]:
    """Each weights file: its name, SHA-256, the variants measured with it, and when that last was."""
    groups: dict[tuple[str, str], list[AccuracyResult]] = {}
    for result in report.accuracy:
        groups.setdefault((result.weights, result.weights_sha256), []).append(result)
    return [
        (
            weights,
            sha256,
            wording.join_words([result.variant for result in results], most=12),
            max(result.measured_at for result in results),
        )
        for (weights, sha256), results in sorted(groups.items())
    ]


def _name_check(parity: ParityResult) -> str:
    if parity.status == "not executed":
        return f"structure of {parity.artifact.kind} files"
    return f"parity in {parity.engine}"


def _merge_versions(report: ReportInput) -> list[tuple[str, dict[str, list[str]]]]:
    """Versions by the step they took part in; several of one name stand side by side, never hidden."""
    steps: dict[str, dict[str, set[str]]] = {}
    facts = [
        *((f"conversion to {a.kind}", a.made_by.versions) for a in report.artifacts),
        *((_name_check(p), p.versions) for p in report.parity),
        *((f"accuracy in {a.runtime}", a.versions) for a in report.accuracy),
        *((f"latency on {m.device}", m.versions) for m in report.latency),
    ]
    for step, versions in facts:
        for name, version in versions.items():
            steps.setdefault(step, {}).setdefault(name, set()).add(version)
    return [(step, {n: sorted(v) for n, v in sorted(names.items())}) for step, names in sorted(steps.items())]
