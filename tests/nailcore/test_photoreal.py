"""The photoreal renderer: what Blender is told, labels that agree with the rasteriser's, and its failures."""

from __future__ import annotations

import ast
import json
import stat
import sys
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from nailcore.data.folder import open_dataset
from nailcore.data.synth import RenderOrder, render_set
from nailcore.data.synth.develop import develop
from nailcore.data.synth.drawing import Drawing, draw
from nailcore.data.synth.photoreal import (
    SCRIPT,
    VARIABLE,
    Blender,
    find_blender_python,
    find_cover,
    render_photoreal,
)
from nailcore.data.synth.render import find_scene
from nailcore.data.synth.scene import Scene, Worn
from nailcore.data.synth.staging import stage_scene
from nailcore.data.synth.table import lay_surface
from nailcore.errors import MissingToolError
from nailcore.storage import hash_path

SMALL = {"width_px": 192, "height_px": 144}
ORDER = RenderOrder(count=2, subjects=2, long_side_px=96, short_side_px=72, renderer="photoreal")
# Speaks the worker's protocol; what it does with a job is put into {work}.
STAND_IN = """#!{python}
import json, pathlib, sys
import numpy as np
print(json.dumps({{"ready": "stand-in"}}), flush=True)
for line in sys.stdin:
    folder = pathlib.Path(line.strip())
    job = json.loads((folder / "job.json").read_text())
    {work}
    print(json.dumps({{"done": str(folder)}}), flush=True)
"""
PAINT = (
    "np.save(folder / 'linear.npy', np.full((job['camera']['height_px'], job['camera']['width_px'], 3), 0.2))"
)


def _find_blender() -> Path | None:
    try:
        return find_blender_python()
    except MissingToolError:
        return None


BLENDER = _find_blender()
needs_blender = pytest.mark.skipif(
    BLENDER is None, reason=f"bpy is not here: set {VARIABLE} to a Python with it"
)


def stand_in(folder: Path, work: str = PAINT) -> Path:
    path = folder / "blender-python"
    path.write_text(STAND_IN.format(python=sys.executable, work=work))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture(scope="module", params=[100, 104, 126])
def found(request: pytest.FixtureRequest) -> tuple[Scene, Drawing]:
    return find_scene(int(request.param), **SMALL)


# -- what Blender is told -------------------------------------------------------------------------
def test_equal_scenes_give_equal_jobs_of_plain_values(found: tuple[Scene, Drawing]) -> None:
    scene, drawing = found
    job, arrays = stage_scene(scene, drawing)
    again, same = stage_scene(Scene.model_validate_json(scene.model_dump_json()), draw(scene))
    assert json.loads(json.dumps(job)) == again, "plain values, and the same ones"
    assert set(arrays) == set(same)
    assert all(np.array_equal(arrays[key], same[key]) for key in arrays)
    assert len(job["meshes"]) == len(drawing.parts)
    for number, (mesh, part) in enumerate(zip(job["meshes"], drawing.parts, strict=True)):
        points, quads = arrays[f"{number}.vertices"], arrays[f"{number}.quads"]
        rows = slice(part.first_vertex, part.first_vertex + part.vertex_count)
        # Metres; y up and z towards the camera.
        assert np.allclose(points * [1000, -1000, -1000], drawing.vertices[rows], atol=1e-3)
        assert quads.min() >= 0 and quads.max() < len(points)
        for key in mesh["attributes"]:
            assert (
                len(arrays[f"{number}.{key}"]) == len(points) and np.isfinite(arrays[f"{number}.{key}"]).all()
            )
        if part.plate is not None:
            paint, coat = arrays[f"{number}.paint"], arrays[f"{number}.coat"]
            assert paint.shape == coat.shape and paint.min() >= 0 and paint.max() <= 1
            assert coat.min() >= 0 and coat.max() <= 1


def test_hands_lie_before_the_surface_and_lamps_shine_on_it() -> None:
    seen = 0
    for seed in range(200, 208):
        scene, drawing = find_scene(seed, **SMALL)
        surface = lay_surface(scene, drawing)
        if surface is None:
            continue
        seen += 1
        job, _ = stage_scene(scene, drawing)
        inside = drawing.vertices[np.unique(drawing.triangles[drawing.fragments.triangles])]
        heights = (inside - surface.origin) @ surface.normal
        assert heights.min() > 0.2, f"seed {seed}: a hand reaches through the table"
        assert surface.normal @ -surface.origin > 0, "the camera is on the same side"
        for lamp in job["light"]["lamps"]:
            place = np.asarray(lamp["place"])[:3, 3] * [1000, -1000, -1000]
            assert (place - surface.origin) @ surface.normal > 0, f"seed {seed}: a lamp below the table"
        world = np.asarray(job["light"]["to_world"])[:3, :3]
        assert np.allclose(world @ world.T, np.eye(3), atol=1e-6) and np.linalg.det(world) > 0
        assert np.allclose(world @ (surface.normal * [1, -1, -1]), [0, 0, 1], atol=1e-5), "up is up"
    assert seen >= 4


def test_worn_things_change_labels_only_where_they_hide_a_nail() -> None:
    scene, _ = find_scene(104, **SMALL)
    ring = {"kind": "ring", "along_mm": 18.0, "width_mm": 4.0, "thickness_mm": 1.2, "loose_mm": 0.0}
    more = {"colour": (0.8, 0.7, 0.3), "metal": True, "seed": 1}
    sleeve = {
        "kind": "sleeve",
        "along_mm": -15.0,
        "thickness_mm": 2.0,
        "loose_mm": 4.0,
        **more,
        "metal": False,
    }
    worn = (
        *(Worn.model_validate({**ring, **more, "finger": k}) for k in range(1, 5)),
        Worn.model_validate(sleeve),
    )
    hand = scene.hands[0]
    bare = draw(scene.model_copy(update={"hands": (hand.model_copy(update={"worn": ()}),)}))
    dressed = draw(scene.model_copy(update={"hands": (hand.model_copy(update={"worn": worn}),)}))
    parts = {k for k, part in enumerate(dressed.parts) if part.worn is not None}
    over = np.isin(dressed.fragment_part, list(parts))
    assert len(parts) == 5 and over.any()
    hidden = np.zeros(dressed.nail_index.shape, bool)
    wide = 2 * scene.camera.width_px
    pixels = dressed.fragments.pixels[over]
    hidden[pixels // wide // 2, pixels % wide // 2] = True
    changed = (bare.nail_index > 0) != (dressed.nail_index > 0)
    assert not (changed & ~hidden).any()


def test_the_script_needs_nothing_of_ours() -> None:
    """It runs in another environment: standard library, numpy and Blender's own modules are all there is."""
    own = {path.stem for path in SCRIPT.parent.glob("*.py")}
    allowed = {*sys.stdlib_module_names, "numpy", "bpy", "mathutils", *own}
    for path in SCRIPT.parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                typing_only = name == "nailcore.data.synth.blender"  # below TYPE_CHECKING
                assert name.split(".")[0] in allowed or typing_only, f"{path.name} imports {name}"
    assert "bpy" not in sys.modules


# -- developing -----------------------------------------------------------------------------------
@pytest.mark.parametrize("level", [1e-3, 0.2, 30.0])
def test_pictures_are_exposed_whatever_the_level_of_light(found: tuple[Scene, Drawing], level: float) -> None:
    scene, drawing = found
    rng = np.random.default_rng(1)
    light = (level * rng.uniform(0.5, 1.5, (*drawing.nail_index.shape, 3))).astype(np.float32)
    image = develop(scene.sensor, light, find_cover(scene, drawing))
    assert image.shape == light.shape and image.dtype == np.uint8
    assert 60 < image.mean() < 200
    assert np.array_equal(image, develop(scene.sensor, light, find_cover(scene, drawing)))


# -- the process ----------------------------------------------------------------------------------
def test_a_set_has_the_rasteriser_s_labels_and_resumes(tmp_path: Path) -> None:
    python = stand_in(tmp_path)
    render_set(tmp_path / "photoreal", ORDER, jobs=2, blender_python=python)
    raster = RenderOrder(count=2, subjects=2, long_side_px=96, short_side_px=72)
    render_set(tmp_path / "raster", raster)
    photoreal, rasterised = open_dataset(tmp_path / "photoreal"), open_dataset(tmp_path / "raster")
    assert photoreal.card.synthetic and "photoreal" in photoreal.card.name
    for one, other in zip(photoreal.samples, rasterised.samples, strict=True):
        assert one.record == other.record and one.record.subject
        assert np.array_equal(one.load_labels().nail_index, other.load_labels().nail_index)
        assert one.load_image().shape == other.load_image().shape
    before = hash_path(tmp_path / "photoreal" / "images")
    (tmp_path / "photoreal" / "images" / f"{ORDER.stem(1)}.jpg").unlink()
    render_set(tmp_path / "photoreal", ORDER, blender_python=python)
    assert hash_path(tmp_path / "photoreal" / "images") == before


@pytest.mark.parametrize(
    ("work", "said"),
    [
        ("sys.exit(9)", "Blender ended with code 9"),
        (
            "print(json.dumps({'failed': 'no light'}), flush=True); continue",
            r"could not render seed \d+: no light",
        ),
        ("print('Fra: 1 Mem: 12M', flush=True); continue", "Blender answered 'Fra: 1 Mem: 12M'"),
    ],
)
def test_a_blender_that_fails_is_a_missing_tool(
    tmp_path: Path, work: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    with pytest.raises(MissingToolError, match=said), Blender(stand_in(tmp_path, work)) as blender:
        render_photoreal(blender, 3, width_px=96, height_px=72)
    assert not list((tmp_path / "scratch").iterdir()), "nothing is left behind"


def test_without_blender_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("nailcore.data.synth.photoreal.find_spec", lambda _: None)
    with pytest.raises(MissingToolError, match="needs Blender") as raised:
        render_set(tmp_path / "set", ORDER)
    assert "pip install bpy==" in raised.value.hint and raised.value.exit_code == 3
    assert not (tmp_path / "set").exists()
    with pytest.raises(MissingToolError, match="gone: no program"):
        find_blender_python(tmp_path / "gone")
    with (
        pytest.raises(MissingToolError, match="Blender ended with code"),
        Blender(Path(sys.executable)) as blender,
    ):
        blender.render_light(*find_scene(3, **SMALL))  # only reached where bpy is installed beside us
        raise MissingToolError("Blender ended with code 0: bpy is here")


# -- with Blender ---------------------------------------------------------------------------------
def _exceeds(inner: npt.NDArray[np.bool_], outer: npt.NDArray[np.bool_]) -> int:
    """Pixels of ``inner`` farther than one pixel from ``outer``."""
    grown = cv2.dilate(outer.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return int((inner & ~grown).sum())


@needs_blender
def test_both_renderers_agree_on_every_outline(found: tuple[Scene, Drawing]) -> None:
    assert BLENDER is not None
    scene, drawing = found
    with Blender(BLENDER) as blender:
        seen = blender.render_light(scene, drawing, labels=True)
    part = np.round(seen[..., 0] * 255).astype(int) - 1
    hands, cover = part >= 0, find_cover(scene, drawing)
    assert hands.any()
    assert _exceeds(hands, cover > 0) == 0 and _exceeds(cover >= 1, hands) == 0
    names = [None if p.plate is None else drawing.hands[p.hand].plates[p.plate].label for p in drawing.parts]
    for k, nail in enumerate(drawing.nails, start=1):
        ours, theirs = drawing.nail_index == k, part == names.index(nail.finger)
        # Blender shows a nail's underside as the nail; we do not.
        assert _exceeds(ours, theirs) == 0
        assert _exceeds(theirs, ours) <= 0.02 * ours.sum() + 2, nail.finger


@needs_blender
def test_a_photograph_is_the_same_each_time(tmp_path: Path) -> None:
    assert BLENDER is not None
    small = {"width_px": 64, "height_px": 48}
    with Blender(BLENDER) as blender:
        assert blender.version
        one = render_photoreal(blender, 104, samples=2, **small)
        render_photoreal(blender, 100, samples=1, **small)  # nothing of another scene is left
        again = render_photoreal(blender, 104, samples=2, **small)
    assert np.array_equal(one.image, again.image) and np.array_equal(one.nail_index, again.nail_index)
    assert one.image.std() > 10 and len(one.nails) >= 3
    nails, others = one.image[one.mask].astype(float), one.image[~one.mask].astype(float)
    assert np.abs(nails.mean(axis=0) - others.mean(axis=0)).max() > 3
