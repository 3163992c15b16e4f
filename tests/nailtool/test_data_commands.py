"""`nailtool data ...` as it is typed: import, check, split, show, fetch; exit codes, JSON, refusals."""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from nailcore.data import known_labels
from nailcore.data.folder import open_dataset
from nailtool.cli import make_app
from tests.nailcore import foreign_files as files

NAMES = ("anna", "ben", "cleo", "dora")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    files.write_masks(tmp_path / "src", NAMES)
    rng = np.random.default_rng(0)
    for name in NAMES:  # photos that no perceptual hash takes for copies
        small = rng.integers(0, 255, (6, 9, 3), np.uint8)
        image = cv2.resize(small, (files.WIDTH, files.HEIGHT), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(tmp_path / "src" / "images" / f"{name}.jpg"), image)
    return tmp_path / "src"


def call(*arguments: object, code: int = 0, answer: str = "") -> str:
    done = CliRunner().invoke(make_app(), ["data", *map(str, arguments)], input=answer)
    assert done.exit_code == code, done.output + str(done.exception)
    return done.output


def ask(*arguments: object, code: int = 0) -> dict[str, Any]:
    done = CliRunner().invoke(make_app(), ["data", *map(str, arguments), "--json"])
    assert done.exit_code == code, done.output + str(done.exception)
    return dict(json.loads(done.stdout))


def test_known_labels_come_by_themselves_but_not_beside_guesses(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"labels": ["mask", "finger"], "nails": []}
    known = {"dataset": "famous", "note": "by eye", "images": dict.fromkeys(NAMES, record)}
    (tmp_path / "famous.json").write_text(json.dumps(known))
    monkeypatch.setattr(known_labels, "KNOWN_DIR", tmp_path)
    (source / "manifest.json").write_text("[]")
    assert "those that ship with nailtool for famous" in call("import", source, "--out", "a")
    for number, flags in enumerate((("--no-known-labels",), ("--auto-labels",))):
        assert "known_labels" not in ask("import", source, "--out", f"b{number}", *flags)["settings"]
    both = ask("import", source, "--out", "c", "--auto-labels", "--known-labels")
    assert both["settings"]["known_labels"] == "famous"


def test_nails_are_numbered_and_named(source: Path, tmp_path: Path) -> None:
    call("import", source, "--out", "data", "--quiet")
    call("show", "data", "--out", "plain.png", "--quiet")
    call("show", "data", "--out", "numbers.png", "--numbers", "--quiet")
    plain, numbers = (cv2.imread(str(tmp_path / f"{name}.png")) for name in ("plain", "numbers"))
    assert plain is not None and numbers is not None and plain.shape == numbers.shape
    assert (plain[: -20 - files.HEIGHT] != numbers[: -20 - files.HEIGHT]).any()
    (tmp_path / "names.txt").write_text("anna 1=LI@0 2=LM@10\nben.jpg 1=RT\n")
    done = ask("name", "data", "--from", "names.txt")
    assert (done["photos"], done["fingers"], done["directions"]) == (2, 3, 2)
    typed = CliRunner().invoke(make_app(), ["data", "name", "data", "--from", "-"], input="cleo 1=LP@5\n")
    assert typed.exit_code == 0 and "1 fingers, 1 directions" in typed.output
    known = {
        s.name: [n.finger for n in s.load_labels().nails] for s in open_dataset(tmp_path / "data").samples
    }
    assert known == {
        "anna": ["left index", "left middle"],
        "ben": ["right thumb", None],
        "cleo": ["left pinky", None],
        "dora": [None, None],
    }
    assert "names.txt: cannot be read" in call("name", "data", "--from", "other/names.txt", code=2)
    assert "line 1: there is no photo 'anne'; did you mean anna?" in " ".join(
        CliRunner()
        .invoke(make_app(), ["data", "name", "data", "--from", "-"], input="anne 1=LI")
        .output.split()
    )


def test_what_cannot_be_numbered_or_shown_is_told(source: Path, tmp_path: Path) -> None:
    told = " ".join(call("show", source, "--numbers", "--out", "x.png", code=2).split())
    assert "annotations.json: no such file" in told and "data import" in told
    call("import", source, "--out", "data", "--quiet")
    call("split", "data", "--parts", "1/1", "--quiet")
    told = " ".join(call("show", "data", "--part", "validation", "--out", "x.png", code=2).split())
    assert "its validation part holds no images" in told
    assert not (tmp_path / "x.png").exists()


def test_people_are_counted_and_a_split_that_learns_from_few_says_so(source: Path) -> None:
    told = " ".join(call("import", source, "--out", "two", "--subject", "^.").split())
    assert "People, with their photos: a 1, b 1, c 1, d 1." in told
    told = " ".join(call("split", "two").split())
    assert "only 2 of 4 images are learnt from" in told and "Written: two/split.json" in told
    call("import", source, "--out", "nobody", "--quiet")
    nameless = {
        folder: [f["what"] for f in ask("check", folder)["findings"] if f["kind"] == "no person named"]
        for folder in ("two", "nobody")
    }
    assert nameless == {"two": [], "nobody": ["4 of 4 photos name nobody"]}


def test_from_masks_to_a_split_and_a_sheet(source: Path, tmp_path: Path) -> None:
    made = ask("import", source, "--out", "data", "--subject", r"images/(\w+)\.", "--licence", "CC0-1.0")
    assert (made["photos"], made["nails"], made["worked"], made["left_out"]) == (4, 8, True, [])
    assert not ask("import", source, "--out", "data", "--subject", r"images/(\w+)\.", "--licence", "CC0-1.0")[
        "worked"
    ]
    assert "no split" in call("check", "data") and "nothing wrong" in call("check", "data")
    split = ask("split", "data", "--parts", "2/1/1")
    assert split["images"] == {"train": 2, "validation": 1, "test": 1} == split["groups"]
    assert split["nameless"] == 0
    assert "exists already" in call("split", "data", code=2)
    again = ask("split", "data", "--parts", "2/1/1", "--force")
    assert again == split
    checked = ask("check", "data")
    assert checked["ok"] and checked["parts"] == {"train": 2, "validation": 1, "test": 1}
    assert checked["people"] == 4 and not checked["findings"]
    for part, count in (("all", 4), ("train", 2), ("validation", 1), ("test", 1), ("held-out", 2)):
        shown = ask("show", "data", "--part", part, "--out", f"{part}.png", "--cell", "100")
        assert len(shown["images"]) == count
    assert cv2.imread("all.png") is not None
    assert open_dataset(tmp_path / "data").card.licence == "CC0-1.0"
    assert "Did you mean" in call("show", "data", "--part", "validatoin", code=2)


def test_photographs_without_a_person_are_told_when_they_are_split(source: Path) -> None:
    call("import", source, "--out", "data", "--quiet")
    told = call("split", "data", "--parts", "2/1/1")
    assert "4 of 4 photographs name no person" in " ".join(told.split())
    assert ask("split", "data", "--parts", "2/1/1", "--force")["nameless"] == 4


def test_check_says_what_is_wrong_and_what_to_do(source: Path, tmp_path: Path) -> None:
    call("import", source, "--out", "data", "--quiet")
    path = tmp_path / "data" / "annotations.json"
    data = json.loads(path.read_text())
    for nail in data["annotations"][:7]:
        nail["keypoints"] = [10, 10, 2, 10.1, 10, 2]
    path.write_text(json.dumps(data))
    output = call("check", "data", code=1)
    assert "base equals tip (7)" in output and "and 2 more" in output and "Move them apart" in output
    assert "and 2 more" not in call("check", "data", "--all", code=1)
    found = ask("check", "data", code=1)
    assert not found["ok"] and len(found["findings"]) == 9
    assert found["findings"][0] | {"what": ""} == {
        "kind": "base equals tip",
        "file": "anna.jpg",
        "what": "",
        "level": "problem",
        "remedy": "Move them apart, or mark both as unknown (0, 0, 0).",
    }
    assert call("check", "data", "--quiet", code=1) == ""
    assert "no such folder" in call("check", "gone", code=2)
    path.write_text("{")
    assert "not readable JSON" in call("check", "data", code=2)


def test_refused_imports_leave_nothing_behind(source: Path, tmp_path: Path) -> None:
    assert "Did you mean" in call("import", source, "--out", "data", "--format", "yolo", code=2)
    assert "no such file" in call("import", "gone", "--out", "data", code=2)
    assert "NAME=MEANING" in call("import", source, "--out", "data", "--label", "x", code=2)
    assert not (tmp_path / "data").exists()
    (source / "images" / "ben.jpg").write_bytes(b"")
    assert "ben.jpg: not a readable image" in call("import", source, "--out", "data", code=2)
    output = call("import", source, "--out", "data2", "--skip-bad")
    assert "3 photos with 6 nails" in output and "images/ben.jpg" in output


def test_autolabel_without_mediapipe_says_what_is_missing(source: Path, tmp_path: Path) -> None:
    assert "no such folder" in call("autolabel", "gone", code=2)
    call("import", source, "--out", "data", "--quiet")
    assert "mediapipe==0.10.21" in call("autolabel", "data", code=3)
    assert ask("autolabel", "data", code=3)["error"]["exit_code"] == 3


# -- fetch -------------------------------------------------------------------------------------------
class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def url(source: Path, tmp_path: Path) -> Iterator[str]:
    """A server with the source as nails.zip."""
    (tmp_path / "www").mkdir()
    with zipfile.ZipFile(tmp_path / "www" / "nails.zip", "w") as archive:
        for path in sorted(source.rglob("*.*")):
            archive.write(path, Path("nails") / path.relative_to(source))
    handler = partial(Quiet, directory=str(tmp_path / "www"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/nails.zip"
    server.shutdown()
    server.server_close()


def write_registry(tmp_path: Path, url: str, digest: str) -> None:
    (tmp_path / "sets").mkdir(exist_ok=True)
    (tmp_path / "sets" / "tiny.toml").write_text(
        'name = "tiny"\nlicence = "CC-BY-4.0"\nholds = "four photos"\nhomepage = "https://example.org"\n'
        'format = "masks"\nsubject = "images/(.)"\n'
        f'[[files]]\nurl = "{url}"\nsha256 = "{digest}"\nsize_bytes = 4321000\n'
    )


def test_a_set_is_fetched_by_name_after_its_terms_were_accepted(url: str, tmp_path: Path) -> None:
    digest = hashlib.sha256((tmp_path / "www" / "nails.zip").read_bytes()).hexdigest()
    write_registry(tmp_path, url, digest)
    options = ("--registry", "sets", "--cache", "cache", "--out", "data")
    listed = ask("fetch", "--list", "--registry", "sets")["sets"]
    assert {"tiny", "nails_cc0"} <= {entry["name"] for entry in listed}
    assert "four photos" in call("fetch", "--list", "--registry", "sets")
    refused = call("fetch", "tiny", *options, code=2, answer="n\n")
    assert (
        digest in refused
        and "4.3 MB" in refused
        and "CC-BY-4.0" in refused
        and "nothing was downloaded" in refused
    )
    assert "nothing was downloaded" in call("fetch", "tiny", *options, code=2, answer="")
    assert "Add --yes" in call("fetch", "tiny", *options, "--quiet", code=2)
    assert not (tmp_path / "data").exists() and not (tmp_path / "cache").exists()
    assert "4 photos with 8 nails" in call("fetch", "tiny", *options, answer="y\n")
    dataset = open_dataset(tmp_path / "data")
    assert dataset.card.name == "tiny" and dataset.card.licence == "CC-BY-4.0"
    assert [sample.record.subject for sample in dataset.samples] == list("abcd")
    fetched = json.loads((tmp_path / "data" / "fetched.json").read_text())
    assert fetched["files"][0]["sha256"] == digest and fetched["licence"] == "CC-BY-4.0"
    assert not ask("fetch", "tiny", *options, "--yes")["worked"]


def test_a_set_of_another_hash_is_not_used(url: str, tmp_path: Path) -> None:
    write_registry(tmp_path, url, "0" * 64)
    output = call("fetch", "tiny", "--registry", "sets", "--cache", "cache", "--yes", code=2)
    assert "expected 0000" in output and "not kept" in output
    assert not (tmp_path / "tiny").exists()


def test_sets_outside_the_registry_need_address_hash_and_licence(url: str, tmp_path: Path) -> None:
    digest = hashlib.sha256((tmp_path / "www" / "nails.zip").read_bytes()).hexdigest()
    assert "the registry holds no SHA-256" in call("fetch", "nails_cc0", code=2)
    assert "Did you mean nails_cc0" in call("fetch", "nail_cc0", code=2)
    assert "Which set?" in call("fetch", code=2)
    assert "go together" in call("fetch", "mine", "--url", url, code=2)
    assert "needs --licence" in call("fetch", "mine", "--url", url, "--sha256", digest, code=2)
    bad = call("fetch", "mine", "--url", url, "--sha256", "abc", "--licence", "x", code=2)
    assert "sha256" in bad
    made = ask(
        "fetch", "mine", "--url", url, "--sha256", digest.upper(), "--licence", "x", "--cache", "c", "--yes"
    )
    assert made["photos"] == 4 and made["folder"] == "mine"
    known = ask("fetch", "nails_cc0", "--url", url, "--sha256", digest, "--cache", "c", "--yes")
    assert known["settings"]["licence"] == "CC0-1.0" and known["settings"]["format"] == "masks"
