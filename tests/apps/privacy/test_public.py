"""What a private run may take as public: nothing that was computed from the images, whichever part of them is left."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import distill
from apps.federated.condense import agreed, shard
from apps.federated.partition import PartitionConfig, split
from apps.privacy.public import check_normalisation, public_size
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError
from scenarios import cli
from scenarios.catalogue import run_study, study
from scenarios.engine.study import Options
from tests.conftest import toy, toy_arrays
from tests.distill.test_origins import PARTS

pytest.importorskip("opacus")
from apps.privacy import PrivateStatistics

GIVEN: dict[str, Any] = {"mean": (0.5,), "std": (0.5,), "classes": ("a", "b", "c")}


@pytest.mark.parametrize("part", [*PARTS, "federated shard"])
def test_a_normalisation_of_private_images_is_refused_for_every_part_of_them(part: str) -> None:
    data = ImageData.from_arrays("mine", *toy_arrays(), *toy_arrays(1), classes=("a", "b", "c"))
    shards = split(data.train.labels.numpy(), PartitionConfig(num_partitions=2), 0)
    made = shard(data, shards, 0) if part == "federated shard" else PARTS[part](data)
    with pytest.raises(
        InputError, match=r"mean and std\) was computed from its images. Give public ones: \[data\] mean = \[0.5\]"
    ) as caught:
        PrivateStatistics(made, 1.0, 1e-3, population=36)
    assert 'load(..., mean=[0.5], std=[0.5], classes=["NAME", ...])' in str(caught.value)
    assert "class list" not in str(caught.value)


def test_a_class_list_of_private_labels_is_refused() -> None:
    """Without its only image of the class 2 the list of a hand-made data set would be shorter."""
    images, labels = toy_arrays(classes=2)
    last = np.append(labels[:-1], 2)
    for y in (labels, last):
        data = ImageData.from_arrays("mine", images, y, images, labels, mean=(0.5,), std=(0.5,))
        with pytest.raises(InputError, match="class list was computed from its labels or folders"):
            PrivateStatistics(data, 1.0, 1e-3, population=36)
        with pytest.raises(InputError, match="class list was computed"):
            PrivateStatistics(data.subset([0]), 1.0, 1e-3, population=36, classes=(0, 1))
    check_normalisation(ImageData.from_arrays("mine", images, last, images, labels, **GIVEN))


def test_a_folder_named_like_a_public_data_set_is_not_one(tmp_path: Path) -> None:
    for name in ("0", "1"):
        (tmp_path / "mnist" / name).mkdir(parents=True)
        for k in range(5):
            Image.fromarray(np.full((4, 4), 40 * k + 7, np.uint8)).save(tmp_path / "mnist" / name / f"{k}.png")
    data = distill.load(f"folder:{tmp_path / 'mnist'}")
    assert data.spec.name == "mnist"
    with pytest.raises(InputError, match="computed from its images, and the class list was computed"):
        check_normalisation(data)
    with pytest.raises(InputError, match="has no publicly known size"):
        public_size(data.spec, None)
    assert public_size(distill.load("digits").spec, None) == 1297


def test_a_clients_own_data_take_the_servers_numbers_as_given_and_nothing_more() -> None:
    """What the server sent is public to a client that sent it nothing; a part of the run's own data set keeps what the server says."""
    mine, server = toy(), toy(5)
    own = agreed(mine, server.with_origins(population="published").spec, own=True)
    assert own.spec.origins == {"normalisation": "given", "classes": "given", "population": "computed"}
    assert own.spec == server.spec
    assert agreed(mine, server.spec).spec.origins["normalisation"] == "computed"
    assert agreed(mine, server.with_origins(normalisation="published").spec).spec.origins["normalisation"] == "published"


def test_a_private_run_of_a_folder_with_validation(tmp_path: Path) -> None:
    """Refused as it is, and done with given numbers: the set's header holds these, and no number of the images."""
    numbers = np.random.default_rng(0)
    for name in ("sick", "well"):
        (tmp_path / "ward" / name).mkdir(parents=True)
        for k in range(15):
            Image.fromarray(numbers.integers(0, 200, (8, 8), dtype=np.uint8)).save(tmp_path / "ward" / name / f"{k}.png")
    tables: dict[str, Any] = {
        "kind": "privacy",
        "data": {"name": "folder:ward", "validation": 0.2},
        "privacy": {"epsilon": [8.0], "delta": 0.01, "networks": 2, "population": 30, "twin": False},
        "method": {"name": "dm", "ipc": 1, "iterations": 2, "network": "ConvNetW32D1"},
        "evaluation": {"networks": ["MLP"], "seeds": 2, "baselines": [], "recipe": {"max_steps": 2}, "split": "validation"},
    }
    options = Options(out=tmp_path / "runs", quiet=True)
    with pytest.raises(InputError, match=r"\(mean and std\) was computed from its images, and the class list was computed"):
        run_study(study("ward", tables, str(tmp_path / "s.toml")), options)
    tables["data"] |= {"mean": [0.4], "std": [0.3], "classes": ["well", "sick", "unsure"]}
    made = study("ward", tables, str(tmp_path / "s.toml"))
    assert made.data.class_names == ("well", "sick", "unsure")
    folder, record = run_study(made, options)
    assert record["status"] == "done"
    tiny = CondensedSet.load(folder / "public" / "condensed-epsilon8.safetensors")
    assert (tiny.spec.mean, tiny.spec.std, tiny.spec.classes) == ((0.4,), (0.3,), ("well", "sick", "unsure"))
    assert tiny.spec.origins == {"normalisation": "given", "classes": "given", "population": "given"}
    computed = distill.load(f"folder:{tmp_path / 'ward'}").spec
    assert f"{computed.mean[0]:.6f}" not in (folder / "public" / "condensed-epsilon8.safetensors").read_bytes().decode("latin-1")
    # The set's own numbers are given when networks that learn from it are judged.
    path = str(folder / "public" / "condensed-epsilon8.safetensors")
    asked = ["evaluate", path, "--data", f"folder:{tmp_path / 'ward'}", "--seeds", "2", "--network", "MLP", "--baseline", "none"]
    assert CliRunner().invoke(cli.app, asked).exit_code == 0


def test_a_pipeline_gives_a_class_list_and_its_stages_choose_by_number() -> None:
    stage = {"kind": "condense", "data": {"classes": [0, 2]}, "method": {"name": "dm"}}
    tables = {"kind": "pipeline", "data": {"name": "folder:x", "classes": ["b", "a", "c"]}, "stages": {"one": stage}}
    made: Any = study("p", tables, "p.toml")
    assert made.stages[0].study.data.class_names == ("b", "a", "c")
    assert made.stages[0].study.data.classes == (0, 2)
    federated = study(
        "f", {"kind": "federated", "data": {"name": "folder:x", "mean": [0.5], "std": [0.5], "classes": ["b", "a"]}}, "f.toml"
    )
    assert (federated.settings.mean, federated.settings.std, federated.settings.class_names) == ((0.5,), (0.5,), ("b", "a"))  # type: ignore[attr-defined]
