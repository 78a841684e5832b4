"""Near-duplicate images: a perceptual hash with a colour layout, and a search that scales.

The hash is that of pHash (Zauner 2010, https://phash.org/docs/pubs/thesis_zauner.pdf) with more
bits: the signs of an image's lowest frequencies. The search is locality-sensitive hashing by
sampled bits (Indyk and Motwani 1998, https://doi.org/10.1145/276698.276876) in sorted lists
(Charikar 2002, https://doi.org/10.1145/509907.509965).
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

# `hash` has 256 bits, from the lowest frequency to the highest.
SIGNATURE = np.dtype([("hash", np.uint64, 4), ("colours", np.uint8, (4, 4, 3))])

Places = npt.NDArray[np.int64]

_BITS = 256
_SIDE = 64
_REACH = 19  # the 256 lowest frequencies all lie below this one, each way
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
# A frequency this faint is nothing but rounding and JPEG: without this the bits of a plain image
# would be noise.
_FAINT = 1.0

# Two layouts agree if, one made as bright as the other (within the largest gain), they differ by
# less than this share of their contrast, to which a few grey levels are lent for plain images.
# Chosen on 1,000 photos, changed in 11 ways, and on scenes of the demo world.
_SHARE = 0.18
_LENT = 4.0
_GAIN = 1.08

# Takes a layout of 48 numbers to its mean colour.
_MEAN = np.tile(np.eye(3, dtype=np.float32), (16, 1)) / 16

_FEW = 1024  # up to here every image is compared with every other
_ORDERS = 32
_WINDOW = 16
_SAMPLED = 128  # sorted by bits among so many: cropping changes the low frequencies least
_FIRST = 16
_BLOCK = 1 << 15  # what a core's cache holds


def _cosines() -> npt.NDArray[np.float32]:
    """The first rows of the DCT-II, scaled so that noise of one grey level stays about one."""
    frequency, place = np.mgrid[:_REACH, :_SIDE]
    waves = np.cos(np.pi * (place + 0.5) * frequency / _SIDE) * np.sqrt(2 / _SIDE)
    return np.asarray(waves, np.float32)


def _lowest() -> Places:
    """Where the 256 lowest frequencies lie, lowest first; the mean is none."""
    down, right = np.mgrid[:_REACH, :_REACH]
    return np.argsort((down**2 + right**2).ravel(), kind="stable")[1 : _BITS + 1]


_COSINES = _cosines()
_LOWEST = _lowest()


def signature(image: Image.Image) -> np.void:
    """The SIGNATURE of an upright, opaque RGB image."""
    resized = image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    pixels = np.asarray(resized, np.float32)
    waves = _COSINES @ (pixels @ _LUMA) @ _COSINES.T
    made = np.zeros(1, SIGNATURE)
    bits = waves.ravel()[_LOWEST] > _FAINT
    made["hash"] = np.packbits(bits, bitorder="little").view("<u8")
    cell = _SIDE // 4
    made["colours"] = pixels.reshape(4, cell, 4, cell, 3).mean(axis=(1, 3)).round()
    return np.void(made[0])


def near_pairs(signatures: npt.NDArray[np.void], max_bits: int) -> Places:
    """Pairs of near-duplicates: int64 [m, 2], i < j, sorted.

    Their hashes differ in at most `max_bits` and their colours agree. Nearly all pairs are found,
    and always the same ones, in O(n log n) time: images are compared with their neighbours in some
    sorted orders, then with the first 16 of the cluster that they turn out to be in. So a cluster
    of up to 17, of equal images too, comes with all its pairs; in a larger one each image is paired
    with its like among the first 16 and with some of the others.
    """
    kinds, chains = _collapse(signatures)
    different = signatures if len(kinds) == len(signatures) else signatures[kinds]
    pairs = np.concatenate([chains, kinds[_neighbours(different, max_bits)]])
    closed = _with_the_first(signatures, pairs, max_bits)
    return _unique(np.concatenate([pairs, *closed]), len(signatures))


def _unique(pairs: Places, count: int) -> Places:
    """Each pair of `count` places once, the smaller place first, sorted."""
    # np.unique keeps a hash table of integers, which is slower than sorting millions.
    codes = np.sort(pairs.min(axis=1) * count + pairs.max(axis=1))
    codes = codes[np.diff(codes, prepend=-1) > 0]
    return np.stack(np.divmod(codes, max(1, count)), axis=1)


def _collapse(signatures: npt.NDArray[np.void]) -> tuple[Places, Places]:
    """The first image of each different signature, and the pairs that chain its equals to it."""
    raw = np.ascontiguousarray(signatures).view(f"V{SIGNATURE.itemsize}")
    order = np.argsort(raw, kind="stable")
    blocks = (order[start : start + _BLOCK + 1] for start in range(0, len(order), _BLOCK))
    found = [raw[block[1:]] == raw[block[:-1]] for block in blocks]
    equal = np.concatenate([np.zeros(0, bool), *found])
    first = order[np.append(True, ~equal)[: len(order)]]
    return np.sort(first), np.stack([order[:-1][equal], order[1:][equal]], axis=1)


def _neighbours(signatures: npt.NDArray[np.void], max_bits: int) -> Places:
    """Near pairs among the neighbours in each sorted order.

    Where a whole window is alike, one order tells enough: the later ones leave such pairs out.
    """
    count = len(signatures)
    window = count - 1 if count <= _FEW else _WINDOW
    found = np.zeros((0, 2), np.int64)
    crowded = np.zeros(count, bool)
    for number in range(1 if count <= _FEW else _ORDERS):
        pairs = _in_window(signatures["hash"], _order(signatures, number), window, max_bits)
        pairs = pairs[~crowded[pairs].all(axis=1)]
        pairs = pairs[_agree(signatures["colours"], pairs)]
        if len(pairs):
            found = _unique(np.concatenate([found, pairs]), count)
        crowded |= np.bincount(pairs.ravel(), minlength=count) >= window
    return found


def _order(signatures: npt.NDArray[np.void], number: int) -> Places:
    """Places sorted by a sample of bits, those that share it by brightness.

    Neighbours share a prefix of about log2(n) bits, so that no more than those are sampled.
    """
    hashes = signatures["hash"]
    length = len(signatures).bit_length() + 2
    key = np.zeros(len(signatures), np.uint64)
    for bit in np.random.default_rng(number).permutation(_SAMPLED)[:length].tolist():
        word, shift = divmod(bit, 64)
        key = key << np.uint64(1) | hashes[:, word] >> np.uint64(shift) & np.uint64(1)
    brightness = signatures["colours"].sum(axis=(1, 2, 3), dtype=np.uint64)
    return np.argsort(key << np.uint64(16) | brightness, kind="stable")


def _in_window(hashes: npt.NDArray[np.uint64], order: Places, window: int, max_bits: int) -> Places:
    """Pairs [m, 2] at most `window` apart in `order` whose hashes are near."""
    found = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK + window]
        words = np.ascontiguousarray(hashes[block].T)
        for step in range(1, min(window, len(block) - 1) + 1):
            left = words[:, : min(_BLOCK, len(block) - step)]
            bits = _distance(left, words[:, step : step + left.shape[1]])
            near = np.flatnonzero(bits <= max_bits)
            found.append(np.stack([block[near], block[near + step]], axis=1))
    return np.concatenate(found)


def _distance(
    left: npt.NDArray[np.uint64], right: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint16]:
    """In how many bits hashes [4, n] differ."""
    bits = np.bitwise_count(left[0] ^ right[0]).astype(np.uint16)
    for one, other in zip(left[1:], right[1:], strict=True):
        bits += np.bitwise_count(one ^ other)
    return bits


def _agree(colours: npt.NDArray[np.uint8], pairs: Places) -> npt.NDArray[np.bool_]:
    """Whether the colour layouts of each pair agree."""
    agreed = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), _BLOCK):
        # Sums of products of bytes are exact in float32.
        one, other = (
            colours[side].reshape(-1, 48).astype(np.float32)
            for side in pairs[start : start + _BLOCK].T
        )
        (power, contrast), (other_power, other_contrast) = _power(one), _power(other)
        gain = np.sqrt((power + 1) / (other_power + 1)).clip(1 / _GAIN, _GAIN)
        both = np.einsum("ij,ij->i", one, other).astype(np.float64)
        apart = (power / gain + other_power * gain - 2 * both) / 48
        limit = _SHARE * (np.minimum(contrast, other_contrast) + _LENT)
        agreed[start : start + _BLOCK] = apart <= limit**2
    return agreed


def _power(
    colours: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Sum of squares of layouts [n, 48], and root mean square contrast in grey levels."""
    power = np.einsum("ij,ij->i", colours, colours).astype(np.float64)
    means = colours @ _MEAN
    variance = power / 48 - (means.astype(np.float64) ** 2).mean(axis=1)
    return power, np.sqrt(variance.clip(0))


def _with_the_first(
    signatures: npt.NDArray[np.void], pairs: Places, max_bits: int
) -> Iterator[Places]:
    """Near pairs of each image with the first ones, in the order of the rows, of its cluster."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    places, ends = np.unique(pairs, return_inverse=True)
    ends = ends.reshape(pairs.shape)
    graph = coo_array((np.ones(len(pairs), bool), ends.T), shape=(len(places),) * 2)
    clusters = connected_components(graph, directed=False)[1]
    order = np.argsort(clusters, kind="stable")
    members, clusters = places[order], clusters[order]
    firsts = np.searchsorted(clusters, clusters)
    for rank in range(_FIRST):
        later = np.flatnonzero(np.arange(len(members)) > firsts + rank)
        closed = np.stack([members[firsts[later] + rank], members[later]], axis=1)
        left, right = (signatures["hash"][side].T for side in closed.T)
        closed = closed[_distance(left, right) <= max_bits]
        yield closed[_agree(signatures["colours"], closed)]
