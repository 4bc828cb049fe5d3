"""Soft labels: losses against slow definitions, teachers, and comparisons with the same labels for all."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.comparison import LABELLED, learner_set, recipe_of, rows_of, training_of
from distill.condensed import CondensedSet, Provenance
from distill.configure import configure
from distill.coresets import select
from distill.data import ImageData
from distill.decode import Formation
from distill.errors import InputError
from distill.evaluation import accuracies, accuracy, evaluate
from distill.experts import flat
from distill.mixing import Mixed, mixed
from distill.networks import create
from distill.randomness import generator
from distill.soft_losses import SOFT_LOSSES, Goal
from distill.teachers import Teacher, labelled, teacher_network
from distill.train import Recipe, train_network
from scenarios.catalogue import run_study, study
from scenarios.cli import main
from scenarios.engine.schema import evaluation_of, plain_values
from scenarios.engine.study import Options
from tests.conftest import toy

K, N, TEMPERATURE = 5, 7, 4.0
TEACHER = Teacher(network="MLP", epochs=2, lr=0.05, batch_size=32)
SHORT = Recipe(epochs=1000, max_steps=12, batch_size=8, lr=0.05, compile="off", augmentation="crop")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(N, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The losses, one image and one class after the other


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    highest = max(row)
    parts = [math.exp((value - highest) / temperature) for value in row]
    return [part / sum(parts) for part in parts]


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def slow(name: str, outputs: Tensor, target: Tensor, hard: Tensor, *, are_logits: bool) -> float:
    total = 0.0
    for z, t, h in zip(outputs.tolist(), target.tolist(), hard.tolist(), strict=True):
        if name == "ce":
            p, q = softmax(t) if are_logits else t, softmax(z)
            total -= sum(a * math.log(b) for a, b in zip(p, q, strict=True))
        elif name == "kl":
            # Probabilities are softened as the softmax of their logarithms.
            p, q = softmax(t if are_logits else [math.log(value) for value in t], TEMPERATURE), softmax(z, TEMPERATURE)
            total += TEMPERATURE**2 * sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
        elif name == "mse":
            total += sum((a - b) ** 2 for a, b in zip(z, t, strict=True)) / K
        elif name == "cosine":
            total += 1 - cosine(z, t)
        else:
            smooth = [0.9 * value + 0.1 / K for value in h]
            refined = [a / math.hypot(*t) + 0.1 * b / math.hypot(*smooth) for a, b in zip(t, smooth, strict=True)]
            total += 1 - cosine(z, refined)
    return total


@pytest.mark.parametrize("are_logits", [True, False])
@pytest.mark.parametrize("name", SOFT_LOSSES)
def test_a_loss_is_its_definition(name: str, are_logits: bool) -> None:
    for seed in range(3):
        outputs, target = logits(seed), logits(seed + 100)
        target = target if are_logits else target.softmax(1)
        labels = torch.randint(K, (N,), generator=torch.Generator().manual_seed(seed))
        hard = nn.functional.one_hot(labels, K).double()
        loss = SOFT_LOSSES[name]
        found = loss.compare(outputs, loss.prepare(target, "logits" if are_logits else "probabilities", TEMPERATURE), hard, TEMPERATURE)
        assert float(found) == pytest.approx(slow(name, outputs, target, hard, are_logits=are_logits), abs=1e-10, rel=1e-10)


@pytest.mark.parametrize("name", ["ce", "kl", "mse", "cosine"])
def test_a_loss_is_least_where_outputs_are_the_labels(name: str) -> None:
    target, loss = logits(1), SOFT_LOSSES[name]
    prepared, hard = loss.prepare(target, "logits", TEMPERATURE), torch.zeros(N, K, dtype=torch.float64)
    outputs = target.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss.compare(outputs, prepared, hard, TEMPERATURE), outputs)
    assert float(gradient.abs().max()) < 1e-12
    for seed in range(3):
        moved = target + 0.3 * logits(seed + 50)
        assert loss.compare(moved, prepared, hard, TEMPERATURE) > loss.compare(target, prepared, hard, TEMPERATURE)


def test_large_temperatures_compare_centred_logits() -> None:
    """T^2 KL tends to half the mean square of the centred difference (Hinton, Vinyals and Dean, 2015, section 2.1)."""
    outputs, target, loss = logits(1), logits(2), SOFT_LOSSES["kl"]
    found = loss.compare(outputs, loss.prepare(target, "logits", 1e4), torch.zeros(N, K), 1e4)
    difference = (outputs - outputs.mean(1, keepdim=True)) - (target - target.mean(1, keepdim=True))
    assert float(found) == pytest.approx(float(difference.square().mean(1).sum() / 2), rel=1e-3)


@pytest.mark.parametrize("name", ["ce", "mse"])
def test_mixed_labels_have_the_gradient_of_mixed_losses(name: str) -> None:
    """Stored labels of two mixed images are mixed; that is the loss of both, weighted, up to a number without a gradient."""
    goal, share = Goal(name, 1.0, 0.2, K, stored=logits(9)), 0.3
    other = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    labels, rows = torch.arange(N) % K, torch.arange(N)
    views = torch.zeros(N, 1, 2, 2, dtype=torch.float64)
    outputs = logits(3).requires_grad_()
    both = goal(outputs, *goal.targets(views, labels, rows, Mixed(views, other, share)))
    each = share * goal(outputs, *goal.targets(views, labels, rows, None))
    each = each + (1 - share) * goal(outputs, *goal.targets(views, labels[other], rows[other], None))
    ours, theirs = (torch.autograd.grad(loss, outputs, retain_graph=True)[0] for loss in (both, each))
    assert torch.allclose(ours, theirs, atol=1e-12)


class Doubling(nn.Module):
    """Outputs that depend on the image: the mean of the first pixels, and its double."""

    def forward(self, images: Tensor) -> Tensor:
        first = images.flatten(1)[:, :3].mean(1, keepdim=True)
        return first * torch.arange(1, K + 1, dtype=images.dtype)


def test_a_teacher_sees_the_mixed_view_and_hard_labels_are_shared() -> None:
    images = torch.randn(N, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both = mixed(images, "mixup", torch.Generator().manual_seed(3))
    assert both is not None
    labels = torch.arange(N) % K
    prepared, shares = Goal("mse", 1.0, 0.5, K, teacher=Doubling()).targets(both.images, labels, torch.arange(N), both)
    assert torch.allclose(prepared, Doubling()(both.images))
    expected = torch.zeros(N, K, dtype=torch.float64)
    for place in range(N):
        expected[place, labels[place]] += both.share
        expected[place, labels[both.other[place]]] += 1 - both.share
    assert torch.allclose(shares, expected)
    outputs = logits(0)
    hard = -sum(float(expected[i] @ outputs[i].log_softmax(0)) for i in range(N))
    square = float((outputs - prepared).square().mean(1).sum())
    assert float(Goal("mse", 1.0, 0.5, K)(outputs, prepared, shares)) == pytest.approx(square + 0.5 * hard, rel=1e-10)


@pytest.mark.parametrize(("kind", "name"), [("weighted", "ce"), ("scores", "kl"), ("weighted", "mse")])
def test_labels_of_another_kind_are_refused(kind: str, name: str) -> None:
    with pytest.raises(InputError, match=f"loss '{name}' does not take soft labels of the kind '{kind}'"):
        Goal(name, 1.0, 0.0, K, kind=kind)


# Training


def test_a_recipe_without_soft_labels_trains_the_same_bits_as_before(toy_data: ImageData) -> None:
    """ "ce" with class numbers is the loss that a recipe has without it, up to the order of sums."""
    tiny = select(toy_data, "random", 2, generator(0, "t"))
    for mix in (None, "mixup"):
        plain, named = (train_network(tiny, "MLP", dataclasses.replace(SHORT, mix=mix, loss=loss), 0) for loss in (None, "ce"))
        assert torch.allclose(flat(plain), flat(named), atol=1e-5)


def test_a_networks_training_with_a_teacher_is_a_plain_loop(toy_data: ImageData) -> None:
    """SGD on T^2 KL to the teacher's outputs on the images, without augmentation, in one batch."""
    tiny, teacher = select(toy_data, "random", 2, generator(0, "t")), teacher_network(toy_data, TEACHER)
    recipe = Recipe(
        epochs=3, batch_size=64, lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant", augmentation="none", compile="off", loss="kl"
    )
    recipe = dataclasses.replace(recipe, temperature=TEMPERATURE, teacher=TEACHER)
    found = train_network(tiny, "MLP", recipe, 5, teacher=teacher)
    model = create("MLP", tiny.spec, generator(5, "weights"))
    with torch.no_grad():
        targets = (teacher(tiny.images) / TEMPERATURE).softmax(1)
    for _ in range(3):
        q = (model(tiny.images) / TEMPERATURE).log_softmax(1)
        loss = TEMPERATURE**2 * (targets * (targets.log() - q)).sum() / len(tiny)
        for parameter, gradient in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
            parameter.data -= 0.1 * gradient
    assert torch.allclose(flat(found), flat(model), atol=1e-5)
    once = train_network(
        tiny, "MLP", dataclasses.replace(recipe, teacher=dataclasses.replace(TEACHER, labels="images")), 5, teacher=teacher
    )
    assert torch.allclose(flat(found), flat(once), atol=1e-6), "without augmentation every view is the image"


def test_a_teacher_is_trained_once_and_stops_early(toy_data: ImageData, tmp_path: Path) -> None:
    first = teacher_network(toy_data, TEACHER, progress=False)
    files = sorted((tmp_path / "cache").rglob("*.safetensors"))
    times = [path.stat().st_mtime_ns for path in files]
    assert len(files) == 1
    again, early = (teacher_network(toy_data, teacher, progress=False) for teacher in (TEACHER, dataclasses.replace(TEACHER, stop=1)))
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "cache").rglob("*.safetensors"))] == times
    assert not any(parameter.requires_grad for parameter in first.parameters())
    weights = [torch.cat([p.flatten() for p in network.parameters()]) for network in (first, again, early)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    with pytest.raises(InputError, match="batch normalisation"):
        teacher_network(toy_data, Teacher(network="ConvNetBN", epochs=1))


# Comparisons


def test_baselines_with_the_same_labels_have_the_same_images(toy_data: ImageData) -> None:
    tiny = select(toy_data, "random", 2, generator(0, "t"))
    recipe = dataclasses.replace(SHORT, teacher=TEACHER, loss="mse", hard_weight=0.1)
    assert rows_of(["random", "herding", "whole"], tiny, recipe) == [
        *("random", "herding", "random-labelled", "herding-labelled", "label-only", "whole")
    ]
    assert rows_of(["random", "whole"], tiny, SHORT) == ["random", "whole"]
    for seed in range(2):
        plain, labelled = (learner_set(name, tiny, toy_data, seed) for name in ("random", "random-labelled"))
        assert torch.equal(plain.images, labelled.images)  # type: ignore[union-attr]
    assert recipe_of("condensed", recipe, None) == recipe_of("random-labelled", recipe, None) == recipe
    for name in ("random", "whole"):
        own = recipe_of(name, recipe, None)
        assert own == SHORT
    with pytest.raises(InputError, match="random-labelled has the labels of the recipe's teacher, and the recipe has none"):
        evaluate(tiny, toy_data, network="MLP", recipe=SHORT, seeds=1, baselines=["random-labelled"], progress=False)
    assert set(LABELLED) == {f"{name}-labelled" for name in LABELLED.values()}


def test_label_only_is_noise_with_the_teachers_labels(toy_data: ImageData) -> None:
    tiny = select(toy_data, "random", [1, 3, 2], generator(0, "t"))
    form = Formation(2)
    four = dataclasses.replace(tiny, images=form.encoded(torch.cat([tiny.images] * 4), toy_data.spec), decode=form)
    recipe = dataclasses.replace(SHORT, teacher=TEACHER, loss="mse")
    for condensed, count in ((tiny, 6), (four, 24)):
        made, other = (learner_set("label-only", condensed, toy_data, seed) for seed in (0, 1))
        assert isinstance(made, CondensedSet)
        assert made.counts == tuple(count // 6 * each for each in (1, 3, 2))
        assert not torch.equal(made.images, other.images)  # type: ignore[union-attr]
        assert training_of("label-only", condensed, toy_data, recipe).images == len(made) == count
    several = [learner_set("label-only", tiny, toy_data, seed).images for seed in range(30)]  # type: ignore[union-attr]
    noise = torch.cat(several).flatten()
    assert abs(float(noise.mean())) < 0.05, "standard normal, whatever the data are"
    assert abs(float(noise.std()) - 1) < 0.05
    assert recipe_of("label-only", recipe, None) == recipe
    (one,) = accuracies(tiny, toy_data, ["label-only"], "MLP", recipe, [1])
    ours = train_network(learner_set("label-only", tiny, toy_data, 1), "MLP", recipe, 1, teacher=teacher_network(toy_data, TEACHER))
    assert one.value == accuracy(ours, toy_data)
    with pytest.raises(InputError, match="baseline label-only has the labels of the recipe's teacher, and the recipe has none"):
        rows_of(["label-only"], tiny, SHORT)


def test_an_evaluation_trains_its_teacher_and_states_it(toy_data: ImageData) -> None:
    tiny = select(toy_data, "random", 2, generator(0, "t"))
    recipe = dataclasses.replace(SHORT, teacher=TEACHER, loss="kl", temperature=2.0)
    found = evaluate(tiny, toy_data, network="MLP", recipe=recipe, seeds=2, baselines=["random", "whole"], progress=False)
    assert list(found.rows) == ["condensed", "random", "random-labelled", "label-only", "whole"]
    labelled, plain = found.training["random-labelled"], found.training["random"]
    assert (labelled.images, labelled.steps, labelled.bytes) == (plain.images, plain.steps, plain.bytes)
    assert plain.labels == "class"
    assert labelled.labels.startswith("MLP of 2 epochs")
    teacher = teacher_network(toy_data, TEACHER)
    weights = sum(4 * p.numel() for p in teacher.parameters())
    (note,) = [note for note in found.notes if "teacher" in note]
    assert f"{weights:,} bytes" in note
    assert "loss kl at temperature 2" in str(found)
    assert "teacher MLP of 2 epochs" in str(found)
    ours = train_network(learner_set("random", tiny, toy_data, 1), "MLP", found.recipe, 1, teacher=teacher)
    (one,) = accuracies(tiny, toy_data, ["random-labelled"], "MLP", recipe, [1])
    assert one.value == accuracy(ours, toy_data) == found.rows["random-labelled"]["MLP"].values[1]


def test_a_private_set_takes_no_labels_of_a_teacher_without_noise(toy_data: ImageData) -> None:
    tiny = select(toy_data, "random", 2, generator(0, "t"))
    private = dataclasses.replace(tiny, provenance=Provenance("dm", dp={"epsilon": 1.0}))
    with pytest.raises(InputError, match="privacy guarantee, and a teacher trained on the images without noise would end it"):
        evaluate(private, toy_data, network="MLP", recipe=dataclasses.replace(SHORT, teacher=TEACHER), seeds=1, progress=False)


def test_a_recipe_with_a_teacher_needs_its_network(toy_data: ImageData) -> None:
    with pytest.raises(InputError, match="the recipe has a teacher, whose network is not trained here"):
        train_network(select(toy_data, "random", 1, generator(0, "t")), "MLP", dataclasses.replace(SHORT, teacher=TEACHER), 0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"temperature": 2.0}, "temperature with loss 'kl'"),
        ({"loss": "mse", "temperature": 2.0}, "temperature with loss 'kl'"),
        ({"loss": "kll"}, "loss"),
        ({"hard_weight": 0.1}, "name a loss or a teacher"),
        ({"teacher": {"epochs": 3, "stop": 4}}, "stop is 4; allowed: at most its 3 epochs"),
        ({"teacher": {"epochs": 1, "stop": 4}}, r"stop is 4; allowed: at most its 1 epoch\."),
        ({"teacher": {"epoch": 3}}, "epoch"),
        ({"teacher": {"labels": "all"}}, "labels"),
    ],
)
def test_wrong_recipes_are_one_line(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        configure(Recipe, given, "recipe")
    assert "\n" not in str(caught.value)


def test_a_study_names_what_is_wrong_and_keeps_its_hash() -> None:
    for given, words in (
        ({"recipe": {"teacher": {"network": "ConvNot"}}}, "recipe.teacher.*did you mean 'ConvNet'"),
        ({"recipe": {"teacher": {"augmentation": "flop"}}}, "recipe.teacher.*augmentation 'flop'"),
        ({"baselines": ["random-labelled"]}, r"give a table \[evaluation.recipe.teacher\]"),
    ):
        with pytest.raises(InputError, match=words):
            evaluation_of(given, "s.toml: [evaluation]")
    plain = plain_values(evaluation_of({"recipe": {"max_steps": 3}}, "s"))
    assert not {"loss", "temperature", "hard_weight", "teacher"} & plain["recipe"].keys()
    taught = plain_values(evaluation_of({"recipe": {"loss": "gift", "teacher": {"epochs": 3}}, "baselines": ["random-labelled"]}, "s"))
    assert (taught["recipe"]["loss"], taught["recipe"]["teacher"]["epochs"]) == ("gift", 3)


def test_stored_logits_have_the_loss_that_the_recipe_names(toy_data: ImageData) -> None:
    tiny = select(toy_data, "random", 2, generator(0, "t"))
    teacher = teacher_network(toy_data, TEACHER)
    with torch.no_grad():
        stored: CondensedSet = dataclasses.replace(tiny, labels=teacher(tiny.images), label_kind="logits")
    recipe = dataclasses.replace(SHORT, loss="mse")
    ours = train_network(stored, "MLP", recipe, 0)
    images = dataclasses.replace(recipe, teacher=dataclasses.replace(TEACHER, labels="images"))
    assert torch.allclose(flat(ours), flat(train_network(tiny, "MLP", images, 0, teacher=teacher)), atol=1e-6)
    assert not torch.allclose(flat(ours), flat(train_network(stored, "MLP", SHORT, 0)))


def test_a_study_trains_its_teacher_and_the_command_line_names_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables: dict[str, Any] = {
        "kind": "condense",
        "data": {"name": "digits"},
        "method": {"name": "dm", "ipc": 1, "iterations": 2, "network": "ConvNetD1W32", "batch_real": 8},
        "evaluation": {"networks": ["MLP"], "seeds": 1, "baselines": ["random"], "recipe": {"max_steps": 3, "loss": "mse"}},
    }
    tables["evaluation"]["recipe"]["teacher"] = {"network": "MLP", "epochs": 1}
    folder, record = run_study(study("tiny", tables, "s.toml"), Options(out=tmp_path / "runs", quiet=True))
    part = record["results"]["ipc1"]
    assert list(part["accuracy"]) == ["dm", "random", "random-labelled", "label-only"]
    assert any("teacher, MLP of 1 epoch (" in note for note in part["notes"])
    names = [str(folder / "condensed.safetensors"), "--data", "digits", "--network", "MLP", "--seeds", "1", "--baseline", "random"]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *names, "--teacher", "MLP:1", "--loss", "kl", "--temperature", "2"])
    assert not ended.value.code
    out = capsys.readouterr().out
    assert "random-labelled" in out
    assert "loss kl at temperature 2" in " ".join(out.split())
    for wrong, words in ((["--teacher", ":3"], "NETWORK:EPOCHS"), (["--temperature", "2"], "loss 'kl'"), (["--teacher", "MPL:1"], "MLP")):
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", *names, *wrong])
        assert ended.value.code == 2
        assert words in " ".join(capsys.readouterr().err.split())


def test_a_private_study_takes_a_teacher_within_its_budget_only() -> None:
    pytest.importorskip("opacus")
    teacher: dict[str, Any] = {"epochs": 1, "labels": "images"}
    given: dict[str, Any] = {"kind": "privacy", "privacy": {}, "method": {"name": "dm"}, "evaluation": {"recipe": {"teacher": teacher}}}
    study("s", given, "s.toml")
    for change, words in (
        ({"privacy": "gone", "attack": {}}, "a teacher is trained on the private images without noise"),
        ({"evaluation": {"recipe": {"teacher": {"epochs": 1}}}}, 'set recipe.teacher.labels = "images"'),
        ({"attack": {}}, r"\[attack\] trains on others; make it a separate study"),
    ):
        tables = {key: table for key, table in {**given, **change}.items() if table != "gone"}
        with pytest.raises(InputError, match=words):
            study("s", tables, "s.toml")


def test_stored_labels_are_the_teachers_outputs_and_need_no_teacher_any_more(tmp_path: Path) -> None:
    data = toy()
    plain = select(data, "random", [2] * 3, generator(0, "set"))
    network = teacher_network(data, TEACHER)
    made = labelled(plain, data, TEACHER)
    assert torch.equal(made.labels, network(plain.images))
    assert made.nbytes == plain.nbytes - plain.labels.numel() * 8 + 6 * 3 * 4
    made.save(tmp_path / "set.safetensors")
    again = CondensedSet.load(tmp_path / "set.safetensors")
    assert (again.label_kind, again.provenance.config["teacher"]) == ("logits", str(TEACHER))
    once = dataclasses.replace(SHORT, loss="ce", teacher=dataclasses.replace(TEACHER, labels="images"))
    expected = flat(train_network(plain, "MLP", once, 0, teacher=network))
    assert torch.allclose(flat(train_network(again, "MLP", SHORT, 0)), expected, atol=1e-6)
    four = dataclasses.replace(plain, images=Formation(2).encoded(torch.cat([plain.images] * 4), data.spec), decode=Formation(2))
    outputs = network(four.decoded().images)
    assert torch.allclose(labelled(four, data, TEACHER).labels, torch.stack([part.mean(0) for part in outputs.split(4)]), atol=1e-6)
    secret = dataclasses.replace(plain, provenance=Provenance("dm", dp={"epsilon": 1.0}))
    with pytest.raises(InputError, match="this set has a privacy guarantee"):
        labelled(secret, data, TEACHER)
