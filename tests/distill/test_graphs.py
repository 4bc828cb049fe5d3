"""CUDA graphs without a GPU: where they are asked for, and that nobody uses a result after the next replay has overwritten it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.counting import Untrained
from distill import fast
from distill.adjoint import Student, matching_gradient, stepwise
from distill.batches import Staged, chunked_sum
from distill.evaluation import accuracy
from distill.fast import accelerated, compile_mode
from distill.methods import METHODS
from distill.networks import create
from distill.randomness import generator
from distill.synthetic import initial_set
from distill.train import Recipe, train_network
from tests.conftest import toy

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Graphs:
    """`torch.compile` as far as memory goes: in mode "reduce-overhead" a call spoils all results of the calls before."""

    def __init__(self) -> None:
        self.replays, self.live = 0, list[Tensor]()

    def compile(self, function: Callable[..., object], *, dynamic: bool, mode: str) -> Callable[..., object]:
        assert not dynamic
        if mode == "default":
            return function
        assert mode == "reduce-overhead"

        def replay(*tensors: Tensor) -> object:
            for tensor in self.live:
                tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
            result = tree_map(lambda tensor: tensor.clone(), function(*tensors))
            assert not any(tensor.requires_grad for tensor in tree_leaves(result)), "differentiated from outside"
            self.live += tree_leaves(result)
            self.replays += 1
            return result

        return replay


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """This CPU takes the branches of a GPU for compiled functions."""
    found = Graphs()
    monkeypatch.setattr(torch, "compile", found.compile)
    for module in ("fast", "methods.mtt"):
        monkeypatch.setattr(f"distill.{module}.compile_mode", lambda device, compile="auto": compile_mode(CUDA, compile))
    return found


def test_the_mode_is_that_of_the_device() -> None:
    assert compile_mode(CUDA) == compile_mode(CUDA, "on") == "reduce-overhead"
    assert compile_mode(CUDA, "no-graphs") == compile_mode(CPU) == compile_mode(torch.device("meta")) == "default"


@pytest.mark.parametrize(
    ("compile", "modes"), [("on", ["default", "reduce-overhead"]), ("auto", ["default", "reduce-overhead"]), ("no-graphs", ["default"])]
)
def test_what_is_asked_of_the_compiler_on_a_gpu(compile: fast.Compile, modes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda function, *, dynamic, mode: asked.append(mode) or function)
    accelerated(lambda x: x, CUDA, 1e20, "float32", compile)
    assert asked == modes
    asked.clear()
    accelerated(lambda x: x, CUDA, 1e20, "float32", "off")
    assert asked == []


def test_results_outlive_the_next_replay(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    run = accelerated(lambda images: images.flatten(1) + 1, CPU, 0.0, compile="on")
    images = torch.randn(8, 1, 2, 2, generator=generator(0, "images"))
    with torch.no_grad():
        first, second = run(images[:4]), run(images[4:])
        assert torch.equal(torch.cat([first, second]), images.flatten(1) + 1)
        monkeypatch.setattr("distill.batches.chunk_size", lambda images: 4)  # features of two pieces are kept for one product
        assert torch.allclose(chunked_sum(Staged(run, lambda features: 2 * features), images), 2 * (images.flatten(1) + 1).sum(0))
    assert graphs.replays == 4


def stepped(method: str, settings: dict[str, object], compile: str, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The images after three steps with classes in groups of two."""
    config, kind = METHODS[method]
    fields = {"network": "ConvNetD1W8", "batch_real": 7, "decode": "none", **settings, "compile": compile}
    made = config(**{name: value for name, value in fields.items() if name in config.__dataclass_fields__})
    statistics, draws = Untrained(toy(channels=3)), generator(0, "steps")
    with monkeypatch.context() as patch:
        for module in ("batches", "matching", "statistics"):
            patch.setattr(f"distill.{module}.group_size", lambda images: 14)
        distiller = kind(made, initial_set(statistics, "real", 2, generator(0, "start")))
        if hasattr(distiller, "prepare"):
            distiller.prepare(statistics, progress=False)
        for _ in range(3):
            distiller.step(statistics, draws)
    return distiller.condensed.images


STEPS: dict[str, tuple[str, dict[str, object]]] = {
    "dm": ("dm", {}),
    "dm, batches by clusters": ("dm", {"real_batches": "kmeans"}),
    "dm, calibration": ("dm", {"calibration": 1.0, "pool_networks": 1}),
    "dm, one network": ("dm", {"radius": 2.0, "logits": True}),
    "datadam": ("datadam", {"network": "ConvNetD2W8"}),
    "ncfm": ("ncfm", {"frequencies": 16, "pool_networks": 1}),
    "idm": ("idm", {"pool_networks": 1}),
    "mtt": ("mtt", {"syn_steps": 3, "batch_syn": 4, "experts": 1}),
    "gm, batch norm": ("gm", {"network": "ConvNetD1W8BN", "outer_steps": 2, "inner_epochs": 1}),
}


@pytest.mark.parametrize("name", STEPS)
def test_no_step_uses_what_a_replay_has_overwritten(name: str, graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    method, settings = STEPS[name]
    expected = stepped(method, settings, "off", monkeypatch)
    assert graphs.replays == 0
    found = stepped(method, settings, "on", monkeypatch)
    assert torch.allclose(found, expected, atol=1e-3 if name == "ncfm" else 1e-5), "Adam divides small gradients by their size"
    without = ("gm, batch norm", "idm")  # gradients are taken from outside; features with predictions are not compiled
    assert (graphs.replays > 0) == (name not in without)
    replays = graphs.replays
    stepped(method, settings, "no-graphs", monkeypatch)
    assert graphs.replays == replays


def test_learners_and_test_passes(graphs: Graphs) -> None:
    """A training differentiates from outside, so that it has no graph; a test pass has one."""
    data = toy()
    recipe = Recipe(max_steps=3, batch_size=12, augmentation="none")
    networks = [train_network(data, "ConvNetD1W8", Recipe(**{**recipe.__dict__, "compile": c}), 0) for c in ("off", "on")]
    assert graphs.replays == 0
    for ours, theirs in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert accuracy(networks[0], data, compile="on") == accuracy(networks[0], data)
    assert graphs.replays > 0


def test_the_students_derivatives(graphs: Graphs) -> None:
    network = create("ConvNetD1W8", toy().spec, generator(0, "weights"))
    draws = generator(0, "student")
    start = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
    images, labels = torch.randn(6, 1, 8, 8, generator=draws), torch.arange(3).repeat(2)
    target = start + 0.01 * torch.randn(start.shape, generator=draws)
    results = [
        matching_gradient(student, start, target, images, labels, torch.tensor(0.1), stepwise(lambda step, x, y: (x, y)), steps=4)
        for student in (Student(network), Student(network, compile=True, mode="reduce-overhead"))
    ]
    assert graphs.replays == 8
    assert torch.allclose(results[0].images, results[1].images, atol=1e-6)
    assert torch.equal(results[0].loss, results[1].loss)


@pytest.mark.parametrize(
    "settings", [{}, {"radius": 2.0}, *({"pool": pool} for pool in ("early", "blend", "walk", "stages", "sphere"))], ids=str
)
def test_weights_stay_where_they_are(settings: dict[str, object]) -> None:
    """New weights in each step, at the addresses that a graph was captured with."""
    statistics, draws = Untrained(toy()), generator(0, "steps")
    config, kind = METHODS["dm"]
    made = kind(config(network="ConvNetD1W8", batch_real=4, pool_networks=2, **settings), initial_set(statistics, "real", 1, draws))
    made.prepare(statistics, progress=False)
    places, weights = [], []
    for _ in range(3):
        network = made._network(statistics, draws)
        places.append([p.data_ptr() for p in network.parameters()])
        weights.append(torch.nn.utils.parameters_to_vector(network.parameters()).clone())
    assert places[0] == places[1] == places[2]
    assert not torch.equal(weights[0], weights[1])
