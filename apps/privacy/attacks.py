"""Membership inference: from what a model (or a set) says about points to scores, higher where a point looks more like a member.

Scores go to `apps.privacy.metrics`. Everything works on arrays, so that models and sets from anywhere can be attacked.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.batches import chunk_size
from distill.errors import Diverged, InputError
from distill.evaluation import NOT_FINITE

FEWEST_RUNS = 6  # for LiRA on runs that are each other's shadows: three pairs


def losses_and_margins(networks: Iterable[nn.Module], images: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(loss, margin) of each point (n,), float64, averaged over networks.

    The margin is log p_y - log of the sum of the other classes' p (Carlini et al., 2022): it does not saturate where p_y is near 1.
    Raises `Diverged` where a network's outputs are NaN or infinite.
    """
    losses, margins = [], []
    for network in networks:
        network.eval()
        with torch.no_grad():
            logits = torch.cat([network(part) for part in images.split(chunk_size(images))]).double()
        if not bool(logits.isfinite().all()):
            raise Diverged(NOT_FINITE)
        own = logits.gather(1, labels[:, None]).squeeze(1)
        rest = logits.scatter(1, labels[:, None], float("-inf")).logsumexp(1)
        losses.append(F.cross_entropy(logits, labels, reduction="none").cpu().numpy())
        margins.append((own - rest).cpu().numpy())
    return np.mean(losses, 0), np.mean(margins, 0)


def threshold_scores(loss: np.ndarray) -> np.ndarray:
    """Minus the loss (n,): members have a lower one (Yeom et al., 2018)."""
    return -loss


def calibrated_scores(loss: np.ndarray, reference_losses: np.ndarray) -> np.ndarray:
    """Mean loss of models (references, n) that did not see the point, minus its loss (n,) (Watson et al., 2022)."""
    scores: np.ndarray = reference_losses.mean(0) - loss
    return scores


def lira_scores(margin: np.ndarray, shadows: np.ndarray, inside: np.ndarray, *, online: bool = True) -> np.ndarray:
    """Likelihood-ratio scores (Carlini et al., 2022).

    The number of shadow models that saw a point must not depend on whether the target model saw it: see `lira_by_run`.

    Args:
        margin: of the target model, (n,).
        shadows: margins of the shadow models, (shadows, n).
        inside: bool (shadows, n), which points a shadow model was trained on.
        online: log density under the models that saw the point minus that under those that did not, by Gaussians with one mean per point
            and, as recommended for fewer than 64 shadows, one variance per side. False: minus the log probability that a model that
            did not see the point has a margin as large (the probability itself is exactly 1 for too many points).

    Returns:
        Scores (n,), higher for members.

    Raises:
        InputError: shapes differ, or a point was in every shadow model or in none.
    """
    inside = np.asarray(inside, dtype=bool)
    if shadows.shape != inside.shape or shadows.shape[1:] != margin.shape:
        raise InputError(f"margins {margin.shape}, shadows {shadows.shape} and in {inside.shape} do not fit: (n,), (s, n), (s, n).")
    if (~inside).sum(0).min() < 1 or (online and inside.sum(0).min() < 1):
        raise InputError("some points were in every shadow model, or in none; make shadows in complementary pairs.")
    mean_out, sd_out = _sides(shadows, ~inside)
    if not online:
        return np.asarray(-scipy.stats.norm.logsf((margin - mean_out) / sd_out))
    mean_in, sd_in = _sides(shadows, inside)
    return np.asarray(scipy.stats.norm.logpdf(margin, mean_in, sd_in) - scipy.stats.norm.logpdf(margin, mean_out, sd_out))


def lira_by_run(margins: np.ndarray, inside: np.ndarray, *, online: bool = True) -> list[np.ndarray]:
    """`lira_scores` of each run, with all other pairs of runs as shadow models.

    Runs 2k and 2k + 1 have opposite coins. The opposite of a run is left out: with it, a member would have fewer shadow models that saw it
    than a non-member, which alone changes the true-positive rate of models that know nothing (with four runs, to a tenth of the
    false-positive rate).

    Args:
        margins: (runs, n).
        inside: bool (runs, n).
        online: see `lira_scores`.

    Returns:
        Scores (n,) of each run.

    Raises:
        InputError: there are fewer than `FEWEST_RUNS` runs, or they are not such pairs.
    """
    inside = np.asarray(inside, dtype=bool)
    if len(inside) < FEWEST_RUNS or len(inside) % 2 or (inside[::2] == inside[1::2]).any():
        raise InputError(
            f"{len(inside)} runs; LiRA needs an even number from {FEWEST_RUNS}, with exactly the points in run 2k + 1 that run 2k has out."
        )
    pairs = np.arange(len(inside)) // 2
    return [
        lira_scores(margins[run], margins[pairs != pairs[run]], inside[pairs != pairs[run]], online=online) for run in range(len(inside))
    ]


def _sides(shadows: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, float]:
    """Each point's mean over the models used, and the residuals' pooled standard deviation."""
    count = used.sum(0)
    mean = np.where(used, shadows, 0.0).sum(0) / count
    freedom = max(1, int((count - 1).clip(0).sum()))
    spread = float((np.where(used, shadows - mean, 0.0) ** 2).sum() / freedom) ** 0.5
    return mean, max(spread, 1e-6)


def rmia_scores(
    target: np.ndarray,
    references: np.ndarray,
    population_target: np.ndarray,
    population_references: np.ndarray,
    a: float = 0.3,
    gamma: float = 2.0,
) -> np.ndarray:
    """Relative membership inference (Zarifzadeh, Liu and Shokri, 2024): the share of population points z that a point x exceeds.

    x exceeds z if p(x) / P(x) > gamma p(z) / P(z), with P(x) = ((1 + a) mean_out(x) + 1 - a) / 2.

    Args:
        target: the target model's probability of the true class, (n,).
        references: of models that did not see the points, (models, n).
        population_target: as ``target``, for population points.
        population_references: as ``references``, for population points.
        a: interpolation constant.
        gamma: threshold of the ratio (the paper's 2).

    Returns:
        Scores (n,) in [0, 1].
    """

    def ratio(own: np.ndarray, others: np.ndarray) -> np.ndarray:
        ratios: np.ndarray = own / np.maximum(((1 + a) * others.mean(0) + 1 - a) / 2, 1e-12)
        return ratios

    rivals = np.sort(gamma * ratio(population_target, population_references))
    return np.searchsorted(rivals, ratio(target, references), "left") / len(rivals)


def nearest_scores(points: Tensor, condensed: Tensor) -> np.ndarray:
    """Minus each point's Euclidean distance (n,) to the nearest image (or feature) of a set: an attack on the published set itself."""
    near = [torch.cdist(part.flatten(1), condensed.flatten(1)).amin(1) for part in points.split(2048)]
    return -torch.cat(near).double().cpu().numpy()


def alignment_scores(networks: Iterable[nn.Module], points: tuple[Tensor, Tensor], condensed: tuple[Tensor, Tensor]) -> np.ndarray:
    """Cosine (n,) of each point's gradient with that of the whole set, averaged over (random) networks."""
    from apps.privacy.contributions import gradient_rows

    scores = []
    for network in networks:
        whole = torch.cat(list(gradient_rows(network, *condensed))).mean(0)
        parts = [F.cosine_similarity(rows, whole[None]) for rows in gradient_rows(network, *points)]
        scores.append(torch.cat(parts).double().cpu().numpy())
    return np.asarray(np.mean(scores, 0))


@dataclass(frozen=True)
class Runs:
    """The measurements of several runs of one arm on all points of a pool; the coins of runs 2k and 2k + 1 are opposite.

    Attributes:
        losses: (runs, n).
        margins: (runs, n), see `losses_and_margins`.
        inside: (runs, n) bool, which points a run learned from.
        nearest: (runs, n) of `nearest_scores`; None where the arm has no condensed set.
        alignment: (runs, n) of `alignment_scores`; None where the arm has no condensed set, or it was not asked for.
    """

    losses: np.ndarray
    margins: np.ndarray
    inside: np.ndarray
    nearest: np.ndarray | None = None
    alignment: np.ndarray | None = None

    def outside(self, run: int) -> np.ndarray:
        """Losses (runs / 2 - 1, n) of reference models: of each other pair, for each point, the run that did not see it."""
        pairs = [first for first in range(0, len(self.losses), 2) if first // 2 != run // 2]
        return np.stack([np.where(self.inside[first], self.losses[first + 1], self.losses[first]) for first in pairs])


def _rmia(runs: Runs) -> list[np.ndarray]:
    """RMIA scores of each run. The pool is the population: which points it holds does not change the order of the scores."""
    scores = []
    for run, loss in enumerate(runs.losses):
        target, references = np.exp(-loss), np.exp(-runs.outside(run))
        scores.append(rmia_scores(target, references, target, references))
    return scores


def _enough(runs: Runs) -> bool:
    return len(runs.losses) >= FEWEST_RUNS and len(runs.losses) % 2 == 0


SHADOWED = ("lira", "lira-offline", "calibrated", "rmia")  # those that need other runs as shadow models

# Attacks by name: scores (n,) of each run, or None where the runs do not have what the attack needs. A new one is an entry here.
ATTACKS: dict[str, Callable[[Runs], list[np.ndarray] | None]] = {
    "loss": lambda runs: [threshold_scores(loss) for loss in runs.losses],
    "lira": lambda runs: lira_by_run(runs.margins, runs.inside) if _enough(runs) else None,
    "lira-offline": lambda runs: lira_by_run(runs.margins, runs.inside, online=False) if _enough(runs) else None,
    "nearest": lambda runs: None if runs.nearest is None else list(runs.nearest),
    "calibrated": lambda runs: (
        [calibrated_scores(loss, runs.outside(run)) for run, loss in enumerate(runs.losses)] if _enough(runs) else None
    ),
    "rmia": lambda runs: _rmia(runs) if _enough(runs) else None,
    "alignment": lambda runs: None if runs.alignment is None else list(runs.alignment),
}
