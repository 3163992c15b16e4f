"""Bad input: each kind of hostile or broken file ends in one message, early, and leaves nothing behind."""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.intake import check_intake, open_or_unpack, trial, trial_child, unpack_zip
from deploy.intake.flatbuffer import FlatbufferError, FlatbufferWalker
from deploy.intake.folder import MAX_ARTIFACT_BYTES, MAX_FILES
from nailcore.errors import ArtifactError, UnknownNameError
from nailcore.storage import hash_path
from tests.deploy.flip_bits import count_hash_hits
from tests.deploy.tiny_models import KINDS

Damage = Callable[[Path], None]
TEN_GIGABYTES = 10_000_000_000


def copy_model(source: Path, folder: Path) -> Path:
    target = folder / source.name
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
    return target


@pytest.mark.parametrize("kind", KINDS)
def test_sound_models_pass(kind: str, tiny_models: dict[str, Path]) -> None:
    check_intake(kind, tiny_models[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_every_single_bit_flip_changes_the_hash(kind: str, tiny_models: dict[str, Path]) -> None:
    assert count_hash_hits(tiny_models[kind], 1000) == 1000


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(UnknownNameError, match="onxn"):
        check_intake("onxn", Path("x"))


# -- sizes, links, listings ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_ten_gigabytes_are_refused_unread(
    kind: str, tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy_model(tiny_models[kind], tmp_path)
    file = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size, default=path)
    os.truncate(file, TEN_GIGABYTES)  # sparse: it takes no space

    def read(*_: object) -> bytes:
        raise AssertionError("the file was read")

    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.raises(ArtifactError, match=f"the limit is {MAX_ARTIFACT_BYTES:,}"):
        check_intake(kind, path)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_empty_and_linked_files_are_told_apart(
    kind: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=r"cannot be read: No such file|does not exist"):
        check_intake(kind, tmp_path / "absent")
    path = copy_model(tiny_models[kind], tmp_path)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(ArtifactError, match=r"symbolic link|is not a folder"):
        check_intake(kind, link)
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        file.write_bytes(b"")
    with pytest.raises(ArtifactError, match="is empty"):
        check_intake(kind, path)


def test_a_package_may_hold_what_coremltools_and_finder_leave_beside_the_model(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    path = copy_model(tiny_models["coreml"], tmp_path)
    for name in ("executorch_debug_handle_mapping.json", ".DS_Store", "Data/.DS_Store"):
        (path / name).write_bytes(b"{}")
    check_intake("coreml", path)
    (path / "Data" / "executorch_debug_handle_mapping.json").write_bytes(b"{}")  # not where it is written
    with pytest.raises(ArtifactError, match="which nothing in it refers to"):
        check_intake("coreml", path)


def test_a_compiled_model_is_called_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.mlmodelc"
    path.mkdir()
    (path / "coremldata.bin").write_bytes(b"compiled")
    with pytest.raises(ArtifactError, match=r"compiled model \(\.mlmodelc\)"):
        check_intake("coreml", path)


@pytest.mark.parametrize("kind", ["tfjs", "coreml"])
def test_folders_hold_nothing_but_what_they_declare(
    kind: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    path = copy_model(tiny_models[kind], tmp_path)
    (path / "extra.bin").write_bytes(b"stowaway")
    with pytest.raises(ArtifactError, match=r"'extra\.bin', which nothing in it refers to"):
        check_intake(kind, path)
    (path / "extra.bin").unlink()
    weights = next(path.rglob("*.bin"))
    weights.rename(tmp_path / "aside.bin")
    with pytest.raises(
        ArtifactError, match=rf"{weights.name}' is missing|{weights.name}', listed .* is missing"
    ):
        check_intake(kind, path)
    weights.symlink_to(tmp_path / "aside.bin")
    with pytest.raises(ArtifactError, match="symbolic link"):
        check_intake(kind, path)
    weights.unlink()
    os.mkfifo(weights)  # reading it would wait for ever
    with pytest.raises(ArtifactError, match="no regular file"):
        check_intake(kind, path)


def test_a_folder_of_a_million_files_is_not_listed_to_the_end(tmp_path: Path) -> None:
    for number in range(MAX_FILES + 1):
        (tmp_path / str(number)).touch()
    with pytest.raises(ArtifactError, match="more than 1000 files"):
        check_intake("tfjs", tmp_path)


# -- what the files say of themselves ----------------------------------------------------------------


def edit_json(name: str, change: Callable[[Any], None]) -> Damage:
    def damage(path: Path) -> None:
        document = json.loads((path / name).read_text())
        change(document)
        (path / name).write_text(json.dumps(document))

    return damage


def set_shard(name: str) -> Damage:
    def change(document: Any) -> None:
        document["weightsManifest"][0]["paths"][0] = name

    return edit_json("model.json", change)


def set_weight(key: str, value: Any) -> Damage:
    def change(document: Any) -> None:
        document["weightsManifest"][0]["weights"][0][key] = value

    return edit_json("model.json", change)


def set_topology(change: Callable[[list[Any]], None]) -> Damage:
    return edit_json("model.json", lambda document: change(document["modelTopology"]["node"]))


def write_json(name: str, text: str) -> Damage:
    def damage(path: Path) -> None:
        (path / name).write_text(text)

    return damage


def point_item(name: str) -> Damage:
    def change(document: Any) -> None:
        document["itemInfoEntries"][document["rootModelIdentifier"]]["path"] = name

    return edit_json("Manifest.json", change)


def rename_blob(path: Path) -> None:
    file = next(path.rglob("*.mlmodel"))
    data = file.read_bytes()
    assert b"@model_path/weights/weight.bin" in data
    file.write_bytes(data.replace(b"@model_path/weights/weight.bin", b"@model_path/../../../weig.bin"))


def make_circle(nodes: list[Any]) -> None:
    last = next(node for node in reversed(nodes) if node["op"] != "Const")
    first = next(node for node in nodes if node["op"] == "Sub")
    first["input"][0] = last["name"]


FOLDER_DAMAGE: dict[str, tuple[str, Damage, str]] = {
    "shard climbs": ("tfjs", set_shard("../group1-shard1of1.bin"), "lead out of its folder"),
    "shard absolute": ("tfjs", set_shard("/etc/passwd"), "lead out of its folder"),
    "shard elsewhere": ("tfjs", set_shard("https://example.org/x.bin"), "lead out of its folder"),
    "shard escaped": ("tfjs", set_shard("%2e%2e/x.bin"), "lead out of its folder"),
    "shard backslash": ("tfjs", set_shard("..\\x.bin"), "lead out of its folder"),
    "shard missing": ("tfjs", set_shard("group1-shard9of9.bin"), "shard 'group1-shard9of9.bin' is missing"),
    "shape lies": ("tfjs", set_weight("shape", [7, 7]), r"hold \d+ bytes, not \d+"),
    "shape overflows": ("tfjs", set_weight("shape", [2**40, 2**40]), "has side 1099511627776"),
    "shape multiplies": ("tfjs", set_weight("shape", [2**20, 2**20]), r"declares 1,099,511,627,776 elements"),
    "shape negative": ("tfjs", set_weight("shape", [-1, -4]), "has side -1"),
    "type unknown": ("tfjs", set_weight("dtype", "float99"), "has type 'float99'"),
    "node circle": ("tfjs", set_topology(make_circle), "waits for its own result"),
    "node lost": ("tfjs", set_topology(lambda nodes: nodes.pop(0)), "does not exist"),
    "nodes doubled": ("tfjs", set_topology(lambda nodes: nodes.append(nodes[0])), "has two nodes"),
    "json nested": (
        "tfjs",
        write_json("model.json", "[" * 200_000),
        "nested deeper than 64",
    ),
    "json cut": (
        "tfjs",
        write_json("model.json", '{"format": "gra'),
        "TF.js model: JSONDecodeError",
    ),
    "json NaN": ("tfjs", write_json("model.json", '{"format": NaN}'), "NaN is no JSON number"),
    "not an object": ("tfjs", write_json("model.json", "[1]"), "it holds a list"),
    "another format": (
        "tfjs",
        write_json("model.json", '{"format": "layers-model"}'),
        "'graph-model'",
    ),
    "item climbs": ("coreml", point_item("../../../etc/passwd"), "lead out of its folder"),
    "item absolute": ("coreml", point_item("/etc/passwd"), "lead out of its folder"),
    "item missing": ("coreml", point_item("com.apple.CoreML/other.mlmodel"), "is missing"),
    "blob climbs": ("coreml", rename_blob, "lead out of its folder"),
    "manifest empty": ("coreml", write_json("Manifest.json", "{}"), "KeyError"),
    "manifest nested": (
        "coreml",
        write_json("Manifest.json", "[" * 200_000),
        "nested deeper than 64",
    ),
}


@pytest.mark.parametrize("name", FOLDER_DAMAGE)
def test_damaged_folders_are_refused_with_the_reason(
    name: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    kind, damage, message = FOLDER_DAMAGE[name]
    path = copy_model(tiny_models[kind], tmp_path)
    damage(path)
    with pytest.raises(ArtifactError, match=message) as caught:
        check_intake(kind, path)
    assert str(path) in caught.value.message and caught.value.hint


def first_weight(model: Any) -> Any:
    return max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))


def lie_about_shape(model: Any) -> None:
    first_weight(model).dims[0] += 1


def overflow_shape(model: Any) -> None:
    first_weight(model).dims[:] = [2**31, 2**31, 4]


def keep_outside(location: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        tensor = first_weight(model)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return change


def set_attribute(op: str, name: str, value: list[int]) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        node = next(node for node in model.graph.node if node.op_type == op)
        next(a for a in node.attribute if a.name == name).ints[:] = value

    return change


def nest_graphs(model: Any) -> None:
    graph = model.graph
    for _ in range(20):
        node = graph.node.add(op_type="If", output=["o"])
        attribute = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
        attribute.g.node.add(op_type="Identity", output=["i"])
        graph = attribute.g


def write_twice(model: Any) -> None:
    model.graph.node.add().CopyFrom(model.graph.node[0])


def lose_output(model: Any) -> None:
    model.graph.output[0].name = "mask"


def huge_input(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**40


ONNX_DAMAGE: dict[str, tuple[Callable[[Any], None], str]] = {
    "shape lies": (lie_about_shape, r"holds \d+ bytes; its shape takes \d+"),
    "shape overflows": (overflow_shape, "has side 2147483648"),
    "data climbs": (keep_outside("../../weights.bin"), r"in another file, '\.\./\.\./weights\.bin'"),
    "data absolute": (keep_outside("/etc/passwd"), "in another file, '/etc/passwd'"),
    "stride zero": (set_attribute("Conv", "strides", [0, 0]), "strides is"),
    "kernel huge": (set_attribute("AveragePool", "kernel_shape", [2**40] * 2), "kernel_shape is"),
    "pads huge": (set_attribute("Conv", "pads", [2**40] * 4), "pads is"),
    "graphs nested": (nest_graphs, "nests graphs deeper than 8"),
    "written twice": (write_twice, "twice"),
    "other outputs": (lose_output, "output 'mask' is computed by no node"),
    "input huge": (huge_input, "has side 1099511627776"),
    "no graph": (lambda model: model.ClearField("graph"), "it has no graph"),
}


@pytest.mark.parametrize("name", ONNX_DAMAGE)
def test_damaged_onnx_files_are_refused_with_the_reason(
    name: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    change, message = ONNX_DAMAGE[name]
    model = onnx.load(str(tiny_models["onnx"]))
    change(model)
    (path := tmp_path / "damaged.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=message):
        check_intake("onnx", path)


@pytest.mark.parametrize("kind", ["onnx", "tflite"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_files_cut_short_are_refused(
    kind: str, share: float, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    data = tiny_models[kind].read_bytes()
    (path := tmp_path / tiny_models[kind].name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(ArtifactError, match=r"cut short|damaged|holds|cannot be executed|no ONNX model"):
        check_intake(kind, path)


def test_a_flatbuffer_that_reaches_outside_itself_is_refused(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    sound = tiny_models["tflite"].read_bytes()
    for root in (len(sound), 2**31, 2**32 - 1, 1):
        (path := tmp_path / "root.tflite").write_bytes(root.to_bytes(4, "little") + sound[4:])
        with pytest.raises(ArtifactError, match="no TFLite file, or a damaged one"):
            check_intake("tflite", path)
    with pytest.raises(ArtifactError, match="TFL3"):
        check_intake("tflite", tiny_models["onnx"])


def test_offsets_that_share_a_target_cannot_make_a_small_file_endless() -> None:
    # A vector whose entries are all one and the same table: a small file that would become endless objects.
    count = 200_000
    vtable = (4).to_bytes(2, "little") * 2
    root_vtable = b"\x06\0\x08\0\x04\0\0\0"
    head = bytes([16, 0, 0, 0]) + b"TEST" + root_vtable
    root = (8).to_bytes(4, "little") + (4).to_bytes(4, "little")
    vector = count.to_bytes(4, "little")
    start = len(head) + len(root) + 4
    table = start + 4 * count + 4
    entries = b"".join((table - (start + 4 * i)).to_bytes(4, "little") for i in range(count))
    data = head + root + vector + entries + vtable + (4).to_bytes(4, "little")
    schema = {"Root": {0: ("many", "[Leaf]")}, "Leaf": {}}
    with pytest.raises(FlatbufferError, match="more than 100,000 objects"):
        FlatbufferWalker(data, schema).read_root("Root", b"TEST")


# -- what fuzzing found in the CoreML reader: each raised something that was no error of ours ---------


def edit_program(path: Path, change: Callable[[Any], None]) -> None:
    from deploy.coremltools_import import import_coremltools

    import_coremltools()
    from coremltools.proto import Model_pb2

    file = next(path.rglob("*.mlmodel"))
    spec = Model_pb2.Model()
    spec.ParseFromString(file.read_bytes())
    function = spec.mlProgram.functions["main"]
    change(function.block_specializations[function.opset].operations)
    file.write_bytes(spec.SerializeToString())


def read_nothing(operations: Any) -> None:
    relu = next(one for one in operations if one.type == "relu6")
    relu.inputs["x"].arguments[0].name = ""


def hide_blob(operations: Any) -> None:
    for one in operations:
        if "val" in one.attributes and one.attributes["val"].HasField("blobFileValue"):
            one.attributes["val"].blobFileValue.fileName = "@model_path/weights/\0weight.bin"
            return
    raise AssertionError("no weight was found")


@pytest.mark.parametrize(
    ("change", "message"),
    [(read_nothing, "reads '', written nowhere"), (hide_blob, "outside its package")],
)
def test_programs_that_name_nothing_or_the_unnameable(
    change: Callable[[Any], None], message: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    from deploy.mil import load_package

    path = copy_model(tiny_models["coreml"], tmp_path)
    edit_program(path, change)
    with pytest.raises(ArtifactError, match=message):
        load_package(path)


# -- the trial in a child process ----------------------------------------------------------------


def write_graph(path: Path, nodes: list[Any], weights: list[Any] | None = None) -> Path:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [image], [out], weights or [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def test_an_endless_loop_ends_in_time(tmp_path: Path) -> None:
    inner = [
        helper.make_node("Identity", ["go"], ["still"]),
        helper.make_node("Identity", ["before"], ["after"]),
    ]
    body = helper.make_graph(
        inner,
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [1]),
        ],
    )
    weights = [
        numpy_helper.from_array(np.array(2**62), "trips"),
        numpy_helper.from_array(np.array(True), "yes"),
    ]
    path = write_graph(
        tmp_path / "loop.onnx",
        [helper.make_node("Loop", ["trips", "yes", "image"], ["out"], body=body)],
        weights,
    )
    check_intake("onnx", path, trial=False)
    started = time.monotonic()
    with pytest.raises(ArtifactError, match="did not finish one inference within 1 s"):
        trial.try_in_child("onnx", path, seconds=1)
    assert time.monotonic() - started < trial.TRIAL_SECONDS


def test_hunger_for_memory_is_refused(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([2**16, 2**16]), "shape")
    path = write_graph(
        tmp_path / "hungry.onnx", [helper.make_node("Expand", ["image", "shape"], ["out"])], [shape]
    )
    check_intake("onnx", path, trial=False)
    with pytest.raises(ArtifactError, match=r"needs more than 3,072 MiB|cannot be executed"):
        trial.try_in_child("onnx", path, memory_bytes=3 << 30)


def kill_self(path: str, engine: str) -> None:
    faulthandler.disable()  # pytest's would describe the crash of the child
    os.kill(os.getpid(), signal.SIGSEGV)


def write_file(path: str, engine: str) -> None:
    Path(path).with_name("written").write_bytes(b"by the child")


def test_a_crash_of_the_child_is_an_answer_and_it_cannot_write(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limits = {"path": str(tmp_path / "x"), "engine": "", "seconds": 10.0, "memory": 8 << 40}
    monkeypatch.setitem(trial_child._TRIALS, "crash", (kill_self, "json"))
    monkeypatch.setitem(trial_child._TRIALS, "write", (write_file, "json"))
    answer = trial_child._fork_trial({"kind": "crash", **limits})
    assert answer == {"verdict": "crashed", "detail": "SIGSEGV"}
    assert "crashes its runtime (SIGSEGV)" in trial._describe(answer, 10, 1)
    trial_child._fork_trial({"kind": "write", **limits})
    assert not (tmp_path / "written").exists() or (tmp_path / "written").stat().st_size == 0


def test_a_helper_that_died_is_replaced(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    first = copy_model(tiny_models["onnx"], tmp_path)
    trial.try_in_child("onnx", first)
    assert trial._server is not None
    trial._server.process.kill()
    trial._server.process.wait()
    trial._passed.clear()
    trial.try_in_child("onnx", first)
    assert ("onnx", "", hash_path(first)) in trial._passed


# -- zip archives --------------------------------------------------------------------------------


def test_a_zipped_package_opens_and_its_folder_goes_away(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    package = tiny_models["coreml"]
    archive = Path(shutil.make_archive(str(tmp_path / "model"), "zip", package.parent, package.name))
    with zipfile.ZipFile(archive, "a") as stream:
        stream.writestr("__MACOSX/._litter", b"finder")
    with unpack_zip(archive) as inside:
        assert hash_path(inside) == hash_path(tiny_models["coreml"])
        check_intake("coreml", inside)
    assert not inside.exists()
    with open_or_unpack(archive) as inside, open_or_unpack(tiny_models["coreml"]) as same:
        assert inside.name == same.name


def write_zip(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as stream:
        for name, data in entries.items():
            stream.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return path


def test_a_zip_bomb_is_refused_before_it_goes_off(tmp_path: Path) -> None:
    bomb = write_zip(tmp_path / "bomb.zip", {"m/weight.bin": bytes(50_000_000)})
    with pytest.raises(ArtifactError, match="a zip bomb"), unpack_zip(bomb):
        pass
    with pytest.raises(ArtifactError, match="unpacks to 50,000,000 bytes"), unpack_zip(bomb, 1_000_000):
        pass


def test_a_zip_that_lies_about_its_sizes_is_stopped(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "liar.zip", {"m/weight.bin": bytes(200_000)})
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        place = data.index(mark) + at
        data[place : place + 4] = (100).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ArtifactError), unpack_zip(path):
        pass


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../evil", "lead out of its folder"),
        ("/etc/evil", "lead out of its folder"),
        ("m/../../evil", "lead out of its folder"),
        ("C:\\evil", "lead out of its folder"),
        ("/".join("abcdefghij"), "lies deeper"),
    ],
)
def test_zip_entries_stay_inside(name: str, message: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.parent.rglob("evil*"))
    with pytest.raises(ArtifactError, match=message), unpack_zip(write_zip(tmp_path / "z.zip", {name: b"x"})):
        pass
    assert sorted(tmp_path.parent.rglob("evil*")) == before


def test_links_doubles_overlaps_and_crowds_in_zips_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("m/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as stream:
        stream.writestr(link, "/etc/passwd")
    crowd = write_zip(tmp_path / "crowd.zip", {f"m/{i}": b"" for i in range(MAX_FILES + 1)})
    double = write_zip(tmp_path / "double.zip", {"m/a.bin": b"1", "m/A.bin": b"2"})
    (tmp_path / "none.zip").write_bytes(b"PK\x03\x04 this is no archive")
    overlap = write_zip(tmp_path / "overlap.zip", {"m/a": b"1" * 500, "m/b": b"1" * 500})
    data = bytearray(overlap.read_bytes())
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    data[second + 42 : second + 46] = (0).to_bytes(
        4, "little"
    )  # the second entry begins where the first does
    overlap.write_bytes(data)
    for file, message in (
        ("link", "is a link"),
        ("crowd", "holds 1001 entries"),
        ("double", "twice"),
        ("none", "no readable zip archive"),
        ("overlap", "overlaps"),
    ):
        with pytest.raises(ArtifactError, match=message), unpack_zip(tmp_path / f"{file}.zip"):
            pass
    assert crowd.exists() and double.exists()
