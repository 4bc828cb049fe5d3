"""Coresets chosen by networks trained on the data: scores, features and crops against slow definitions, one image at a time."""

import dataclasses
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.comparison import BASELINES, coreset_of, learner_set
from distill.configure import configure
from distill.coresets import CORESETS, EVERY, TRAINED, select
from distill.data import ImageData
from distill.errors import InputError
from distill.evaluation import LOOKS, Accuracy, Measured, accuracies, accuracy, evaluate
from distill.experts import train_experts
from distill.networks import create, embed
from distill.randomness import generator
from distill.recipe import Recipe
from distill.scored_coresets import (
    Scorer,
    error_norms,
    forgetting_events,
    gradient_norms,
    scored_crops,
    scores,
    trained,
)
from distill.teachers import Teacher, teacher_network
from distill.train import training
from scenarios.condense.schema import condense_study
from scenarios.engine.schema import evaluation_of, plain_values
from tests.conftest import toy
from tests.distill.test_evaluation import slow_herding, slow_kcenter

NET = "ConvNetD1W32"
SCORER = Scorer(network=NET, epochs=3, lr=0.05, batch_size=8)
QUICK = Recipe(max_steps=4, batch_size=8, augmentation="none", compile="off")


def network_of(data: ImageData, number: int = 0, epoch: int = 3, networks: int = 1) -> nn.Module:
    """The scorer's network, from the experts themselves."""
    scorer = dataclasses.replace(SCORER, networks=networks)
    weights = train_experts(data, scorer.training, NET, progress=False).weights(number, epoch)
    network = create(NET, data.spec, generator(5, "any")).eval()
    nn.utils.vector_to_parameters(weights, network.parameters())
    return network


# Scores


@pytest.mark.parametrize("seed", range(4))
def test_forgetting_is_counted_image_by_image(seed: int) -> None:
    correct = torch.rand((9, 40), generator=generator(seed, "correct")) < 0.6
    correct[:, 3] = False
    correct[:, 4] = True
    for column, found in zip(correct.T.tolist(), forgetting_events(correct).tolist(), strict=True):
        last, events, learned = False, 0, False
        for right in column:
            events += last and not right
            learned |= right
            last = right
        assert found == (events if learned else 9)
    assert forgetting_events(correct)[3:5].tolist() == [9, 0]


def test_error_norms_are_el2n() -> None:
    outputs, labels = torch.randn(6, 4, generator=generator(0, "o")), torch.tensor([0, 1, 2, 3, 0, 1])
    for row, label, found in zip(outputs.double(), labels, error_norms(outputs, labels), strict=True):
        expected = row.exp() / row.exp().sum()
        expected[label] -= 1
        assert float(found) == pytest.approx(float((expected**2).sum() ** 0.5), rel=1e-5)


@pytest.mark.parametrize("name", [NET, "MLP", "ConvNetD1W32LN", "LeNet"])
def test_gradient_norms_are_those_of_single_images(name: str) -> None:
    data = toy(side=28 if name == "LeNet" else 8)
    network = create(name, data.spec, generator(0, "net")).eval()
    images, labels = data.normalised("train", torch.arange(7)), data.train.labels[:7]
    found = gradient_norms(network, images, labels)
    for image, label, norm in zip(images, labels, found, strict=True):
        network.zero_grad()
        F.cross_entropy(network(image[None]), label[None]).backward()
        total = sum(float(p.grad.double().square().sum()) for p in network.parameters() if p.grad is not None)
        assert float(norm) == pytest.approx(total**0.5, rel=1e-4)


def slow_scores(data: ImageData, name: str, networks: int) -> Tensor:
    """Loops over networks, epochs and images."""
    total = torch.zeros(len(data.train), dtype=torch.float64)
    for number in range(networks):
        correct = []
        for epoch in range(1, 4):
            network = network_of(data, number, epoch, networks)
            row = []
            for place in range(len(data.train)):
                image, label = data.normalised("train", torch.tensor([place])), data.train.labels[place]
                outputs = network(image)
                row.append(int(outputs.argmax()) == int(label))
                if epoch == 3 and name == "el2n":
                    total[place] += float((outputs[0].detach().softmax(0) - F.one_hot(label, 3)).norm()) / networks
                if epoch == 3 and name == "grand":
                    gradients = torch.autograd.grad(F.cross_entropy(outputs, label[None]), list(network.parameters()))
                    total[place] += sum(float(g.square().sum()) for g in gradients) ** 0.5 / networks
            correct.append(row)
        if name == "forgetting":
            total += forgetting_events(torch.tensor(correct)).double() / networks
    return total


@pytest.mark.parametrize("networks", [1, 2])
@pytest.mark.parametrize("name", ["forgetting", "el2n", "grand"])
def test_a_score_is_the_mean_over_networks_and_the_hardest_are_chosen(name: str, networks: int) -> None:
    data, scorer = toy(), dataclasses.replace(SCORER, networks=networks)
    found, expected = scores(data, name, scorer), slow_scores(data, name, networks)
    assert torch.allclose(found, expected, rtol=1e-3)
    tiny = select(data, name, [3, 0, 5], generator(0, "set"), scorer=scorer)
    assert tiny.counts == (3, 0, 5)
    for label, count in ((0, 3), (2, 5)):
        places = [place for place in range(len(data.train)) if int(data.train.labels[place]) == label]
        hardest = sorted(places, key=lambda place: -float(found[place]))[:count]
        assert torch.equal(tiny.images[tiny.labels == label], data.normalised("train", torch.tensor(hardest)))
    assert scores(data, name, scorer) is found  # once for all seeds
    assert tiny.provenance.config["scorer"] == str(scorer)


# Features and crops


@pytest.mark.parametrize("name", ["herding", "kcenter"])
def test_features_are_those_of_the_trained_network(name: str) -> None:
    data = toy()
    network = network_of(data)
    tiny = select(data, f"{name}_features", 4, generator(0, "set"), scorer=SCORER)
    for label in range(3):
        pool = data.normalised("train", data.class_indices(label))
        rows = torch.cat([embed(network, image[None]).detach() for image in pool])
        picks = {"herding": slow_herding, "kcenter": slow_kcenter}[name](rows.double().numpy(), 4)
        assert torch.equal(tiny.images[tiny.labels == label], pool[picks])
    given = select(data, "kmeans", 4, generator(0, "set"), lambda images: embed(network, images))
    assert torch.equal(select(data, "kmeans_features", 4, generator(0, "set"), scorer=SCORER).images, given.images)


def test_a_scorer_shares_its_network_with_a_teacher() -> None:
    data = toy()
    teacher = teacher_network(data, Teacher(network=NET, epochs=3, lr=0.05, batch_size=8), progress=False)
    for mine, other in zip(trained(data, SCORER)(0, 3).parameters(), teacher.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_crops_are_the_ones_that_the_network_is_surest_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """All crops are recorded, and chosen from again by loops: the best of each image, then the best images."""
    data, drawn = toy(channels=3), list[Tensor]()
    from distill import scored_coresets

    def recorded(images: Tensor, boxes: Tensor) -> Tensor:
        assert torch.equal(boxes[:, 2], boxes[:, 3])
        drawn.append(resized(images, boxes))
        return drawn[-1]

    resized = scored_coresets.resized
    monkeypatch.setattr(scored_coresets, "resized", recorded)
    found = scored_crops(data, 1, 4, SCORER, generator(0, "crops"))
    assert [len(crops) for crops in drawn] == [12] * 5
    network, best = network_of(data), []
    for image in range(12):
        losses = [F.cross_entropy(network(crops[image][None]), torch.tensor([1])).item() for crops in drawn]
        place = losses.index(min(losses))
        best.append((losses[place], drawn[place][image]))
    expected = [crop for _, crop in sorted(best, key=lambda row: row[0])[:4]]
    assert torch.allclose(found, torch.stack(expected), atol=1e-6)


def test_rded_has_at_most_300_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.scored_coresets.CANDIDATES", 5)
    seen: list[int] = []
    monkeypatch.setattr(
        "distill.scored_coresets.boxes", lambda count, *given, **named: seen.append(count) or torch.tensor([[0.0, 0, 8, 8]] * count)
    )
    data = toy()
    scored_crops(data, 0, 2, SCORER, generator(0, "crops"))
    scored_crops(data, 0, 9, SCORER, generator(0, "crops"))
    assert seen == [5] * 5 + [9] * 5


# Where they are named


@pytest.mark.parametrize("name", TRAINED)
def test_a_baseline_has_the_sets_counts_and_the_same_seed_the_same_images(name: str) -> None:
    data = toy()
    one = select(data, "random", [4, 1, 2], generator(0, "set"))
    found, again = (learner_set(name, one, data, 0, SCORER) for _ in range(2))
    assert found.counts == one.counts
    assert torch.equal(found.images, again.images)
    other = learner_set(name, one, data, 1, SCORER)
    assert TRAINED[name].drawn or torch.equal(found.images, other.images)
    assert {f"{name}-decoded", f"{name}-labelled", f"{name}-decoded-labelled"} < set(BASELINES)
    assert coreset_of(f"{name}-decoded-labelled") == name
    assert not EVERY.keys() - CORESETS.keys() - TRAINED.keys()


def test_evaluate_says_what_chose_the_images() -> None:
    data = toy()
    tiny = select(data, "random", 2, generator(0, "set"))
    found = evaluate(tiny, data, network=NET, recipe=QUICK, seeds=1, baselines=("random", "el2n"), scorer=SCORER, progress=False)
    assert list(found.rows) == ["condensed", "random", "el2n"]
    assert "el2n: images chosen by what was trained on all real images, ConvNetD1W32 of 3 epochs" in str(found)
    plain = evaluate(tiny, data, network=NET, recipe=QUICK, seeds=1, baselines=("random",), progress=False)
    assert "images chosen" not in str(plain)


def test_wrong_scorers_and_names_are_one_line() -> None:
    data = toy()
    with pytest.raises(InputError, match="batch normalisation"):
        select(data, "grand", 1, generator(0, "set"), scorer=Scorer(network="ConvNetD1W32BN", epochs=1))
    with pytest.raises(InputError, match="did you mean 'el2n'"):
        select(data, "el2", 1, generator(0, "set"))
    for given, words in (
        ({"scorer": {"network": "ConvNot"}}, "key 'scorer'.*did you mean 'ConvNet"),
        ({"scorer": {"epochs": 0}}, "key 'scorer.epochs' is 0"),
        ({"scorer": {"augmentation": "flop"}}, "augmentation 'flop'"),
        ({"baselines": ["el2m"]}, "did you mean 'el2n'"),
    ):
        with pytest.raises(InputError, match=words):
            evaluation_of(given, "s.toml: [evaluation]")
    assert not {"scorer", "best"} & plain_values(evaluation_of({}, "s")).keys()
    assert configure(Scorer, {}, "scorer") == Scorer()


def test_private_studies_refuse_what_trains_on_private_images() -> None:
    from scenarios.catalogue import KINDS

    tables: dict[str, Any] = {"data": {"name": "digits"}, "method": {"ipc": 1}, "privacy": {"epsilon": [1.0]}}
    study = KINDS["privacy"].read
    for evaluation, words in (
        ({"baselines": ["el2n"]}, "trained on the private images without noise"),
        ({"baselines": ["herding_features"]}, "allowed: random"),
        ({"best": True}, "best reproduces"),
        ({"protocol": "rded"}, "a private set is released with its labels"),
    ):
        with pytest.raises(InputError, match=words):
            study("p", "t", {**tables, "evaluation": evaluation}, "p.toml")


# The best of several tests


def test_best_is_of_tests_during_the_training_and_the_last_step_still_counts(toy_data: ImageData) -> None:
    tiny = select(toy_data, "random", 2, generator(0, "set"))
    recipe = dataclasses.replace(QUICK, max_steps=40)
    plain, both = (
        evaluate(tiny, toy_data, network=NET, recipe=recipe, seeds=2, baselines=("random",), best=best, progress=False)
        for best in (False, True)
    )
    for name in ("condensed", "random"):
        row, other = both.rows[name][NET], plain.rows[name][NET]
        assert row.values == other.values
        assert other.best is None
        for seed, best in zip(range(2), row.best or (), strict=True):
            source = tiny if name == "condensed" else learner_set(name, tiny, toy_data, seed)
            tests = [accuracy(network, toy_data) for network in training(source, NET, recipe, seed, looks=LOOKS)]
            assert len(tests) == LOOKS
            assert (best, row.values[seed]) == (max(tests), tests[-1])
    assert "selected on the test set, only to reproduce published figures: condensed, ConvNetD1W32: " in str(both)
    assert "selected on" not in str(plain)


def test_best_is_recorded_and_read_again() -> None:
    row = Accuracy((70.0, 72.0), None, (75.0, 76.0))
    stored = json.loads(json.dumps(row.as_dict()))
    assert stored["best"]["mean"] == 75.5
    assert Accuracy.read(stored) == row
    one = Measured("dm", 3, 70.0, None, 75.0)
    assert Measured.read("dm", json.loads(json.dumps(one.line()))) == one
    assert "best" not in Measured("dm", 3, 70.0).line()
    assert "best" not in Accuracy((70.0,)).as_dict()


def test_a_study_reports_best_in_words(toy_data: ImageData) -> None:
    tables = {
        "data": {"name": "digits"},
        "method": {"name": "dm"},
        "evaluation": {"best": True, "scorer": {"epochs": 2}, "baselines": ["el2n"]},
    }
    made = condense_study("s", "t", tables, "s.toml")
    assert made.merged["evaluation"]["best"] is True
    assert made.merged["evaluation"]["scorer"]["epochs"] == 2
    (one,) = accuracies(select(toy_data, "random", 1, generator(0, "s")), toy_data, ["condensed"], NET, QUICK, [0], best=True)
    assert (one.best or 0) >= one.value
