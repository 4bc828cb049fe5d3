"""The public names: the verb, configs, datasets in and out, and the hook for trackers."""

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset, TensorDataset

import distill
from distill.errors import InputError
from distill.methods import METHODS, DMConfig, GMConfig
from distill.records import read_lines
from tests.conftest import toy

SMALL = {"network": "ConvNetD1W8", "batch_real": 4, "iterations": 2}


def test_the_former_verb_warns_and_does_the_same() -> None:
    wanted = distill.condense(toy(), "dm", ipc=2, progress=False, **SMALL)
    with pytest.warns(DeprecationWarning, match=r"distill\.distil is deprecated .* use distill\.condense\.") as warned:
        made = distill.distil(toy(), "dm", ipc=2, progress=False, **SMALL)
    assert torch.equal(made.images, wanted.images)
    assert warned[0].filename == __file__


def test_every_name_is_there_and_the_version_is_the_installed_one() -> None:
    for name in distill.__all__:
        assert getattr(distill, name) is not None
    assert {"create", "embed", "train_network", "accuracy", "generator", "condense"} <= set(distill.__all__)
    try:
        assert distill.__version__ == importlib.metadata.version("distill-apps")
    except importlib.metadata.PackageNotFoundError:
        assert distill.__version__ == "0+unknown"
    assert Path(distill.__file__).with_name("py.typed").is_file()


# Configs


def test_a_config_is_the_same_as_its_name_and_settings() -> None:
    wanted = distill.condense(toy(), "dm", ipc=2, seed=3, progress=False, **SMALL)
    made = distill.condense(toy(), DMConfig(**SMALL), ipc=2, seed=3, progress=False)  # type: ignore[arg-type]
    assert torch.equal(made.images, wanted.images)
    assert made.provenance.config == wanted.provenance.config
    assert made.provenance.method == "dm"


def test_every_methods_config_names_its_method() -> None:
    from distill.run import _of_config

    for name, (kind, _) in METHODS.items():
        assert _of_config(kind(), {}) == (name, {})
        assert _of_config(kind(iterations=7), {}) == (name, {"iterations": 7})


def test_a_config_with_settings_beside_it_or_of_no_method_is_refused() -> None:
    with pytest.raises(InputError, match="setting 'iterations' was given together with a GMConfig; give it to the config"):
        distill.condense(toy(), GMConfig(), iterations=3)
    with pytest.raises(InputError, match="is no method's config; allowed: GMConfig, DSAConfig, DMConfig"):
        distill.condense(toy(), distill.Recipe())  # type: ignore[arg-type]


# The hook


def test_on_step_gets_what_metrics_gets_and_changes_nothing(tmp_path: Path) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    settings = {**SMALL, "iterations": 3}
    metrics = tmp_path / "m.jsonl"
    made = distill.condense(toy(), "dm", metrics=metrics, on_step=lambda step, losses: seen.append((step, dict(losses))), **settings)
    assert seen == [(line["step"], {"loss": line["loss"]}) for line in read_lines(metrics)]
    assert [step for step, _ in seen] == [1, 2, 3]
    assert torch.equal(made.images, distill.condense(toy(), "dm", **settings).images)


def test_an_error_in_the_hook_ends_the_run_and_leaves_its_checkpoint(tmp_path: Path) -> None:
    def broken(step: int, losses: Any) -> None:
        if step == 2:
            raise ConnectionError("the tracker is gone")

    settings = {**SMALL, "iterations": 3, "checkpoint": tmp_path / "c"}
    with pytest.raises(ConnectionError, match="tracker"):
        distill.condense(toy(), "dm", on_step=broken, **settings)
    if (tmp_path / "c").exists():
        again = distill.condense(toy(), "dm", resume=True, **settings)
        assert torch.equal(again.images, distill.condense(toy(), "dm", **{**SMALL, "iterations": 3}).images)


# Datasets out


def test_a_set_is_a_dataset_and_a_loader() -> None:
    tiny = distill.condense(toy(), "dm", ipc=2, progress=False, **SMALL)
    images, labels = next(iter(DataLoader(tiny.dataset(), batch_size=len(tiny), generator=distill.generator(0, "test"))))
    assert torch.equal(images, tiny.images)
    assert torch.equal(labels, tiny.labels)
    state = torch.get_rng_state()
    first, again, other = ([batch[1] for batch in tiny.loader(4, seed=seed)] for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(batch) for batch in first] == [4, 2]
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert sorted(torch.cat(other).tolist()) == sorted(tiny.labels.tolist())


# Datasets in

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 7, 3), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]


class Items:
    """A dataset of these items; ``classes`` as torchvision has them."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Any:
        if isinstance(self.items[place], Exception):
            raise self.items[place]
        return self.items[place]


def items(make: Any) -> Items:
    return Items(*(make(pixels, label) for pixels, label in zip(PIXELS, LABELS, strict=True)))


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: (Image.fromarray(x), y),
        lambda x, y: (x, np.int64(y)),
        lambda x, y: (torch.from_numpy(x).permute(2, 0, 1), torch.tensor(y)),
        lambda x, y: {"img": Image.fromarray(x), "label": y, "id": "a"},
        lambda x, y: {"image": torch.from_numpy(x).permute(2, 0, 1), "label": torch.tensor([y])},
        lambda x, y: (torch.from_numpy(x).permute(2, 0, 1).float() / 255, y),
    ],
)
def test_datasets_of_every_usual_form_are_the_arrays(make: Any) -> None:
    wanted = distill.ImageData.from_arrays("arrays", PIXELS, LABELS, PIXELS[:2], LABELS[:2])
    data = distill.ImageData.from_datasets(items(make), Subset(items(make), [0, 1]), name="arrays")  # type: ignore[arg-type]
    images = data.train.images if data.train.images.dtype == torch.uint8 else (data.train.images * 255).round().to(torch.uint8)
    assert torch.equal(images, wanted.train.images)
    assert torch.equal(data.train.labels, wanted.train.labels)
    assert data.spec.classes == wanted.spec.classes
    assert len(data.test) == 2


def test_torchvision_datasets_bring_their_name_and_classes() -> None:
    from torchvision.datasets import FakeData

    class MNIST(FakeData):
        classes = ("zero", "one", "two")

    train = MNIST(9, (1, 8, 8), 3, transform=lambda image: image.convert("L"))
    data = distill.ImageData.from_datasets(Subset(train, range(6)), Subset(train, range(6, 9)), validation=0.3)
    assert (data.spec.name, data.spec.classes, data.spec.classes_origin) == ("mnist", MNIST.classes, "computed")
    assert data.spec.shape == (1, 8, 8)
    assert len(data.train) + len(data.validation) == 6
    own = distill.ImageData.from_datasets(train, train, classes=["a", "b", "c"])
    assert own.spec.classes_origin == "given"


def test_hugging_face_features_name_the_classes() -> None:
    class Label:
        names = ("cat", "dog", "eel")

    train = items(lambda x, y: {"image": x, "label": y})
    train.features = {"image": None, "label": Label()}  # type: ignore[attr-defined]
    assert distill.ImageData.from_datasets(train, train).spec.classes == Label.names


GOOD = (torch.zeros(3, 8, 7, dtype=torch.uint8), 0)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (iter(()), "train is a tuple_iterator; allowed: a dataset with a length"),
        (Items(GOOD, OSError("gone")), r"train: item 1 cannot be read \(OSError: gone\)"),
        (Items(GOOD, (GOOD[0],)), "item 1 is a tuple of 1; allowed: .image, label."),
        (Items(GOOD, {"picture": 1, "label": 0}), "item 1 has the keys picture, label; allowed: one of image, img"),
        (Items(GOOD, (GOOD[0][:, 1:], 0)), r"item 1 is uint8 \(3, 7, 7\) and item 0 uint8 \(3, 8, 7\); allowed: one size .*Resize"),
        (Items(GOOD, ("a.png", 0)), "item 1: its image is a str; allowed: a PIL image"),
        (Items(GOOD, (Image.new("I;16", (7, 8)), 0)), "item 1 has pixels of mode I;16; allowed: 8 bits"),
        (Items((GOOD[0] - 1.5, 0)), "item 0 holds floats outside 0 to 1 .* leave Normalize out"),
        (Items((GOOD[0] * float("nan"), 0)), "item 0 holds floats outside 0 to 1"),
        (Items(GOOD, (GOOD[0], "cat")), "item 1: its label is a str, cat; allowed: one class number"),
        (Items(GOOD, (GOOD[0], -1)), "item 1: its label is an int, -1; allowed"),
        (Items(GOOD, (GOOD[0], torch.tensor([0, 1]))), "item 1: its label is a Tensor"),
        (TensorDataset(torch.zeros(0, 3, 8, 7), torch.zeros(0)), "x_train holds no images"),
    ],
)
def test_what_does_not_fit_is_one_line(dataset: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        distill.ImageData.from_datasets(dataset, Items(GOOD), name="mine")
    assert "\n" not in str(raised.value)


def test_an_evaluation_without_progress_draws_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("rich.console.Console.status", lambda *given, **named: pytest.fail("a spinner"))
    tiny = distill.condense(toy(), "dm", progress=False, **SMALL)
    distill.evaluate(tiny, toy(), recipe=distill.Recipe(max_steps=1), network="ConvNetD1W8", seeds=1, baselines=[], progress=False)
    assert capsys.readouterr().err == ""
