"""The judge: defects of a runner and of its input, each caught by the figure that speaks of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from benchmark import heatmaps, parity
from benchmark.comparison import WORST_IMAGES, Comparison, judge
from benchmark.heatmaps import APPEARED, VANISHED, draw_heatmap, write_heatmaps
from benchmark.parity import TorchReference, compare_runners
from model_zoo import find_variant, weights_path
from nailcore.data.folder import Dataset
from nailcore.errors import ConversionError
from nailcore.facts import Limits
from nailcore.preprocess import letterbox
from nailcore.runtime import Images, Logits, Runner
from tests.photos import load_images

VARIANT = find_variant("nail43-288")
HEADS = ("fgbg", "finger", "direction")
# As for fp16: what rounding may do, and a defect may not.
LIMITS = Limits(
    max_abs=None,
    flipped_permille=1.0,
    mask_iou=0.98,
    boundary_iou=0.96,
    contour_shift_px=3.0,
    lone_blob_px=12,
    finger_agreement=0.99,
    direction_error_deg=2.0,
    reason="a test",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_images(tmp_path_factory.mktemp("images") / "set")


@pytest.fixture(scope="module")
def network() -> TorchReference:
    return TorchReference(VARIANT, weights_path(VARIANT))


class Defective:
    """The trained network behind a defect of its runner: what goes in, or what comes out."""

    runtime, versions = "torch, spoilt", {"torch": "0"}

    def __init__(
        self,
        network: Runner,
        *,
        spoil_input: Callable[[Images], Images] = lambda images: images,
        spoil_output: Callable[[Logits], Logits] = lambda logits: logits,
    ) -> None:
        self.network, self.spoil_input, self.spoil_output = network, spoil_input, spoil_output

    def run(self, images: Images) -> Logits:
        """As the runner would, were it right."""
        return self.spoil_output(self.network.run(self.spoil_input(images)))

    def close(self) -> None:
        """Nothing to give back."""


def overflow_uint8(images: Images) -> Images:
    """A brightness offset added in uint8 arithmetic: bright pixels wrap around to black."""
    return np.asarray(images + np.uint8(70), np.uint8)


def decode_srgb(images: Images) -> Images:
    """Linear light where the network expects sRGB."""
    share = images.astype(np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.round(255 * linear), np.uint8)


def swap_red_and_blue(images: Images) -> Images:
    return np.ascontiguousarray(images[..., ::-1])


def crop_off_by_one(images: Images) -> Images:
    """The photo's first row and column are lost, and all else moves up and left by a pixel per logit."""
    return np.roll(images, (-4, -4), axis=(1, 2))


def read_nhwc_as_nchw(images: Images) -> Images:
    return np.ascontiguousarray(images.transpose(0, 2, 1, 3))


INPUT_DEFECTS = [overflow_uint8, decode_srgb, swap_red_and_blue, crop_off_by_one, read_nhwc_as_nchw]


def take_softmax(values: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    powers = np.exp(values - values.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True), np.float32)


def softmax_over_rows(logits: Logits) -> Logits:
    """A softmax over the channels keeps every argmax; over the rows it does not."""
    return logits | {"fgbg": take_softmax(logits["fgbg"], 2)}


def reverse_fingers(logits: Logits) -> Logits:
    """The little finger first: each hand's five classes in reverse order."""
    order = [4, 3, 2, 1, 0, 9, 8, 7, 6, 5]
    return logits | {"finger": logits["finger"][:, order]}


def swap_hands(logits: Logits) -> Logits:
    return logits | {"finger": np.roll(logits["finger"], 5, axis=1)}


def swap_x_and_y(logits: Logits) -> Logits:
    return logits | {"direction": logits["direction"][:, ::-1]}


def turn_y_up(logits: Logits) -> Logits:
    return logits | {"direction": logits["direction"] * np.array([1, -1], np.float32)[:, None, None]}


def swap_classes(logits: Logits) -> Logits:
    return logits | {"fgbg": logits["fgbg"][:, ::-1]}


OUTPUT_DEFECTS = [
    (softmax_over_rows, "fgbg"),
    (reverse_fingers, "finger"),
    (swap_hands, "finger"),
    (swap_x_and_y, "direction"),
    (turn_y_up, "direction"),
    (swap_classes, "fgbg"),
]


def test_verdicts_are_reached_against_float64(network: TorchReference, images: Dataset) -> None:
    """Not against float32 sums in whatever order this machine's kernels take them."""
    sample = images.part("held-out")[0]
    picture = letterbox(sample.load_image(), VARIANT.height_px, VARIANT.width_px)[None]
    exact = parity._open_reference(VARIANT, weights_path(VARIANT), "")
    found, near = exact.run(picture), network.run(picture)
    assert exact.dtype == torch.float64 and network.dtype == torch.float32
    for name, value in found.items():
        assert value.dtype == np.float32
        assert 0 < np.abs(value - near[name]).max() < 3e-4


def compare(network: TorchReference, images: Dataset, defective: Runner) -> Comparison:
    return compare_runners(network, defective, images.part("held-out"), VARIANT)


def test_the_network_itself_breaks_no_limit(network: TorchReference, images: Dataset) -> None:
    comparison = compare(network, images, Defective(network))
    assert comparison.nail_pixels > 100, "without nails nothing is judged"
    strict = LIMITS.model_copy(update={"max_abs": 0.0, "flipped_permille": 0.0, "mask_iou": 1.0})
    assert judge("sound", comparison, strict, HEADS) == []
    assert comparison.direction_error_p90_deg == 0 and comparison.finger_agreement == 1
    assert comparison.suspects == []


@pytest.mark.parametrize("spoil", INPUT_DEFECTS, ids=lambda f: f.__name__)
def test_a_defect_of_the_input_moves_the_mask(
    spoil: Callable[[Images], Images], network: TorchReference, images: Dataset
) -> None:
    comparison = compare(network, images, Defective(network, spoil_input=spoil))
    failures = judge("spoilt", comparison, LIMITS)
    assert any("output 'fgbg' flips" in failure for failure in failures), comparison.flipped_permille
    assert all(failure.startswith("spoilt: output 'fgbg'") for failure in failures)
    assert comparison.suspects[0].name == comparison.worst[1]


@pytest.mark.parametrize(("spoil", "output"), OUTPUT_DEFECTS, ids=lambda v: getattr(v, "__name__", v))
def test_a_defect_of_the_output_is_named_by_it(
    spoil: Callable[[Logits], Logits], output: str, network: TorchReference, images: Dataset
) -> None:
    comparison = compare(network, images, Defective(network, spoil_output=spoil))
    failures = judge("spoilt", comparison, LIMITS, HEADS)
    assert failures and all(f"output '{output}'" in failure for failure in failures), failures
    # A head that holds its random initialisation is shown and not judged.
    untrained = judge("spoilt", comparison, LIMITS, ("fgbg",))
    assert untrained == ([] if output != "fgbg" else failures)


def test_outputs_are_matched_by_name_and_must_be_finite(network: TorchReference, images: Dataset) -> None:
    for spoil, words in (
        (lambda logits: {"fgbg": logits["fgbg"]}, "named"),
        (lambda logits: logits | {"fgbg": logits["finger"]}, "is (1, 10,"),
        (lambda logits: logits | {"direction": logits["direction"] * np.float32(np.nan)}, "NaN"),
        (lambda logits: logits | {"direction": logits["direction"] / np.float32(0)}, "infinite"),
    ):
        with np.errstate(all="ignore"), pytest.raises(ConversionError) as caught:
            compare(network, images, Defective(network, spoil_output=spoil))
        assert words in caught.value.message


# -- figures of made-up logits ----------------------------------------------------------------------
def make_logits(mask: npt.NDArray[np.bool_], depth: float = 1.0) -> Logits:
    """Logits whose mask is the given one, with one finger and one direction everywhere."""
    height, width = mask.shape
    fgbg = np.stack([np.zeros(mask.shape), np.where(mask, depth, -depth)])[None].astype(np.float32)
    finger = np.zeros((1, 10, height, width), np.float32)
    finger[:, 3] = 1
    direction = np.zeros((1, 2, height, width), np.float32)
    direction[:, 1] = -1
    return {"fgbg": fgbg, "finger": finger, "direction": direction}


def draw_square(top: int = 10, size: int = 10, side: int = 40) -> npt.NDArray[np.bool_]:
    mask = np.zeros((side, side), np.bool_)
    mask[top : top + size, 10 : 10 + size] = True
    return mask


def test_figures_are_pooled_over_images_and_the_worst_is_named() -> None:
    comparison = Comparison()
    reference = make_logits(draw_square())
    comparison.add("same", reference, make_logits(draw_square()))
    comparison.add("moved", reference, make_logits(draw_square(top=12)))
    assert comparison.flipped_permille == pytest.approx(1000 * 40 / 3200)
    assert comparison.worst == (25.0, "moved")
    assert comparison.mask_iou == pytest.approx(180 / 220)
    assert (comparison.contour.shift_px, comparison.contour_image) == (2.0, "moved")
    assert comparison.finger_agreement == 1 and comparison.direction_error_median_deg == 0


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (
            {"flipped_permille": 5.0},
            "flips 12.500 ‰ of the mask pixels (limit 5 ‰; worst image moved: 25.00 ‰)",
        ),
        ({"mask_iou": 0.9}, "mask IoU of 0.8182 (at least 0.9)"),
        ({"boundary_iou": 0.9}, "boundary IoU of"),
        ({"contour_shift_px": 1.5}, "moves a contour by 2.0 px in image moved (limit 1.5 px"),
        ({"max_abs": 0.5}, "output 'fgbg' differs by 2 (max-abs; limit 0.5)"),
    ],
)
def test_every_limit_is_judged_on_its_own(limit: dict[str, float], words: str) -> None:
    comparison = Comparison()
    reference = make_logits(draw_square())
    comparison.add("same", reference, make_logits(draw_square()))
    comparison.add("moved", reference, make_logits(draw_square(top=12)))
    lenient = Limits.model_validate({"max_abs": None, "flipped_permille": 1000.0, "reason": ""} | limit)
    (failure,) = judge("file", comparison, lenient, HEADS)
    assert words in failure
    assert judge("file", comparison, Limits(max_abs=None, flipped_permille=1000.0, reason="")) == []


def test_a_blob_that_appears_is_judged_by_its_size_not_its_distance() -> None:
    mask = draw_square()
    mask[35:39, 35:39] = True
    comparison = Comparison()
    comparison.add("image", make_logits(draw_square()), make_logits(mask))
    assert (comparison.contour.appeared, comparison.contour.shift_px) == (1, 0)
    limits = Limits(max_abs=None, flipped_permille=1000.0, contour_shift_px=0.0, lone_blob_px=15, reason="")
    (failure,) = judge("file", comparison, limits)
    assert "a blob or hole of 16 px appear or vanish (limit 15 px" in failure


def test_nan_is_never_within_limits() -> None:
    comparison = Comparison()
    comparison.add("image", make_logits(draw_square()), make_logits(draw_square()))
    comparison.totals["fgbg"].max_abs = float("nan")
    assert judge("x", comparison, LIMITS.model_copy(update={"max_abs": 1.0}))


def test_memory_does_not_grow_with_images() -> None:
    comparison = Comparison()
    image = np.zeros((160, 160, 3), np.uint8)
    for number in range(8):
        moved = make_logits(draw_square(top=10 + number))
        comparison.add(f"{number}", make_logits(draw_square()), moved, image)
    assert [suspect.name for suspect in comparison.suspects] == ["7", "6", "5"]
    assert len(comparison.suspects) == WORST_IMAGES


def test_heatmaps_mark_flipped_pixels_where_they_are(tmp_path: Path) -> None:
    comparison = Comparison()
    image = np.full((160, 160, 3), 200, np.uint8)
    comparison.add("an image", make_logits(draw_square()), make_logits(draw_square(top=12)), image)
    drawn = draw_heatmap(comparison.suspects[0])
    assert drawn.shape == image.shape
    blue, red = ((drawn == colour.astype(np.uint8)).all(axis=2) for colour in (VANISHED, APPEARED))
    assert np.array_equal(np.unique(np.argwhere(blue)[:, 0] // 4), [10, 11])
    assert np.array_equal(np.unique(np.argwhere(red)[:, 0] // 4), [20, 21])
    assert blue.sum() == red.sum() == 20 * 16  # a large patch has no ring


def test_a_single_flipped_cell_is_ringed(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = draw_square()
    mask[20, 12] = True
    comparison = Comparison()
    image = np.full((160, 160, 3), 200, np.uint8)
    comparison.add("an image", make_logits(draw_square()), make_logits(mask), image)
    drawn = draw_heatmap(comparison.suspects[0])
    red = (drawn == APPEARED.astype(np.uint8)).all(axis=2)
    assert red.sum() == 16
    monkeypatch.setattr(heatmaps, "RINGED_CELLS", 0)
    ys, xs = np.nonzero((drawn != draw_heatmap(comparison.suspects[0])).any(axis=2))
    distance = np.hypot(ys - 82, xs - 50)
    assert len(ys) > 20 and distance.min() > 3 and distance.max() < 9


def test_files_are_written_for_the_worst_images(tmp_path: Path) -> None:
    comparison = Comparison()
    image = np.full((160, 160, 3), 200, np.uint8)
    comparison.add("an image", make_logits(draw_square()), make_logits(draw_square(top=12)), image)
    (worst,) = write_heatmaps(comparison.suspects, tmp_path)
    assert worst.heatmap == "1-an image.png" and (tmp_path / "1-an image.png").read_bytes()[1:4] == b"PNG"
