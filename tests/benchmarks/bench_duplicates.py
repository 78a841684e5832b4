"""How the near-duplicate search grows: `python -m tests.benchmarks.bench_duplicates`.

Hashes are random, as those of unlike images are; one in a hundred is planted as another's
near-duplicate, any number of bits up to the limit away. All have the same colours, so that hashes
alone tell them apart. Brute force compares all pairs by popcount.
"""

import math
import time

import numpy as np
import numpy.typing as npt

from tasks.data.duplicates import SIGNATURE, near_pairs

SIZES = (10**3, 10**4, 10**5, 10**6)
BRUTE_FORCE_UP_TO = 10**4
MAX_BITS = 48


def signatures(count: int) -> tuple[npt.NDArray[np.void], npt.NDArray[np.int64]]:
    """Random signatures and the pairs planted among them."""
    draw = np.random.default_rng(count)
    made = np.zeros(count, SIGNATURE)
    made["hash"] = draw.integers(0, 2**64, (count, 4), np.uint64)
    planted = draw.permutation(count)[: count // 100 * 2].reshape(-1, 2)
    for one, other in planted:
        flipped = np.zeros(256, np.uint8)
        flipped[draw.permutation(256)[: draw.integers(0, MAX_BITS + 1)]] = 1
        made["hash"][other] = made["hash"][one] ^ np.packbits(flipped).view(np.uint64)
    return made, np.sort(planted, axis=1)


def brute_force(hashes: npt.NDArray[np.uint64]) -> int:
    """Number of near pairs, from comparing each hash with all after it."""
    found = 0
    for place in range(len(hashes) - 1):
        bits = np.bitwise_count(hashes[place + 1 :] ^ hashes[place])
        found += int((bits.sum(axis=1, dtype=np.uint16) <= MAX_BITS).sum())
    return found


def main() -> None:
    near_pairs(signatures(100)[0], MAX_BITS)  # imports
    before = None
    for count in SIZES:
        made, planted = signatures(count)
        start = time.perf_counter()
        pairs = near_pairs(made, MAX_BITS)
        seconds = time.perf_counter() - start
        recall = np.isin(planted @ [count, 1], pairs @ [count, 1]).mean()
        said = f"{count:>9,} hashes: {seconds:7.2f} s, {len(pairs):,} pairs, recall {recall:.3f}"
        if before is not None:
            said += f", grows as n^{math.log10(seconds / before):.2f}"
        before = seconds
        if count <= BRUTE_FORCE_UP_TO:
            start = time.perf_counter()
            true = brute_force(made["hash"])
            slow = time.perf_counter() - start
            said += f"; brute force {slow:.2f} s, {true:,} pairs: {slow / seconds:.1f}× as long"
        print(said, flush=True)


if __name__ == "__main__":
    main()
