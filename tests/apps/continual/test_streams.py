"""Streams and figures against slow definitions and against Avalanche's own metrics."""

import numpy as np
import pytest
import torch

from apps.continual import metrics
from apps.continual.engine import avalanche, quiet_and_seeded
from apps.continual.memory import MemoryConfig
from apps.continual.online import Queue, online_memories
from apps.continual.strategies import accuracies, benchmark
from apps.continual.streams import class_incremental, class_order, domain_incremental, experience_tensors, joined, reservoir
from distill.data import ImageData
from distill.errors import InputError
from distill.networks import create
from distill.randomness import generator
from tests.conftest import toy


def test_orders_are_those_of_dms_protocol() -> None:
    for seed in range(5):
        state = np.random.get_state()
        np.random.seed(seed)
        expected = np.random.permutation(100).tolist()
        np.random.set_state(state)
        assert class_order(list(range(100)), seed) == expected


def test_class_incremental_covers_every_class_once() -> None:
    data = toy(classes=6)
    for seed in range(3):
        stream = class_incremental(data, 3, seed)
        assert sorted(c for part in stream for c in part.classes) == list(range(6))
        assert all(set(part.test.labels.tolist()) == set(part.classes) for part in stream)
    assert class_incremental(data, 3, 0)[0].classes != class_incremental(data, 3, 1)[0].classes
    with pytest.raises(InputError, match="6 classes do not divide into 4"):
        class_incremental(data, 4, 0)


def test_domains_get_one_shape_and_one_normalisation() -> None:
    grey, colour = toy(side=16), toy(seed=5, channels=3)
    stream = domain_incremental([grey, colour])
    assert {part.spec for part in stream} == {stream[0].spec}
    assert stream[0].spec.shape == (3, 16, 16)
    assert torch.equal(stream[0].train.images, grey.train.images.expand(-1, 3, -1, -1))
    # Enlarging by two keeps a constant region's value.
    assert stream[1].train.images.dtype == torch.uint8
    assert abs(float(stream[1].train.images.float().mean()) - float(colour.train.images.float().mean())) < 1
    with pytest.raises(InputError, match="two or more"):
        domain_incremental([grey])
    with pytest.raises(InputError, match="classes"):
        domain_incremental([grey, toy(classes=4)])
    whole = joined(stream)
    assert len(whole.train) == len(grey.train) + len(colour.train)


def test_a_reservoir_grows_older_and_is_fair() -> None:
    stream = class_incremental(toy(classes=4, per_class=10), 2, 0)
    early, late = reservoir(stream[:1], 8, 0), reservoir(stream, 8, 0)
    assert len(early) == len(late) == 8
    old = set(stream[0].classes)
    kept = [image for image, label in zip(late.images, late.labels.tolist(), strict=True) if label in old]
    assert all(any(torch.equal(image, before) for before in early.images) for image in kept), "what left never comes back"
    share = [sum(label in old for label in reservoir(stream, 8, seed).labels.tolist()) for seed in range(200)]
    assert abs(np.mean(share) - 4) < 0.35  # 200 draws of a hypergeometric with standard deviation 1.3


def test_figures_by_hand_and_against_avalanche(digits: ImageData) -> None:
    """A learner of fixed tables: Avalanche's evaluation gives the same forgetting, backward transfer and accuracies as ours."""
    matrix = [[90.0, 0.0, 0.0], [60.0, 80.0, 0.0], [50.0, 70.0, 100.0]]
    assert metrics.average_accuracy(matrix) == pytest.approx(220 / 3)
    assert metrics.average_accuracy(matrix, 1) == 70.0
    assert metrics.forgetting(matrix) == pytest.approx((40 + 10) / 2)
    assert metrics.backward_transfer(matrix) == pytest.approx(-25)
    with pytest.raises(InputError, match="square"):
        metrics.forgetting(matrix[:2])

    stream = class_incremental(digits.subset([0, 1, 2, 3]), 2, 1)
    experiences, network = benchmark(stream), create("ConvNetD1W8", stream[0].spec, generator(0, "w"))
    found, theirs = [], {}
    with quiet_and_seeded(3):
        measures = avalanche("avalanche.evaluation.metrics")
        evaluator = avalanche("avalanche.training.plugins").EvaluationPlugin(
            measures.accuracy_metrics(experience=True, stream=True),
            measures.forgetting_metrics(experience=True, stream=True),
            measures.bwt_metrics(stream=True),
            loggers=[],
        )
        learner = avalanche("avalanche.training.supervised").Naive(
            model=network, optimizer=torch.optim.SGD(network.parameters(), lr=0.05), train_mb_size=8, train_epochs=3, evaluator=evaluator
        )
        for experience in experiences.train_stream:
            learner.train(experience)
            theirs = learner.eval(experiences.test_stream)
            found.append(accuracies(learner.model, stream, "test"))

    def of(start: str) -> list[float]:
        return [100 * value for key, value in sorted(theirs.items()) if key.startswith(start)]

    assert of("Top1_Acc_Exp") == pytest.approx(found[-1], abs=1e-4)
    assert of("Top1_Acc_Stream")[0] == pytest.approx(metrics.average_accuracy(found), abs=1e-4)
    assert of("StreamForgetting")[0] == pytest.approx(metrics.forgetting(found), abs=1e-4)
    assert of("StreamBWT")[0] == pytest.approx(metrics.backward_transfer(found), abs=1e-4)
    assert metrics.forgetting(found) != 0


def test_a_queue_hands_out_all_that_came() -> None:
    queue = Queue(5, 3)
    values = torch.arange(12.0).view(12, 1, 1, 1)
    labels = torch.arange(12)
    out = [queue.add(values[i : i + 2], labels[i : i + 2]) for i in range(0, 12, 2)]
    assert [o is None for o in out] == [True, True, False, True, True, False]
    assert out[2][1].tolist() == [0, 1, 2, 3, 4, 5]  # type: ignore[index]
    assert out[5][1].tolist() == [6, 7, 8, 9, 10, 11]  # type: ignore[index]
    assert queue.nbytes == 0


def test_online_memories_see_each_experience_once() -> None:
    stream = class_incremental(toy(classes=4, per_class=12), 2, 0)
    config = MemoryConfig("class_mean", items=4, per_class=1)
    sizes, seen = [], []
    for memory in online_memories([experience_tensors(p) for p in stream], config, mini=4, queue=8, every=2, seed=0):
        sizes.append(len(memory))
        seen.append(sum(group.seen for group in memory.groups))
    assert sizes == [2, 4]
    assert seen == [24, 48]
