"""Importer of photographs with mask images: every connected piece of a mask is a nail."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nailcore.data.folder import DatasetCard
from nailcore.data.importing.found import (
    FoundImage,
    FoundLabels,
    FoundNail,
    FoundSet,
    Wishes,
    list_photos,
)
from nailcore.data.importing.photo import inspect_photo, load_pixels, turn_array
from nailcore.data.known_labels import find_known_labels
from nailcore.data.labels import MAX_NAILS, MIRRORED_FINGER, ImageRecord, IndexMap, MachineMade, match_nails
from nailcore.data.shapes import Mask, encode_rle, span_points
from nailcore.errors import DataError
from nailcore.variant import FINGER_CLASSES

PHOTO_FOLDERS = ("images", "image", "img", "imgs", "photos")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "segmentation", "SegmentationClass")
_ENDINGS = ("", "_mask", "-mask", "_label", "-label", "_seg", ".mask")
_LOSSLESS = (".png", ".bmp", ".tif", ".tiff")  # a mask beside its photo is one of these
_EXPECTED = "Expected 0 and 255 (or 0 and 1), white being nail; several nails may lie in one mask."
_COLOURED = 40  # between a pixel's channels; JPEG adds less to grey
_BLACK_TO, _WHITE_FROM = 24, 232  # what JPEG makes of black and white
_FEW = 0.01  # of the pixels that are not black
_SAME_NAIL_PX = 3.0  # how far the centre of a nail of the manifest may lie from that of its piece


NOT_KNOWN = "known labels left out"
LAYOUTS = "images/ beside masks/, for all or in a folder for each person, or NAME_mask.png beside NAME.jpg"


def suits(source: Path) -> bool:
    """Whether a folder holds photos and masks in one of the known layouts."""
    return source.is_dir() and any(mask for _, mask in _list_pairs(source)[0])


def _find_folders(source: Path) -> tuple[Path, Path] | None:
    below = {path.name.lower(): path for path in source.iterdir() if path.is_dir()}
    photos = next((below[n] for n in PHOTO_FOLDERS if n in below), None)
    masks = next((below[n.lower()] for n in MASK_FOLDERS if n.lower() in below), None)
    if photos is None or masks is None or not list_photos(masks):
        return None
    return photos, masks


def _list_pairs(source: Path) -> tuple[list[tuple[Path, Path | None]], list[Path]]:
    """Every photo with its mask, if it has one, and the masks of no photo.

    Photos and masks lie in two folders, at the top or in the folder of each person, or beside each other.
    """
    below = [path for path in sorted(source.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    roots = [source] if _find_folders(source) else [path for path in below if _find_folders(path)]
    pairs: list[tuple[Path, Path | None]] = []
    masks: list[Path] = []
    for root in roots:
        folders = _find_folders(root)
        if folders is not None:
            found, stray = _pair_folders(*folders)
            pairs, masks = pairs + found, masks + stray
    if roots and source not in roots:  # people without masks
        pairs += [(photo, None) for path in below if path not in roots for photo in list_photos(path)]
    return (pairs, masks) if roots else (_pair_neighbours(list_photos(source)), [])


def _find_mask(photo: Path, known: Mapping[str, Path], ends: Sequence[str]) -> Path | None:
    place = photo.with_suffix("").as_posix()
    return next((known[place + end] for end in ends if place + end in known), None)


def _pair_folders(photos: Path, masks: Path) -> tuple[list[tuple[Path, Path | None]], list[Path]]:
    known = {path.relative_to(masks).with_suffix("").as_posix(): path for path in list_photos(masks)}
    pairs: list[tuple[Path, Path | None]] = []
    for photo in list_photos(photos):
        pairs.append((photo, _find_mask(photo.relative_to(photos), known, _ENDINGS)))
    used = {mask for _, mask in pairs}
    return pairs, [path for path in known.values() if path not in used]


def _pair_neighbours(files: Sequence[Path]) -> list[tuple[Path, Path | None]]:
    """NAME.jpg with NAME_mask.png, or with NAME.png, of one folder; nothing where no two belong together."""
    by_place = {path.with_suffix("").as_posix(): path for path in files if path.suffix.lower() in _LOSSLESS}
    pairs: list[tuple[Path, Path | None]] = []
    for photo in files:
        ends = _ENDINGS if photo.suffix.lower() not in _LOSSLESS else _ENDINGS[1:]
        pairs.append((photo, _find_mask(photo, by_place, ends)))
    used = {mask for _, mask in pairs}
    return [pair for pair in pairs if pair[0] not in used]


def find(source: Path, wishes: Wishes) -> FoundSet:
    """Every photo that has a mask of its name.

    Raises:
        DataError: no such folders, or a damaged ``dataset.json`` or ``manifest.json``.
    """
    pairs, stray = _list_pairs(source) if source.is_dir() else ([], [])
    if not any(mask for _, mask in pairs):
        raise DataError(f"{source}: holds no photos with masks.", hint=f"Expected {LAYOUTS}.")
    card, guesses = _read_card(source), _read_manifest(source) if wishes.auto_labels else {}
    known = None
    if card is None and wishes.known_labels:
        known = find_known_labels({photo.stem for photo, _ in pairs})
    records = card.images if card else known.images if known else {}
    images = []
    for photo, mask in pairs:
        expected = photo.parent.parent / MASK_FOLDERS[0] / f"{photo.stem}.png"
        problem = "" if mask else f"{photo}: has no mask; expected {expected}."
        record = records.get(photo.stem)
        images.append(
            FoundImage(
                photo=photo,
                key=photo.relative_to(source).as_posix(),
                label_file=mask or photo,
                read=partial(
                    _read_mask,
                    _Pair(
                        photo,
                        mask or photo,
                        record,
                        guesses.get(photo.name, ()),
                        wishes.min_area_px,
                        same_mask=known is not None,
                    ),
                ),
                subject=record.subject if record else None,
                problem=problem,
            )
        )
    left_out = tuple((path.relative_to(source).as_posix(), "a mask without a photo") for path in stray)
    name, licence = (card.name, card.licence) if card else ("", "")
    return FoundSet(tuple(images), left_out, name, licence, known)


def _read_card(source: Path) -> DatasetCard | None:
    path = source / "dataset.json"
    if not path.is_file():
        return None
    try:
        return DatasetCard.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not a valid dataset card: {error}") from error


def load_mask(path: Path) -> Mask:
    """(H, W) upright: nail where a mask image is above 127, or 1 in one that holds only 0 and 1.

    Raises:
        DataError: unreadable, or of values that may mean anything: shades or colours for classes or single
            nails, or a shape that only its transparency shows.
    """
    import cv2

    info = inspect_photo(path)
    stored = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if stored is not None and stored.ndim == 3 and stored.shape[2] == 4:
        shades, alpha = np.ptp(stored[..., :3]), np.ptp(stored[..., 3])
        if not shades and alpha:
            raise DataError(f"{path}: is of one colour, and only its transparency varies.", hint=_EXPECTED)
    if stored is not None and stored.dtype == np.uint16 and int(stored.max(initial=0)) <= 255:
        grey = stored if stored.ndim == 2 else stored[..., :3].max(2)  # 8-bit values in a file of 16 bits
        grey = turn_array(np.asarray(grey, np.uint8), info.orientation)
    else:
        pixels = load_pixels(info)
        spread = pixels.max(2).astype(int) - pixels.min(2)
        if np.count_nonzero(spread > _COLOURED) > _FEW * max(1, np.count_nonzero(pixels.max(2))):
            raise DataError(
                f"{path}: is coloured: does a colour stand for a class or a nail?", hint=_EXPECTED
            )
        grey = pixels[..., 1]
    highest = int(np.max(grey, initial=0))
    if highest == 1:
        return np.asarray(grey == 1)
    if 1 < highest <= 127:
        raise DataError(
            f"{path}: its values go up to {highest}: is that a class, a nail's number or a shade?",
            hint=_EXPECTED,
        )
    areas = _find_shades(np.asarray(grey, np.uint8))
    if areas:
        raise DataError(
            f"{path}: holds areas of other values than 0 and {highest}: {', '.join(map(str, areas[:5]))}.",
            hint=_EXPECTED,
        )
    return np.asarray(grey > 127)


def _find_shades(grey: npt.NDArray[np.uint8]) -> list[int]:
    """Values between black and white that whole areas have; the soft borders of a nail are none."""
    import cv2

    low, high = cv2.erode(grey, np.ones((3, 3))), cv2.dilate(grey, np.ones((3, 3)))
    flat = grey[(high == low) & (grey > _BLACK_TO) & (grey < _WHITE_FROM)]
    if len(flat) <= _FEW * np.count_nonzero(grey):
        return []
    values, counts = np.unique(flat, return_counts=True)
    return [int(v) for v in values[np.argsort(-counts)]]


@dataclass(frozen=True)
class _Pair:
    """A photo with its mask, and what is known or guessed of the nails."""

    photo: Path
    path: Path  # of the mask
    record: ImageRecord | None
    guesses: Sequence[Mapping[str, Any]]
    min_area_px: int
    # The record counts where the mask is the very one it was made for: a scaled or mirrored copy of a
    # public set has the same names, and its nails elsewhere.
    same_mask: bool = False


def _read_mask(pair: _Pair, size: tuple[int, int]) -> FoundLabels:
    mask = load_mask(pair.path)
    frame = (mask.shape[1], mask.shape[0])
    if set(frame) != set(size):
        raise DataError(
            f"{pair.photo}: is {size[0]}×{size[1]} px but its mask {pair.path.name} is "
            f"{frame[0]}×{frame[1]} px.",
            hint="Labels must cover their image pixel for pixel.",
        )
    records = pair.record.nails if pair.record else ()
    mask, specks = _drop_specks(mask, pair.min_area_px, pair.path)
    index = match_nails(mask, records)
    nails, notes = [], []
    areas = np.bincount(index.ravel(), minlength=MAX_NAILS + 1)
    if pair.same_mask and any(areas[k] != nail.area_px for k, nail in enumerate(records, start=1)):
        records, index = (), match_nails(mask, ())
        notes.append(f"{NOT_KNOWN}: they are for another mask")
    numbers = range(1, int(index.max(initial=0)) + 1)
    # Nails of which nothing is known from left to right: people who name them by eye count so.
    unknown = sorted((k for k in numbers if k > len(records)), key=partial(_find_middle, index))
    for k in (*(k for k in numbers if k <= len(records)), *unknown):
        piece = np.asarray(index == k)
        if not piece.any():
            continue
        nail = FoundNail(encode_rle(piece), where=f"nail {k}")
        if k <= len(records):
            known = records[k - 1]
            nail = replace(
                nail,
                finger=known.finger,
                base=known.base,
                tip=known.tip,
                hidden=known.hidden,
                machine=known.machine,
            )
        elif pair.guesses:
            nail = _guess(nail, piece, pair.guesses)
        nails.append(nail)
    if specks:
        notes.append(f"{specks} piece(s) of less than {pair.min_area_px} px left out")
    declared = pair.record.labels if pair.record and not pair.same_mask else None
    return FoundLabels(tuple(nails), frame, declared, tuple(notes))


def _drop_specks(mask: Mask, min_area_px: int, path: Path) -> tuple[Mask, int]:
    """The mask without pieces that are too small for a nail, and how many there were.

    Raises DataError for more pieces than a photo may have nails.
    """
    import cv2

    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    kept = stats[:, cv2.CC_STAT_AREA] >= min_area_px
    kept[0] = False  # the background
    if np.count_nonzero(kept) > MAX_NAILS:
        raise DataError(f"{path}: holds {np.count_nonzero(kept)} pieces, at most {MAX_NAILS} can be nails.")
    return np.asarray(kept[labels]), count - 1 - int(np.count_nonzero(kept))


def _find_middle(index: IndexMap, k: int) -> float:
    """The column of a nail's middle; of none: far right."""
    columns = np.nonzero(index == k)[1]
    return float(columns.mean()) if len(columns) else float("inf")


# -- what a machine guessed --------------------------------------------------------------------------
def _read_manifest(source: Path) -> dict[str, Sequence[Mapping[str, Any]]]:
    """Photo's file name -> nails with ``auto_*`` fields, of the public CC0 set's ``manifest.json``."""
    path = source / "manifest.json"
    if not path.is_file():
        raise DataError(
            f"{path}: no such file, so there are no machine-made labels to take over.",
            hint="Leave --auto-labels out; `nailtool data autolabel` makes such labels afterwards.",
        )
    try:
        entries = json.loads(path.read_bytes())
        return {Path(entry["image"]).name: tuple(entry["nails"]) for entry in entries}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{path}: not a list of images with nails: {error!r}.") from error


def _guess(nail: FoundNail, piece: Mask, guesses: Sequence[Mapping[str, Any]]) -> FoundNail:
    """A nail with the guesses of the manifest's entry of the same centre."""
    rows, columns = np.nonzero(piece)
    centre = np.array([columns.mean(), rows.mean()])
    try:
        entry = min(guesses, key=lambda g: float(np.hypot(*(np.asarray(g["centroid"], float) - centre))))
        if np.hypot(*(np.asarray(entry["centroid"], float) - centre)) > _SAME_NAIL_PX:
            return nail
        made: dict[str, None] = {}
        finger = base = tip = None
        if entry.get("auto_finger") and entry.get("auto_hand"):
            named = f"{entry['auto_hand']} {entry['auto_finger']}".lower()
            # MediaPipe names hands as in a mirror; these photographs are none, so its left is right.
            finger = FINGER_CLASSES[MIRRORED_FINGER[FINGER_CLASSES.index(named)]]
            made["finger"] = None
        if entry.get("auto_dir"):
            base, tip = span_points(piece, np.asarray(entry["auto_dir"], np.float64))
            made["direction"] = None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"manifest.json: damaged entry near {centre.round().tolist()}: {error}.") from error
    if not made:
        return nail
    machine = MachineMade.model_validate({"by": "auto_* of manifest.json", "labels": made})
    return replace(nail, finger=finger, base=base, tip=tip, machine=machine)
