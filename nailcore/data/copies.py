"""The same photograph twice: perceptual hashes, and groups of photos that are near-copies."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping

import numpy as np
import numpy.typing as npt

NEAR_BITS = 6  # of 64; scaled and recompressed copies differ by 0 to 4, other photos by 10 and more


def hash_photo(image: npt.NDArray[np.uint8]) -> int:
    """64-bit perceptual hash (the signs of low DCT frequencies) of an (H, W, 3) RGB photo."""
    import imagehash
    from PIL import Image

    return int(str(imagehash.phash(Image.fromarray(image))), 16)


def find_copies(hashes: Mapping[str, int], near_bits: int = NEAR_BITS) -> list[tuple[str, str, int]]:
    """Pairs of names whose hashes differ in at most ``near_bits`` bits, and in how many; sorted by name."""
    names = sorted(hashes)
    codes = np.array([hashes[name] for name in names], np.uint64)
    pairs = []
    for at, name in enumerate(names[:-1]):
        bits = np.bitwise_count(codes[at + 1 :] ^ codes[at])
        pairs += [(name, names[at + 1 + int(k)], int(bits[k])) for k in np.flatnonzero(bits <= near_bits)]
    return pairs


def join_groups(members: Iterable[Iterable[Hashable]]) -> list[list[Hashable]]:
    """Sets that share a member become one, however long the chain; in order of first appearance."""
    leader: dict[Hashable, Hashable] = {}

    def find(item: Hashable) -> Hashable:
        while leader.setdefault(item, item) != item:
            leader[item] = leader[leader[item]]
            item = leader[item]
        return item

    for member in members:
        items = list(member)
        for item in items[:1]:
            find(item)
        for a, b in itertools.pairwise(items):
            leader[find(b)] = find(a)
    joined: dict[Hashable, list[Hashable]] = {}
    for item in leader:
        joined.setdefault(find(item), []).append(item)
    return list(joined.values())
