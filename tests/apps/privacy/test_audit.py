"""The auditor: bounds against published values, silent on the right mechanism, loud on every planted bug."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import scipy.stats
import torch
from torch import Tensor

import apps.privacy.release as room
from apps.privacy.accounting import gaussian_epsilon
from apps.privacy.audit import guess, lower_bounds, main, one_run_bound, one_run_epsilon
from apps.privacy.auditing import questions
from apps.privacy.auditing.bounds import gaussian_bound, one_run_gaussian, rates_bound
from apps.privacy.auditing.noise import noise_checks
from apps.privacy.canaries import CHANCE, audit
from apps.privacy.contributions import clipped
from apps.privacy.entropy import SystemEntropy
from apps.privacy.ledger import Ledger
from apps.privacy.private_statistics import PrivateStatistics
from distill.batches import Embed
from distill.condensed import CondensedSet
from distill.errors import InputError
from tests.apps.privacy.test_planted import FOUND_BY, plant

pytest.importorskip("opacus")


class Planted(PrivateStatistics):
    """The mechanism with a bug in it; the account never hears of it."""

    entropy: type[SystemEntropy] = SystemEntropy

    def __init__(self, *args: object, **named: object) -> None:
        super().__init__(*args, **named)  # type: ignore[arg-type]
        self._entropy = self.entropy()


def louder(factor: float) -> type[SystemEntropy]:
    class Scaled(SystemEntropy):
        def normal(self, shape: tuple[int, ...]) -> np.ndarray:
            return factor * super().normal(shape)

    return Scaled


class HalfNoise(Planted):
    entropy = louder(0.5)


class NineTenths(Planted):
    entropy = louder(0.9)


class NoNoise(Planted):
    entropy = louder(0.0)


class NoiseOverBatch(Planted):
    entropy = louder(1 / 256)


class RealisedBatch(PrivateStatistics):
    def _expected(self, plan: room.Plan) -> float:
        return float(len(self._data.train))


class RenewedNoise(PrivateStatistics):
    """Keeps the clean sum and noises it at each use."""

    def release(self, key: str, plan: room.Plan, *args: object, **named: object) -> Tensor:
        found = super().release(key, plan, *args, **named)  # type: ignore[arg-type]
        self._ledger = Ledger(None)
        self._kept = found
        return found


class FixedBatches(PrivateStatistics):
    """Batches of one size, drawn without replacement."""

    def __init__(self, *args: object, **named: object) -> None:
        super().__init__(*args, **named)  # type: ignore[arg-type]
        self._entropy = Fixed()


class Fixed(SystemEntropy):
    def uniform(self, count: int) -> np.ndarray:
        drawn = super().uniform(count)
        return (scipy.stats.rankdata(drawn) - 0.5) / count


class Shuffled(SystemEntropy):
    """Passes over a shuffled order, a quarter of it at a time."""

    def __init__(self) -> None:
        self.order = np.empty(0)
        self.turn = 0

    def uniform(self, count: int) -> np.ndarray:
        if self.turn % 4 == 0:
            self.order = np.argsort(super().uniform(count)) / count
        self.turn += 1
        return (self.order + 0.25 * self.turn) % 1.0

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return SystemEntropy().normal(shape)


class ShuffledBatches(Planted):
    entropy = Shuffled


class ForgottenRate(PrivateStatistics):
    """Twice as many examples in a release as the account states."""

    def sample(self, rate: float) -> Tensor:
        return super().sample(2 * rate)


class CleanFiles(PrivateStatistics):
    """Writes the sums without noise into the ledger's files."""

    def release(
        self, key: str, plan: room.Plan, norm: float, rows: room.Rows, length: int, slots: int = 1, *, together: bool = False
    ) -> Tensor:
        found = super().release(key, plan, norm, rows, length, slots, together=together)
        for file in sorted(self._ledger.folder.glob("release-*"))[-1:] if self._ledger.folder else ():
            with safetensors.safe_open(file, "pt") as opened:
                facts = opened.metadata()
            mask = torch.ones(len(self._data.train), dtype=torch.bool)
            form: room.Shape = {"length": length, "slots": slots, "together": together}
            clean = room.noised_sums(self._data, self._classes, mask, 0.0, norm, rows, entropy=self._entropy, **form)
            safetensors.torch.save_file({"released": clean.contiguous()}, file, facts)
        return found


class SumsBesideTheRelease(PrivateStatistics):
    """Keeps another file with the same sums in the ledger's folder."""

    def release(self, key: str, plan: room.Plan, *args: object, **named: object) -> Tensor:
        found = super().release(key, plan, *args, **named)  # type: ignore[arg-type]
        if self._ledger.folder:
            np.save(self._ledger.folder / "sums.npy", found.numpy())
        return found


class HalfTheEpsilon(PrivateStatistics):
    """States less than it spends."""

    @property
    def privacy(self) -> dict[str, object]:
        stated = super().privacy
        return {**stated, "epsilon": 0.5 * float(str(stated["epsilon"]))}


class Laplacian(Planted):
    """Noise of the right variance and another distribution."""

    class entropy(SystemEntropy):
        def normal(self, shape: tuple[int, ...]) -> np.ndarray:
            uniform = self.uniform(int(np.prod(shape))) - 0.5
            return (-np.sign(uniform) * np.log1p(-2 * np.abs(uniform)) / 2**0.5).reshape(shape)


class FewDigits(Planted):
    """Noise rounded to bfloat16: further digits of a sum have none."""

    class entropy(SystemEntropy):
        def normal(self, shape: tuple[int, ...]) -> np.ndarray:
            return torch.from_numpy(super().normal(shape)).bfloat16().double().numpy()


class SharedCoins(PrivateStatistics):
    """The n-th examples of all classes have one coin."""

    def sample(self, rate: float) -> Tensor:
        mask, labels = super().sample(rate), self._data.train.labels
        for label in labels.unique():
            members = (labels == label).nonzero().squeeze(1)
            mask[members] = mask[: len(members)].clone()
        return mask


class PrivateNorm(PrivateStatistics):
    """Without a clip, the norm is the longest row of the private images."""

    def class_means(self, embed: Embed, *given: object, **named: object) -> Tensor:
        images = self._data.normalised("train", torch.arange(len(self._data.train)))
        longest = float(torch.nan_to_num(embed(images), posinf=0).norm(dim=1).max()) if len(images) else 1.0
        before, self.clip = self.clip, self.clip or longest
        try:
            return super().class_means(embed, *given, **named)  # type: ignore[arg-type]
        finally:
            self.clip = before


class NamesTheData(PrivateStatistics):
    """The account's file names the private data by a hash."""

    def _open(self, folder: Path) -> None:
        self._settings |= {"data": self._data.fingerprint}
        super()._open(folder)


PLANTED = [
    *(FewDigits, SharedCoins, NamesTheData, PrivateNorm),
    *(HalfNoise, NineTenths, ForgottenRate, CleanFiles, SumsBesideTheRelease, HalfTheEpsilon, Laplacian),
    *(NoNoise, NoiseOverBatch, RealisedBatch, RenewedNoise, FixedBatches, ShuffledBatches),
]


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.__name__)
def test_every_planted_bug_is_found(bug: type[PrivateStatistics]) -> None:
    found = audit(bug, epsilon=1.0)
    assert not found.holds, str(found)
    assert "CONTRADICTION" in str(found)


@pytest.mark.parametrize("how", ["none", "batch", "layer", "a tenth too long", "infinite"])
def test_missing_or_wrong_clipping_is_found(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def whole_batch(rows: Tensor, norm: float) -> Tensor:
        rows = torch.nan_to_num(rows)
        return rows * min(1.0, norm / (float(rows.sum(0).norm() / len(rows)) + 1e-9))

    def by_part(rows: Tensor, norm: float) -> Tensor:
        parts = torch.nan_to_num(rows).chunk(2, 1)
        return torch.cat([2 * norm * torch.nn.functional.normalize(part) for part in parts], 1)

    def a_tenth(rows: Tensor, norm: float) -> Tensor:
        length = torch.nan_to_num(rows).norm(dim=1, keepdim=True)
        return torch.where(length < 1.1 * norm, torch.nan_to_num(rows), clipped(rows, norm))

    def without_infinity(rows: Tensor, norm: float) -> Tensor:
        rows = torch.where(rows.isnan().any(1, keepdim=True), 0.0, rows)
        return rows * (norm / rows.norm(dim=1, keepdim=True)).clamp(max=1)

    wrong = {
        "a tenth too long": a_tenth,
        "infinite": without_infinity,
        "none": lambda rows, norm: torch.nan_to_num(rows),
        "batch": whole_batch,
        "layer": by_part,
    }[how]
    monkeypatch.setattr(room, "clipped", wrong)
    assert not audit(epsilon=1.0).holds


@pytest.mark.parametrize("bug", FOUND_BY)
def test_a_bug_in_the_code_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bugs of test_planted.py, which has a check for each; here one audit is to find all of them."""
    plant(bug, monkeypatch)
    found = audit(epsilon=1.0, confidence=1 - 1e-6)
    assert found.failed, str(found)


def test_an_answer_that_looks_at_the_images_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that moves a cluster to a private image, and features over the true number of examples."""
    kmeans = questions.private_kmeans

    def looks(statistics: PrivateStatistics, ipc: int, seed: int = 0) -> CondensedSet:
        found = kmeans(statistics, ipc, seed)
        found.images[-1] = statistics._data.normalised("train", torch.tensor([len(statistics._data.train) - 1]))[0]
        return found

    def failed() -> list[str]:
        return [str(check) for check in audit(epsilon=1.0).failed if check.name == "post-processing"]

    assert failed() == []
    with monkeypatch.context() as patch:
        patch.setattr(questions, "private_kmeans", looks)
        assert "an answer of start depends on private data" in failed()[0]
    monkeypatch.setattr(PrivateStatistics, "_expected", lambda self, plan: float(len(self._data.train)))
    assert "an answer of features depends on private data" in failed()[0]


def test_the_audit_counts_what_shares_its_error() -> None:
    found = audit(epsilon=1.0, confidence=1 - 1e-9)
    by_chance = [check for check in found.checks if 0 < check.p < 1]
    assert 8 <= len(by_chance) + 4 <= CHANCE  # a p-value of exactly 1 comes from a Bonferroni correction
    names = {check.name for check in found.checks}
    certain = {name for name in names if name.startswith("sensitivity")} | {"ledger", "account", "norm", "post-processing"}
    assert len(names - certain) + 4 == CHANCE
    assert found.holds


def test_p_values_of_a_right_mechanism_are_no_smaller_than_chance() -> None:
    """Of the noise alone, which is quick: 15 times 9 checks, one of which is below this level in at most 2 % of runs."""
    smallest = [min(check.p for check in noise_checks(PrivateStatistics, 1.0, 1e-5)) for _ in range(15)]
    found = sum(p < 0.02 / 9 for p in smallest)
    assert scipy.stats.binomtest(found, 15, 0.02, "greater").pvalue > 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_the_right_mechanism_passes_and_the_audit_has_teeth(seed: int) -> None:
    """With derived noise, the same in every run: with the system's noise one bound in a hundred is below 1.0 (mean 2.0)."""
    seeds = itertools.count(1000 * seed)

    def seeded(*args: object, **named: object) -> PrivateStatistics:
        return PrivateStatistics(*args, insecure_seed=next(seeds), **named)  # type: ignore[arg-type]

    found = audit(seeded, seed=seed)
    assert found.holds, str(found)
    assert found.claimed == pytest.approx(4.0, abs=1e-3)
    assert found.bounds.gaussian > 1.0


def test_the_right_mechanism_passes_with_the_systems_noise() -> None:
    """Six bounds and p-values, each wrong with probability 1e-8: fails by chance less than once in ten million runs. A mechanism without
    noise is found at this confidence as well: perfect separation bounds mu by 3.5, far above the 0.92 of epsilon 4."""
    sure = 1 - 1e-8
    assert audit(confidence=sure).holds
    assert not audit(NoNoise, confidence=sure).holds


# Bounds


@pytest.mark.parametrize(
    ("right", "guesses", "canaries", "published"),
    [(100, 100, 1000, 3.47), (95, 100, 1000, 2.17), (700, 1000, 1000, 0.73), (1000, 1000, 1000, 5.78), (480, 500, 5000, 2.78)],
)
def test_one_run_bounds_of_the_reference(right: int, guesses: int, canaries: int, published: float) -> None:
    assert one_run_bound(right, guesses, canaries) == pytest.approx(published, abs=0.006)


def test_one_run_bound_holds_for_randomised_response() -> None:
    """With pure epsilon, every answer is right with probability e^eps / (1 + e^eps): the bound may pass epsilon in 5 % of runs only."""
    draws, epsilon, above = np.random.default_rng(0), 1.0, 0
    for _ in range(400):
        right = draws.binomial(200, np.exp(epsilon) / (1 + np.exp(epsilon)))
        above += one_run_bound(int(right), 200, 200, delta=1e-12) > epsilon
    assert scipy.stats.binomtest(above, 400, 0.05, "greater").pvalue > 1e-3


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0])
def test_bounds_of_gaussian_scores_stay_below_the_truth(mu: float) -> None:
    draws, truth, above, found = np.random.default_rng(1), gaussian_epsilon(mu, 1e-5), 0, []
    for _ in range(40):
        bounds = lower_bounds(draws.normal(mu, 1, 2000), draws.normal(0, 1, 2000))
        above += max(bounds.gaussian, bounds.rates) > truth
        found.append(bounds.gaussian)
    assert scipy.stats.binomtest(above, 40, 0.1, "greater").pvalue > 1e-3
    assert np.median(found) > 0.5 * truth


def test_a_perfect_attack_reaches_the_ceiling_of_its_sample() -> None:
    """No false positive among 1000 at one of 12 thresholds in two directions: the rate is below that of 1 - (0.05 / 48) ^ (1 / 1000)."""
    found = lower_bounds(np.ones(1000), np.zeros(1000))
    assert found.rates == pytest.approx(-np.log(-np.expm1(np.log(0.05 / 48) / 1000)), abs=0.02)


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.0])
def test_bounds_at_fixed_ranks_hold(mu: float) -> None:
    """Wrong in at most a tenth of 150 at an error of a tenth, also where scores are equal; and nearer to the truth than a split sample."""
    draws, truth, above, rounded, found = np.random.default_rng(2), gaussian_epsilon(mu, 1e-5), 0, 0, []
    for _ in range(150):
        inside, outside = draws.normal(mu, 1, 400), draws.normal(0, 1, 400)
        found.append(gaussian_bound(inside, outside, 1e-5, 0.1))
        above += max(found[-1], rates_bound(inside, outside, 1e-5, 0.1)) > truth
        rounded += gaussian_bound(inside.round(), outside.round(), 1e-5, 0.1) > truth
    assert scipy.stats.binomtest(above, 150, 0.2, "greater").pvalue > 1e-3  # two bounds
    assert scipy.stats.binomtest(rounded, 150, 0.1, "greater").pvalue > 1e-3
    assert mu < 1 or np.median(found) > 0.6 * truth


def test_one_guess_about_one_coin_is_as_good_as_a_normal_number() -> None:
    """The best guess whether a fair coin moved a normal number by mu is right with probability Phi(mu / 2)."""
    for chance in (0.6, 0.9, 0.95):
        bound = one_run_gaussian(1, 1, 1, confidence=1 - chance)
        assert bound == pytest.approx(gaussian_epsilon(2 * scipy.stats.norm.ppf(chance), 1e-5), rel=1e-3)


@pytest.mark.parametrize("mu", [0.3, 1.0])
def test_the_one_run_bound_of_gaussian_privacy_holds_and_is_tighter(mu: float) -> None:
    draws, truth, above = np.random.default_rng(3), gaussian_epsilon(mu, 1e-5), 0
    ours, theirs = [], []
    for _ in range(100):
        coins = draws.random(1000) < 0.5
        right = guess(mu * coins + draws.normal(size=1000), coins, 200)
        ours.append(one_run_gaussian(right, 200, 1000))
        theirs.append(one_run_bound(right, 200, 1000))
        above += ours[-1] > truth
    assert scipy.stats.binomtest(above, 100, 0.05, "greater").pvalue > 1e-3
    assert np.mean(ours) > 1.2 * np.mean(theirs) > 0
    assert one_run_gaussian(100, 200, 1000) == 0.0
    with pytest.raises(InputError, match="right <= guesses <= canaries"):
        one_run_gaussian(5, 3, 10)


def test_guesses_are_the_ends_of_the_order() -> None:
    assert guess(np.array([5.0, 4, 3, 2, 1]), np.array([True, False, True, True, False]), 2) == 2
    assert guess(np.array([5.0, 4, 3, 2, 1]), np.array([True, False, True, True, False]), 4) == 2


# The command


def test_scores_from_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draws = np.random.default_rng(0)
    np.savez(tmp_path / "scores.npz", in_scores=draws.normal(2, 1, 3000), out_scores=draws.normal(0, 1, 3000))
    assert main([str(tmp_path / "scores.npz")]) == 0
    assert "AUC 0.9" in capsys.readouterr().out
    assert main([str(tmp_path / "scores.npz"), "--claimed", "1.0"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_scores_of_one_model_are_bounded_as_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They share the model's randomness, so that reading them as independent runs would prove too much."""
    draws = np.random.default_rng(99)
    for seed in range(3):
        coins = np.random.default_rng(seed).random(4000) < 0.5
        assert one_run_epsilon(np.zeros(coins.sum()), np.zeros((~coins).sum())) == 0.0  # equal scores tell nothing, in whatever order
        told = np.where(draws.random(4000) < np.e / (1 + np.e), coins, ~coins) + 1e-3 * draws.random(4000)  # randomised response, epsilon 1
        found = one_run_epsilon(told[coins], told[~coins])
        assert 0.5 < found < 1.0
    np.savez(tmp_path / "scores.npz", in_scores=told[coins], out_scores=told[~coins])
    assert main([str(tmp_path / "scores.npz"), "--one-run", "--claimed", "1.0"]) == 0
    assert "from one run" in capsys.readouterr().out
    assert main([str(tmp_path / "scores.npz"), "--one-run", "--claimed", "0.1"]) == 1
    assert "FAILED: the bound" in capsys.readouterr().out
    assert main([str(tmp_path / "scores.npz"), "--claimed", "9"]) == 0
    assert "points of one model: --one-run" in capsys.readouterr().out
    np.savez(tmp_path / "scores.npz", in_scores=np.zeros(100), out_scores=np.zeros(1000))
    assert main([str(tmp_path / "scores.npz"), "--one-run"]) == 2
    assert "about half of them in by fair coins" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04nonsense", b"\x80\x04N."])
def test_damaged_score_files_are_one_line(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scores.npz").write_bytes(content)
    assert main([str(tmp_path / "scores.npz")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_pickles_and_nonsense_scores_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", in_scores=np.array([{}, {}], dtype=object), out_scores=np.zeros(3))
    assert main([str(tmp_path / "a.npz")]) == 2
    np.savez(tmp_path / "b.npz", in_scores=np.array([1.0, np.nan]), out_scores=np.zeros(3))
    assert main([str(tmp_path / "b.npz")]) == 2
    with pytest.raises(InputError, match="right <= guesses <= canaries"):
        one_run_bound(5, 3, 10)


@pytest.mark.parametrize("epsilon", [0.0, 1e6, float("nan")])
def test_an_epsilon_whose_noise_float32_hides_is_not_audited(epsilon: float) -> None:
    with pytest.raises(InputError, match="allowed in an audit: above 0, at most 10,000"):
        audit(epsilon=epsilon, runs=200)
