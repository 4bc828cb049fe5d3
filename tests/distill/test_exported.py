"""A set in other programs' formats: what is in the files, what a consumer has to undo, and back again."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder

from distill.condensed import CondensedSet
from distill.decode import Formation, Frequency
from distill.errors import InputError
from distill.foreign import EXPORTS, export, read_foreign
from distill.spec import DataSpec
from tests.conftest import toy

DATA = toy(channels=3, per_class=6)


def plain(**more: object) -> CondensedSet:
    """Six images, two of each class; `more` replaces fields."""
    chosen = torch.cat([DATA.class_indices(label)[:2] for label in range(3)])
    base = CondensedSet(DATA.normalised("train", chosen), DATA.train.labels[chosen], DATA.spec)
    return dataclasses.replace(base, **more)  # type: ignore[arg-type]


def white() -> CondensedSet:
    images = DATA.spec.denormalise(plain().images)
    whitening = DATA.whitened().whitening
    assert whitening is not None
    return plain(images=whitening.apply(images), whitening=whitening)


def grids() -> CondensedSet:
    return plain(images=Formation(2).encoded(plain().images.repeat_interleave(4, 0), DATA.spec), decode=Formation(2))


def soft(kind: str = "probabilities") -> CondensedSet:
    logits = torch.nn.functional.one_hot(plain().labels, 3).float() * 3
    return plain(labels=logits.softmax(1) if kind == "probabilities" else logits, label_kind=kind)


SETS = {
    "plain": lambda: plain(lr=0.03),
    "white": white,
    "grids": grids,
    "probabilities": soft,
    "logits": lambda: soft("logits"),
    "scores": lambda: soft("scores"),
}


@pytest.mark.parametrize("kind", ["npz", "pt"])
@pytest.mark.parametrize("name", SETS)
def test_arrays_and_tensors_come_back_exactly(name: str, kind: str, tmp_path: Path) -> None:
    tiny = SETS[name]()
    written = export(tiny, tmp_path / "out", kind, stored=tiny.decode is not None)
    assert [path.name for path in written.files] == [f"set.{kind}", "README.md"]
    assert written.pixel_error is None
    again = read_foreign([tmp_path / "out" / f"set.{kind}"], DATA)
    assert torch.equal(again.images, tiny.images)
    assert torch.equal(again.labels, tiny.labels)
    assert (again.label_kind, again.lr, again.decode) == (tiny.label_kind, tiny.lr, tiny.decode)
    assert (again.whitening is None) == (tiny.whitening is None)
    if tiny.whitening is not None:
        assert tiny.whitening.same_as(again.whitening)


def test_pt_is_tensors_only_and_npz_needs_no_pickle(tmp_path: Path) -> None:
    export(plain(lr=0.03), tmp_path / "pt", "pt")
    content = torch.load(tmp_path / "pt/set.pt", weights_only=True)
    assert {name: type(value) for name, value in content.items()} == dict.fromkeys(("images", "labels", "mean", "std", "lr"), Tensor)
    export(plain(), tmp_path / "npz", "npz")
    with np.load(tmp_path / "npz/set.npz", allow_pickle=False) as arrays:
        assert arrays["class_names"].tolist() == list(DATA.spec.classes)
        assert np.allclose(arrays["images"] * arrays["std"][:, None, None] + arrays["mean"][:, None, None], pixels(plain()), atol=1e-6)


def pixels(tiny: CondensedSet) -> np.ndarray:
    return tiny.pixels().numpy()


def test_sets_of_another_normalisation_are_normalised_anew(tmp_path: Path) -> None:
    spec = dataclasses.replace(DATA.spec, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    tiny = CondensedSet(spec.normalise(plain().pixels()), plain().labels, spec)
    export(tiny, tmp_path / "out", "pt")
    assert torch.allclose(read_foreign([tmp_path / "out/set.pt"], DATA).images, plain().images, atol=1e-5)


# Pictures


@pytest.mark.parametrize("name", ["plain", "white", "grids"])
def test_png_folders_have_the_pixels_that_learners_see(name: str, tmp_path: Path) -> None:
    tiny = SETS[name]()
    written = export(tiny, tmp_path / "out", "png")
    folder, shown = ImageFolder(str(tmp_path / "out")), tiny.decoded()
    assert folder.classes == list(DATA.spec.classes)
    assert [label for _, label in folder.samples] == sorted(shown.labels.tolist())
    for path, label in folder.samples:
        place = int(Path(path).stem)
        assert int(shown.labels[place]) == label
        found = np.asarray(Image.open(path), dtype=np.float64).transpose(2, 0, 1) / 255
        assert np.abs(found - pixels(shown)[place]).max() <= 0.5 / 255 + 1e-4
    assert written.pixel_error == pytest.approx(0.5 / 255, abs=3e-3), "these images lie in [0, 1], so that only rounding is left"


def test_what_png_costs_is_said(tmp_path: Path) -> None:
    """Values outside [0, 1] are clipped: the stated error is the largest difference, counted here pixel by pixel."""
    tiny = plain(images=plain().images * 3)
    written = export(tiny, tmp_path / "out", "png")
    mean, std = (np.array(values)[:, None, None] for values in (DATA.spec.mean, DATA.spec.std))
    worst, outside = 0.0, 0
    for path in sorted((tmp_path / "out").rglob("*.png")):
        exact = tiny.images[int(path.stem)].double().numpy() * std + mean
        worst = max(worst, np.abs(np.asarray(Image.open(path)).transpose(2, 0, 1) / 255 - exact).max())
        outside += int(((exact < 0) | (exact > 1)).sum())
    assert written.pixel_error == pytest.approx(worst, abs=1e-5)
    assert f"the largest error is {worst:.4f}" in written.notes[0]
    assert f"{100 * outside / tiny.images.numel():.1f} % of the values lie outside 0 to 1" in written.notes[0]


def test_grey_images_are_grey_and_other_channels_are_refused(tmp_path: Path) -> None:
    for channels, mode in ((1, "L"), (3, "RGB"), (2, None)):
        spec = DataSpec("own", channels, 4, 4, ("a", "b"), (0.5,) * channels, (0.5,) * channels)
        tiny = CondensedSet(torch.zeros(2, channels, 4, 4), torch.tensor([0, 1]), spec)
        if mode is None:
            with pytest.raises(InputError, match="2 channels are no PNG"):
                export(tiny, tmp_path / "none", "png")
        else:
            export(tiny, tmp_path / mode, "png")
            with Image.open(tmp_path / mode / "a" / "00000.png") as picture:
                assert picture.mode == mode


@pytest.mark.parametrize(
    ("classes", "folders"),
    [
        (("ant", "bee"), ["ant", "bee"]),
        (("bee", "ant"), ["0-bee", "1-ant"]),
        (("../../etc", "a/b"), ["0-_etc", "1-a_b"]),
        (("CON", "con"), ["0-CON", "1-con"]),
        (("", "."), ["0", "1-_"]),
        (("Ünal", "ünal"), ["0-_nal", "1-_nal"]),
    ],
)
def test_class_folders_keep_the_order_and_stay_inside(classes: tuple[str, str], folders: list[str], tmp_path: Path) -> None:
    spec = DataSpec("own", 1, 4, 4, classes, (0.5,), (0.5,))
    export(CondensedSet(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]), spec), tmp_path / "out" / "here", "png")
    made = sorted(path.name for path in (tmp_path / "out" / "here").iterdir() if path.is_dir())
    assert made == folders
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [label for _, label in ImageFolder(str(tmp_path / "out" / "here")).samples] == [0, 1]


@pytest.mark.parametrize("name", ["plain", "grids", "probabilities"])
def test_a_hugging_face_folder(name: str, tmp_path: Path) -> None:
    """Every picture has one line, with its class and perhaps its soft label, and the card's front matter names the classes."""
    tiny = SETS[name]()
    export(tiny, tmp_path / "out", "datasets")
    shown = tiny.decoded()
    lines = [json.loads(line) for line in (tmp_path / "out/data/train/metadata.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == shown.hard_labels.tolist()
    assert sorted(line["file_name"] for line in lines) == sorted(path.name for path in (tmp_path / "out/data/train").glob("*.png"))
    for place, line in enumerate(lines):
        found = np.asarray(Image.open(tmp_path / "out/data/train" / line["file_name"])).transpose(2, 0, 1) / 255
        assert np.abs(found - pixels(shown)[place]).max() <= 0.5 / 255 + 1e-4
        assert line.get("soft_label") == (shown.labels[place].tolist() if shown.labels.is_floating_point() else None)
    card = (tmp_path / "out/README.md").read_text()
    front = card.split("---\n")[1]
    assert "license: unknown" in front
    assert all(f"'{label}': \"{text}\"" in front for label, text in enumerate(DATA.spec.classes))
    assert ("soft_label" in front) == (name == "probabilities")


def test_the_front_matter_is_yaml_whatever_the_classes_are_called(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    classes = ('a: "b"', "- c\n---\n", "0", "ü #1 \U0001f600", "line\u2028")
    spec = DataSpec("own", 1, 4, 4, classes, (0.5,), (0.5,))
    export(CondensedSet(torch.zeros(5, 1, 4, 4), torch.arange(5), spec), tmp_path / "out", "datasets")
    text = (tmp_path / "out/README.md").read_text()
    found = next(yaml.safe_load_all(text.split("\n---\n\n#")[0]))
    assert list(found["configs"][0]["features"][1]["dtype"]["class_label"]["names"].values()) == list(classes)


# What a consumer has to undo


@pytest.mark.parametrize(
    ("name", "kind", "stored", "words"),
    [
        ("plain", "pt", False, ("Images are normalised", "image * std + mean", "0.03 (SGD) was learned")),
        ("plain", "png", False, ("Images are pixels", "Normalise test images in the same way")),
        ("white", "npz", False, ("Images are whitened (ZCA)", "multiply by the matrix's inverse and add whitening_mean")),
        ("white", "datasets", False, ("was made for whitened ones", "whitening.npz")),
        ("grids", "npz", True, ("Each image is a grid of 4 small ones (factor 2)", "Do not train on the grids")),
        ("grids", "npz", False, ("decoded from 6 stored rows", "nothing is left to decode")),
        ("logits", "pt", False, ("Labels are logits", "cross-entropy against their softmax")),
        ("scores", "datasets", False, ("mean squared error",)),
    ],
)
def test_the_readme_says_what_to_undo(name: str, kind: str, stored: bool, words: tuple[str, ...], tmp_path: Path) -> None:
    written = export(SETS[name](), tmp_path / "out", kind, stored=stored)
    text = (tmp_path / "out/README.md").read_text()
    for word in words:
        assert word in text
        assert word in " ".join(written.notes)
    assert "privacy guarantee | none" in text


def test_what_the_readme_says_of_grids_is_right(tmp_path: Path) -> None:
    """Decoded by its sentence alone: cut from left to right, then downwards, enlarged bilinearly."""
    tiny = grids()
    export(tiny, tmp_path / "out", "pt", stored=True)
    content = torch.load(tmp_path / "out/set.pt", weights_only=True)
    factor, images = int(content["factor"]), content["images"]
    side = images.shape[-1] // factor
    parts = [image[:, y : y + side, x : x + side] for image in images for y in range(0, 8, side) for x in range(0, 8, side)]
    large = torch.nn.functional.interpolate(torch.stack(parts), size=(8, 8), mode="bilinear", align_corners=False)
    assert torch.allclose(large, tiny.decoded().images, atol=1e-6)


def test_what_the_readme_says_of_whitening_is_right(tmp_path: Path) -> None:
    tiny = white()
    export(tiny, tmp_path / "out", "png")
    with np.load(tmp_path / "out/whitening.npz") as arrays:
        mean, matrix = arrays["whitening_mean"], arrays["whitening_matrix"]
    for path in (tmp_path / "out").rglob("*.png"):
        flat = np.asarray(Image.open(path)).transpose(2, 0, 1).reshape(-1) / 255
        exact = tiny.images[int(path.stem)].numpy().reshape(-1)
        assert np.abs((flat - mean) @ matrix - exact).max() < 0.1, "rounding to 256 values, times the matrix"


# Refusals


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a").touch()
    frequency = Frequency(8)
    rows = plain(images=frequency.encoded(plain().images, DATA.spec), decode=frequency)
    for tiny, kind, stored, words in (
        (soft(), "png", False, "soft labels do not fit into class folders; export as datasets, npz or pt"),
        (plain(), "jpeg", False, "format 'jpeg' is not known"),
        (plain(), "npz", True, "stored is for sets of grids"),
        (grids(), "png", True, "stored is for sets of grids"),
        (rows, "npz", True, "stored is for sets of grids"),
    ):
        with pytest.raises(InputError, match=words):
            export(tiny, tmp_path / "new", kind, stored=stored)
        assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="is there and not empty"):
        export(plain(), tmp_path / "full", "pt")
    export(rows, tmp_path / "rows", "npz")
    assert set(EXPORTS) == {"png", "npz", "pt", "datasets"}
