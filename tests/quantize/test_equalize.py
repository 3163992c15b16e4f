"""Equalization keeps what the network computes, because of its guard; without it, it does not."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nailcore.errors import ConversionError
from nailcore.nets.export_form import ExportForm
from quantize.bounds import bound_convolutions
from quantize.equalize import (
    check_guard,
    choose_scales,
    equalize_layers,
    list_links,
    measure_reach,
    scale_link,
)
from quantize.layer_names import list_convolutions
from tests.quantize.small_network import tiny_images, tiny_network


def answer(network: ExportForm, images: np.ndarray) -> list[torch.Tensor]:  # type: ignore[type-arg]
    with torch.inference_mode():
        return list(network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float()))


def distance(network: ExportForm, images: np.ndarray) -> float:  # type: ignore[type-arg]
    pairs = zip(answer(network, images), answer(tiny_network(), images), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_what_the_network_computes_stays_on_images_it_never_saw(strength: float) -> None:
    network = copy.deepcopy(tiny_network())
    notes = equalize_layers(network, tiny_images(), strength)
    assert notes["channels_scaled"] > 500
    noise = np.random.default_rng(5).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    for images in (tiny_images(3, seed=9), noise, np.full((1, 64, 64, 3), 255, np.uint8)):
        assert distance(network, images) <= 1e-4


def test_channels_come_closer_to_each_other() -> None:
    links = list_links(tiny_network())
    network = copy.deepcopy(tiny_network())
    before = measure_reach(network, links, tiny_images())
    equalize_layers(network, tiny_images(), 1.0)
    after = measure_reach(network, links, tiny_images())

    for link in links:
        then, now = before[link.name], after[link.name]
        assert (now / now.max() >= then / then.max() * 0.999 - 1e-6).all()
        assert after[link.name].max() <= before[link.name].max() * 1.001 + 1e-6


def test_without_the_guard_the_function_breaks() -> None:
    network = copy.deepcopy(tiny_network())
    link = next(link for link in list_links(network) if link.name.endswith("high.stage3.1.layers.0"))
    reach = measure_reach(network, [link], tiny_images())[link.name]
    ceiling = bound_convolutions(network)[link.name].high.numpy()
    scales = np.where(reach > 3, np.float32(3), np.float32(1)).astype(np.float32)
    assert (scales > 1).any()
    with pytest.raises(ConversionError, match="the ReLU6 behind it would clip it elsewhere"):
        check_guard(link, scales, ceiling)
    scale_link(network, link, scales)  # as if nobody had asked
    assert distance(network, tiny_images()) > 1e-2


def test_scaling_down_across_a_clip_is_refused_as_well() -> None:
    link = next(link for link in list_links(tiny_network()) if link.activation == "relu6")
    with pytest.raises(ConversionError, match="up only"):
        check_guard(link, np.full(4, 0.5, np.float32), np.ones(4))


def test_links_name_convolutions_and_leave_no_reader_out() -> None:
    known = list_convolutions(tiny_network())
    links = list_links(tiny_network())
    writers = [name for link in links for name in link.writers]
    readers = [name for link in links for name in link.readers]
    assert len(set(writers)) == len(writers) and len(set(readers)) == len(readers)
    heads = {name for name in known if ".heads." in name}
    assert set(writers) == set(known) - heads
    stems = {"network.high.stage1.0", "network.low.stage1.0"}
    assert set(readers) == set(known) - stems


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_image_exceeds_the_bounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.choice(np.array([0, 255], np.uint8), (1, 64, 64, 3)) if seed % 2 else tiny_images(1, seed)
    bounds = bound_convolutions(tiny_network())
    seen: dict[str, torch.Tensor] = {}
    network = copy.deepcopy(tiny_network())

    def watch(name: str, conv: torch.nn.Conv2d) -> None:
        # Copied, because the ReLU6 behind works in place.
        conv.register_forward_hook(lambda *call: seen.update({name: call[-1].clone()}))

    for name, conv in list_convolutions(network).items():
        watch(name, conv)
    answer(network, image)
    for name, out in seen.items():
        slack = 1e-3 + 1e-4 * bounds[name].high.abs()
        assert (out.amax((0, 2, 3)) <= bounds[name].high + slack).all(), name
        assert (out.amin((0, 2, 3)) >= bounds[name].low - slack).all(), name


def test_silent_channels_keep_their_scale() -> None:
    link = list_links(tiny_network())[-1]
    reach = np.array([4.0, 1.0, 0.0, 1e-6], np.float32)
    scales = choose_scales(link, reach, np.array([5.0, 2.0, 0.0, 1e-6]), 1.0)
    assert scales[0] == pytest.approx(1.0) and scales[1] == pytest.approx(3, rel=1e-3)
    assert scales[2] == scales[3] == 1
