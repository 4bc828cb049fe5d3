"""Sets of other code bases: each layout as its script writes it, against the same tensors set up by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.decode import Formation
from distill.errors import InputError
from distill.evaluation import evaluate
from distill.foreign import read_foreign
from distill.foreign.layouts import LAYOUTS
from distill.foreign.working import explanation, try_out
from distill.train import Recipe
from tests.conftest import toy

RECIPE = Recipe(max_steps=25, batch_size=8, optimiser="sgd", lr=0.02, augmentation="none")
DATA = toy(channels=3, per_class=30)
SPEC = DATA.spec


def pixels(factor: int = 1) -> tuple[Tensor, Tensor]:
    """Two stored images a class, in [0, 1], and their classes: real ones, or grids of real ones."""
    labels = torch.arange(3).repeat_interleave(2)
    rows = [DATA.class_indices(label)[: 2 * factor**2] for label in range(3)]
    images = DATA.train.images[torch.cat(rows)].float() / 255
    return (images if factor == 1 else Formation(factor).encoded(images, SPEC)), labels


def normalised() -> tuple[Tensor, Tensor]:
    images, labels = pixels()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (SPEC.mean, SPEC.std))
    return (images - mean) / std, labels


def white() -> tuple[Tensor, Tensor]:
    images, labels = pixels()
    whitening = DATA.whitened().whitening
    assert whitening is not None
    return whitening.apply(images), labels


def logits() -> Tensor:
    """Of a teacher that is right about every class."""
    return torch.nn.functional.one_hot(pixels()[1], 3).float() * 6 - 1


def vico(folder: Path) -> list[Path]:
    """main_DM.py: a list of [images, labels], and accuracies that numpy averaged."""
    images, labels = normalised()
    accuracies = {"ConvNet": [np.float64(0.5), np.mean([0.25, 0.75])], "MLP": [np.float32(0.5)]}
    torch.save({"data": [[images * 0, labels], [images.clone(), labels.clone()]], "accs_all_exps": accuracies}, folder / "res_DM.pt")
    return [folder / "res_DM.pt"]


def mtt(folder: Path, images: Tensor | None = None, labels: Tensor | None = None, lr: float | None = None) -> list[Path]:
    """distill.py: a tensor a file, the images with their gradient; DATM's has the step size, too."""
    plain, classes = normalised()
    torch.save((plain if images is None else images).requires_grad_(True), folder / "images_best.pt")
    torch.save(classes if labels is None else labels.requires_grad_(labels.is_floating_point()), folder / "labels_best.pt")
    if lr is None:
        return [folder / "images_best.pt", folder / "labels_best.pt"]
    torch.save(torch.tensor(lr), folder / "lr_best.pt")
    return [folder / "lr_best.pt", folder / "labels_best.pt", folder / "images_best.pt"]


def pair(folder: Path, images: Tensor, name: str = "data.pt") -> list[Path]:
    """condense.py of IDC, DANCE.py and NCFM's ddp.py: images in [0, 1] and classes, in one list."""
    torch.save([images.detach().cpu(), pixels()[1]], folder / name)
    return [folder / name]


def npz(folder: Path) -> list[Path]:
    """uint8 images with their channels last, as numpy users keep them."""
    images, labels = pixels()
    stored = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    np.savez_compressed(folder / "set.npz", images=stored, labels=labels.numpy().astype(np.uint8))
    return [folder / "set.npz"]


def by_hand(images: Tensor, labels: Tensor | None = None, **more: object) -> CondensedSet:
    return CondensedSet(images, pixels()[1] if labels is None else labels, SPEC, **more)  # type: ignore[arg-type]


def outside(factor: int) -> Tensor:
    """Pixels that the last steps moved out of [0, 1], as IDC saves them."""
    return pixels(factor)[0] * 1.2 - 0.1


FORMATION = Formation(2)
CASES: dict[str, tuple[Callable[[Path], list[Path]], dict[str, object], Callable[[], CondensedSet]]] = {
    "DM": (vico, {"experiment": 1}, lambda: by_hand(normalised()[0])),
    "MTT": (mtt, {"values": "normalised", "lr": 0.03}, lambda: by_hand(normalised()[0], lr=0.03)),
    "MTT --zca": (
        lambda folder: mtt(folder, white()[0]),
        {"values": "whitened", "lr": "none"},
        lambda: by_hand(white()[0], whitening=DATA.whitened().whitening),
    ),
    "DATM": (
        lambda folder: mtt(folder, white()[0], logits(), 0.05),
        {"values": "whitened"},
        lambda: by_hand(
            white()[0], logits(), lr=float(torch.tensor(0.05)), label_kind="logits", whitening=DATA.whitened().whitening
        ),
    ),
    "IDC": (
        lambda folder: pair(folder, outside(2)),
        {"decode": "formation:2"},
        lambda: by_hand(SPEC.normalise(outside(2)), decode=FORMATION),
    ),
    "DANCE": (
        lambda folder: pair(folder, (pixels(2)[0] * 255).round().byte(), "data_best.pt"),
        {"decode": "formation:2"},
        lambda: by_hand(SPEC.normalise((pixels(2)[0] * 255).round().byte()), decode=FORMATION),
    ),
    "NCFM": (
        lambda folder: pair(folder, pixels()[0].half(), "data_20000.pt"),
        {"decode": "none"},
        lambda: by_hand(SPEC.normalise(pixels()[0].half())),
    ),
    "npz": (npz, {}, lambda: by_hand(SPEC.normalise((pixels()[0] * 255).round().byte()))),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_files_set_is_that_of_the_same_tensors(case: str, tmp_path: Path) -> None:
    """Tensors, and the accuracies of networks trained on them, also after our own file."""
    write, options, hand = CASES[case]
    found, wanted = read_foreign(write(tmp_path), DATA, **options), hand()  # type: ignore[arg-type]
    assert torch.equal(found.labels, wanted.labels)
    assert torch.allclose(found.images, wanted.images, atol=1e-6)
    assert (found.lr, found.decode, found.label_kind) == (wanted.lr, wanted.decode, wanted.label_kind)
    assert (found.whitening is None) == (wanted.whitening is None)
    found.save(tmp_path / "set.safetensors")
    found = CondensedSet.load(tmp_path / "set.safetensors")
    both = [evaluate(one, DATA, network="ConvNetD2W8", recipe=RECIPE, seeds=2, baselines=[], progress=False) for one in (found, wanted)]
    values = [one.rows["condensed"]["ConvNetD2W8"].values for one in both]
    assert values[0] == pytest.approx(values[1], abs=3.5), "a test image is 1.1 %; sums of another order may move it"
    assert min(values[1]) > 40, "chance is 33 %: the comparison means something"


def test_what_is_recorded(tmp_path: Path) -> None:
    files = vico(tmp_path)
    found = read_foreign(files, DATA, experiment=1).provenance
    assert found.method == "imported"
    assert found.config["stated_accuracy"] == 50.0, "mean of 0.5, 0.5 and 0.5"
    assert (found.config["layout"], found.config["files"], found.config["experiment"]) == ("vico", ["res_DM.pt"], 1)
    assert len(found.config["sha256"][0]) == 64


def test_a_pair_of_lists_of_every_code_base_has_a_layout() -> None:
    text = " ".join(layout.source for layout in LAYOUTS.values())
    assert all(name in text for name in ("DM", "MTT", "DATM", "IDC", "DANCE", "NCFM"))


# What the files do not say


@pytest.mark.parametrize(
    ("write", "options", "words"),
    [
        (vico, {}, "the sets of 2 experiments; give one (--experiment 0 to 1)"),
        (vico, {"experiment": 2}, "allowed: 0 to 1"),
        (mtt, {}, "do not say what the images are: --values pixels, normalised or whitened (ZCA, as with --zca of mtt-distillation); nor "
         "the learned step size: --lr NUMBER"),
        (mtt, {"values": "normalised"}, "the learned step size: --lr NUMBER from the run's log"),
        (mtt, {"lr": 0.1}, "do not say what the images are: --values pixels"),
        (lambda folder: mtt(folder)[:1], {}, "there are images and no labels; give the labels' file"),
        (lambda folder: mtt(folder)[1:], {}, "allowed: images (N, C, H, W), labels"),
        (lambda folder: pair(folder, pixels()[0]), {}, "whether they are grids of small ones: --decode none, or formation:F"),
        (lambda folder: pair(folder, pixels()[0]), {"decode": "formation:9"}, "a factor of at most 4"),
        (lambda folder: pair(folder, normalised()[0]), {"decode": "none"}, "pixels in 0 to 1; give --values normalised"),
        (lambda folder: pair(folder, pixels()[0] * 255), {"decode": "none"}, "as bytes do; save them as uint8"),
        (lambda folder: pair(folder, pixels()[0]), {"decode": "none", "values": "normalised"}, "as pixels do; normalised ones of 'toy'"),
        (lambda folder: pair(folder, (pixels()[0] * 255).byte()), {"decode": "none", "values": "whitened"}, "uint8, which are pixels"),
        (lambda folder: pair(folder, (pixels()[0] * 255).long()), {"decode": "none"}, "allowed: uint8 or float"),
        (lambda folder: pair(folder, pixels()[0] / 0), {"decode": "none"}, "not finite, as of a run that diverged"),
        (lambda folder: pair(folder, pixels()[0][:, :, 1:]), {"decode": "none"}, "those of data 'toy' have the shape (3, 8, 8)"),
        (lambda folder: mtt(folder, labels=logits()), {"values": "normalised", "lr": -1.0}, "lr is -1.0; allowed: a positive finite float"),
        (lambda folder: mtt(folder, labels=logits() / 0), {"values": "normalised", "lr": "none"}, "labels hold values that are not finite"),
        (lambda folder: mtt(folder, lr=float("nan")), {"values": "normalised"}, "lr is nan"),
        (lambda folder: mtt(folder), {"values": "normalized", "lr": "none"}, "did you mean 'normalised'?"),
        (lambda folder: mtt(folder, labels=logits()), {"values": "normalised", "lr": "none", "labels": "logit"}, "did you mean 'logits'?"),
        (lambda folder: mtt(folder), {"values": "normalised", "lr": "none", "labels": "logits"}, "those of the files are class numbers"),
        (lambda folder: mtt(folder, labels=torch.eye(3)[[0, 0, 1, 1, 2, 2]]), {"values": "normalised", "lr": "none", "labels": "scores"},
         "labels is 'scores', which has no effect: those of the files are class numbers; leave it out (--labels)."),
        (lambda folder: mtt(folder, labels=logits().softmax(1)), {"values": "normalised", "lr": "none", "labels": "logits"},
         "labels is 'logits', which has no effect: those of the files are soft labels of the kind 'probabilities'"),
    ],
)  # fmt: skip
def test_one_line_asks_or_explains(write: Callable[[Path], list[Path]], options: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        read_foreign(write(tmp_path), DATA, **options)  # type: ignore[arg-type]
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.tensor([0, 0, 1, 1, 2, 3]), "labels lie in 0..3; allowed: 0..2"),
        (torch.tensor([0, 0, 1, 1, 2, -1]), "labels lie in -1..2"),
        (torch.tensor([0, 1, 2]), "(N,) or (N, 3) for the file's N = 6"),
        (torch.tensor([0, 0, 1, 1, 2, 1.5]), "with fractions"),
        (torch.rand(6, 4, generator=torch.Generator().manual_seed(0)), "(N,) or (N, 3) for the file's N = 6"),
    ],
)
def test_labels_are_checked(labels: Tensor, words: str, tmp_path: Path) -> None:
    torch.save([pixels()[0], labels], tmp_path / "data.pt")
    with pytest.raises(InputError, match=words.replace("(", r"\(").replace(")", r"\)")):
        read_foreign([tmp_path / "data.pt"], DATA, decode="none")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"factor": torch.tensor(10**9)}, "the file's factor is 1000000000; allowed: a whole number from 1 to "),
        ({"factor": torch.tensor(0)}, "the file's factor is 0; allowed"),
        ({"factor": torch.tensor(float("nan"))}, "the file's factor is nan; allowed"),
        ({"factor": torch.tensor(1.5)}, "the file's factor is 1.5; allowed"),
        ({"factor": torch.tensor([1, 2])}, "the file's factor is [1, 2]; allowed"),
        ({"mean": torch.tensor([0.5] * 3), "std": torch.tensor([0.5, 0.0, 0.5])}, "std is [0.5, 0.0, 0.5]; allowed: positive numbers"),
        ({"mean": torch.tensor([0.5] * 2), "std": torch.tensor([0.5] * 3)}, "allowed: 3 finite numbers, one a channel"),
        ({"lr": "0.1"}, "'lr' is not one number"),
        ({"lr": torch.rand(2, generator=torch.Generator().manual_seed(0))}, "'lr' is not one number"),
        ({"lr": float("inf")}, "lr is inf; allowed: a positive finite float"),
    ],
)
def test_facts_in_a_dict_are_checked(more: dict[str, object], words: str, tmp_path: Path) -> None:
    images, classes = normalised()
    torch.save({"images": images, "labels": classes, **more}, tmp_path / "set.pt")
    with pytest.raises(InputError) as refused:
        read_foreign([tmp_path / "set.pt"], DATA, values="normalised")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    torch.save({"images": images, "labels": classes, "factor": torch.tensor(1), "lr": 0.5}, tmp_path / "set.pt")
    assert read_foreign([tmp_path / "set.pt"], DATA, values="normalised").decode is None


def test_soft_labels_of_an_unknown_kind_are_asked_for(tmp_path: Path) -> None:
    """KIP's and FRePo's are scores; one-hot rows are classes, and probabilities are known by their sums."""
    images, classes = pixels()
    for labels, options, kind in (
        (logits(), {"labels": "scores"}, "scores"),
        (logits().softmax(1), {}, "probabilities"),
        (torch.nn.functional.one_hot(classes, 3), {}, None),
    ):
        torch.save({"images": images, "labels": labels}, tmp_path / "set.pt")
        found = read_foreign([tmp_path / "set.pt"], DATA, values="pixels", **options)  # type: ignore[arg-type]
        assert found.labels.is_floating_point() == (kind is not None)
        assert found.label_kind == (kind or "probabilities")
    torch.save({"images": images, "labels": logits()}, tmp_path / "set.pt")
    with pytest.raises(InputError, match="--labels logits or scores"):
        read_foreign([tmp_path / "set.pt"], DATA, values="pixels")


# Whether it works


def test_accuracy_at_chance_is_found_and_explained(tmp_path: Path) -> None:
    """Classes in another order: no reading of the images does better."""
    good = read_foreign(mtt(tmp_path), DATA, values="normalised", lr="none")
    assert not try_out(good, DATA, "ConvNetD2W8").at_chance
    files = mtt(tmp_path, labels=(good.labels + 1) % 3)
    shuffled = read_foreign(files, DATA, values="normalised", lr="none")
    works = try_out(shuffled, DATA, "ConvNetD2W8")
    assert works.at_chance
    assert works.chance == pytest.approx(100 / 3, abs=1e-3)
    assert "order of the classes" in explanation(shuffled, files, DATA, network="ConvNetD2W8")


def test_another_reading_that_works_is_named(tmp_path: Path, digits: ImageData) -> None:
    """White images of a whitening far from this data's: read as whitened they are nothing, as normalised they are right."""
    chosen = torch.cat([digits.class_indices(label)[:3] for label in range(10)])
    files = mtt(tmp_path, digits.normalised("train", chosen), digits.train.labels[chosen])
    wrong = read_foreign(files, digits, values="whitened", lr="none")
    assert "--values normalised gives" in explanation(wrong, files, digits, network="ConvNetD2W8")
