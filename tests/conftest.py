"""Shared small things for tests: a tiny synthetic data set and a guard on the global random state."""

import contextlib
import functools
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill import fast, networks
from distill.data import ImageData
from tests.forked import forking

# Files whose tests take more than about ten seconds on one core, most of them because they start processes. They get the marker `long`,
# which `make test-quick` leaves out; test_quick.py looks at the list.
LONG = {
    "apps/continual/test_resume.py",
    *(f"apps/federated/test_{name}.py" for name in ("engines", "hardening", "private", "rivals", "rounds")),
    *(f"apps/nas/test_{name}.py" for name in ("ranking", "scores", "search", "study", "workers")),
    *(f"apps/privacy/test_{name}.py" for name in ("accounting", "audit", "ledger", "page", "poisoning", "private_statistics", "visual")),
    *(f"distill/test_{name}.py" for name in ("adjoint", "augment", "combinations", "condensed", "data", "every_method", "experts")),
    *(f"distill/test_{name}.py" for name in ("class_gradients", "fast", "grouped", "portable", "processes", "sharding", "sizes")),
    *(
        f"scenarios/test_{name}.py"
        for name in ("cli", "continual", "ctrl_c", "fair", "faults", "federated", "flagships", "kill", "leaks", "nas")
    ),
    *(f"scenarios/test_{name}.py" for name in ("own_data", "pipeline", "privacy", "report", "schema", "shipped", "soak", "stop")),
    *(f"scenarios/test_{name}.py" for name in ("sweep", "sweep_lr", "template", "tuning")),
    *(f"test_{name}.py" for name in ("curves", "docs", "examples", "gpu_benchmark", "house", "site")),
}


def toy_arrays(seed: int = 0, classes: int = 3, per_class: int = 12, side: int = 8, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Images whose class is a bright square in a place of its own, with noise."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    images = rng.integers(0, 90, (len(labels), side, side, channels), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[row * side // 2 : row * side // 2 + side // 2, column * side // 2 : column * side // 2 + side // 2] += 120
    return images, labels


def toy(seed: int = 0, **options: int) -> ImageData:
    train, test = toy_arrays(seed, **options), toy_arrays(seed + 1000, **options)
    return ImageData.from_arrays("toy", *train, *test)


@contextlib.contextmanager
def stopped_at(monkeypatch: pytest.MonkeyPatch, module: Any, count: int) -> Iterator[None]:
    """Ctrl-C when the ``count``-th evaluation network of the block is trained, in a module that asks for `accuracies`."""
    real, left = module.accuracies, [count]

    def stops(*arguments: Any, **named: Any) -> Any:
        for one in real(*arguments, **named):
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            yield one

    with monkeypatch.context() as patch:
        patch.setattr(module, "accuracies", stops)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Experts that tests train stay out of the user's cache."""
    os.environ["DISTILL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _opacus_remembers() -> None:
    """Opacus sums the same slow series, a pure function, for every test that plans the same noise."""
    series = sys.modules.get("opacus.accountants.analysis.rdp")
    if series is not None and not hasattr(series._compute_rdp, "cache_info"):
        series._compute_rdp = functools.lru_cache(maxsize=1 << 18)(series._compute_rdp)


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's worker processes are forked from one that has imported everything; what they then do is the same.

    That new ones start as well is for the tests without this fixture: test_processes.py, and the first ones of test_workers.py.
    """
    context, real = forking(), multiprocessing.get_context
    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: context if method == "spawn" else real(method))


@pytest.fixture(autouse=True)
def _bfloat16_on_every_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What bfloat16 computes is tested on processors that are slow at it, too, where the product takes float32."""
    monkeypatch.setattr(fast, "has_bfloat16", lambda device: True)


@pytest.fixture(autouse=True)
def _own_networks_are_forgotten():
    """A test's own functions, which their users register for the process, are no names for the next one."""
    before = dict(networks.OWN)
    yield
    networks.OWN.clear()
    networks.OWN.update(before)


@pytest.fixture
def toy_data() -> ImageData:
    return toy()


@pytest.fixture(scope="session")
def digits() -> ImageData:
    from distill.data_sources import load

    return load("digits")


@pytest.fixture(autouse=True)
def _global_random_state_is_left_alone(request: pytest.FixtureRequest):
    """Nothing in the project may draw from or seed a global generator."""
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    yield
    if "plain_layers" in request.keywords:
        return
    assert torch.equal(before, torch.get_rng_state()), "a test moved torch's global random state"
    assert np.array_equal(before_numpy, np.random.get_state()[1]), "a test moved numpy's global random state"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(Path(__file__).parent).as_posix() in LONG:
            item.add_marker(pytest.mark.long)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))
        if item.get_closest_marker("real_data") and not os.environ.get("DISTILL_DATA"):
            item.add_marker(pytest.mark.skip(reason="DISTILL_DATA is not set"))
