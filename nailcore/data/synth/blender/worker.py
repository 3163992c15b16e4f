"""Run by Blender's Python: renders the jobs named on standard input with Cycles, one line a job.

Protocol: a line is the path of a folder with ``job.json`` and ``arrays.npz``; the answer is one line
of JSON: {"done": path} once ``linear.npy`` (H, W, 3; float16, linear) is there, or {"failed": why}.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before Blender is imported: what it prints, then and later, goes to standard error.
_ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

# Its pools of threads take their size from the processors this process may use when they are made. One is
# as fast as two here, at half the CPU time, and several workers share a machine.
_PROCESSORS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
if _PROCESSORS:
    os.sched_setaffinity(0, {min(_PROCESSORS)})

import bpy  # noqa: E402
import numpy as np  # noqa: E402
from mathutils import Matrix  # noqa: E402

if _PROCESSORS:
    os.sched_setaffinity(0, _PROCESSORS)

if TYPE_CHECKING:
    from nailcore.data.synth.blender import materials, things
else:  # a plain script: its own folder is where it looks for modules
    import materials
    import things

Job = dict[str, Any]


def main() -> None:
    """Answer until standard input ends."""
    print(json.dumps({"ready": bpy.app.version_string}), file=_ANSWERS, flush=True)
    for line in sys.stdin:
        folder = Path(line.rstrip("\n"))
        try:
            render_job(folder)
            answer = {"done": str(folder)}
        except Exception as error:  # the caller decides what becomes of the others
            traceback.print_exc()
            answer = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=_ANSWERS, flush=True)


def render_job(folder: Path) -> None:
    """Build one scene, render it, and write the linear picture."""
    job = json.loads((folder / "job.json").read_text("utf-8"))
    with np.load(folder / "arrays.npz") as arrays:
        data = dict(arrays)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    _set_up(scene, job)
    _place_camera(scene, job["camera"], sharp=job["labels"])
    for number, spec in enumerate(job["meshes"]):
        _add_mesh(number, spec, data, labels=job["labels"])
    if job["labels"]:
        scene.world = bpy.data.worlds.new("none")
        scene.world.use_nodes = True
        scene.world.node_tree.nodes.clear()  # black
    else:
        _light(scene, job)
        if job["surface"]:
            _lay_surface(job["surface"], data["surface"])
        for spec in job["things"]:
            things.make_thing(spec, Matrix(spec["place"]), materials.make_solid)
    path = folder / "linear.exr"
    scene.render.filepath = str(path)
    bpy.ops.render.render(write_still=True)
    image = bpy.data.images.load(str(path))
    image.colorspace_settings.name = "Non-Color"
    pixels = np.empty(len(image.pixels), np.float32)
    image.pixels.foreach_get(pixels)
    width, height = image.size
    linear = pixels.reshape(height, width, -1)[::-1, :, :3]
    np.save(folder / "linear.npy", np.minimum(linear, 60000).astype(np.float16))
    path.unlink()


def _set_up(scene: Any, job: Job) -> None:
    scene.render.engine = "CYCLES"
    cycles = scene.cycles
    cycles.device = "CPU"
    cycles.seed = job["seed"]
    cycles.samples = 1 if job["labels"] else job["samples"]
    cycles.use_adaptive_sampling = False
    cycles.use_denoising = not job["labels"]
    cycles.denoiser = "OPENIMAGEDENOISE"
    cycles.denoising_input_passes = "RGB_ALBEDO_NORMAL"
    cycles.denoising_prefilter = "FAST"
    cycles.max_bounces, cycles.diffuse_bounces, cycles.glossy_bounces = 4, 3, 2
    cycles.transmission_bounces, cycles.transparent_max_bounces, cycles.volume_bounces = 2, 3, 0
    cycles.sample_clamp_indirect, cycles.sample_clamp_direct = 4.0, 0.0
    cycles.caustics_reflective = cycles.caustics_refractive = False
    if job["labels"]:
        cycles.pixel_filter_type = "BOX"
        cycles.filter_width = 0.01
    render = scene.render
    render.threads_mode, render.threads = "FIXED", job["threads"]
    render.resolution_percentage = 100
    render.film_transparent = False
    render.image_settings.file_format = "OPEN_EXR"
    render.image_settings.color_depth = "16"
    scene.view_settings.view_transform = "Raw"


def _place_camera(scene: Any, spec: Job, *, sharp: bool) -> None:
    scene.render.resolution_x, scene.render.resolution_y = spec["width_px"], spec["height_px"]
    camera = bpy.data.cameras.new("camera")
    camera.sensor_fit, camera.sensor_width = "HORIZONTAL", 36.0
    camera.lens = spec["focal_px"] / spec["width_px"] * 36.0
    camera.clip_start, camera.clip_end = 0.01, 100.0
    if not sharp:
        camera.dof.use_dof = True
        camera.dof.focus_distance = spec["focus_m"]
        camera.dof.aperture_fstop = spec["f_number"]
        camera.dof.aperture_blades = 7
    thing = bpy.data.objects.new("camera", camera)
    scene.collection.objects.link(thing)
    scene.camera = thing


def _add_mesh(number: int, spec: Job, data: dict[str, Any], *, labels: bool) -> None:
    vertices, quads = data[f"{number}.vertices"], data[f"{number}.quads"]
    mesh = bpy.data.meshes.new(spec["name"])
    mesh.vertices.add(len(vertices))
    mesh.vertices.foreach_set("co", vertices.astype(np.float32).ravel())
    mesh.loops.add(quads.size)
    mesh.loops.foreach_set("vertex_index", quads.astype(np.int32).ravel())
    mesh.polygons.add(len(quads))
    mesh.polygons.foreach_set("loop_start", np.arange(0, quads.size, 4, dtype=np.int32))
    mesh.polygons.foreach_set("use_smooth", np.ones(len(quads), dtype=bool))
    for key in spec["attributes"]:
        values = data[f"{number}.{key}"].astype(np.float32)
        if key == "uv":
            layer = mesh.uv_layers.new(name="UVMap")
            layer.data.foreach_set("uv", values[quads.ravel()].ravel())
        elif key == "albedo":
            attribute = mesh.attributes.new(key, "FLOAT_COLOR", "POINT")
            attribute.data.foreach_set(
                "color", np.column_stack([values, np.ones(len(values), np.float32)]).ravel()
            )
        else:
            mesh.attributes.new(key, "FLOAT_VECTOR", "POINT").data.foreach_set("vector", values.ravel())
    mesh.update(calc_edges=True)
    mesh.validate()
    thing = bpy.data.objects.new(spec["name"], mesh)
    bpy.context.scene.collection.objects.link(thing)
    if labels:
        mesh.materials.append(materials.make_flat(spec["label"]))
        return
    kind = spec["material"]["kind"]
    if kind == "skin":
        mesh.materials.append(materials.make_skin(spec["material"]))
    elif kind == "nail":
        paint, coat = (_make_image(f"{number}.{key}", data[f"{number}.{key}"]) for key in ("paint", "coat"))
        mesh.materials.append(materials.make_nail(spec["material"], paint, coat))
        thick = thing.modifiers.new("thickness", "SOLIDIFY")
        thick.thickness, thick.offset = spec["material"]["thickness_m"], -1.0
    else:
        mesh.materials.append(materials.make_solid(spec["material"]))


def _make_image(name: str, values: Any) -> Any:
    """(H, W, 3) linear values, the first row at v = 0, as a float image."""
    height, width = values.shape[:2]
    image = bpy.data.images.new(name, width, height, alpha=False, float_buffer=True, is_data=True)
    full = np.ones((height, width, 4), np.float32)
    full[..., :3] = values
    image.pixels.foreach_set(full.ravel())
    image.update()
    return image


def _light(scene: Any, job: Job) -> None:
    spec = job["light"]
    for number, one in enumerate(spec["lamps"]):
        lamp = bpy.data.lights.new(f"lamp {number}", "AREA")
        lamp.shape, lamp.size, lamp.size_y = "RECTANGLE", one["size_m"][0], one["size_m"][1]
        lamp.energy, lamp.color = one["watts"], one["colour"]
        thing = bpy.data.objects.new(lamp.name, lamp)
        thing.matrix_world = Matrix(one["place"])
        thing.visible_camera = False
        scene.collection.objects.link(thing)
    world = bpy.data.worlds.new("world")
    scene.world = world
    world.use_nodes = True
    world.cycles.sampling_method, world.cycles.sample_map_resolution = "MANUAL", 256
    tree = world.node_tree
    tree.nodes.clear()
    output = tree.nodes.new("ShaderNodeOutputWorld")
    total = tree.nodes.new("ShaderNodeAddShader")
    tree.links.new(total.outputs[0], output.inputs["Surface"])
    where = tree.nodes.new("ShaderNodeTexCoord")
    turn = tree.nodes.new("ShaderNodeMapping")
    turn.inputs["Rotation"].default_value = Matrix(spec["to_world"]).to_3x3().to_euler()
    tree.links.new(where.outputs["Generated"], turn.inputs["Vector"])
    _add_sky(tree, spec, turn, total)
    _add_panorama(tree, spec, turn, total)


def _add_sky(tree: Any, spec: Job, turn: Any, total: Any) -> None:
    axes = tree.nodes.new("ShaderNodeSeparateXYZ")
    tree.links.new(turn.outputs[0], axes.inputs[0])
    ramp = tree.nodes.new("ShaderNodeMapRange")
    ramp.interpolation_type = "SMOOTHSTEP"
    ramp.inputs["From Min"].default_value, ramp.inputs["From Max"].default_value = -0.6, 0.9
    tree.links.new(axes.outputs["Z"], ramp.inputs["Value"])
    mix = tree.nodes.new("ShaderNodeMix")
    mix.data_type = "RGBA"
    tree.links.new(ramp.outputs["Result"], mix.inputs[0])
    mix.inputs[6].default_value, mix.inputs[7].default_value = (*spec["ground"], 1), (*spec["sky"], 1)
    glow = tree.nodes.new("ShaderNodeBackground")
    tree.links.new(mix.outputs[2], glow.inputs["Color"])
    glow.inputs["Strength"].default_value = 1 - spec["panorama_share"]
    tree.links.new(glow.outputs[0], total.inputs[0])


def _add_panorama(tree: Any, spec: Job, turn: Any, total: Any) -> None:
    """One of the panoramas that come with Blender, brought to the brightness of the plain sky."""
    if spec["panorama"] == "dome" or not spec["panorama_share"]:
        return
    folder = Path(bpy.utils.resource_path("LOCAL")) / "datafiles/studiolights/world"
    file = folder / f"{spec['panorama']}.exr"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: this Blender comes without its panoramas")
    image = bpy.data.images.load(str(file))
    pixels = np.empty(len(image.pixels), np.float32)
    image.pixels.foreach_get(pixels)
    width, height = image.size
    weight = np.cos((np.arange(height) + 0.5) / height * np.pi - np.pi / 2)
    picture = pixels.reshape(height, width, -1)
    # The mean without the sun and lamps: they come on top, as they do in the place itself.
    dull = np.minimum(picture[..., :3], 4.0).mean(axis=1)
    mean = (dull * weight[:, None]).sum(axis=0) / weight.sum()
    grey = float(mean.mean())
    # A camera's white balance takes part of a place's colour away; green leaves stay green.
    picture[..., :3] *= np.clip((grey / mean) ** 0.5, 0.82, 1.2)
    image.pixels.foreach_set(pixels)
    image.update()
    texture = tree.nodes.new("ShaderNodeTexEnvironment")
    texture.image = image
    tree.links.new(turn.outputs[0], texture.inputs["Vector"])
    glow = tree.nodes.new("ShaderNodeBackground")
    tree.links.new(texture.outputs[0], glow.inputs["Color"])
    glow.inputs["Strength"].default_value = spec["panorama_share"] * spec["panorama_level"] / grey
    tree.links.new(glow.outputs[0], total.inputs[1])


def _lay_surface(spec: Job, picture: Any) -> None:
    mesh = bpy.data.meshes.new("surface")
    mesh.from_pydata(spec["corners_m"], [], [(0, 1, 2, 3)])
    layer = mesh.uv_layers.new(name="UVMap")
    layer.data.foreach_set("uv", np.asarray(spec["uv"], np.float32).ravel())
    mesh.materials.append(materials.make_surface(spec, _make_image("surface", picture)))
    bpy.context.scene.collection.objects.link(bpy.data.objects.new("surface", mesh))


if __name__ == "__main__":
    main()
