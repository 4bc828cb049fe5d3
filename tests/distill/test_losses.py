"""Every method against slow definitions written out here: Python loops, float64, autograd one image at a time."""

import math

import pytest
import torch
import torch.nn.functional as F

from benchmarks import plain
from distill.adjoint import Matched
from distill.augment import apply, draw, strategy
from distill.batches import mean_gradient
from distill.condensed import CondensedSet
from distill.matching import gradient_distance, mean_distance
from distill.methods.datadam import FORMS, DataDAM, DataDAMConfig
from distill.methods.dm import DM, DMConfig
from distill.methods.dsa import DSA, DSAConfig
from distill.methods.gm import GM, INNER_EPOCHS, GMConfig, loops
from distill.methods.mtt import MTT, MTTConfig, shortened
from distill.networks import create, embed_and_logits
from distill.randomness import generator
from distill.statistics import ExactStatistics
from tests.conftest import toy


def slow_layerwise(real: list[torch.Tensor], synthetic: list[torch.Tensor]) -> float:
    total = 0.0
    for r, s in zip(real, synthetic, strict=True):
        if r.ndim == 1:
            continue
        for row_r, row_s in zip(r.reshape(len(r), -1).tolist(), s.reshape(len(s), -1).tolist(), strict=True):
            dot = sum(a * b for a, b in zip(row_r, row_s, strict=True))
            norms = math.sqrt(sum(a * a for a in row_r)) * math.sqrt(sum(b * b for b in row_s))
            total += 1 - dot / (norms + 1e-6)
    return total


@pytest.mark.parametrize("seed", range(3))
def test_gradient_distances(seed: int) -> None:
    draws = generator(seed, "distance")
    shapes = [(4, 3, 3, 3), (4,), (5, 2, 2), (6, 7), (6,)]
    real, synthetic = ([torch.randn(s, generator=draws, dtype=torch.float64) for s in shapes] for _ in range(2))
    assert float(gradient_distance(real, synthetic)) == pytest.approx(slow_layerwise(real, synthetic), rel=1e-12)
    a = [v for r in real for v in r.flatten().tolist()]
    b = [v for s in synthetic for v in s.flatten().tolist()]
    mse = sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    cosine = 1 - sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b) + 1e-6)
    assert float(gradient_distance(real, synthetic, "mse")) == pytest.approx(mse, rel=1e-12)
    assert float(gradient_distance(real, synthetic, "cosine")) == pytest.approx(cosine, rel=1e-12)
    # Of equal gradients only the small constant beside the norms is left, one a row.
    assert float(gradient_distance(real, real)) == pytest.approx(0.0, abs=1e-5)
    assert float(gradient_distance(real, [-r for r in real])) == pytest.approx(2 * (4 + 5 + 6), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_mean_distance(seed: int) -> None:
    real, synthetic = torch.randn(2, 4, 9, generator=generator(seed, "means"), dtype=torch.float64)
    slow = sum((float(real[k, d]) - float(synthetic[k, d])) ** 2 for k in range(4) for d in range(9))
    assert float(mean_distance(real, synthetic)) == pytest.approx(slow, rel=1e-12)


NET = "ConvNetD2W32"


def start(ipc: int = 2) -> tuple[ExactStatistics, CondensedSet]:
    """A toy whose batches are the whole class, so that the only chance left is network and augmentation."""
    statistics = ExactStatistics(toy())
    labels = torch.arange(3).repeat_interleave(ipc)
    images = torch.randn(len(labels), 1, 8, 8, generator=generator(1, "start"))
    return statistics, CondensedSet(images, labels, statistics.spec)


def replay(seed: int, statistics: ExactStatistics, text: str) -> tuple[torch.nn.Module, list[object]]:
    """The network and the augmentation parameters that a step with this seed draws, drawn again with the public functions."""
    draws = generator(seed, "steps")
    network = create(NET, statistics.spec, draws).double()
    return network, [draw(strategy(text), draws, 8, 8, None) for _ in statistics.classes]


@pytest.mark.parametrize("augmentation", ["none", "color_crop_cutout_scale_rotate"])
@pytest.mark.parametrize("seed", range(4))
def test_dm_step(seed: int, augmentation: str) -> None:
    """Loss and image update of one DM step, against one image at a time in float64."""
    statistics, initial = start()
    method = DM(DMConfig(network=NET, augmentation=augmentation, batch_real=100, lr_img=0.3), initial)
    loss = float(method.step(statistics, generator(seed, "steps"))["loss"])

    network, parameters = replay(seed, statistics, augmentation)
    images = initial.images.double().requires_grad_(True)
    total = torch.zeros((), dtype=torch.float64)
    for c in range(3):
        real = statistics.data.normalised("train", statistics.data.class_indices(c)).double()
        real_mean = sum(network.embed(apply(x[None], parameters[c])).detach()[0] for x in real) / len(real)
        synthetic = [network.embed(apply(images[i : i + 1], parameters[c]))[0] for i in (2 * c, 2 * c + 1)]
        total = total + ((real_mean - sum(synthetic) / 2) ** 2).sum()
    (gradient,) = torch.autograd.grad(total, images)
    assert loss == pytest.approx(total.item(), rel=1e-4)
    update = (initial.images - method.condensed.images).double() / 0.3
    assert torch.allclose(update, gradient, atol=1e-4 * float(gradient.abs().max()))


@pytest.mark.parametrize("method_name", ["gm", "dsa"])
@pytest.mark.parametrize("seed", range(4))
def test_gm_and_dsa_step(seed: int, method_name: str) -> None:
    """Loss and image update of one matching step, with gradients summed over single images in float64."""
    statistics, initial = start()
    text = "none" if method_name == "gm" else "color_crop_cutout_scale_rotate"
    made = {"gm": (GMConfig, GM), "dsa": (DSAConfig, DSA)}[method_name]
    config = made[0](network=NET, batch_real=100, lr_img=0.3, outer_steps=1, augmentation=text)
    method = made[1](config, initial)
    loss = float(method.step(statistics, generator(seed, "steps"))["loss"])

    network, parameters = replay(seed, statistics, text)
    weights = list(network.parameters())
    images = initial.images.double().requires_grad_(True)
    total = torch.zeros((), dtype=torch.float64)
    for c in range(3):
        real = statistics.data.normalised("train", statistics.data.class_indices(c)).double()
        target = torch.tensor([c])
        sums = [torch.zeros_like(w) for w in weights]
        for x in real:
            one = torch.autograd.grad(F.cross_entropy(network(apply(x[None], parameters[c])), target), weights)
            sums = [s + g / len(real) for s, g in zip(sums, one, strict=True)]
        single = [F.cross_entropy(network(apply(images[i : i + 1], parameters[c])), target) for i in (2 * c, 2 * c + 1)]
        found = torch.autograd.grad(sum(single) / 2, weights, create_graph=True)
        for r, s in zip(sums, found, strict=True):
            if r.ndim > 1:
                for row_r, row_s in zip(r.reshape(len(r), -1), s.reshape(len(s), -1), strict=True):
                    total = total + 1 - (row_r * row_s).sum() / (row_r.norm() * row_s.norm() + 1e-6)
    (gradient,) = torch.autograd.grad(total, images)
    assert loss == pytest.approx(total.item(), rel=1e-3)
    update = (initial.images - method.condensed.images).double() / 0.3
    assert torch.allclose(update, gradient, atol=1e-3 * float(gradient.abs().max()))


def test_momentum_is_sgds() -> None:
    """Two updates against torch.optim.SGD with momentum 0.5."""
    statistics, initial = start(1)
    method = DM(DMConfig(network=NET, augmentation="none", batch_real=100, lr_img=0.3), initial)
    reference = initial.images.clone().requires_grad_(True)
    optimiser = torch.optim.SGD([reference], lr=0.3, momentum=0.5)
    draws, again = generator(0, "steps"), generator(0, "steps")
    for _ in range(3):
        method.step(statistics, draws)
        network = create(NET, statistics.spec, again)
        for _ in range(3):  # what the step spent on drawing batches
            torch.randperm(12, generator=again)
        real = [statistics.data.normalised("train", statistics.data.class_indices(c)) for c in range(3)]
        loss = sum(((network.embed(r).mean(0).detach() - network.embed(reference[c : c + 1])[0]) ** 2).sum() for c, r in enumerate(real))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert torch.allclose(method.condensed.images, reference, atol=1e-4)


def test_gm_trains_its_network_between_image_updates() -> None:
    """Plain SGD on the synthetic images: after one image update the network has moved by lr times the epochs' gradients."""
    statistics, initial = start()
    config = GMConfig(network=NET, batch_real=100, outer_steps=2, inner_epochs=3, lr_net=0.05)
    method = GM(config, initial)
    method.step(statistics, generator(0, "steps"))
    network = create(NET, statistics.spec, generator(0, "steps"))
    now = method.condensed
    for _ in range(3):  # the whole set is one batch: its order does not matter
        loss = F.cross_entropy(network(now.images), now.labels)
        for weight, gradient in zip(network.parameters(), torch.autograd.grad(loss, list(network.parameters())), strict=True):
            weight.data -= 0.05 * gradient
    for ours, theirs in zip(method.network.parameters(), network.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_loop_table() -> None:
    for ipc, inner in INNER_EPOCHS.items():
        assert loops(GMConfig(), ipc) == (ipc, inner)
    assert loops(GMConfig(), 15) == (15, 38)
    for ipc in (200, 500, 1000):  # the author's answer to a user: (50, 10) or (20, 25) for 100 to 1,000 images a class
        assert loops(GMConfig(), ipc) == (50, 10)
    assert loops(GMConfig(outer_steps=7, inner_epochs=3), 500) == (7, 3)
    assert loops(GMConfig(outer_steps=3, inner_epochs=0), 10) == (3, 0)


@pytest.mark.parametrize("count", [1, 7, 50, 333])
def test_chunks_do_not_change_gradients(count: int) -> None:
    """A batch cut into pieces gives the gradient of the whole; with BatchNorm in training mode it is not cut."""
    data = toy(side=16)
    draws = generator(0, "chunks")
    images = torch.randn(count + 1, 1, 16, 16, generator=draws)
    labels = torch.randint(3, (count + 1,), generator=draws)
    for name in (NET, NET + "BN"):
        network = create(name, data.spec, generator(0, "net"))
        whole = torch.autograd.grad(F.cross_entropy(network(images), labels), list(network.parameters()))
        for ours, theirs in zip(mean_gradient(network, images, labels), whole, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


def test_dm_with_logits() -> None:
    """FedDM's objective: class means of features and of outputs, equally weighted (Xiong et al., CVPR 2023, eq. 8)."""
    statistics, initial = start()
    method = DM(DMConfig(network=NET, augmentation="none", batch_real=100, lr_img=0.3, logits=True), initial)
    loss = float(method.step(statistics, generator(0, "steps"))["loss"])
    network, _ = replay(0, statistics, "none")
    total = 0.0
    for c in range(3):
        real = statistics.data.normalised("train", statistics.data.class_indices(c)).double()
        ours = initial.images[2 * c : 2 * c + 2].double()
        with torch.no_grad():
            total += float((network.embed(real).mean(0) - network.embed(ours).mean(0)).square().sum())
            total += float((network(real).mean(0) - network(ours).mean(0)).square().sum())
    assert loss == pytest.approx(total, rel=1e-4)


@pytest.mark.plain_layers
def test_features_and_outputs_of_a_network_of_ones_own() -> None:
    own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    images = torch.randn(4, 1, 8, 8, generator=generator(0, "x"))
    expected = torch.cat([own[2](own[1](images.flatten(1))), own(images)], 1)
    assert torch.equal(embed_and_logits(own, images), expected)


def test_dm_looks_from_the_sphere_around_one_network() -> None:
    """``radius``: the centre stays, each step's network lies at that distance from it, and no two are the same."""
    statistics, initial = start()
    method = DM(DMConfig(network=NET, augmentation="none", batch_real=100, radius=0.7), initial)
    draws, seen = generator(0, "steps"), []
    for _ in range(3):
        method.step(statistics, draws)
        seen.append(torch.nn.utils.parameters_to_vector(method.network.parameters()).detach().clone())
    centre = torch.nn.utils.parameters_to_vector(create(NET, statistics.spec, generator(0, "steps")).parameters()).detach()
    assert torch.equal(method.centre, centre)
    for place in seen:
        assert (place - centre).norm().item() == pytest.approx(0.7, rel=1e-4)
    assert float((seen[0] - seen[1]).norm()) > 0.7
    # Noise is spread over all weights alike.
    noise = (seen[0] - centre) / 0.7 * len(centre) ** 0.5
    assert abs(float(noise.mean())) < 0.03
    assert float(noise.pow(4).mean()) == pytest.approx(3, rel=0.15)
    # Stopped after one step and continued: the centre is not drawn again.
    first, again = DM(method.config, initial), DM(method.config, initial)
    draws = generator(0, "steps")
    first.step(statistics, draws)
    again.load_state({name: value.clone() for name, value in first.state().items()})
    for _ in range(2):
        again.step(statistics, draws)
    assert torch.equal(again.condensed.images, method.condensed.images)


@pytest.mark.parametrize("form", ["paper", "released"])
@pytest.mark.parametrize("seed", range(3))
def test_datadam_step(seed: int, form: str) -> None:
    """Attention maps written out one image and one layer at a time, in float64; batch norm sees all classes as one batch."""
    statistics, initial = start()
    name = NET if form == "paper" else NET + "BN"
    power, weight = FORMS[form].power, FORMS[form].weight
    config = DataDAMConfig(form=form, network=name, augmentation="none", batch_real=100, lr_img=0.3, layers=(0, 1))
    method = DataDAM(config, initial)
    loss = float(method.step(statistics, generator(seed, "steps"))["loss"])

    network = create(name, statistics.spec, generator(seed, "steps")).double()
    images = initial.images.double().requires_grad_(True)
    real = torch.cat([statistics.data.normalised("train", statistics.data.class_indices(c)) for c in range(3)]).double()

    def class_means(batch: torch.Tensor, each: int) -> list[torch.Tensor]:
        outputs, x = [], batch
        for layer in network.body:
            x = layer(x)
            if isinstance(layer, torch.nn.ReLU):
                maps = [sum(channel.abs() ** power for channel in image).flatten() for image in x]
                outputs.append(torch.stack([a / a.norm() for a in maps]))
        outputs.append(x.flatten(1))
        return [torch.stack([part.mean(0) for part in output.split(each)]) for output in outputs]

    # With instance norm a class alone and all classes together are the same.
    ours, theirs = class_means(images, 2), [m.detach() for m in class_means(real, 12)]
    total = sum(weight * (a - b).square().sum() for a, b in zip(ours[:2], theirs[:2], strict=True))
    total = total + weight * 0.01 * (ours[2] - theirs[2]).square().sum()
    (gradient,) = torch.autograd.grad(total, images)
    assert loss == pytest.approx(total.item(), rel=1e-3)
    update = (initial.images - method.condensed.images).double() / 0.3
    assert torch.allclose(update, gradient, atol=2e-3 * float(gradient.abs().max()))


def test_datadam_forms() -> None:
    paper, released = DataDAMConfig(), DataDAMConfig(form="released")
    assert (paper.iterations, paper.power, paper.network) == (8000, 4.0, "ConvNet")
    assert (released.iterations, released.power, released.network) == (20_000, 1.0, "ConvNetBN")
    assert DataDAMConfig(form="released", power=2.0, network="ConvNet").power == 2.0
    assert DataDAMConfig(form="released", power=2.0, network="ConvNet").network == "ConvNet"
    # All layers but the last, and its weight in the loss for large images.
    _, initial = start()
    assert DataDAM(paper, initial).feature_weight == 0.01


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_mtt_step(seed: int, soft: bool) -> None:
    """One step's loss and its updates of images, step size and labels, against one graph through the whole student."""
    statistics, initial = start()
    settings = {"experts": 2, "max_start_epoch": 2, "expert_epochs": 1, "syn_steps": 4, "expert_lr": 0.05, "batch_syn": 4, "compile": "off"}
    config = MTTConfig(network=NET, lr_img=0.3, lr_lr=1e-6, lr_init=0.05, augmentation="none", soft_labels=soft, lr_label=0.7, **settings)
    method = MTT(config, initial)
    method.prepare(statistics)
    logits = method.logits.clone() if soft else None
    values = method.step(statistics, generator(seed, "steps"))

    draws = generator(seed, "steps")
    expert, epoch = int(torch.randint(2, (), generator=draws)), int(torch.randint(3, (), generator=draws))
    begin, end = method.trajectories.weights(expert, epoch), method.trajectories.weights(expert, epoch + 1)
    orders = [torch.randperm(6, generator=draws).split(4) for _ in range(2)]
    batches = [batch for order in orders for batch in order]
    network = create(NET, statistics.spec, generator(0, "shape"))
    raw = logits.clone().requires_grad_(True) if soft else None
    labels = raw.softmax(1) if soft else initial.labels
    loss, images, lr, label = plain.mtt(
        network, begin, end, initial.images, labels, torch.tensor(0.05), lambda i, x, y: (x[batches[i]], y[batches[i]]), steps=4
    )
    assert float(values["loss"]) == pytest.approx(float(loss), rel=1e-4)
    assert torch.allclose((initial.images - method.condensed.images) / 0.3, images, atol=1e-3 * float(images.abs().max()))
    assert float(method.lr) == pytest.approx(0.05 - 1e-6 * float(lr), rel=1e-4)
    assert method.condensed.lr == pytest.approx(float(method.lr))
    if soft:
        (through,) = torch.autograd.grad(labels, raw, label)
        assert torch.allclose((logits - method.logits) / 0.7, through, atol=1e-3 * float(through.abs().max()))
        assert torch.allclose(method.condensed.labels.sum(1), torch.ones(6))


def test_mtt_shortens_a_gradient_that_is_too_long_and_only_that() -> None:
    images, lr, labels = torch.full((2, 3), 2.0), torch.tensor(5.0), torch.ones(2, 2)
    length = images.norm().item()
    same = shortened(Matched(torch.tensor(1.0), images, labels, lr), 1.01 * length)
    assert torch.equal(same.images, images)
    assert torch.equal(same.lr, lr)
    half = shortened(Matched(torch.tensor(1.0), images, labels, lr), 0.5 * length)
    torch.testing.assert_close(half.images, 0.5 * images)
    torch.testing.assert_close(half.lr, 0.5 * lr)
    torch.testing.assert_close(half.labels, 0.5 * labels)
    for bad in (float("nan"), float("inf"), 1e30):
        found = shortened(Matched(torch.tensor(1.0), torch.tensor([bad, 1.0]), None, torch.tensor(bad)), 0.5)
        assert found.images.norm() <= 0.5001
        assert torch.isfinite(found.lr)


def test_mtt_keeps_its_step_size_positive_and_refuses_soft_labels_it_may_not_learn() -> None:
    from distill.errors import InputError

    statistics, initial = start()
    settings = {"experts": 1, "max_start_epoch": 0, "expert_epochs": 1, "syn_steps": 2, "network": NET, "compile": "off"}
    method = MTT(MTTConfig(lr_lr=1e9, **settings), initial)
    for _ in range(2):
        method.step(statistics, generator(0, "steps"))
        assert float(method.lr) >= 0.99e-6
    soft = CondensedSet(initial.images, torch.eye(3)[initial.labels], initial.spec)
    with pytest.raises(InputError, match="soft_labels is false"):
        MTT(MTTConfig(**settings), soft)


@pytest.mark.parametrize("kind", ["gm", "dsa"])
def test_gradient_matching_takes_soft_labels(kind: str) -> None:
    """One-hot soft labels are the hard ones."""
    statistics, initial = start()
    made = {"gm": (GMConfig, GM), "dsa": (DSAConfig, DSA)}[kind]
    soft = CondensedSet(initial.images, torch.eye(3)[initial.labels], initial.spec)
    hard_set, soft_set = (made[1](made[0](network=NET, batch_real=100, outer_steps=1), s) for s in (initial, soft))
    for method in (hard_set, soft_set):
        method.step(statistics, generator(0, "steps"))
    assert torch.allclose(hard_set.condensed.images, soft_set.condensed.images, atol=1e-5)


@pytest.mark.parametrize("method_name", ["dm", "gm", "datadam"])
def test_precision_and_compiling_change_little(method_name: str) -> None:
    """Compiled float32 gives the same update to 1e-3, bfloat16 on the real side to a tenth."""
    statistics, initial = start()
    config, kind = {"dm": (DMConfig, DM), "gm": (GMConfig, GM), "datadam": (DataDAMConfig, DataDAM)}[method_name]
    updates = []
    for precision, compile in (("float32", "off"), ("float32", "on"), ("bf16", "off")):
        settings = {"network": NET, "batch_real": 100, "augmentation": "none", "lr_img": 1.0, "precision": precision, "compile": compile}
        method = kind(config(**settings), initial)
        method.step(statistics, generator(0, "steps"))
        updates.append(initial.images - method.condensed.images)
    for other, bound in ((updates[1], 1e-3), (updates[2], 0.1)):
        assert float((other - updates[0]).norm()) < bound * float(updates[0].norm())
    assert not torch.equal(updates[0], updates[2])
