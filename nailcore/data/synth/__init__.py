"""Rendered hands with exact labels: scene description, two renderers, and the embedded default set."""

from nailcore.data.synth.embedded import make_embedded_set
from nailcore.data.synth.rasterised_few import draw_few
from nailcore.data.synth.render import Rendering, render, render_scene
from nailcore.data.synth.rendered_set import RenderOrder, render_set
from nailcore.data.synth.sample import sample_scene
from nailcore.data.synth.scene import Scene

__all__ = [
    "RenderOrder",
    "Rendering",
    "Scene",
    "draw_few",
    "make_embedded_set",
    "render",
    "render_scene",
    "render_set",
    "sample_scene",
]
