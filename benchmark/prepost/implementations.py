"""Who pre- and post-processes: Python (the reference), the browser's code, and what most pages do instead."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.browser import POOL, BrowserSession
from deploy.web_server import BUNDLE_DIR
from nailcore.errors import ArtifactError, MissingToolError, UnknownNameError
from nailcore.preprocess import Letterbox, letterbox
from nailcore.runtime import Logits
from nailcore.storage import hash_path
from nailcore.tryon import Nail, find_nails, mask_on_photo
from nailcore.tryon.direction import MeanDirection

RGB = npt.NDArray[np.uint8]  # (H, W, 3)
F32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

CALL_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Implementation:
    """The steps before and after the network as one party does them; a step it lacks is None.

    decode: a photo file's bytes -> (H, W, 3) RGB, upright. resize: RGB, input height, input width ->
    RGB of that size. normalise: RGB of the input's size -> float32 as the network takes it. run: all
    three from a file's bytes. find_nails: logits of one image, smallest area -> nails. find_mask: the
    same logits, the photo's letterbox -> mask at the photo's size.
    """

    name: str
    engine: str
    versions: dict[str, str] = field(default_factory=dict)
    judged: bool = True  # False: compared to show what it costs
    source_sha256: str | None = None  # of the code that runs
    decode: Callable[[bytes], RGB] | None = None
    resize: Callable[[RGB, int, int], RGB] | None = None
    normalise: Callable[[RGB], F32] | None = None
    run: Callable[[bytes, int, int], F32] | None = None
    find_nails: Callable[[Logits, int], list[Nail]] | None = None
    find_mask: Callable[[Logits, Letterbox], Mask] | None = None


def decode_file(file: bytes, *, upright: bool = True) -> RGB:
    """Decode as nailcore.data.folder does, from bytes; ``upright`` False leaves the EXIF rotation out."""
    import cv2

    flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    pixels = cv2.imdecode(np.frombuffer(file, np.uint8), flags)
    if pixels is None:
        raise ArtifactError(f"These {len(file)} bytes are no image OpenCV can decode.")
    return np.asarray(pixels, np.uint8)


def read_alpha(file: bytes) -> npt.NDArray[np.uint8] | None:
    """(H, W) uint8 alpha of an image file, None when it is opaque."""
    import cv2

    if file[:2] == b"\xff\xd8":  # a JPEG has none: spare the second decoding
        return None
    pixels = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3 or pixels.shape[2] != 4:
        return None
    shift = 8 if pixels.dtype == np.uint16 else 0
    alpha = np.asarray(pixels[..., 3].astype(np.uint16) >> shift, np.uint8)
    return None if alpha.min() == 255 else alpha


def python_steps() -> Implementation:
    """The reference: what training, conversion and every parity check use."""

    def run(file: bytes, height_px: int, width_px: int) -> F32:
        return letterbox(decode_file(file), height_px, width_px).astype(np.float32)

    def nails(logits: Logits, min_area_px: int) -> list[Nail]:
        fgbg, finger, direction = (logits[name][0] for name in ("fgbg", "finger", "direction"))
        return find_nails(fgbg, finger, direction, min_area_px=min_area_px)

    def mask(logits: Logits, box: Letterbox) -> Mask:
        return mask_on_photo(logits["fgbg"][0], box, box.input_height // logits["fgbg"].shape[2])

    return Implementation(
        name="Python",
        engine="python",
        decode=decode_file,
        resize=letterbox,
        normalise=lambda rgb: rgb.astype(np.float32),
        run=run,
        find_nails=nails,
        find_mask=mask,
    )


BROWSERS = ("chromium", "firefox", "webkit")


def find_browser_name(engine: str) -> str:
    """The browser of an engine name such as ``firefox-webgl``; "" when it is none."""
    name = engine.partition("-")[0]
    return name if name in BROWSERS else ""


def _borrow(browser: str) -> BrowserSession:
    from deploy import chromium, firefox, webkit

    if browser == "chromium":
        return chromium.borrow_session()
    if browser == "firefox":
        try:  # with WebGL, which reads colours under alpha; without a display server there is none
            return firefox.borrow_session(gpu=True)
        except MissingToolError:
            return firefox.borrow_session()
    if browser == "webkit":
        return webkit.borrow_session()
    raise UnknownNameError("browser", browser, BROWSERS)


@contextmanager
def open_browser(browser: str) -> Iterator[list[Implementation]]:
    """The implementations one browser offers: our JavaScript, and drawImage at two qualities.

    Raises:
        UnknownNameError: not one of ``BROWSERS``.
        MissingToolError: the browser is not installed here.
        BrowserError: it is, and does not start.
    """
    session = _borrow(browser)
    try:
        page = session.open_page()
        try:
            steps = PageSteps(session, page)
            yield [steps.describe(browser), *(steps.describe_canvas(browser, q) for q in ("low", "high"))]
        finally:
            session.close_page(page)
    finally:
        POOL.give_back(session)


class PageSteps:
    """The page's own steps, called over the driver; a message of each carries whole images as base64."""

    def __init__(self, session: BrowserSession, page: Any) -> None:
        self._session = session
        self._page = page
        self._sha256 = hash_path(BUNDLE_DIR)  # what the page was opened from

    def _call(self, function: str, *arguments: Any) -> Any:
        doing = f"{function} {arguments[0]}"
        return self._session.call(self._page, function, *arguments, doing=doing, timeout_s=CALL_TIMEOUT_S)

    def describe(self, engine: str) -> Implementation:
        """deploy/web/src/{preprocess,postprocess}.js in this browser."""
        return Implementation(
            name="nailtool JavaScript",
            engine=engine,
            versions=self._session.versions,
            source_sha256=self._sha256,
            decode=self.decode,
            resize=self.resize,
            normalise=self.normalise,
            run=self.run,
            find_nails=self.find_nails,
            find_mask=self.find_mask,
        )

    def describe_canvas(self, engine: str, quality: str) -> Implementation:
        """drawImage with one of its smoothing qualities."""

        def run(file: bytes, height_px: int, width_px: int) -> F32:
            text = self._call("preprocess", "runByCanvas", _encode(file), height_px, width_px, quality)
            return _floats(text, (height_px, width_px, 3))

        name = f"canvas drawImage ({quality})"
        return Implementation(
            name, engine, self._session.versions, judged=False, source_sha256=self._sha256, run=run
        )

    def decode(self, file: bytes) -> RGB:
        """See :class:`Implementation`."""
        found = self._call("preprocess", "decode", _encode(file))
        pixels = np.frombuffer(base64.b64decode(found["data"]), np.uint8)
        return np.ascontiguousarray(pixels.reshape(found["height"], found["width"], 4)[..., :3])

    def resize(self, photo: RGB, height_px: int, width_px: int) -> RGB:
        """See :class:`Implementation`."""
        text = self._call(
            "preprocess", "resize", _encode(photo.tobytes()), *photo.shape[:2], height_px, width_px
        )
        return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height_px, width_px, 3)

    def normalise(self, rgb: RGB) -> F32:
        """See :class:`Implementation`."""
        return _floats(self._call("preprocess", "normalise", _encode(rgb.tobytes())), rgb.shape)

    def run(self, file: bytes, height_px: int, width_px: int) -> F32:
        """See :class:`Implementation`."""
        text = self._call("preprocess", "run", _encode(file), height_px, width_px)
        return _floats(text, (height_px, width_px, 3))

    def find_nails(self, logits: Logits, min_area_px: int) -> list[Nail]:
        """Sent as TF.js gives them: one image, channels last."""
        height, width = logits["fgbg"].shape[2:]
        sent = {name: _encode(_channels_last(logits[name])) for name in ("fgbg", "finger", "direction")}
        found = self._call("postprocess", "findNails", sent, height, width, min_area_px, "NHWC")
        return [_read_nail(entry) for entry in found]

    def find_mask(self, logits: Logits, box: Letterbox) -> Mask:
        """See :class:`Implementation`."""
        fgbg = logits["fgbg"]
        stride = box.input_height // fgbg.shape[2]
        text = self._call(
            "postprocess",
            "maskOnPhoto",
            _encode(_channels_last(fgbg)),
            *fgbg.shape[2:],
            box.height,
            box.width,
            stride,
            "NHWC",
        )
        mask = np.frombuffer(base64.b64decode(text), np.uint8)
        return np.asarray(mask.reshape(box.height, box.width) > 0)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _channels_last(values: F32) -> bytes:
    return np.ascontiguousarray(values[0].transpose(1, 2, 0), np.float32).tobytes()


def _floats(text: str, shape: tuple[int, ...]) -> F32:
    values = np.frombuffer(base64.b64decode(text), np.float32)
    if values.size != np.prod(shape):
        raise ArtifactError(f"The page gave {values.size} values where {shape} were expected.")
    return values.reshape(shape)


def _read_nail(entry: dict[str, Any]) -> Nail:
    mean = None
    if entry["angleDeg"] is not None:
        angle = np.radians(float(entry["angleDeg"]))
        mean = MeanDirection(float(np.cos(angle)), float(np.sin(angle)), float(entry["coherence"]))
    return Nail(
        area=int(entry["area"]),
        left=int(entry["left"]),
        top=int(entry["top"]),
        width=int(entry["width"]),
        height=int(entry["height"]),
        centroid=_point(entry["centroid"]),
        finger=int(entry["finger"]),
        finger_score=float(entry["fingerScore"]),
        finger_chances=tuple(float(chance) for chance in entry["fingerChances"]),
        score=float(entry["score"]),
        direction=mean,
        base=_point(entry["base"]) if entry["base"] else None,
        tip=_point(entry["tip"]) if entry["tip"] else None,
    )


def _point(values: list[float]) -> tuple[float, float]:
    x, y = values
    return float(x), float(y)
