"""Every shipped study gets past all its checks, on data that look like those it names: nothing would fail after an hour of work."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scenarios.catalogue import KINDS, study
from scenarios.engine.folder import load_data
from scenarios.engine.scenario import read_scenario, shipped
from scenarios.engine.study import Options

ENGINES = {"federated": ["flwr"], "continual": ["avalanche"], "privacy": ["opacus"], "nas": ["optuna"], "condense": []}

# Side, channels, classes, and training images a class: a tenth of the real ones, where a study does not ask for more.
LIKE = {"mnist": (28, 1, 10, 2200), "fashion-mnist": (28, 1, 10, 2200), "cifar10": (32, 3, 10, 500), "cifar100": (32, 3, 100, 50)} | {
    "svhn": (32, 3, 10, 500),
    "usps": (16, 1, 10, 200),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with noise of every data set's shape."""
    place = tmp_path_factory.mktemp("data")
    for name, (side, channels, classes, count) in LIKE.items():
        draws, arrays = np.random.default_rng(0), {}
        for part, a_class in (("train", count), ("test", 20)):
            labels = np.repeat(np.arange(classes), a_class)
            shape = (len(labels), side, side) if channels == 1 else (len(labels), side, side, channels)
            arrays |= {f"x_{part}": draws.integers(0, 256, shape, dtype=np.uint8), f"y_{part}": labels}
        np.savez(place / f"{name}.npz", **arrays)
    return place


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_study_passes_its_checks(name: str, root: Path, tmp_path: Path) -> None:
    found, tables = read_scenario(name)
    for kind in [tables["kind"]] if "stages" not in tables else [stage["kind"] for stage in tables["stages"].values()]:
        for engine in ENGINES[kind]:
            pytest.importorskip(engine)
    made: Any = study(found, tables, f"{name}.toml")
    data = load_data(made, Options(tmp_path / "runs", data_root=root))
    KINDS[made.kind].check(made, data)
    assert list(tmp_path.iterdir()) == []
