"""Gradients of several classes at once: equal to those of one class after the other, and few operations without a wait on a GPU."""

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.counting import Counts, counted, made_data, step_of
from benchmarks.launches import SETTINGS
from distill.adjoint import Student, matching_gradient
from distill.augment import draw, strategy
from distill.batches import groups
from distill.class_gradients import class_gradients, gradient_groups, in_two_passes, matched, together
from distill.condensed import CondensedSet
from distill.matching import gradient_distance
from distill.methods import METHODS, gm
from distill.methods.mtt import one_by_one
from distill.methods.mtt import together as all_at_once
from distill.networks import create, parameter_count
from distill.randomness import generator
from distill.statistics import ExactStatistics
from tests.conftest import toy

NETWORKS = ["ConvNetD2W32", "ConvNetD2W32GNMP", "ConvNetD1W32NNNP", "MLP"]


def off_by(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def setting(name: str, counts: list[int], *, soft: bool = False, seed: int = 0) -> tuple[torch.nn.Module, Tensor, Tensor]:
    """A float64 network, and images and labels of classes."""
    draws = generator(seed, "setting")
    network = create(name, toy().spec, draws).double()
    images = torch.randn(sum(counts), 1, 8, 8, generator=draws, dtype=torch.float64)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    if soft:
        labels = torch.rand(sum(counts), 3, generator=draws, dtype=torch.float64).softmax(1)
    return network, images, labels


def one_class(network: torch.nn.Module, images: Tensor, labels: Tensor, *, graph: bool = False) -> tuple[Tensor, ...]:
    return torch.autograd.grad(F.cross_entropy(network(images), labels), list(network.parameters()), create_graph=graph)


@pytest.mark.parametrize("counts", [[2, 2, 2], [1, 3, 2]])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_one_class_after_the_other(name: str, counts: list[int]) -> None:
    """First and second derivatives, of hard and soft labels, every distance; classes of different size, too."""
    for seed, (soft, distance) in enumerate([(False, "layerwise"), (True, "mse"), (False, "cosine"), (True, "layerwise")]):
        network, images, labels = setting(name, counts, soft=soft, seed=seed)
        _, others, targets = setting(name, [4, 4, 4], seed=seed + 9)
        real = [one_class(network, x, y) for x, y in zip(others.split(4), targets.split(4), strict=True)]
        found = class_gradients(network, others, targets, [4, 4, 4])
        for place, expected in enumerate(real):
            assert off_by(torch.cat([part[place].flatten() for part in found]), torch.cat([part.flatten() for part in expected])) < 1e-12

        leaves = [part.clone().requires_grad_(True) for part in images.split(counts)]
        loss, slopes = matched(network, real, torch.cat(leaves), labels, counts, distance=distance, leaves=leaves)
        value = torch.zeros((), dtype=torch.float64)
        for r, x, y, slope in zip(real, images.split(counts), labels.split(counts), slopes, strict=True):
            x = x.clone().requires_grad_(True)
            one = gradient_distance(r, one_class(network, x, y, graph=True), distance)
            assert off_by(slope, torch.autograd.grad(one, x)[0]) < 1e-12
            value = value + one.detach()
        assert off_by(loss, value) < 1e-12


@pytest.mark.parametrize("distance", ["layerwise", "convolutions-l1"])
def test_two_passes_equal_one(distance: str) -> None:
    network, images, labels = setting("ConvNetD2W32", [7])
    _, others, targets = setting("ConvNetD2W32", [4], seed=1)
    real, leaf = one_class(network, others, targets), images.clone().requires_grad_(True)
    value = gradient_distance(real, one_class(network, leaf, labels, graph=True), distance)
    loss, slope = in_two_passes(network, real, images, labels, distance, 3)
    assert off_by(loss, value.detach()) < 1e-12
    assert off_by(slope, torch.autograd.grad(value, leaf)[0]) < 1e-12


def test_which_networks_take_classes_together() -> None:
    """The listed ones whose images do not depend on each other and whose second derivatives are right."""
    device, spec = torch.device("meta"), toy().spec
    for name, expected in [("ConvNetD1W32", True), ("MLP", True), ("ConvNetD1W32BN", False), ("ConvNetD1W32LN", False)]:
        network = create(name, spec, generator(0, "weights"), device)
        assert together(network, device) is expected, name
        assert not together(network, torch.device("cpu"))
    assert not together(torch.nn.Flatten(), device)


@pytest.mark.xfail(reason="torch's second derivatives of layer norm are wrong under vmap (2.15)")
def test_layer_norm_under_vmap() -> None:
    """Where this passes, `together` may take networks with layer norm."""
    network, images, labels = setting("ConvNetD1W32LN", [2, 2])
    real = [one_class(network, x + 1, y) for x, y in zip(images.split(2), labels.split(2), strict=True)]
    leaves = [part.clone().requires_grad_(True) for part in images.split(2)]
    mapped = matched(network, real, torch.cat(leaves), labels, [2, 2], distance="layerwise", leaves=leaves)[1]
    for r, x, y, slope in zip(real, leaves, labels.split(2), mapped, strict=True):
        assert off_by(slope, matched(network, [r], x, y, [2], distance="layerwise", leaves=[x])[1][0]) < 1e-12


def test_groups_are_bounded_by_images_and_by_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    network = create("ConvNet", made_data(10, 1).spec, generator(0, "weights"), "meta")
    images = torch.empty(1, 3, 32, 32, device="meta")
    assert list(map(len, gradient_groups(network, images, range(10), [256] * 10))) == [5, 5]  # 8 classes are 2,048 images
    assert list(map(len, gradient_groups(network, torch.empty(1, 3, 128, 128, device="meta"), range(10), [64] * 10))) == [2] * 5
    monkeypatch.setattr("distill.class_gradients.GROUP_VALUES", 3 * parameter_count(network))
    assert list(map(len, gradient_groups(network, images, range(10), [1] * 10))) == [2, 3, 2, 3]
    assert gradient_groups(network, torch.empty(1, 3, 32, 32), [0, 2], [1, 1]) == [[0], [2]]


@pytest.mark.parametrize(("method", "settings"), [("dsa", {}), ("idc", {"decode": "none"}), ("gm", {"flipped": True, "distance": "mse"})])
def test_a_step_of_groups_equals_one_class_after_the_other(
    method: str, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real and synthetic side of the methods in float64, with sets of uneven classes."""
    statistics = ExactStatistics(toy())
    kind, distiller = METHODS[method]
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    initial = CondensedSet(torch.randn(6, 1, 8, 8, generator=generator(0, "images")), labels, statistics.spec)
    made = distiller(kind(network="ConvNetD2W32", batch_real=5, **settings), initial)
    network = create("ConvNetD2W32", statistics.spec, generator(0, "weights")).double()
    draws = [draw(strategy("color_crop_cutout_scale_rotate"), generator(k, "draws"), 8, 8) for k in range(3)]

    def augment(images: Tensor, position: int) -> Tensor:
        return gm.apply(images.double(), draws[position])

    def both() -> tuple[Tensor, list[Tensor]]:
        real = statistics.class_gradients(network, 5, augment, generator(0, "batches"))
        classes = [(x.detach().double().requires_grad_(True), y) for x, y in made.synthetic.per_class()]
        return made.compared(network, real, classes, augment, statistics, generator(0, "more"))  # type: ignore[no-any-return]

    loss, slopes = both()
    for module in ("distill.methods.gm", "distill.statistics"):
        monkeypatch.setattr(f"{module}.gradient_groups", lambda network, images, own, counts: groups(own, counts, 10**6))
    together, found = both()
    assert off_by(together, loss) < 1e-12
    for ours, theirs in zip(found, slopes, strict=True):
        assert off_by(ours, theirs) < 1e-12


@pytest.mark.parametrize(("name", "soft"), [("ConvNetD2W32", False), ("ConvNetD1W32BN", True), ("MLP", False)])
def test_a_students_form_on_a_gpu_is_the_same_gradient(name: str, soft: bool) -> None:
    """Reverse-over-reverse and all views at once against one step after the other, float64."""
    network, images, labels = setting(name, [2, 2, 2], soft=soft)
    start = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
    draws = generator(0, "segment")
    target = start + 0.05 * torch.randn(start.shape, generator=draws, dtype=torch.float64)
    batches = [torch.randperm(6, generator=draws)[:size] for size in (4, 4, 3, 4, 1)]
    transforms = [draw(strategy("color_crop_cutout_flip_scale_rotate"), draws, 8, 8, len(batch)) for batch in batches]
    lr = torch.tensor(0.1, dtype=torch.float64)
    usual, quick = (
        matching_gradient(Student(network, reverse=reverse), start, target, images, labels, lr, steps=5, views=views, at_once=at_once)
        for reverse, views, at_once in [
            (False, one_by_one(batches, transforms), 1),
            (True, all_at_once(batches, transforms, images), 3),
        ]
    )
    for part in ("loss", "images", "lr", *(["labels"] if soft else [])):
        assert off_by(getattr(quick, part), getattr(usual, part)) < 1e-12, part


black = functools.cache(lambda classes: made_data(classes, 256))


METHODS_COUNTED = ["gm", "dsa", "dsac", "idc", "accdd", "dream"]


def a_step(method: str, classes: int, device: str = "meta", **settings: object) -> Callable[[], object]:
    return step_of(method, black(classes), 10, device, **{**SETTINGS.get(method, {}), **settings})


def quiet(counts: Counts) -> bool:
    return not counts.waits and not counts.mixed


@pytest.mark.parametrize("method", METHODS_COUNTED)
def test_operations_of_gradient_matching(method: str) -> None:
    """At most 1,200 for a step of ten classes, and at most 300 for each further group of real images; the host never waits."""
    batch = METHODS[method][0]().batch_real
    for classes in (10, 100):
        counts = counted(a_step(method, classes))
        assert quiet(counts)
        assert counts.operations <= 1200 + 300 * (classes * batch // 2048)
        assert counts.peak <= 12 * 2**30


def test_operations_of_training_between_two_updates() -> None:
    """A training step of the network adds about a hundred and fifty operations, and no wait."""
    without, more = (counted(a_step("dsa", 10, inner_epochs=epochs, outer_steps=9)) for epochs in (0, 4))
    assert quiet(more)
    assert more.operations - without.operations <= 4 * 250


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_clustered_batches_wait_once_a_class() -> None:
    """In every tenth update of DREAM, where k-means runs on the host; not in the next one."""
    step = a_step("dream", 10, batch_real=8, real_batches="kmeans")
    waits = counted(step, warm=0).waits
    assert waits.pop("tensor of host values", 0) <= 2  # mean and std of the data, once
    assert waits == {"copy to the host": 10}
    assert quiet(counted(step, warm=0))


@pytest.mark.parametrize(("classes", "more"), [(10, {}), (100, {"batch_syn": 30, "max_norm": 0.1})])
def test_operations_of_mtt(classes: int, more: dict[str, object]) -> None:
    """A whole step with twenty steps of the student: at most 12,000, and the host never waits."""
    counts = counted(a_step("mtt", classes, **more), warm=0)
    assert quiet(counts)
    assert counts.operations <= 12_000
    assert counts.transfers <= 5


@pytest.mark.gpu
@pytest.mark.parametrize("method", [*METHODS_COUNTED, "mtt"])
def test_the_host_never_waits_for_a_gpu(method: str) -> None:
    """torch raises at the first operation of a step that synchronises."""
    step = a_step(method, 10, "cuda")
    for _ in range(2):
        step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_groups_on_a_gpu_equal_single_classes_on_the_cpu() -> None:
    network, images, labels = setting("ConvNetD2W32", [2, 3, 2])
    expected = class_gradients(network, images, labels, [2, 3, 2])
    found = class_gradients(network.cuda(), images.cuda(), labels.cuda(), [2, 3, 2])
    ours, theirs = (torch.cat([part.flatten(1).cpu() for part in parts], 1) for parts in (found, expected))
    assert off_by(ours, theirs) < 1e-9
