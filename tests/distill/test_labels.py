"""Soft labels say what they are: probabilities are checked, each kind has its loss, and whoever cannot use a kind refuses it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apps.continual.condensing import condense_images
from apps.continual.memory import MemoryConfig
from apps.federated.union import union
from apps.federated.wire import Limits, decode, encode
from apps.nas.ledger import set_key
from distill.condensed import CondensedSet
from distill.coresets import select
from distill.data import ImageData
from distill.errors import InputError
from distill.labels import LABEL_KINDS
from distill.methods import METHODS
from distill.networks import create
from distill.randomness import generator
from distill.run import condense
from distill.train import Recipe, train_network
from tests.apps.federated.hostile import npy
from tests.conftest import toy
from tests.distill.hostile_files import _with_inner, small_set, unpack

NET = "ConvNetD1W32"
SHORT = {"network": NET, "iterations": 1, "experts": 1, "syn_steps": 1, "expert_epochs": 1, "max_start_epoch": 1}


def labelled(labels: Tensor, kind: str, data: ImageData) -> CondensedSet:
    return dataclasses.replace(select(data, "random", 2, generator(0, "set")), labels=labels, label_kind=kind)


def numbers(seed: int = 0) -> Tensor:
    return 3 * torch.randn(6, 3, generator=generator(seed, "labels"))


def slow_loss(kind: str, outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean over images, written out in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for output, label in zip(outputs.double(), labels.double(), strict=True):
        log_p = output - output.exp().sum().log()
        wanted = label.exp() / label.exp().sum() if kind == "logits" else label
        total = total + (((output - label) ** 2).mean() if kind == "scores" else -(wanted * log_p).sum())
    return total / len(outputs)


def of_kind(kind: str) -> Tensor:
    made = {"probabilities": numbers().softmax(1), "weighted": numbers().softmax(1) * torch.tensor([0.5, 0.5, 1, 1, 1.5, 1.5])[:, None]}
    return made.get(kind, numbers())


@pytest.mark.parametrize("kind", LABEL_KINDS)
def test_a_learner_uses_the_loss_of_the_kind(kind: str) -> None:
    data = toy()
    tiny = labelled(of_kind(kind), kind, data)
    ours = train_network(tiny, NET, Recipe(epochs=3, augmentation="none", schedule="constant", compile="off"), seed=3)
    network = create(NET, data.spec, generator(3, "weights"))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for _ in range(3):
        optimiser.zero_grad()
        slow_loss(kind, network(tiny.images), tiny.labels).float().backward()
        optimiser.step()
    for a, b in zip(ours.parameters(), network.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_logits_teach_what_their_softmax_teaches_and_hard_labels_keep_their_bits(toy_data: ImageData) -> None:
    recipe = Recipe(max_steps=3, augmentation="none", compile="off")
    logits, soft = labelled(numbers(), "logits", toy_data), labelled(numbers().softmax(1), "probabilities", toy_data)
    assert torch.equal(logits.hard_labels, soft.hard_labels)
    for a, b in zip(train_network(logits, NET, recipe, 0).parameters(), train_network(soft, NET, recipe, 0).parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    outputs, labels = numbers(1), torch.tensor([0, 1, 2, 0, 1, 2])
    assert torch.equal(LABEL_KINDS["probabilities"].loss(outputs, labels), F.cross_entropy(outputs, labels, reduction="sum"))


ROWS = numbers().softmax(1)


@pytest.mark.parametrize(
    "labels",
    [numbers(), torch.zeros(6, 3), -ROWS, 2 * ROWS, ROWS + 0.001, ROWS * torch.tensor([1, 1, 1, 1, 1, 1.002])[:, None], ROWS - ROWS[:, :1]],
)
def test_soft_labels_that_are_no_probabilities_and_name_no_kind_are_refused(toy_data: ImageData, labels: Tensor) -> None:
    with pytest.raises(InputError, match=r"not probabilities: .*logits\? apply softmax, or name label_kind\.$"):
        labelled(labels, "probabilities", toy_data)


def test_kinds_are_checked(toy_data: ImageData) -> None:
    labelled(ROWS * (1 + 5e-4), "probabilities", toy_data)  # as float16 rounds them
    with pytest.raises(InputError, match="did you mean 'logits'"):
        labelled(numbers(), "logit", toy_data)
    with pytest.raises(InputError, match="class numbers"):
        labelled(torch.zeros(6, dtype=torch.int64), "logits", toy_data)
    for wrong in (-ROWS, 2 * ROWS):
        with pytest.raises(InputError, match="not weighted"):
            labelled(wrong, "weighted", toy_data)


@pytest.mark.parametrize("kind", LABEL_KINDS)
def test_the_file_keeps_the_kind_and_the_default_keeps_its_bytes(toy_data: ImageData, kind: str, tmp_path: Path) -> None:
    made = labelled(of_kind(kind), kind, toy_data)
    made.save(tmp_path / "set.safetensors")
    again = CondensedSet.load(tmp_path / "set.safetensors")
    assert again.label_kind == again.to("cpu").label_kind == again.quantised().subset([0, 1, 2]).label_kind == kind
    assert torch.equal(again.labels, made.labels)
    header = json.loads(unpack(made.to_bytes())[0]["__metadata__"]["distill"])
    fields = {"format", "spec", "lr", "augmentation", "provenance", "quantisation"}
    assert (header["format"], set(header) - fields) == ((1, set()) if kind == "probabilities" else (2, {"label_kind"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, "format 1 and label_kind 'logits'"),
        ({"label_kind": None}, "format 2 and label_kind None"),
        ({"label_kind": "probabilities"}, "apply softmax"),
        ({"label_kind": "odds"}, "'odds' is not known"),
        ({"label_kind": 3}, "label_kind"),
        ({"format": 3}, "allowed: 1 or 2"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(change: dict[str, object], message: str) -> None:
    valid = small_set(0, soft=True, kind="logits").to_bytes()
    with pytest.raises(InputError, match=message):
        CondensedSet.from_bytes(_with_inner(valid, lambda inner: inner.update(change)))


def test_sets_of_different_kinds_are_not_joined(toy_data: ImageData) -> None:
    hard = select(toy_data, "random", 2, generator(0, "set"))
    soft, logits = (labelled(of_kind(kind), kind, toy_data) for kind in ("probabilities", "logits"))
    assert CondensedSet.concat([logits, logits]).label_kind == "logits"
    assert CondensedSet.concat([hard, soft]).label_kind == "probabilities"
    for pair in ([hard, logits], [soft, logits], [logits, hard]):
        with pytest.raises(InputError, match="label kinds differ"):
            CondensedSet.concat(pair)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("kind", ["logits", "scores"])
def test_no_method_starts_from_labels_that_it_would_misread(toy_data: ImageData, method: str, kind: str) -> None:
    with pytest.raises(InputError, match=f"initial set's labels are {kind}"):
        condense(toy_data, method, initial=labelled(numbers(), kind, toy_data))


def test_learned_soft_labels_are_probabilities(toy_data: ImageData) -> None:
    made = condense(toy_data, "mtt", ipc=2, soft_labels=True, lr_label=1000.0, **{**SHORT, "iterations": 3})
    assert made.label_kind == "probabilities"
    assert float((made.labels.sum(1) - 1).abs().max()) < 1e-6


# Whoever takes sets from elsewhere


@pytest.mark.parametrize("pixels", ["uint8", "float32"])
def test_an_upload_carries_probabilities_or_nothing(toy_data: ImageData, pixels: str) -> None:
    limits = Limits(toy_data.spec, (0, 1, 2), 6, pixels)
    soft = labelled(of_kind("probabilities"), "probabilities", toy_data)

    def sent(labels: Tensor | None = None) -> CondensedSet:
        arrays = encode(soft, pixels)
        if labels is not None:
            arrays["labels"] = labels.half().numpy()
        return decode({name: npy(array) for name, array in arrays.items()}, limits)

    assert sent().label_kind == "probabilities"
    for wrong in (numbers(), ROWS * 1.04, ROWS * 0.96, torch.zeros(6, 3)):
        with pytest.raises(InputError, match="no probabilities"):
            sent(wrong)
    for kind in ("logits", "scores", "weighted"):
        with pytest.raises(InputError, match="cannot be uploaded"):
            encode(labelled(of_kind(kind), kind, toy_data), pixels)


def test_a_weighted_union_says_so_and_is_learned_as_before(toy_data: ImageData) -> None:
    parts = [select(toy_data, "random", 1, generator(i, "set")) for i in range(2)]
    joined = union(parts, [torch.full((3,), share) for share in (1.0, 3.0)])
    assert joined.label_kind == "weighted"
    assert torch.allclose(joined.labels.sum(1), torch.tensor([0.5] * 3 + [1.5] * 3))
    assert union(parts).label_kind == "probabilities"
    with pytest.raises(InputError, match="label kinds differ"):
        CondensedSet.concat([joined, parts[0]])


def test_a_memory_takes_class_numbers_only(toy_data: ImageData) -> None:
    images, labels = toy_data.spec.normalise(toy_data.train.images), toy_data.train.labels
    assert condense_images(images, labels, "mtt", 2, 0, settings={**SHORT, "soft_labels": True}).labels.is_floating_point()
    with pytest.raises(InputError, match="soft labels; leave soft_labels out"):
        MemoryConfig("mtt", items=6, settings={**SHORT, "soft_labels": True})


def test_a_ledger_tells_kinds_apart(toy_data: ImageData) -> None:
    sets = [labelled(of_kind("probabilities"), kind, toy_data) for kind in ("probabilities", "logits", "scores")]
    assert len({set_key(one, toy_data, Recipe()) for one in sets}) == 3


def test_a_part_of_a_weighted_set_is_weighted_again() -> None:
    """Weights are relative: a part of heavy images has a mean of 1 again, and every part can be taken."""
    base = small_set(0)
    labels = torch.nn.functional.one_hot(base.labels, 3).float()
    labels *= torch.tensor([0.5, 1.0, 1.5])[base.labels][:, None] / torch.tensor([0.5, 1.0, 1.5])[base.labels].mean()
    weighted = dataclasses.replace(base, labels=labels, label_kind="weighted")
    for part in ([0], [1], [2], [0, 2]):
        assert float(weighted.subset(part).labels.sum(1).mean()) == pytest.approx(1.0)
    both = weighted.subset([0, 2]).labels.sum(1)
    assert float(both.max() / both.min()) == pytest.approx(3.0), "the relation stays"
