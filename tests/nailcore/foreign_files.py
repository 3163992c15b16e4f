"""Tiny labelled photographs as other tools write them: two nails on an asymmetric picture."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT = 60, 40
LEFT_INDEX = [8.0, 5.0, 14.0, 5.0, 14.0, 15.0, 8.0, 15.0]  # 6 × 10 px
SECOND = [30.0, 20.0, 38.0, 20.0, 38.0, 32.0, 30.0, 32.0]  # 8 × 12 px


def make_pixels(seed: int = 0) -> npt.NDArray[np.uint8]:
    """(40, 60, 3) BGR: smooth, so that JPEG keeps it, and different in each corner."""
    yy, xx = np.mgrid[:HEIGHT, :WIDTH]
    planes = (4 * xx, 6 * yy, 30 * (seed % 8) + xx + yy)
    return np.asarray(np.stack(planes, -1), np.uint8)


def make_mask() -> npt.NDArray[np.bool_]:
    """(40, 60) both nails."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:15, 8:14] = mask[20:32, 30:38] = True
    return mask


def encode(suffix: str, pixels: npt.NDArray[Any]) -> bytes:
    """File content of an image."""
    done, data = cv2.imencode(suffix, pixels)
    assert done
    return bytes(data.tobytes())


def with_exif(jpeg: bytes, orientation: int) -> bytes:
    """A JPEG with an EXIF block that holds this orientation."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = b"II*\x00" + struct.pack("<I", 8) + struct.pack("<H", 1) + entry + struct.pack("<I", 0)
    block = b"Exif\x00\x00" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]


def write_photo(path: Path, seed: int = 0, orientation: int = 1) -> None:
    """A JPEG or PNG by its suffix; with EXIF when it is not upright."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = encode(path.suffix, make_pixels(seed))
    path.write_bytes(data if orientation == 1 else with_exif(data, orientation))


def write_masks(root: Path, names: tuple[str, ...] = ("a", "b")) -> None:
    """images/*.jpg and masks/*.png."""
    (root / "masks").mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        write_photo(root / "images" / f"{name}.jpg", seed)
        cv2.imwrite(str(root / "masks" / f"{name}.png"), make_mask().astype(np.uint8) * 255)


def coco_data(**changes: Any) -> dict[str, Any]:
    """A foreign COCO file: a hand that is no nail, one polygon, one mask of uncompressed run lengths."""
    second = np.zeros((HEIGHT, WIDTH), bool)
    second[20:32, 30:38] = True
    flat = second.T.ravel().astype(int)
    bounds = [0, *np.flatnonzero(np.diff(flat, prepend=0)).tolist(), flat.size]
    data: dict[str, Any] = {
        "info": {"description": "foreign", "year": 2020},
        "licenses": [],
        "categories": [{"id": 3, "name": "hand"}, {"id": 8, "name": "LeftIndex"}, {"id": 9, "name": "nail"}],
        "images": [{"id": 70, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
        "annotations": [
            {"id": 1, "image_id": 70, "category_id": 8, "segmentation": [LEFT_INDEX], "iscrowd": 0},
            {
                "id": 2,
                "image_id": 70,
                "category_id": 9,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": np.diff(bounds).tolist()},
            },
            {"id": 3, "image_id": 70, "category_id": 3, "segmentation": [[0, 0, 50, 0, 50, 39]]},
        ],
    }
    return data | changes


def write_coco_source(root: Path, data: dict[str, Any] | None = None) -> None:
    """a.jpg and annotations in a folder of their own."""
    write_photo(root / "images" / "a.jpg")
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train.json").write_text(json.dumps(data or coco_data()))


def shape(label: str, points: list[Any], **more: Any) -> dict[str, Any]:
    """One LabelMe shape."""
    kind = "point" if len(points) == 1 else "polygon"
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}} | more


def pairs(polygon: list[float]) -> list[list[float]]:
    """Flat polygon -> LabelMe's points."""
    return [list(pair) for pair in zip(polygon[::2], polygon[1::2], strict=True)]


def labelme_data(shapes: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    """A LabelMe file: a grouped left index with base and tip, and an ungrouped nail."""
    made = [
        shape("left index", pairs(LEFT_INDEX), group_id=1),
        shape("base", [[11, 15]], group_id=1),
        shape("tip", [[11, 6]], group_id=1),
        shape("nail", pairs(SECOND)),
        shape("Tip", [[34, 30]]),
    ]
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": made if shapes is None else shapes,
        "imagePath": "..\\elsewhere\\a.jpg",
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    } | changes


def write_labelme(root: Path, data: dict[str, Any] | None = None) -> None:
    """a.jpg and a.json side by side, and a photo that nobody labelled."""
    write_photo(root / "a.jpg")
    write_photo(root / "unlabelled.jpg", 3)
    (root / "a.json").write_text(json.dumps(data or labelme_data()))


def yolo_line(number: int, polygon: list[float]) -> str:
    """One polygon as YOLO writes it."""
    shares = np.asarray(polygon).reshape(-1, 2) / (WIDTH, HEIGHT)
    return " ".join([str(number), *(f"{v:.8f}" for v in shares.ravel())])


def write_yolo(root: Path, lines: str | None = None) -> None:
    """train/images, train/labels and data.yaml; a photo without nails, one without a label file."""
    write_photo(root / "train" / "images" / "a.jpg")
    write_photo(root / "train" / "images" / "empty.jpg", 4)
    write_photo(root / "train" / "images" / "unlabelled.jpg", 5)
    (root / "train" / "labels").mkdir()
    text = f"{yolo_line(1, LEFT_INDEX)}\n\n{yolo_line(0, SECOND)}\n" if lines is None else lines
    (root / "train" / "labels" / "a.txt").write_text(text)
    (root / "train" / "labels" / "empty.txt").write_text("")
    (root / "data.yaml").write_text("train: train/images\nnc: 2\nnames: [nail, left_index]\n")
