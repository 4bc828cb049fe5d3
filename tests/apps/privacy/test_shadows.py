"""Attacks on a model of one's own: found where it memorised, not where it did not; and files of scores from other programs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from apps.privacy.metrics import auc, reversed_warning
from apps.privacy.score_files import read_scores
from apps.privacy.shadows import Fresh, attack_model, check_trained, pool_of
from distill.data import ImageData
from distill.data_sources import load
from distill.errors import InputError
from distill.networks import create
from distill.randomness import generator
from distill.recipe import Recipe
from distill.train import train_network

RECIPE = Recipe(optimiser="adamw", lr=0.003, batch_size=64, max_steps=200, augmentation="none")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    """Digits with half of the labels wrong: learning them is memorising."""
    data = load("digits", size=8, validation=0.2)
    draws = generator(0, "wrong labels")
    for split in (data.train, data.validation, data.test):
        wrong = torch.rand(len(split), generator=draws) < 0.5
        split.labels[wrong] = torch.randint(0, 10, (int(wrong.sum()),), generator=draws)
    return data


def test_a_model_that_memorised_is_found_and_one_of_the_others_is_not(digits: ImageData) -> None:
    pool, members = pool_of(digits, "validation", 120, 0)
    assert len(pool.train) == 240
    assert members.sum() == 120
    learned = pool.train.at(torch.from_numpy(members.nonzero()[0]))
    target = train_network(ImageData(pool.spec, learned, pool.validation, pool.test), "MLP", RECIPE, 1)
    scores = attack_model(target, pool, members, Fresh(target), RECIPE, 2, 0)
    assert list(scores) == ["loss", "calibrated", "rmia", "lira", "lira-offline"]
    found = {name: auc(*pair) for name, pair in scores.items()}
    assert min(found.values()) > 0.75, found
    never = create("MLP", pool.spec, generator(5, "untrained"))
    assert abs(auc(*attack_model(never, pool, members, "MLP", RECIPE, 0, 0)["loss"]) - 0.5) < 0.16


def test_a_pool_is_drawn_from_both_splits_by_chance(digits: ImageData) -> None:
    pool, members = pool_of(digits, "test", None, 0)
    assert len(pool.train) == 2 * min(len(digits.train), len(digits.test))
    own = {image.numpy().tobytes() for image in digits.train.images}
    assert all((image.numpy().tobytes() in own) == bool(member) for image, member in zip(pool.train.images, members, strict=True))
    other, _ = pool_of(digits, "test", None, 1)
    assert not torch.equal(pool.train.images, other.train.images)
    empty = digits.validation.at(torch.arange(5))
    with pytest.raises(InputError, match="has 5 validation images; allowed: 20 or more"):
        pool_of(ImageData(digits.spec, digits.train, empty, digits.test), "validation", None, 0)


def test_new_weights_are_new_everywhere_or_refused() -> None:
    """What a shadow kept of the target would be what the target has learned."""
    spec = load("digits", size=8).spec
    target = create("ConvNetW16D2", spec, generator(0, "net"))
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.fill_(7.0)
    made = create(Fresh(target), spec, generator(1, "net"))
    assert not any(bool((parameter == 7.0).any()) for parameter in made.parameters())
    assert all(bool((parameter == 7.0).all()) for parameter in target.parameters())

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = nn.Linear(64, 10), nn.Parameter(torch.ones(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.scale * self.layer(images.flatten(1))

    with torch.random.fork_rng():
        one, other, images = Scaled(), Scaled(), torch.rand(2, 1, 8, 8)
        with pytest.raises(InputError, match="has 'scale' and no reset_parameters"):
            Fresh(one)(spec)
        with pytest.raises(InputError, match="other weights each time"):
            check_trained(one, other, images)
        check_trained(target, target, images)


# Files


@pytest.mark.parametrize(
    "text",
    [
        "in_scores,out_scores\n1,0\n3,2\n4,\n",
        "name,score,member\na,1,1\nb,3,true\nc,4,in\nd,0,0\ne,2,out\n",
        "member,loss\n1,-1\n1,-3\n1,-4\n0,0\n0,-2\n",
    ],
)
def test_columns_of_a_csv_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "scores.csv").write_text(text)
    inside, outside = read_scores(tmp_path / "scores.csv")
    assert (inside.tolist(), outside.tolist()) == ([1, 3, 4], [0, 2])


def test_arrays_of_an_npz_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    np.savez(path, score=[1.0, 0.0, 3.0, 2.0], member=[True, False, True, False])
    assert [part.tolist() for part in read_scores(path)] == [[1, 3], [0, 2]]
    np.savez(path, loss=[1.0, 0.0, 3.0, 2.0], member=np.array([1, 0, 1, 0]))
    assert [part.tolist() for part in read_scores(path)] == [[-1, -3], [0, -2]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "its first line is ''"),
        ("a,b\n1,2\n", "its first line is 'a,b'"),
        ("score,member\n1,yes\n", "line 2: member is 'yes'; allowed: 1 or 0"),
        ("score,member\n1,1\nx,0\n", "line 3: score is 'x'; allowed: a number"),
        ("score,member\n1,1\n2,1\n3,0\n", "scores of others are float64 of shape (1,)"),
        ("score,loss,member\n1,1,1\n", "its names are score, loss, member"),
        ("score,member\n1,1\n2\n", "member has shape (1,) for 2 scores"),
        ("score,member\nnan,1\n2,0\n", "values that are not finite"),
        ("in_scores,score\n1,1\n", "has no 'out_scores'"),
        ("score,score,member\n1,1,1\n", "its first line is"),
        ("score,member\n1,2\n3,0\n", "one 1 or 0 for each"),
    ],
)
def test_a_wrong_csv_file_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(InputError) as wrong:
        read_scores(tmp_path / "scores.csv")
    assert words in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_a_csv_file_of_bytes_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_bytes(b"score,member\n\xff\xfe,1\n")
    with pytest.raises(InputError, match="its text is not UTF-8; save it again as UTF-8"):
        read_scores(tmp_path / "scores.csv")


TABLE = "score,member\n1.5,1\n2.5,1\n0.5,0\n0.25,0\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.csv",
            TABLE.replace(",", ";").replace(".", ","),
            "separated by semicolons; save it again with commas between them, and numbers",
        ),
        (
            "a.csv",
            TABLE.replace(",", ";").replace("score", '"score"'),
            "its columns are separated by semicolons; save it again with commas",
        ),
        ("a.csv", TABLE.replace(",", "\t"), "its columns are separated by tabs; save it again with commas between them."),
        ("a.tsv", TABLE, "its columns are separated by commas; save it again with tabs between them."),
        ("a.csv", TABLE.encode("utf-16"), "its text is UTF-16, or not text; save it again as UTF-8"),
        ("a.csv", TABLE.encode("utf-16-be"), "its text is UTF-16, or not text; save it again as UTF-8"),
        ("a.csv", TABLE.replace("score", "Größe,score").encode("latin-1"), "its text is not UTF-8; save it again as UTF-8"),
    ],
)
def test_a_csv_file_of_a_spreadsheet_says_what_to_save(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as wrong:
        read_scores(tmp_path / name)
    assert words in str(wrong.value)


def test_reversed_scores_are_noticed_and_equal_ones_are_not() -> None:
    draws = np.random.default_rng(0)
    assert "members have the lower scores" in reversed_warning(draws.normal(0, 1, 200), draws.normal(1, 1, 200))
    assert reversed_warning(draws.normal(1, 1, 200), draws.normal(0, 1, 200)) == ""
    warned = sum(bool(reversed_warning(draws.normal(size=50), draws.normal(size=50))) for _ in range(400))
    assert warned <= 1
