"""Public sets: the registry, verified downloads over HTTP, broken ones, and archives of all kinds."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from nailcore.data.fetching import REGISTRY_DIR, PublicFile, PublicSet, download, read_registry, unpack
from nailcore.errors import DataError, MissingToolError


class Server(BaseHTTPRequestHandler):
    """Serves ``files``; paths in ``broken`` stop in the middle, as a lost connection does."""

    files: ClassVar[dict[str, bytes]] = {}
    broken: ClassVar[set[str]] = set()
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        data = self.files.get(self.path)
        self.asked.append(self.path)
        if data is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if self.path in self.broken else data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    Server.files, Server.broken, Server.asked = {}, set(), []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def make_zip(names: tuple[str, ...] = ("wrap/images/a.txt",)) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, f"content of {name}")
    return stream.getvalue()


def make_set(url: str, data: bytes, path: str = "/set.zip", **more: str) -> PublicSet:
    file = PublicFile(url=url + path, sha256=hashlib.sha256(data).hexdigest())
    return PublicSet(name="mine", licence="CC0-1.0", files=(file,), **more)


def test_a_verified_file_is_downloaded_once(tmp_path: Path, url: str) -> None:
    data = make_zip()
    Server.files["/set.zip"] = data
    entry = make_set(url, data)
    (path,) = download(entry, tmp_path)
    assert path.read_bytes() == data and download(entry, tmp_path) == [path]
    assert Server.asked == ["/set.zip"]
    path.write_bytes(b"damaged in the cache")
    download(entry, tmp_path)
    assert path.read_bytes() == data and len(Server.asked) == 2
    folder = unpack(entry, [path], tmp_path / "x" / "unpacked")
    assert folder.name == "wrap" and (folder / "images" / "a.txt").is_file()


def test_another_hash_is_refused_and_nothing_kept(tmp_path: Path, url: str) -> None:
    Server.files["/set.zip"] = make_zip(("other",))
    with pytest.raises(DataError, match=r"SHA-256 is [0-9a-f]{64}, expected [0-9a-f]{64}"):
        download(make_set(url, b"what it should be"), tmp_path)
    assert not list(tmp_path.rglob("*.zip")) and not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_broken_download_keeps_what_is_complete_and_can_be_repeated(tmp_path: Path, url: str) -> None:
    one, two = make_zip(("one",)), make_zip(("two",))
    Server.files |= {"/1.zip": one, "/2.zip": two}
    Server.broken.add("/2.zip")
    files = (
        PublicFile(url=f"{url}/1.zip", sha256=hashlib.sha256(one).hexdigest()),
        PublicFile(url=f"{url}/2.zip", sha256=hashlib.sha256(two).hexdigest()),
    )
    entry = PublicSet(name="mine", licence="x", files=files)
    with pytest.raises(DataError, match=r"2\.zip: the download failed"):
        download(entry, tmp_path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["1.zip"]
    Server.broken.clear()
    paths = download(entry, tmp_path)
    assert [p.read_bytes() for p in paths] == [one, two] and Server.asked.count("/1.zip") == 1
    with pytest.raises(DataError, match="the download failed: 404"):
        download(make_set(url, b"", "/gone.zip"), tmp_path / "other")


def test_a_dead_server_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/set\.zip: the download failed"):
        download(make_set("http://127.0.0.1:9", b""), tmp_path)


def test_archives_stay_in_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pack(name: str, data: bytes = b"x") -> Path:
        path = tmp_path / "set.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        return path

    entry = make_set("http://x", b"", "/set.tar.gz")
    assert (unpack(entry, [pack("a/b.txt")], tmp_path / "good") / "b.txt").read_bytes() == b"x"
    with pytest.raises(DataError, match=r"set\.tar\.gz: cannot be unpacked"):
        unpack(entry, [pack("../escaped.txt")], tmp_path / "bad")
    assert not (tmp_path / "escaped.txt").exists() and not (tmp_path / "bad").exists()
    evil = tmp_path / "set.zip"
    evil.write_bytes(make_zip(("../escaped.txt", "b.txt")))
    folder = unpack(make_set("http://x", b""), [evil], tmp_path / "zip")
    assert not (tmp_path / "escaped.txt").exists() and (folder / "escaped.txt").exists()
    evil.write_bytes(make_zip()[:-30])
    with pytest.raises(DataError, match=r"set\.zip: cannot be unpacked"):
        unpack(make_set("http://x", b""), [evil], tmp_path / "cut")
    evil.write_bytes(make_zip())
    with pytest.raises(DataError, match="holds no folder 'data'"):
        unpack(make_set("http://x", b"", root="data"), [evil], tmp_path / "root")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Use", (), {"free": 10}))
    with pytest.raises(MissingToolError, match="are free"):
        unpack(make_set("http://x", b""), [evil], tmp_path / "full")


def test_the_shipped_registry_is_sound_and_states_no_hash_it_does_not_know() -> None:
    known = read_registry()
    assert set(known) == {path.stem for path in REGISTRY_DIR.glob("*.toml")}
    for entry in known.values():
        assert entry.licence and entry.homepage and entry.holds
        # A name alone downloads only what has a hash; the model refuses empty ones.
        assert all(len(file.sha256) == 64 for file in entry.files)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not readable TOML"),
        ('name = "x"', "licence: Field required"),
        ('name = "X y"\nlicence = "a"', "name: "),
        ('name = "x"\nlicence = "a"\n[[files]]\nurl = "https://x/y"\nsha256 = ""', r"files\.0\.sha256"),
        ('name = "x"\nlicence = "a"\n[[files]]\nurl = "ftp://x/y"\nsha256 = "0"', r"files\.0\.(url|sha256)"),
        (
            f'name = "x"\nlicence = "a"\n[[files]]\nurl = "https://x/y"\nsha256 = "{"0" * 64}"\npath = "../"',
            "leads out",
        ),
        ('name = "x"\nlicence = "a"\ncolour = 1', "colour: Extra"),
    ],
)
def test_damaged_entries_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(DataError, match=rf"x\.toml: .*{message}"):
        read_registry([tmp_path])
    with pytest.raises(DataError, match="no such registry folder"):
        read_registry([tmp_path / "gone"])
