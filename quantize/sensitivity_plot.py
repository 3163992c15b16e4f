"""The sensitivity of layers as an SVG: one row per layer in the order of execution, two bars each."""

from __future__ import annotations

from html import escape

from quantize.sensitivity_facts import SensitivityResult

_ROW, _LABEL, _BAR, _TOP = 15, 270, 250, 64
_ONLY, _SAVED = "#c2410c", "#1d4ed8"
_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#222}.t{font-size:14px;font-weight:600}.m{fill:#666}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.m{fill:#999}}"
)


def draw_sensitivity(result: SensitivityResult) -> str:
    """One SVG document: left the error of a layer rounded alone, right what leaving it in float saves."""
    height = _TOP + _ROW * len(result.layers) + 12
    width = _LABEL + 2 * (_BAR + 60)
    second = _LABEL + _BAR + 60
    most_only = max((each.only_share for each in result.layers), default=0.0) or 1.0
    most_saved = max((abs(each.saved_share) for each in result.layers), default=0.0) or 1.0
    drop = result.drop_points
    images = "synthetic images" if result.images.synthetic else "photographs"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<style>{_STYLE}</style>",
        f"<title>Sensitivity of the layers of {escape(result.variant)} ({escape(result.recipe)})</title>",
        f'<text class="t" x="4" y="16">{escape(result.variant)}, {escape(result.recipe)}: everything rounded '
        f"flips {result.flipped_permille:.2f} ‰, drop {drop.value:.2f} points "
        f"[{drop.low:.2f}–{drop.high:.2f}]</text>",
        f'<text class="m" x="4" y="33">{result.images.count} {images} of {escape(result.images.name)}; '
        f"simulated in {escape(result.runtime)}</text>",
        f'<text x="{_LABEL}" y="54">% of the margin\'s error, only this layer rounded</text>',
        f'<text x="{second}" y="54">% of the margin\'s error saved, only its kernel in float</text>',
    ]
    for row, layer in enumerate(result.layers):
        y = _TOP + row * _ROW
        only = _BAR * layer.only_share / most_only
        saved = _BAR * abs(layer.saved_share) / most_saved
        # What makes it worse is drawn pale: rounding errors can cancel.
        pale = ' opacity="0.35"' if layer.saved_share < 0 else ""
        parts += [
            f'<text x="{_LABEL - 6}" y="{y + 10}" text-anchor="end">{escape(_shorten(layer.layer))}</text>',
            _draw_bar(_LABEL, y, only, _ONLY, text=f"{100 * layer.only_share:.1f}"),
            _draw_bar(second, y, saved, _SAVED, text=f"{100 * layer.saved_share:.1f}", more=pale),
        ]
    return "\n".join([*parts, "</svg>\n"])


def _draw_bar(x: float, y: float, length: float, colour: str, *, text: str, more: str = "") -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{max(length, 0.5):.1f}" height="{_ROW - 4}" fill="{colour}"{more}/>'
        f'<text class="m" x="{x + length + 4:.1f}" y="{y + 10}">{text}</text>'
    )


def _shorten(name: str) -> str:
    return name.removeprefix("network.")
