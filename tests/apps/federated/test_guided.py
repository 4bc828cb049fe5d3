"""Strategies that guide their clients: each formula against loops written out, and what goes up and down round by round."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.federated.client_app import client_app
from apps.federated.guided import GUIDES, fedaf, fedmk, fedvck
from apps.federated.guided.guidance import Guidance, logits_of, losses_of
from apps.federated.guided_tables import FedMKConfig, FedVCKConfig
from apps.federated.inline import run_inline
from apps.federated.messages import Context, Message, RecordDict, parts_of, record_of
from apps.federated.rules import rule_for
from apps.federated.settings import Settings, from_mapping, method_config
from apps.federated.tables import ServerConfig
from apps.federated.union import learn
from apps.federated.wire import encode, encode_weights
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError
from distill.methods.dm import DMConfig
from distill.networks import create, embed_and_logits
from distill.randomness import generator
from distill.statistics import ExactStatistics
from distill.train import Recipe
from tests.conftest import toy

CLASSES, NETWORK = 3, "ConvNetD1W32"
RECIPE = {"max_steps": 6, "batch_size": 4, "optimiser": "adamw", "lr": 0.01, "schedule": "cosine", "augmentation": "none"}


def data() -> ImageData:
    return toy(classes=CLASSES, per_class=20)


def settings(strategy: str, **changes: Any) -> Settings:
    return from_mapping(
        {
            "strategy": strategy,
            "network": NETWORK,
            "rounds": 3,
            "partition": {"partitioner": "iid", "num_partitions": 2},
            "upload": {"ipc": 2, "settings": {"iterations": 3, "batch_real": 5}},
            "server": {"recipe": RECIPE},
            **changes,
        }
    )


def weights(seed: int) -> dict[str, Tensor]:
    return dict(create(NETWORK, data().spec, generator(seed, "net")).state_dict())


# Chances of real images


@pytest.mark.parametrize("seed", range(3))
def test_batches_are_drawn_with_the_chances_of_their_class(seed: int) -> None:
    given = torch.rand(len(data().train), generator=generator(seed, "chances"))
    given[data().class_indices(1)[:5]] = 0.0
    statistics, draws = ExactStatistics(data(), given), generator(seed, "draws")
    count = 20_000
    for place, label in enumerate(data().classes):
        drawn = data().by_class[statistics._drawn(place, count, draws)]
        own = data().class_indices(label)
        expected = (given[own] / given[own].sum()).double()
        found = torch.stack([(drawn == image).double().mean() for image in own])
        assert float(found.sum()) == pytest.approx(1), "no image of another class"
        assert bool(((found - expected).abs() <= 5 * (expected * (1 - expected) / count).sqrt()).all())


def test_chances_that_are_none_are_refused() -> None:
    good = torch.ones(len(data().train))
    with pytest.raises(InputError, match="one a training image"):
        ExactStatistics(data(), good[1:])
    for value in (-1.0, math.nan, math.inf):
        bad = good.clone()
        bad[3] = value
        with pytest.raises(InputError, match="numbers of at least 0"):
            ExactStatistics(data(), bad)
    with pytest.raises(InputError, match="drawn with given chances here"):
        ExactStatistics(data(), good).choose(lambda images: images.flatten(1), 2, generator(0, "choice"))
    bad = good.clone()
    bad[data().class_indices(2)] = 0
    with pytest.raises(InputError, match="class 2"):
        ExactStatistics(data(), bad)


def test_scores_are_those_of_the_papers_formulas() -> None:
    config = FedVCKConfig(gamma=1.7, threshold=0.3, mix=0.25)
    now, before = (torch.randn((len(data().train), CLASSES), generator=generator(k, "logits")) for k in (0, 1))
    found = fedvck.chances(now, before, data(), config)
    labels = data().train.labels.tolist()
    scores = []
    for row, label in enumerate(labels):
        z = [0.75 * float(now[row, k]) + 0.25 * float(before[row, k]) for k in range(CLASSES)]
        loss = math.log(sum(math.exp(value) for value in z)) - z[label]
        scores.append(1 / (1 + math.exp(-1.7 * (loss - 0.3))))
    for row, label in enumerate(labels):
        whole = sum(math.exp(score) for score, other in zip(scores, labels, strict=True) if other == label)
        assert float(found[row]) == pytest.approx(math.exp(scores[row]) / whole, rel=1e-5)
    losses = losses_of(now, data())
    assert torch.allclose(fedmk.weights_of(losses, FedMKConfig(2.0)), 1 / (1 + torch.exp(-2.0 * losses)))


def test_losses_are_of_the_received_model_in_evaluation_mode() -> None:
    found = logits_of(data(), NETWORK, weights(4))
    model = create(NETWORK, data().spec, generator(4, "net")).eval()
    with torch.no_grad():
        assert torch.allclose(found, model(data().normalised("train", torch.arange(len(data().train)))), atol=1e-5)


# FedVCK


@pytest.mark.parametrize("seed", range(3))
def test_the_contrastive_term_against_loops(seed: int) -> None:
    draws = generator(seed, "features")
    features = torch.randn((9, 6), generator=draws, dtype=torch.float64).requires_grad_(True)
    labels = torch.tensor([0, 0, 1, 2, 3, 1, 0, 2, 4])
    near = fedvck.nearest_classes(features.detach(), labels, 6, 2)
    means = {k: features.detach()[labels == k].mean(0) for k in range(5)}
    for k in range(5):
        by_angle = sorted((j for j in range(5) if j != k), key=lambda j: -float(F.cosine_similarity(means[k], means[j], dim=0)))
        assert near[k].nonzero().flatten().tolist() == sorted(by_angle[:2])
    assert not near[5].any()
    assert not near[:, 5].any()
    found = fedvck.contrast(features, labels, near, 0.1)
    terms = []
    for i in range(9):
        same = [j for j in range(9) if j != i and labels[j] == labels[i]]
        if not same:
            continue
        others = [j for j in range(9) if j != i and (labels[j] == labels[i] or near[labels[i], labels[j]])]

        def e(i: int, j: int) -> Tensor:
            return torch.exp(F.cosine_similarity(features[i], features[j], dim=0) / 0.1)

        whole = torch.stack([e(i, j) for j in others]).sum()
        terms.append(-torch.stack([torch.log(e(i, j) / whole) for j in same]).mean())
    expected = torch.stack(terms).mean()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-10)
    one, other = (torch.autograd.grad(value, features, retain_graph=True)[0] for value in (found, expected))
    assert torch.allclose(one, other, atol=1e-10)


def test_a_batch_without_pairs_has_no_contrast() -> None:
    features = torch.randn((3, 4), generator=generator(0, "f")).requires_grad_(True)
    found = fedvck.contrast(features, torch.tensor([0, 1, 2]), torch.ones(3, 3, dtype=torch.bool), 0.1)
    assert float(found.detach()) == 0
    (slope,) = torch.autograd.grad(found, features)
    assert not slope.any()


def a_union(soft: bool) -> CondensedSet:
    draws = generator(2, "union")
    labels = torch.arange(10) % CLASSES
    images = torch.randn((10, *data().spec.shape), generator=draws)
    return CondensedSet(images, F.one_hot(labels, CLASSES).float() if soft else labels, data().spec)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("augmentation", ["none", "color_crop"])
@pytest.mark.parametrize("radius", [None, 0.01])
def test_training_with_a_term_of_zero_is_the_plain_one(soft: bool, augmentation: str, radius: float | None) -> None:
    config = ServerConfig(Recipe(**{**RECIPE, "augmentation": augmentation}), radius)  # type: ignore[arg-type]
    plain = learn(weights(1), a_union(soft), NETWORK, config, 7)
    found = learn(weights(1), a_union(soft), NETWORK, config, 7, lambda network, images, labels: 0 * network(images).sum())
    assert all(torch.equal(found[name], value) for name, value in plain.items())


def test_a_term_is_part_of_the_loss() -> None:
    """One step of SGD from given weights, by hand."""
    config = ServerConfig(Recipe(max_steps=1, batch_size=10, lr=0.1, momentum=0.0, weight_decay=0.0, augmentation="none"))

    def term(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return 0.3 * network(images).square().mean()

    found = learn(weights(1), a_union(False), NETWORK, config, 0, term)
    model = create(NETWORK, data().spec, generator(1, "net")).train()
    images, labels = a_union(False).images, a_union(False).labels
    (F.cross_entropy(model(images), labels) + 0.3 * model(images).square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(found[name], parameter.detach() - 0.1 * parameter.grad, atol=1e-5)


def test_fedvck_learns_from_the_rounds_before_and_matches_in_the_received_network() -> None:
    made = settings("fedvck")
    assert getattr(method_config(made), "radius", None) == 0
    rule = rule_for(made, data().spec, 2)
    assert isinstance(rule, fedvck.FedVCK)
    assert rule.remembered == 9
    assert fedvck.FedVCK(settings("fedvck", rounds=40), data().spec).remembered == 19
    assert fedvck.FedVCK(settings("fedvck", server={"memory": 2, "recipe": RECIPE}), data().spec).remembered == 2


# FedMK


def test_an_upload_starts_from_the_shared_images_of_its_classes() -> None:
    """A step size that moves nothing: the upload is what came down, of a class no more than the client has."""
    made = settings("fedmk", upload={"ipc": 3, "pixels": "float32", "settings": {"iterations": 1, "lr_img": 1e-12}})
    images = torch.rand((9, *data().spec.shape), generator=generator(3, "shared"))
    shared = CondensedSet(images, torch.arange(CLASSES).repeat_interleave(3), data().spec)
    parts = parts_of(RecordDict({"control": record_of(encode(shared, "float32"))}), "control")
    both = data().subset([0, 2])
    rows = torch.cat([both.class_indices(0)[:2], both.class_indices(2)])
    few = ImageData(both.spec, both.train.at(rows), both.test, both.test)
    condensed, more = fedmk.client(few, made, 2, 0, Guidance(weights(0), None, parts), NETWORK)
    assert more == {}
    assert condensed.labels.tolist() == [0, 0, 2, 2, 2]
    assert torch.allclose(condensed.images, images[[0, 1, 6, 7, 8]], atol=1e-5)
    lacking = CondensedSet(images[:3], torch.zeros(3, dtype=torch.int64), data().spec)
    assert fedmk.start_from(lacking, few, made) is None


def test_shared_images_are_of_the_last_union() -> None:
    made = settings("fedmk", upload={"ipc": 2, "pixels": "float32"})
    rule = fedmk.FedMK(made, data().spec)
    assert rule.request(weights(0))[1] is None
    rule.shared = rule._shared(a_union(False), 1)
    _, control = rule.request(weights(0))
    assert control is not None
    counts = np.bincount(control["labels"].numpy(), minlength=CLASSES)
    assert counts.tolist() == [2, 2, 2]
    for image, label in zip(control["images"], control["labels"], strict=True):
        place = next(k for k, other in enumerate(a_union(False).images) if torch.equal(image, other))
        assert int(label) == place % CLASSES
    again = fedmk.FedMK(made, data().spec)
    again.load_state(rule.state())
    assert all(torch.equal(again.shared[name], value) for name, value in rule.shared.items())


# FedAF


def test_the_matching_network_is_partly_the_received_one() -> None:
    received = weights(1)
    made = create(fedaf.partly(NETWORK, received, 0.9), data().spec, generator(0, "draws"))
    whole = create(fedaf.partly(NETWORK, received, 1.0), data().spec, generator(0, "draws"))
    fresh = create(fedaf.partly(NETWORK, received, 0.0), data().spec, generator(0, "draws"))
    other = create(fedaf.partly(NETWORK, received, 0.9), data().spec, generator(1, "draws"))
    for name, value in made.state_dict().items():
        assert torch.equal(whole.state_dict()[name], received[name])
        assert torch.allclose(value, 0.9 * received[name] + 0.1 * fresh.state_dict()[name], atol=1e-6)
    assert any(not torch.equal(value, other.state_dict()[name]) for name, value in made.state_dict().items())


def test_clients_are_drawn_to_the_federations_mean_logits() -> None:
    """The loss of one step in float64, with features and logits of the network written out."""
    target = torch.zeros(CLASSES, CLASSES)
    target[0], target[2] = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, 0.1, 4.0])
    few = data().subset([0, 1, 2])
    statistics = fedaf.Targeted(few, target)
    config = DMConfig(iterations=1, lr_img=1.0, batch_real=100, network=NETWORK, augmentation="none", logits=True)
    labels = torch.arange(CLASSES).repeat_interleave(2)
    start = CondensedSet(torch.randn((6, *few.spec.shape), generator=generator(0, "start")), labels, few.spec)
    method = fedaf.Collaborative(config, start, None, weight=0.8)
    loss = float(method.step(statistics, generator(0, "step"))["loss"])
    network = method.network
    assert network is not None
    network = network.double()
    with torch.no_grad():
        expected = 0.0
        for label in range(CLASSES):
            real = embed_and_logits(network, few.normalised("train", few.class_indices(label)).double()).mean(0)
            made = embed_and_logits(network, start.images[labels == label].double()).mean(0)
            goal = real[-CLASSES:] if label == 1 else target[label].double()
            expected += float((real[:-CLASSES] - made[:-CLASSES]).square().sum())
            expected += 0.8 * float((goal - made[-CLASSES:]).square().sum()) / CLASSES
    assert loss == pytest.approx(expected, rel=1e-4)


def test_class_means_of_logits_and_soft_labels() -> None:
    logits = torch.randn((len(data().train), CLASSES), generator=generator(0, "logits"))
    rows = fedaf.class_rows(logits, data(), 5, 2.0)
    for label in range(CLASSES):
        own = [row for row, other in enumerate(data().train.labels.tolist()) if other == label]
        for k in range(CLASSES):
            assert float(rows["logits"][label, k]) == pytest.approx(sum(float(logits[row, k]) for row in own) / len(own), abs=1e-5)
            soft = [math.exp(float(logits[row, k]) / 2) / sum(math.exp(float(z) / 2) for z in logits[row]) for row in own]
            assert float(rows["soft"][label, k]) == pytest.approx(sum(soft) / len(own), abs=1e-5)
    assert not any(value.any() for value in fedaf.class_rows(logits, data(), 21, 2.0).values()), "no class has 21 images"
    one, other = torch.zeros(2, 2), torch.tensor([[1.0, 3.0], [0.0, 0.0]])
    one[0] = torch.tensor([3.0, -1.0])
    assert fedaf.mean_rows([one, other]).tolist() == [[2.0, 1.0], [0.0, 0.0]]


def test_the_divergence_of_mean_soft_labels_against_loops() -> None:
    outputs = torch.randn((7, CLASSES), generator=generator(0, "outputs"), dtype=torch.float64)
    labels, soft = (
        torch.tensor([0, 0, 1, 2, 2, 2, 1]),
        torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.0, 0.0], [0.1, 0.3, 0.6]], dtype=torch.float64),
    )
    found = fedaf.divergence(outputs, labels, soft, 2.0)
    expected = 0.0
    for label in (0, 2):
        rows = [(outputs[row] / 2).softmax(0) for row in range(7) if labels[row] == label]
        own = [sum(float(row[k]) for row in rows) / len(rows) for k in range(CLASSES)]
        for k in range(CLASSES):
            wanted = float(soft[label, k])
            expected += wanted * math.log(wanted / own[k]) + own[k] * math.log(own[k] / wanted)
    assert float(found) == pytest.approx(expected / 2, abs=1e-8)
    assert float(fedaf.divergence(outputs, labels, torch.zeros(CLASSES, CLASSES, dtype=torch.float64), 2.0)) == 0


# Rounds


class Recorded:
    """A client that remembers what went down and up."""

    def __init__(self) -> None:
        self.app, self.down, self.up = client_app(data()), [], []  # type: ignore[var-annotated]

    def __call__(self, message: Message, context: Context) -> Message:
        reply = self.app(message, context)
        if message.metadata.message_type == "train.condense":
            self.down.append((message.metadata.group_id, sorted(message.content)))
            self.up.append(sorted(reply.content))
        return reply


@pytest.mark.parametrize(("strategy", "control", "up"), [("fedvck", False, False), ("fedmk", True, False), ("fedaf", True, True)])
def test_what_goes_down_and_up(strategy: str, control: bool, up: bool) -> None:
    client = Recorded()
    lines = run_inline(settings(strategy), data(), client=client)
    assert [line["dropped"] for line in lines] == [0, 0, 0, 0]
    for number, names in client.down:
        assert "arrays" in names
        assert ("control" in names) == (control and number != "1")
    assert all(names == sorted(["facts", "upload", *(["more"] if up else [])]) for names in client.up)


@pytest.mark.parametrize("strategy", GUIDES)
def test_a_stopped_run_continues_to_the_same_bits(strategy: str, tmp_path: Path) -> None:
    whole = run_inline(settings(strategy), data(), tmp_path / "whole")
    app = client_app(data())

    def client(message: Message, context: Context) -> Message:
        if message.metadata.group_id == "3":
            raise KeyboardInterrupt
        return app(message, context)

    with pytest.raises(KeyboardInterrupt):
        run_inline(settings(strategy), data(), tmp_path / "stopped", client=client)
    again = run_inline(settings(strategy), data(), tmp_path / "stopped")
    assert [line["accuracy"] for line in again] == [line["accuracy"] for line in whole]
    assert (tmp_path / "whole" / "checkpoint.safetensors").read_bytes() == (tmp_path / "stopped" / "checkpoint.safetensors").read_bytes()


def test_fedvck_scores_with_the_weights_of_the_round_before(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool]] = []
    original = fedvck.chances

    def chances(now: Tensor, before: Tensor, own: ImageData, config: FedVCKConfig) -> Tensor:
        seen.append((now is before, torch.equal(now, before)))
        return original(now, before, own, config)

    monkeypatch.setattr(fedvck, "chances", chances)
    run_inline(settings("fedvck", rounds=2), data())
    assert seen == [(True, True), (True, True), (False, False), (False, False)]


@pytest.mark.parametrize("strategy", GUIDES)
@pytest.mark.parametrize("decode", ["none", "formation:2"])
def test_uploads_of_some_classes_and_forms(strategy: str, decode: str) -> None:
    upload = {"ipc": 2, "classes": [0, 2], "settings": {"iterations": 2, "batch_real": 5, "decode": decode}}
    lines = run_inline(settings(strategy, upload=upload, rounds=2), data())
    assert all(line["dropped"] == 0 for line in lines)
    assert [line["images"] for line in lines[1:]] == [8, 8]


@pytest.mark.parametrize("method", ["gm", "datadam", "dance"])
def test_fedmk_takes_other_methods(method: str) -> None:
    upload = {"ipc": 1, "method": method, "settings": {"iterations": 2, "batch_real": 5}}
    lines = run_inline(settings("fedmk", upload=upload, rounds=2), data())
    assert [line["dropped"] for line in lines] == [0, 0, 0]


@pytest.mark.parametrize("bad", ["nan", "shape", "name", "lacking", "large", "negative", "sums"])
def test_means_that_are_none_lose_the_upload_and_nothing_else(bad: str) -> None:
    app = client_app(data())

    def client(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type == "train.condense" and context.node_config["partition-id"] == 1:
            logits, soft = torch.full((CLASSES, CLASSES), {"nan": math.nan, "large": 2000.0}.get(bad, 1.0)), torch.eye(CLASSES)
            if bad == "negative":
                soft[0] = torch.tensor([1.5, -0.5, 0.0])
            if bad == "sums":
                soft *= 0.5
            tensors = {"logits": logits[:2] if bad == "shape" else logits, ("other" if bad == "name" else "soft"): soft}
            if bad == "lacking":
                del reply.content["more"]
            else:
                reply.content["more"] = record_of(encode_weights(tensors))
        return reply

    lines = run_inline(settings("fedaf"), data(), client=client)
    assert [line["dropped"] for line in lines] == [0, 1, 1, 1]
    assert {each["status"] for line in lines[1:] for each in line["clients"] if each["client"] == 1} == {"refused"}


def test_what_a_server_sends_is_checked() -> None:
    made = settings("fedmk", upload={"ipc": 1, "pixels": "float32", "settings": {"iterations": 1}})
    images = torch.rand((6, *data().spec.shape), generator=generator(0, "many"))
    many = CondensedSet(images, torch.arange(CLASSES).repeat_interleave(2), data().spec)
    parts = parts_of(RecordDict({"control": record_of(encode(many, "float32"))}), "control")
    with pytest.raises(InputError, match="6 images; allowed: 1 to 3"):
        fedmk.client(data(), made, 2, 0, Guidance(weights(0), None, parts), NETWORK)
    wrong = parts_of(RecordDict({"control": record_of(encode_weights({"logits": torch.ones(2, 2)}))}), "control")
    with pytest.raises(InputError, match="mean logits logits"):
        fedaf.client(data(), settings("fedaf"), 2, 0, Guidance(weights(0), None, wrong), NETWORK)


@pytest.mark.parametrize(
    ("strategy", "changes", "words"),
    [
        ("fedvck", {"upload": {"networks": "fresh"}}, "fedvck's clients use the server's model; allowed: received"),
        ("fedaf", {"upload": {"method": "gm"}}, "allowed for fedaf: dm"),
        ("fedmk", {"upload": {"warm_start": True}}, "upload.warm_start is on"),
        ("fedaf", {"server": {"recipe": {"mix": "cutmix"}}}, "server.recipe.mix is 'cutmix'"),
        ("fedvck", {"privacy": {"epsilon": 1.0}}, "strategy 'fedvck' has no private form"),
        ("fedmk", {"upload": {"method": "mtt"}}, "allowed for fedmk: methods that draw real batches"),
        ("fedmk", {"upload": {"settings": {"real_batches": "kmeans"}}}, "upload.real_batches is given"),
        ("fedvck", {"upload": {"settings": {"radius": 5.0}}}, "upload.radius is 5.0, and fedvck sets it to 0.0"),
        ("fedaf", {"upload": {"settings": {"radius": 5.0}}}, "upload.radius is 5.0, and fedaf sets it to None"),
        ("fedaf", {"upload": {"settings": {"logits": False}}}, "upload.logits is False, and fedaf sets it to True"),
        ("fedaf", {"upload": {"settings": {"calibration": 1.0}}}, "upload.pool or calibration is given"),
        ("fedvck", {"upload": {"settings": {"pool": "blend"}}}, "upload.pool or calibration is given"),
    ],
)
def test_settings_that_do_not_fit_are_refused(strategy: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        settings(strategy, **changes)
