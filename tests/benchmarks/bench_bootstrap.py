"""Which lower bound of a paired difference to trust: `python -m tests.benchmarks.bench_bootstrap
[EVALUATION EVALUATION]`.

How often it lies above the true mean, which a bound of a level should do with that probability: on
the real differences of `bench_gate`, whose true mean is minus a margin that is added (0, or the
gate's), by Student's t, the percentile bootstrap, BCa (Efron 1987), ours (studentized), flipped
signs, and as the gate has it, the last two together on the images that differ. A bound that is too
high promotes what isn't better.
"""

import itertools
import sys

import numpy as np
from scipy import stats

from tasks.metrics.statistics import BootstrapT, sign_flip_p_value
from tests.benchmarks import bench_gate

RESAMPLES, DRAWS = 2000, 1000
IMAGES = (30, 100, 300)
LEVELS = (0.025, 0.005)


def bounds_above(differences: np.ndarray) -> np.ndarray:
    """Which bounds of these differences' mean lie above 0: [levels, methods]."""
    n, mean = len(differences), differences.mean()
    options = {"resamples": RESAMPLES, "seed": 0}
    means = np.sort(bench_gate.weights(n) @ differences)
    centred = differences - mean
    spread = centred.std()
    skewness = (centred**3).mean() / spread**3 if spread else 0.0
    below = ((means < mean).mean() + (means <= mean).mean()) / 2
    bias = stats.norm.ppf(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    telling = differences[differences != 0] if differences.any() else differences
    p_values = (
        stats.ttest_1samp(differences, 0, alternative="greater").pvalue if spread else 1.0,
        BootstrapT.of(differences, **options).p_value(0),
        sign_flip_p_value(differences, **options),
        max(BootstrapT.of(telling, **options).p_value(0), sign_flip_p_value(telling, **options)),
    )
    rows = []
    for level in LEVELS:
        z = bias + stats.norm.ppf(level)
        corrected = stats.norm.cdf(bias + z / (1 - skewness / (6 * n**0.5) * z))
        student, *others = [p_value <= level for p_value in p_values]
        quantiles = np.quantile(means, [level, corrected]) > 0
        rows.append([student, *quantiles, *others])
    return np.array(rows)


def main(folders: list[str]) -> None:
    bench_gate.load_pairs(folders)
    header = "differences of | worse by | images | level | t | percentile | BCa | studentized"
    print(f"| {header} | flips | both |")
    print("| --- " * 10 + "|")
    for told, pair in bench_gate.PAIRS.items():
        for margin, images in itertools.product((0.0, bench_gate.MARGINS[told]), IMAGES):
            champion, candidate = bench_gate.shifted(pair, -margin)
            random = np.random.default_rng(images)
            values = candidate - champion + margin
            draws = (random.choice(values, images) for _ in range(DRAWS))
            rates = np.mean([bounds_above(draw) for draw in draws], axis=0)
            for level, row in zip(LEVELS, rates, strict=True):
                cells = [told, f"{margin:g}", f"{images:,}", f"{level:.1%}"]
                cells += [f"{rate:.1%}" for rate in row]
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
