"""Every index exactly once, whatever the setting; and the shapes that the names promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.federated.partition import PartitionConfig, split
from distill.errors import InputError

LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=200).map(lambda v: np.array(v, dtype=np.int64))
CONFIGS = st.builds(
    PartitionConfig,
    partitioner=st.sampled_from(["iid", "dirichlet", "pathological", "shards"]),
    num_partitions=st.integers(1, 12),
    alpha=st.floats(1e-3, 100),
    min_partition_size=st.integers(0, 3),
    self_balancing=st.booleans(),
    num_classes_per_partition=st.integers(1, 7),
    class_assignment_mode=st.sampled_from(["random", "deterministic"]),
    num_shards_per_partition=st.integers(1, 4),
)


@settings(max_examples=300, deadline=None)
@given(LABELS, CONFIGS, st.integers(0, 1000))
def test_every_index_exactly_once_or_one_line(labels: np.ndarray, config: PartitionConfig, seed: int) -> None:
    try:
        made = split(labels, config, seed)
    except InputError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert "allowed" in refusal or "use a smaller" in refusal
        assert "\n" not in refusal
        return
    assert len(made.parts) == config.num_partitions
    assert sorted(np.concatenate(made.parts).tolist()) == list(range(len(labels)))
    assert made.counts(labels, 7).sum() == len(labels)
    assert made.hash == split(labels, config, seed).hash
    if config.partitioner == "pathological":
        assert all(len(np.unique(labels[part])) <= config.num_classes_per_partition for part in made.parts)
    if config.partitioner == "dirichlet":
        assert min(map(len, made.parts)) >= config.min_partition_size


def big_labels() -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(10), 600))


def test_iid_parts_look_like_the_whole() -> None:
    made = split(big_labels(), PartitionConfig("iid", 10))
    assert {len(part) for part in made.parts} == {600}
    # Hypergeometric: 60 expected, standard deviation below 7.4.
    assert abs(made.counts(big_labels(), 10) - 60).max() < 37


@pytest.mark.parametrize("seed", range(5))
def test_smaller_alpha_is_more_skewed(seed: int) -> None:
    def largest_share(alpha: float) -> float:
        counts = split(big_labels(), PartitionConfig("dirichlet", 10, alpha, min_partition_size=0), seed).counts(big_labels(), 10)
        return float((counts.max(0) / counts.sum(0)).mean())

    assert largest_share(0.05) > largest_share(0.5) > largest_share(50.0)


def test_dirichlet_shares_have_the_mean_and_spread_of_their_law() -> None:
    shares = []
    for seed in range(60):
        config = PartitionConfig("dirichlet", 5, 0.5, min_partition_size=0)
        shares.append(split(big_labels(), config, seed).counts(big_labels(), 10).T / 600)
    found = np.concatenate(shares)  # 600 draws of Dir(0.5, ..., 0.5) over 5 clients
    variance = 0.2 * 0.8 / (5 * 0.5 + 1)
    assert np.abs(found.mean(0) - 0.2).max() < 4 * (variance / 600) ** 0.5
    assert abs(found.var() / variance - 1) < 0.15


@pytest.mark.parametrize("mode", ["random", "deterministic"])
def test_pathological_gives_exactly_k_classes_to_each(mode: str) -> None:
    made = split(big_labels(), PartitionConfig("pathological", 10, num_classes_per_partition=2, class_assignment_mode=mode), 3)
    counts = made.counts(big_labels(), 10)
    assert ((counts > 0).sum(1) == 2).all()
    assert ((counts > 0).sum(0) == 2).all()


def test_shards_are_few_classes_and_equal_sizes() -> None:
    counts = split(big_labels(), PartitionConfig("shards", 10, num_shards_per_partition=2)).counts(big_labels(), 10)
    assert (counts.sum(1) == 600).all()
    assert (counts > 0).sum(1).max() <= 4


def test_seeds_and_settings_change_the_hash() -> None:
    labels = big_labels()
    hashes = {
        split(labels, config, seed).hash
        for config in (PartitionConfig("iid"), PartitionConfig("dirichlet"), PartitionConfig("dirichlet", alpha=0.1))
        for seed in (0, 1)
    }
    assert len(hashes) == 6
    assert split(labels, PartitionConfig(seed=7), 0).hash == split(labels, PartitionConfig(seed=7), 1).hash


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (PartitionConfig("iid", 9000), "at most one partition an image"),
        (PartitionConfig("pathological", 10, num_classes_per_partition=11), "allowed: 1 to 10"),
        (PartitionConfig("pathological", 3, num_classes_per_partition=2), "allowed: 4 to 10"),
        (PartitionConfig("dirichlet", 10, min_partition_size=601), "at most 600"),
        (PartitionConfig("dirichlet", 10, alpha=1.0, min_partition_size=590), "a larger alpha"),
        (PartitionConfig("shards", 10, num_shards_per_partition=700), "at most 600"),
    ],
)
def test_impossible_settings_are_one_line(config: PartitionConfig, text: str) -> None:
    with pytest.raises(InputError, match=text):
        split(big_labels(), config)
