"""The noise, read from releases of nobody: as large as the account states, normal, and new in every class, release and object.

A release of classes without images is its noise, number by number. A chi-square test of a few thousand numbers finds a tenth too little
or too much; correlations find noise that was used before.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from apps.privacy.auditing.checks import Check, attempted
from apps.privacy.auditing.questions import ASKED, CLIP, RELEASED, Make, images_of, made, trained_once, watch

Vectors = dict[str, np.ndarray]  # noise over its stated deviation, (n,), by what it is the noise of
OBJECTS, TIMES = 2, 2
DISTINCT = 0.9  # of the numbers of a release: float32 has millions of values where noise is, so that hardly any two are equal
NOBODY = len(RELEASED)  # the label of the class that is not released


def noise_checks(make: Make, epsilon: float, delta: float) -> list[Check]:
    """Size and shape of the noise of features, gradients, a k-means start and experts, and one check of all correlations."""
    found: dict[str, Vectors] = {}
    sizes: list[Check] = []
    for kind in (*ASKED, "experts"):

        def read(kind: str = kind) -> Check:
            found[kind] = expert_noise(make, epsilon, delta) if kind == "experts" else unit_noise(make, epsilon, delta, kind)
            return size(kind, found[kind])

        sizes.append(attempted(f"size of noise, {kind}", read))
    shapes = [shape(kind, found.get(kind, {})) for kind in (*ASKED, "experts")]
    return [*sizes, *shapes, independence(list(found.values()))]


def unit_noise(make: Make, epsilon: float, delta: float, kind: str) -> Vectors:
    """Noise of one kind of release by object, release and class; nothing where a question was answered without a release."""
    vectors: Vectors = {}
    for number in range(OBJECTS):
        statistics = made(make, images_of([NOBODY]), epsilon, delta)
        seen = watch(statistics)
        for time in range(1, 2 if kind == "start" else TIMES + 1):
            ASKED[kind](statistics, time)
        for place, each in enumerate(seen):
            for position, rows in enumerate(each.released):
                deviation = each.noise * each.norm or np.inf
                vectors[f"{kind}, object {number + 1}, release {place + 1}, class {position + 1}"] = (rows / deviation).flatten().numpy()
    return vectors


def expert_noise(make: Make, epsilon: float, delta: float) -> Vectors:
    """Noise of two steps of DP-SGD of two experts of two objects, from an example whose gradient is not a number and counts as nothing."""
    vectors: Vectors = {}
    for number in range(OBJECTS):
        statistics = made(make, images_of([0], broken={0: np.nan}), epsilon, delta, releases=None, start_releases=0)
        changes: Tensor = trained_once(statistics, TIMES, TIMES)
        history = statistics.history
        deviation = (history[-1].noise_multiplier if history else 0.0) * CLIP or np.inf
        for (expert, steps), step in itertools.product(enumerate(changes), range(TIMES)):
            vectors[f"experts, object {number + 1}, expert {expert + 1}, step {step + 1}"] = (steps[step] / deviation).numpy()
    return vectors


def size(kind: str, vectors: Vectors) -> Check:
    """Two-sided chi-square test of the sum of squares."""
    numbers = _joined(vectors)
    if not len(numbers):
        return Check(f"size of noise, {kind}", 0.0, "no release was made")
    total = float(np.square(numbers).sum())
    law = scipy.stats.chi2(len(numbers))
    p = min(1.0, 2 * min(float(law.cdf(total)), float(law.sf(total)))) if np.isfinite(total) else 0.0
    return Check(f"size of noise, {kind}", p, f"{np.sqrt(total / len(numbers)):.3f} of the stated deviation in {len(numbers)} numbers")


def shape(kind: str, vectors: Vectors) -> Check:
    """Kolmogorov and Smirnov's test against the standard normal distribution: noise of the right size may be of another kind."""
    numbers = _joined(vectors)
    if not len(numbers) or not np.isfinite(numbers).all():
        return Check(f"shape of noise, {kind}", 0.0, "no release of finite numbers was made")
    if (values := len(np.unique(numbers))) < DISTINCT * len(numbers):
        return Check(
            f"shape of noise, {kind}", 0.0, f"{len(numbers)} numbers have {values} values: noise of a few digits hides no further digits"
        )
    found = scipy.stats.kstest(numbers, "norm")
    return Check(f"shape of noise, {kind}", float(found.pvalue), f"distance {found.statistic:.4f} from a normal distribution")


def independence(groups: Sequence[Vectors]) -> Check:
    """Correlations of all pairs of vectors, shortened to the same length, and of the halves of each; Bonferroni over all of them."""
    highest, words, tests = 0.0, "no pair", 0
    for one, other in itertools.combinations_with_replacement([group for group in groups if group], 2):
        length = min(min(map(len, one.values())), min(map(len, other.values())))
        named = list(one), list(other)
        first, second = (_standardised(np.stack([vector[:length] for vector in group.values()])) for group in (one, other))
        table = np.abs(first @ second.T / length)
        if one is other:
            table = np.triu(table, 1)
        tests += table.size if one is not other else len(table) * (len(table) - 1) // 2
        row, column = np.unravel_index(int(table.argmax()), table.shape)
        if (score := table[row, column] * length**0.5) > highest:
            highest, words = score, f"correlation {table[row, column]:.3f} of ({named[0][row]}) and ({named[1][column]})"
    for name, vector in ((name, vector) for group in groups for name, vector in group.items()):
        half = len(vector) // 2
        halves = _standardised(np.stack([vector[:half], vector[half : 2 * half]]))
        correlation, tests = abs(float(halves[0] @ halves[1] / half)), tests + 1
        if (score := correlation * half**0.5) > highest:
            highest, words = score, f"correlation {correlation:.3f} of the halves of ({name})"
    # Of n independent normal numbers, r sqrt(n) has thinner tails than a normal number beyond 4: p is never too small where it matters.
    p = min(1.0, max(1, tests) * 2 * float(scipy.stats.norm.sf(highest))) if np.isfinite(highest) else 0.0
    return Check("independence of noise", p, f"at most {words}, in {tests} pairs")


def _standardised(rows: np.ndarray) -> np.ndarray:
    """Rows with mean 0 and mean square 1; constant or infinite ones become zero, which `size` reports."""
    with np.errstate(all="ignore"):
        centred = rows - rows.mean(1, keepdims=True)
        scaled = centred / np.sqrt(np.square(centred).mean(1, keepdims=True))
    return np.asarray(np.nan_to_num(scaled, nan=0.0, posinf=0.0, neginf=0.0))


def _joined(vectors: Vectors) -> np.ndarray:
    return np.concatenate(list(vectors.values())) if vectors else torch.zeros(0).numpy()
