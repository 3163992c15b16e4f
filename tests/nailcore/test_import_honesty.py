"""An import takes nothing for what it is not, and nothing vanishes from it without a word."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nailcore.data.folder import open_dataset, read_image
from nailcore.data.importing import ImportOrder, ImportRecord, import_set
from nailcore.data.importing.masks import load_mask
from nailcore.data.importing.names import Dictionary, read_meaning
from nailcore.data.importing.photo import inspect_photo, load_pixels, strip_jpeg
from nailcore.errors import DataError
from tests.nailcore import foreign_files as files
from tests.nailcore.test_importing import run, sample

WHITE = files.make_mask().astype(np.uint8) * 255


# -- names -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["ring box", "ring", "gold ring", "nail polish bottle", "nail file", "hand"])
def test_things_that_only_sound_like_nails_are_none(name: str) -> None:
    assert not read_meaning(name).is_nail


@pytest.mark.parametrize(
    "name", ["thumb", "ring finger", "RingNail", "nail polish", "painted nail", "middle_1"]
)
def test_fingers_and_nails_are(name: str) -> None:
    meaning = read_meaning(name)
    assert meaning.is_nail and meaning.finger is None


def test_a_ring_among_fingers_is_one_and_words_beside_a_name_never_take_a_nail_away() -> None:
    words = Dictionary(["ring", "thumb", "hand"], {}, "x")
    assert words.find("ring").is_nail and words.find("ring", "left").finger == "left ring"
    assert words.find("thumb", "occluded True").is_nail and words.skipped == ("hand",)
    assert Dictionary(["nail", "ring"], {}, "x").skipped == ("ring",)


def test_what_each_label_was_taken_for_is_written_down(tmp_path: Path) -> None:
    files.write_coco_source(tmp_path / "src")
    assert run(tmp_path).meanings == (("hand", "left out"), ("LeftIndex", "left index"), ("nail", "nail"))


# -- masks -------------------------------------------------------------------------------------------
def put_mask(tmp_path: Path, pixels: Any, suffix: str = ".png") -> Path:
    path = tmp_path / f"mask{suffix}"
    path.write_bytes(files.encode(suffix, pixels))
    return path


@pytest.mark.parametrize(
    "pixels",
    [
        WHITE,
        files.make_mask().astype(np.uint8),
        files.make_mask().astype(np.uint16) * 255,  # 8-bit values in a file of 16 bits
        files.make_mask().astype(np.uint16),
        files.make_mask().astype(np.uint16) * 65535,
        cv2.cvtColor(WHITE, cv2.COLOR_GRAY2BGR),
        np.dstack([WHITE, WHITE, WHITE, np.full_like(WHITE, 255)]),
    ],
    ids=["255", "1", "16 bit 255", "16 bit 1", "16 bit 65535", "colour", "opaque"],
)
def test_masks_of_any_depth_are_read(pixels: Any, tmp_path: Path) -> None:
    assert (load_mask(put_mask(tmp_path, pixels)) == files.make_mask()).all()


def test_soft_borders_and_jpeg_are_no_shades(tmp_path: Path) -> None:
    large = cv2.resize(WHITE, None, fx=5.3, fy=5.3, interpolation=cv2.INTER_LINEAR)
    expected = cv2.resize(WHITE, None, fx=5.3, fy=5.3, interpolation=cv2.INTER_NEAREST) > 127
    for suffix in (".png", ".jpg"):
        found = load_mask(put_mask(tmp_path, cv2.GaussianBlur(large, (5, 5), 0), suffix))
        assert np.count_nonzero(found & expected) / np.count_nonzero(found | expected) > 0.95


def paint(first: Any, second: Any, *shape: int) -> Any:
    pixels = np.zeros((files.HEIGHT, files.WIDTH, *shape), np.uint8)
    pixels[5:15, 8:14], pixels[20:32, 30:38] = first, second
    return pixels


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (paint((0, 0, 255), (0, 255, 0), 3), "is coloured"),
        (paint((0, 255, 0), (0, 255, 0), 3), "is coloured"),
        (paint(128, 255), "holds areas of other values than 0 and 255: 128"),
        (paint(150, 200), "holds areas of other values than 0 and 200: 150|200"),
        (paint(1, 2), "its values go up to 2"),
        (np.dstack([WHITE * 0, WHITE * 0, WHITE * 0, WHITE]), "only its transparency varies"),
        (np.dstack([WHITE | 255, WHITE | 255, WHITE | 255, WHITE]), "only its transparency varies"),
    ],
    ids=[
        "a colour a nail",
        "a class colour",
        "hand and nails",
        "a shade a nail",
        "numbers",
        "alpha",
        "white",
    ],
)
def test_masks_that_may_mean_anything_are_refused(pixels: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as told:
        load_mask(put_mask(tmp_path, pixels))
    assert "white being nail" in told.value.hint


def test_specks_are_dropped_before_nails_are_counted(tmp_path: Path) -> None:
    files.write_masks(tmp_path / "src", ("a",))
    mask = cv2.resize(WHITE, (600, 400), interpolation=cv2.INTER_NEAREST)
    mask[5::10, 5::10] = 255  # over two thousand pixels of dust
    files.write_photo(tmp_path / "src" / "images" / "a.jpg")
    photo = cv2.resize(files.make_pixels(), (600, 400))
    (tmp_path / "src" / "images" / "a.jpg").write_bytes(files.encode(".jpg", photo))
    cv2.imwrite(str(tmp_path / "src" / "masks" / "a.png"), mask)
    record = run(tmp_path)
    assert record.photos[0].nails == 2 and "of less than 12 px left out" in record.photos[0].notes[0]
    assert np.count_nonzero(sample(tmp_path).load_mask()) == 100 * np.count_nonzero(files.make_mask())
    mask[:] = 0
    mask.reshape(50, 8, 75, 8)[:, :6, :, :6] = 255  # 3750 pieces that are large enough
    cv2.imwrite(str(tmp_path / "src" / "masks" / "a.png"), mask)
    with pytest.raises(DataError, match="holds 3750 pieces, at most 254"):
        import_set(ImportOrder(tmp_path / "src", tmp_path / "other"))


# -- photos ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiffs_are_turned_once(orientation: int, tmp_path: Path) -> None:
    from PIL import Image, ImageOps

    stored = Image.fromarray(files.make_pixels()[..., ::-1])
    path = tmp_path / "a.tif"
    stored.save(path, tiffinfo={0x0112: orientation})
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    info = inspect_photo(path)
    assert (load_pixels(info) == upright).all() and info.upright == upright.shape[1::-1]
    assert (read_image(path) == upright).all()


def test_what_lies_behind_a_picture_goes_with_its_metadata(tmp_path: Path) -> None:
    from PIL import Image

    pixels = Image.fromarray(files.make_pixels(3))
    for progressive in (False, True):
        stream = io.BytesIO()
        pixels.save(stream, "JPEG", progressive=progressive, quality=90)
        bare = stream.getvalue()
        film = b"ftypmp42 \xff\xd8\xff\xda GPS 48.2 N \xff\xd9"
        cut = strip_jpeg(bare + film)
        assert cut is not None and cut == strip_jpeg(bare) and b"GPS" not in cut
        (tmp_path / "a.jpg").write_bytes(cut)
        (tmp_path / "b.jpg").write_bytes(bare)
        assert (read_image(tmp_path / "a.jpg") == read_image(tmp_path / "b.jpg")).all()


def test_phones_jpegs_of_several_pictures_stay_jpegs(tmp_path: Path) -> None:
    from PIL import Image

    files.write_masks(tmp_path / "src", ("a",))
    photo = tmp_path / "src" / "images" / "a.jpg"
    first = Image.fromarray(files.make_pixels()[..., ::-1])
    first.save(photo, "MPO", save_all=True, append_images=[first], quality=95)
    with Image.open(photo) as image:
        assert image.format == "MPO"
    record = run(tmp_path)
    assert [p.file for p in record.photos] == ["a.jpg"] and record.photos[0].done == "metadata removed"
    written = tmp_path / "out" / "images" / "a.jpg"
    assert (read_image(written) == read_image(photo)).all() and written.stat().st_size < photo.stat().st_size
    with Image.open(written) as image:
        assert image.format == "JPEG"


def test_photos_of_formats_that_are_not_read_are_listed(tmp_path: Path) -> None:
    files.write_yolo(tmp_path / "src")
    (tmp_path / "src" / "train" / "images" / "IMG_2.HEIC").write_bytes(b"x")
    (tmp_path / "src" / "train" / "labels" / "IMG_2.txt").write_text("")
    left = dict(run(tmp_path).left_out)
    assert "convert it to JPEG" in left["train/images/IMG_2.HEIC"]
    assert left["train/labels/IMG_2.txt"] == "a label file without a photo"


# -- labels and photos that belong together ------------------------------------------------------------
def test_people_without_masks_stop_the_import(tmp_path: Path) -> None:
    for person, masks in (("anna", "masks"), ("ben", "Masks")):
        files.write_photo(tmp_path / "src" / person / "images" / "1.jpg")
        (tmp_path / "src" / person / masks).mkdir()
        cv2.imwrite(str(tmp_path / "src" / person / masks / "1.png"), WHITE)
    files.write_photo(tmp_path / "src" / "cleo" / "images" / "1.jpg")
    with pytest.raises(DataError, match=r"cleo/images/1\.jpg: has no mask"):
        run(tmp_path, subject="folder")
    record = run(tmp_path, skip_bad=True, subject="folder")
    assert [photo.subject for photo in record.photos] == ["anna", "ben"]
    assert record.left_out[0][0] == "cleo/images/1.jpg"


def test_points_of_no_nail_are_told(tmp_path: Path) -> None:
    shapes = [
        files.shape("nail", files.pairs(files.LEFT_INDEX), group_id=1),
        files.shape("base", [[11, 15]]),
        files.shape("tip", [[11, 6]], group_id=1),
    ]
    files.write_labelme(tmp_path / "src", files.labelme_data(shapes))
    notes = run(tmp_path).photos[0].notes
    assert notes == ("1 point(s) called base or tip left out: no nail shares their group",)


def write_coco(root: Path, *images: dict[str, Any]) -> None:
    data = files.coco_data(images=[{"width": files.WIDTH, "height": files.HEIGHT, **i} for i in images])
    data["annotations"] = [{**data["annotations"][0], "image_id": i["id"], "id": i["id"]} for i in images]
    root.mkdir(parents=True, exist_ok=True)
    (root / "labels.json").write_text(json.dumps(data))


def test_labels_never_land_on_another_photo_of_the_same_name(tmp_path: Path) -> None:
    src = tmp_path / "src"
    write_coco(src, {"id": 1, "file_name": "anna/IMG_1.jpg"}, {"id": 2, "file_name": "ben/IMG_1.jpg"})
    files.write_photo(src / "images" / "anna" / "IMG_1.jpg", 1)
    files.write_photo(src / "IMG_1.jpg", 2)
    files.write_photo(src / "images" / "IMG_1.jpg", 3)
    with pytest.raises(DataError, match=r"lists ben/IMG_1\.jpg, which may be .*IMG_1\.jpg or .*IMG_1\.jpg"):
        run(tmp_path)
    (src / "images" / "IMG_1.jpg").unlink()
    assert {p.came_from for p in run(tmp_path).photos} == {"images/anna/IMG_1.jpg", "IMG_1.jpg"}


def test_photos_in_a_folder_for_each_split_are_found(tmp_path: Path) -> None:
    files.write_photo(tmp_path / "src" / "images" / "train" / "a.jpg")
    (tmp_path / "src" / "annotations").mkdir()
    (tmp_path / "src" / "annotations" / "instances_train.json").write_text(json.dumps(files.coco_data()))
    assert run(tmp_path).photos[0].came_from == "images/train/a.jpg"


def test_a_photo_that_is_listed_twice_is_refused_before_any_work(tmp_path: Path) -> None:
    write_coco(tmp_path / "src", {"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "a.jpg"})
    files.write_photo(tmp_path / "src" / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg: is labelled twice, by labels\.json"):
        run(tmp_path)
    record = import_set(ImportOrder(tmp_path / "src", tmp_path / "other", skip_bad=True))[0]
    assert len(record.photos) == 1 and "labelled twice" in record.left_out[-1][1]


# -- the same command again ----------------------------------------------------------------------------
def again(tmp_path: Path) -> tuple[ImportRecord, bool]:
    return import_set(ImportOrder(tmp_path / "src", tmp_path / "out", skip_bad=True))


def test_what_was_left_out_and_can_be_used_today_is_no_finished_import(tmp_path: Path) -> None:
    files.write_masks(tmp_path / "src")
    photo = tmp_path / "src" / "images" / "a.jpg"
    whole = photo.read_bytes()
    photo.write_bytes(whole[:40])
    assert len(again(tmp_path)[0].photos) == 1
    assert again(tmp_path)[1] is False  # still damaged: nothing to do
    photo.write_bytes(whole)
    with pytest.raises(DataError, match=r"was imported before images/a\.jpg or its labels changed"):
        again(tmp_path)


def test_a_nail_that_still_covers_nothing_leaves_a_finished_import_alone(tmp_path: Path) -> None:
    write_coco(tmp_path / "src", {"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"})
    path = tmp_path / "src" / "labels.json"
    data = json.loads(path.read_text())
    data["annotations"][0]["segmentation"] = [[100, 100, 120, 100, 120, 120]]
    path.write_text(json.dumps(data))
    for name in ("a.jpg", "b.jpg"):
        files.write_photo(tmp_path / "src" / name)
    assert [photo.file for photo in again(tmp_path)[0].photos] == ["b.jpg"]
    assert again(tmp_path)[1] is False


@pytest.mark.parametrize("lost", ["images/a.jpg", "annotations.json"])
def test_an_import_that_lacks_a_file_is_not_called_finished(lost: str, tmp_path: Path) -> None:
    files.write_masks(tmp_path / "src")
    again(tmp_path)
    (tmp_path / "out" / lost).unlink()
    with pytest.raises(DataError, match=rf"is an import that lacks {Path(lost).name}"):
        again(tmp_path)


def test_known_labels_that_fit_no_photo_are_not_said_to_be_there(tmp_path: Path) -> None:
    """Names of the public set, masks of something else."""
    from nailcore.data.folder import SPLITS_DIR, SplitFile
    from nailcore.data.importing.run import count_known
    from nailcore.data.known_labels import find_known_labels

    split = SplitFile.model_validate_json((SPLITS_DIR / "nails_cc0.json").read_bytes())
    stems = tuple(sorted(split.parts()))
    assert find_known_labels(set(stems)) is not None
    files.write_masks(tmp_path / "src", stems)
    record = run(tmp_path)
    assert record.settings["known_labels"] and not count_known(record)
    assert "by eye" not in json.loads((tmp_path / "out" / "annotations.json").read_text())["info"]["note"]
    assert open_dataset(tmp_path / "out").samples[0].record.nails[0].finger is None
