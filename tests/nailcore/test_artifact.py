"""Manifests and atomic storage: a change of one byte is seen, a cut write leaves the old file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nailcore.artifact import (
    Artifact,
    BrokenParent,
    MadeBy,
    describe_artifact,
    manifest_path,
    open_artifact,
    trace_weights,
    write_manifest,
)
from nailcore.errors import ArtifactError, MissingToolError, NailtoolError, UnknownNameError
from nailcore.storage import hash_path, replacing, write_text

MADE_BY = MadeBy(
    versions={}, config={}, parent="w", parent_sha256="0" * 64, cpu_s=0, wall_s=0, peak_rss_bytes=0
)


def make_artifact(path: Path) -> Artifact:
    return describe_artifact(
        path,
        kind="tfjs",
        variant="nail43-288",
        recipe="fp32",
        input_name="image",
        input_layout="NHWC",
        output_names={"fgbg": "fgbg"},
        made_by=MADE_BY,
    )


def make_folder(root: Path) -> Path:
    folder = root / "m.tfjs"
    folder.mkdir(exist_ok=True)
    (folder / "model.json").write_text("{}")
    (folder / "shard.bin").write_bytes(bytes(range(64)))
    return folder


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 63), bit=st.integers(0, 7))
def test_every_flipped_bit_of_a_shard_is_seen(tmp_path: Path, position: int, bit: int) -> None:
    folder = make_folder(tmp_path)
    manifest = write_manifest(folder, make_artifact(folder))
    assert open_artifact(manifest)[1] == folder
    data = bytearray((folder / "shard.bin").read_bytes())
    data[position] ^= 1 << bit
    (folder / "shard.bin").write_bytes(data)
    with pytest.raises(ArtifactError, match="bytes changed since it was built"):
        open_artifact(manifest)


@pytest.mark.parametrize("weights", ["nail43.safetensors", "nail43-288.safetensors"])
def test_descent_ends_at_the_weights_whatever_they_are_called(weights: str, tmp_path: Path) -> None:
    child = make_artifact(make_folder(tmp_path))
    onnx, digest = "nail43-288.fp32.onnx", "1" * 64
    first = MADE_BY.model_copy(update={"parent": weights, "parent_sha256": digest})
    parent = child.model_copy(update={"file": onnx, "sha256": "2" * 64, "made_by": first})
    then = MADE_BY.model_copy(update={"parent": onnx, "parent_sha256": "2" * 64})
    made = child.model_copy(update={"made_by": then})
    assert trace_weights(made, lambda _, name: {onnx: parent}.get(name)) == digest
    assert trace_weights(made, lambda *_: None) == BrokenParent(made, None)


def test_extra_renamed_and_missing_files_are_seen(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    manifest = write_manifest(folder, make_artifact(folder))
    (folder / "extra.bin").write_bytes(b"")
    with pytest.raises(ArtifactError, match="bytes changed"):
        open_artifact(manifest)
    (folder / "extra.bin").unlink()
    (folder / "shard.bin").rename(folder / "shard2.bin")
    with pytest.raises(ArtifactError, match="bytes changed"):
        open_artifact(manifest)


@pytest.mark.parametrize("content", ["", "{", '{"file": "x"}', "\x00\x01"])
def test_damaged_manifests_are_named(tmp_path: Path, content: str) -> None:
    manifest = manifest_path(tmp_path / "m.onnx")
    manifest.write_text(content)
    with pytest.raises(ArtifactError, match=r"m\.onnx\.manifest\.json: the manifest is damaged"):
        open_artifact(manifest)


@pytest.mark.parametrize("file", ["../m.onnx", "/etc/passwd", "a/b.onnx", "..", ""])
def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path, file: str) -> None:
    folder = make_folder(tmp_path)
    text = make_artifact(folder).model_dump_json().replace('"m.tfjs"', f'"{file}"')
    manifest_path(folder).write_text(text)
    with pytest.raises(ArtifactError, match="damaged"):
        open_artifact(manifest_path(folder))


def test_a_cut_write_leaves_the_old_file_and_no_scratch(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    write_text(target, "old")
    with pytest.raises(KeyboardInterrupt), replacing(target) as scratch:
        scratch.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_folders_are_replaced_whole(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    before = hash_path(folder)
    with replacing(folder) as scratch:
        scratch.mkdir()
        (scratch / "model.json").write_text("new")
    assert [p.name for p in folder.iterdir()] == ["model.json"] and hash_path(folder) != before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_swap_that_fails_half_way_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path)
    before, rename = hash_path(folder), Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if Path(target) == folder and self.name != ".old":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), replacing(folder) as scratch:
        scratch.mkdir()
    assert hash_path(folder) == before


def test_a_full_disk_is_one_clear_message_and_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(MissingToolError, match="No space left while writing"), replacing(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert target.read_text() == "old"


def test_unknown_names_come_with_the_nearest() -> None:
    error = UnknownNameError("variant", "nail55-408", ["nail55-480", "nail43-288"])
    assert "nail55-480" in error.hint and isinstance(error, NailtoolError)
