"""Stored views: the same bits again, training as with the teacher itself, what of a set carries them, and files that are not sound."""

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from distill.augment import apply, draw, strategy
from distill.comparison import notes_on
from distill.condensed import CondensedSet, Provenance
from distill.coresets import select
from distill.data import ImageData
from distill.decode import Formation
from distill.errors import InputError
from distill.evaluation import evaluate
from distill.experts import flat
from distill.foreign.writing import export
from distill.mixing import mixed
from distill.networks import create
from distill.protocols import protocol
from distill.randomness import generator
from distill.scoring import Plan, rows_of, score
from distill.synthetic import Synthetic
from distill.teachers import Teacher, labelled, labelled_views, teacher_network
from distill.train import Recipe, train_network
from distill.views import Replay, Views, draw_views, labelled_by
from scenarios.cli import main
from tests.conftest import toy

TEACHER = Teacher(network="MLP", epochs=2, lr=0.05, batch_size=32)
COUNT, MOVES = 3, "color_crop_cutout_scale_rotate_flip"
SHORT = Recipe(epochs=7, batch_size=4, lr=0.05, compile="off", augmentation=MOVES, loss="kl", temperature=3.0, hard_weight=0.2)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def plain(toy_data: ImageData) -> CondensedSet:
    return select(toy_data, "random", 2, generator(0, "set"))


def stored(plain: CondensedSet, data: ImageData, mix: str | None = None, count: int = COUNT, moves: str = MOVES) -> CondensedSet:
    return labelled_views(plain, data, TEACHER, count, augmentation=moves, mix=mix, progress=False)


def view(views: Views, images: Tensor, number: int, place: int) -> tuple[Tensor, float]:
    """One view (C, H, W) and the share of its own image, made by hand: the seed's transform, then its partner in the rectangle."""

    def moved(which: int) -> tuple[Tensor, list[float]]:
        draws = torch.Generator().manual_seed(int(views.seeds[number, which]))
        parameters = draw(strategy(views.augmentation), draws, *images.shape[-2:])
        return apply(images[which : which + 1], parameters)[0], torch.rand(2, generator=draws).tolist()

    own, middle = moved(place)
    if views.partners is None or views.shares is None:
        return own, 1.0
    other, _ = moved(int(views.partners[number, place]))
    share = float(views.shares[number, place])
    if views.mix == "mixup":
        return share * own + (1 - share) * other, share
    kept = torch.ones(images.shape[-2:], dtype=torch.bool)
    for row in range(kept.shape[0]):
        for column in range(kept.shape[1]):
            down, right = (int(side * (1 - share) ** 0.5) // 2 for side in kept.shape)
            top, left = (int(side * at) for side, at in zip(kept.shape, middle, strict=True))
            kept[row, column] = not (top - down <= row < top + down and left - right <= column < left + right)
    return torch.where(kept, own, other), float(kept.float().mean())


class Watching(nn.Module):
    """A network that keeps the images that it is trained on."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.inner = create("MLP", spec, generator(9, "inner"))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach().clone())
        return self.inner(images)


@pytest.mark.parametrize(("mix", "moves"), [(None, MOVES), ("cutmix", MOVES), ("mixup", MOVES), ("cutmix", "all_resized_flip_color")])
def test_training_repeats_the_views_bit_for_bit_and_is_training_with_the_teacher(
    plain: CondensedSet, toy_data: ImageData, tmp_path: Path, mix: Any, moves: str
) -> None:
    """Network and views as in a loop that is written out and asks the teacher itself; float16 rounds the labels by 2^-11 of their size."""
    made = stored(plain, toy_data, mix, moves=moves)
    made.save(tmp_path / "set.safetensors")
    again, teacher = CondensedSet.load(tmp_path / "set.safetensors"), teacher_network(toy_data, TEACHER)
    assert again.views is not None
    recipe, seed, count = dataclasses.replace(SHORT, mix=mix, augmentation=moves), 5, len(plain)
    watched: list[Watching] = []

    def network(spec: Any) -> nn.Module:
        watched.append(Watching(spec))
        return watched[-1]

    found = train_network(again, network, recipe, seed)
    model, draws, seen = Watching(plain.spec), generator(seed, "training"), list(watched[-1].seen)
    optimiser = torch.optim.SGD(model.parameters(), recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    for epoch in range(recipe.epochs):
        if epoch == (recipe.epochs + 1) // 2:
            optimiser = torch.optim.SGD(model.parameters(), 0.1 * recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
        for rows in torch.randperm(count, generator=draws).split(recipe.batch_size):
            number = epoch % COUNT
            pairs = [view(again.views, plain.images, number, int(row)) for row in rows]
            images = torch.stack([image for image, _ in pairs])
            batch = seen.pop(0)
            # The same pixels in larger batches, smaller ones, and from the file: bit for bit.
            whole = Replay(again.views, plain.images, plain.labels).batch(number, torch.arange(count)).images
            ones = [Replay(again.views, plain.images, plain.labels).batch(number, row[None]).images for row in rows]
            assert torch.equal(batch, whole[rows])
            assert torch.equal(batch, torch.cat(ones))
            assert torch.allclose(batch, images, atol=2e-6), "the augmentation of each image by itself, up to rounding"
            shares = torch.zeros(len(rows), 3)
            for place, (row, (_, share)) in enumerate(zip(rows.tolist(), pairs, strict=True)):
                partner = row if again.views.partners is None else int(again.views.partners[number, row])
                shares[place, plain.labels[row]] += share
                shares[place, plain.labels[partner]] += 1 - share
            with torch.no_grad():
                target = teacher(batch)
            kept = again.views.labels[number][rows].float()
            assert torch.allclose(kept, target, rtol=2**-10, atol=1e-6)
            outputs = model(batch)
            p, log_q = (target / 3).softmax(1), (outputs / 3).log_softmax(1)
            loss = 9 * (p * (p.log() - log_q)).sum() - 0.2 * (shares * outputs.log_softmax(1)).sum()
            optimiser.zero_grad()
            (loss / len(rows)).backward()
            optimiser.step()
    assert not seen
    start = torch.cat([p.detach().flatten() for p in Watching(plain.spec).parameters()])
    moved = float((flat(found) - start).norm())
    assert float((flat(found) - flat(model)).norm()) < 2e-3 * moved, (float((flat(found) - flat(model)).norm()), moved)


def test_drawn_views_are_as_a_batch_is_mixed() -> None:
    """Half are mixed, shares are uniform, partners are any image; seeds differ."""
    views = draw_views(200, 10, 3, "crop", "cutmix", generator(0, "v"))
    assert views.shares is not None
    assert views.partners is not None
    chosen = views.shares < 1
    assert abs(float(chosen.float().mean()) - 0.5) < 0.05
    assert abs(float(views.shares[chosen].mean()) - 0.5) < 0.05
    assert set(views.partners[chosen].tolist()) == set(range(10))
    assert bool((views.partners == torch.arange(10))[~chosen].all())
    assert len(views.seeds.unique()) == 2000
    often = draw_views(200, 10, 3, "crop", "mixup", generator(0, "v"), probability=1.0, alpha=0.2)
    assert often.shares is not None
    ends = (often.shares < 0.1) | (often.shares > 0.9)
    assert float(ends.float().mean()) > 0.55, "a beta distribution with a small parameter lies at its ends"
    again, other = (draw_views(200, 10, 3, "crop", "cutmix", generator(seed, "v")) for seed in (0, 1))
    assert torch.equal(views.seeds, again.seeds)
    assert not torch.equal(views.seeds, other.seeds)


def test_one_rectangle_for_a_batch_is_as_the_authors_cut_it() -> None:
    """`mixed` and the views cut alike: whole numbers of the same formula, also at borders (checked through `view` above for views)."""
    images = torch.randn(5, 1, 7, 9, generator=torch.Generator().manual_seed(0))
    for seed in range(12):
        both = mixed(images, "cutmix", torch.Generator().manual_seed(seed))
        chance, share, *place = torch.rand((4,), generator=torch.Generator().manual_seed(seed)).tolist()
        if both is None:
            assert chance >= 0.5
            continue
        half = [int(side * (1 - share) ** 0.5) // 2 for side in (7, 9)]
        centre = [int(side * at) for side, at in zip((7, 9), place, strict=True)]
        expected = images.clone()
        for row in range(7):
            for column in range(9):
                if centre[0] - half[0] <= row < centre[0] + half[0] and centre[1] - half[1] <= column < centre[1] + half[1]:
                    expected[:, :, row, column] = images[both.other][:, :, row, column]
        assert torch.equal(both.images, expected)


# What carries them


def test_bytes_are_those_of_the_file(plain: CondensedSet, toy_data: ImageData) -> None:
    for mix, each in ((None, 8), ("mixup", 8 + 8 + 4)):
        made = stored(plain, toy_data, mix)
        assert made.nbytes == plain.nbytes + COUNT * len(plain) * (2 * 3 + each)
        data = made.to_bytes()
        assert len(data) == 8 + struct.unpack("<Q", data[:8])[0] + made.nbytes
        assert f"3 stored views an image ({MOVES}" in repr(made)
    assert json.loads(made.to_bytes()[8 : 8 + struct.unpack("<Q", made.to_bytes()[:8])[0]])["__metadata__"]["distill"].count('"format": 2')
    assert plain.to_bytes() == dataclasses.replace(made, views=None, augmentation=None, provenance=plain.provenance).to_bytes(), "FORMAT 1"


@pytest.mark.parametrize("mix", [None, "cutmix"])
def test_subsets_and_unions_keep_each_images_views(plain: CondensedSet, toy_data: ImageData, mix: str | None) -> None:
    made = stored(plain, toy_data)
    other = stored(select(toy_data, "random", 1, generator(1, "set")), toy_data, mix)
    made = stored(plain, toy_data, mix)
    both = CondensedSet.concat([made, other])
    assert both.views is not None
    for number in range(COUNT):
        whole = Replay(both.views, both.images, both.labels).batch(number, torch.arange(len(both)))
        parts = [Replay(one.views, one.images, one.labels).batch(number, torch.arange(len(one))) for one in (made, other) if one.views]
        for joined, each in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(joined, torch.cat(each))
    if mix:
        with pytest.raises(InputError, match="mixed with images that are left out"):
            made.subset([0])
    part = made.subset([0, 1, 2] if mix else [0, 2])
    assert part.views is not None
    kept = torch.isin(made.labels, part.labels.unique())
    ours = Replay(part.views, part.images, part.labels).batch(1, torch.arange(len(part)))
    theirs = Replay(made.views, made.images, made.labels).batch(1, kept.nonzero().squeeze(1))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_subset_keeps_partners_that_are_in_it() -> None:
    labels, seeds = torch.zeros(1, 4, 3).half(), torch.arange(4)[None]
    views = Views(labels, seeds, "crop", "mixup", torch.tensor([[2, 1, 0, 3]]), torch.tensor([[0.5, 1.0, 0.25, 1.0]]))
    part = views.of(torch.tensor([True, False, True, True]))
    assert part.partners is not None
    assert part.partners.tolist() == [[1, 0, 2]]
    assert part.seeds.tolist() == [[0, 2, 3]]


def test_what_does_not_carry_them_says_so(plain: CondensedSet, toy_data: ImageData, tmp_path: Path) -> None:
    made = stored(plain, toy_data)
    assert made.quantised().views is made.views
    with pytest.raises(InputError, match="one set has stored views and another has none"):
        CondensedSet.concat([plain, made])
    with pytest.raises(InputError, match=r"number of the sets' views is 3 and 2"):
        CondensedSet.concat([made, stored(plain, toy_data, count=2)])
    assert labelled(made, toy_data, TEACHER, progress=False).views is None
    found = export(made, tmp_path / "npz", "npz")
    assert any("3 stored views an image" in note and "does not hold" in note for note in found.notes)
    pytest.importorskip("flwr")
    from apps.federated.wire import encode

    with pytest.raises(InputError, match="stored views cannot be uploaded"):
        encode(made)
    assert Synthetic(made).template.views is None, "images that move have other views"


def test_stored_views_of_a_decoded_set_are_of_its_decoded_images(plain: CondensedSet, toy_data: ImageData) -> None:
    form = Formation(2)
    four = dataclasses.replace(plain, images=form.encoded(torch.cat([plain.images] * 4), toy_data.spec), decode=form)
    made = stored(four, toy_data)
    assert made.views is not None
    assert made.views.labels.shape == (COUNT, 4 * len(four), 3)
    assert made.decoded().views is made.views
    part = made.subset([1])
    assert part.views is not None
    assert torch.equal(part.views.seeds, made.views.seeds[:, (made.decoded().labels == 1)])
    train_network(made, "MLP", SHORT, 0)


# Comparisons


def test_a_recipe_that_augments_otherwise_is_refused_and_a_teacher_labels_new_views(plain: CondensedSet, toy_data: ImageData) -> None:
    made = stored(plain, toy_data)
    for wrong in ({"augmentation": "crop"}, {"augmentation": "none"}, {"mix": "cutmix"}):
        with pytest.raises(InputError, match="the set's stored views have augmentation"):
            train_network(made, "MLP", dataclasses.replace(SHORT, **wrong), 0)
    auto = dataclasses.replace(SHORT, augmentation="auto")
    assert torch.equal(flat(train_network(made, "MLP", auto, 0)), flat(train_network(made, "MLP", SHORT, 0)))
    teacher, recipe = teacher_network(toy_data, TEACHER), dataclasses.replace(SHORT, teacher=TEACHER)
    ours, theirs = (train_network(one, "MLP", recipe, 0, teacher=teacher) for one in (made, plain))
    assert torch.equal(flat(ours), flat(theirs))
    unnamed = dataclasses.replace(SHORT, loss=None, temperature=None, hard_weight=None)
    named = dataclasses.replace(unnamed, loss="ce")
    assert torch.equal(flat(train_network(made, "MLP", unnamed, 0)), flat(train_network(made, "MLP", named, 0)))


def test_tables_state_the_views_and_scores_have_a_row_with_class_labels(plain: CondensedSet, toy_data: ImageData) -> None:
    made = stored(plain, toy_data)
    recipe = dataclasses.replace(SHORT, epochs=2)
    found = evaluate(made, toy_data, network="MLP", recipe=recipe, seeds=1, baselines=["random"], progress=False)
    assert list(found.rows) == ["condensed", "random"]
    assert (found.training["condensed"].labels, found.training["condensed"].bytes) == ("3 stored views", made.nbytes)
    (note,) = [note for note in found.notes if "stored views" in note]
    assert f"{made.nbytes:,} bytes in all" in note
    assert not [
        note for note in notes_on(made, toy_data, dataclasses.replace(recipe, teacher=TEACHER), ["random"]) if "stored views" in note
    ]
    labels = [row.labels for row in rows_of(made, Plan(), "sgd") if row.images == "condensed"]
    assert labels == ["own", "hard", "own"]
    held = ImageData.from_arrays("toy", *arrays(toy_data), validation=0.2)
    plan = Plan(
        "MLP", dataclasses.replace(recipe, loss=None, temperature=None, hard_weight=None), seeds=1, steps=(1.0,), baselines=("random",)
    )
    card = score(made, held, plan)
    assert card.nbytes == made.nbytes


def arrays(data: ImageData) -> tuple[Any, ...]:
    whole = toy()
    assert torch.equal(whole.train.images, data.train.images)
    from tests.conftest import toy_arrays

    return (*toy_arrays(0), *toy_arrays(1000))


# Hostile files


def tampered(made: CondensedSet, header: dict[str, Any], tensors: dict[str, Tensor | None]) -> bytes:
    data = made.to_bytes()
    facts = json.loads(json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"]["distill"])
    held: dict[str, Tensor | None] = {**safetensors.torch.load(data), **tensors}
    left = {key: value for key, value in (facts | header).items() if value != "gone"}
    return safetensors.torch.save({name: value for name, value in held.items() if value is not None}, {"distill": json.dumps(left)})


@pytest.mark.parametrize(
    ("header", "tensors", "words"),
    [
        ({"views": "gone", "label_kind": "probabilities"}, {}, "views is in the tensors and not in the header"),
        ({"views": {"augmentation": "crop", "mix": "mixup"}}, {}, "views have the augmentation 'crop' and the set"),
        ({"views": {"augmentation": "dc_crop", "mix": None}}, {}, "no dc_ one"),
        ({"views": {"augmentation": "os.system", "mix": None}}, {}, "augmentation"),
        ({"views": {"augmentation": MOVES, "mix": "paste"}}, {}, "views are mixed by 'paste'; allowed: cutmix, mixup"),
        ({"views": {"augmentation": MOVES, "mix": None}}, {}, "partners and shares where they are mixed, and only there"),
        ({"views": {"augmentation": MOVES, "mix": "mixup", "code": "x"}}, {}, "the header does not fit: views"),
        ({"views": {"augmentation": 3}}, {}, "the header does not fit: views"),
        ({}, {"view_labels": None}, "allowed: with view_labels and view_seeds"),
        ({}, {"view_seeds": None}, "allowed: with view_labels and view_seeds"),
        ({}, {"view_shares": None}, "partners and shares where they are mixed"),
        ({}, {"view_labels": torch.zeros(COUNT, 6, 4).half()}, r"allowed: float16 \(V, 6, 3\)"),
        ({}, {"view_labels": torch.zeros(COUNT, 6, 3)}, r"allowed: float16 \(V, N, K\)"),
        ({}, {"view_labels": torch.full((COUNT, 6, 3), float("inf")).half()}, "not finite"),
        ({}, {"view_labels": torch.zeros(0, 6, 3).half()}, r"allowed: float16 \(V, N, K\)"),
        ({}, {"view_seeds": torch.zeros(COUNT, 5, dtype=torch.int64)}, r"seeds of views are .*allowed: int64 \(3, 6\)"),
        ({}, {"view_seeds": torch.full((COUNT, 6), -1)}, "seeds of views lie in -1..-1"),
        ({}, {"view_seeds": torch.full((COUNT, 6), 2**63 - 1)}, "seeds of views lie in"),
        ({}, {"view_partners": torch.full((COUNT, 6), 6)}, "partners of views lie in 6..6; allowed: 0..5"),
        ({}, {"view_shares": torch.full((COUNT, 6), 1.5)}, "shares of views lie in 1.5..1.5; allowed: 0..1"),
        ({}, {"view_shares": torch.full((COUNT, 6), float("nan"))}, "shares of views lie in nan"),
        ({}, {"view_other": torch.zeros(1)}, "holds the tensors"),
    ],
)
def test_views_that_do_not_fit_are_one_line(
    plain: CondensedSet, toy_data: ImageData, header: dict[str, Any], tensors: dict[str, Tensor | None], words: str
) -> None:
    made = stored(plain, toy_data, "mixup")
    CondensedSet.from_bytes(tampered(made, {}, {}))
    with pytest.raises(InputError, match=words) as caught:
        CondensedSet.from_bytes(tampered(made, header, tensors))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_labels_beyond_float16_and_wrong_numbers_are_refused(plain: CondensedSet, toy_data: ImageData) -> None:
    class Huge(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 3), 1e6)

    with pytest.raises(InputError, match="labels of views hold values that are not finite"):
        labelled_by(draw_views(1, len(plain), 3, "crop", None, generator(0, "v")), Huge(), plain.images)
    with pytest.raises(InputError, match="0 views of an image; allowed: 1 to"):
        labelled_views(plain, toy_data, TEACHER, 0)
    with pytest.raises(InputError, match="no dc_ one"):
        labelled_views(plain, toy_data, TEACHER, 1, augmentation="dc_crop_noise")
    private = dataclasses.replace(plain, provenance=Provenance("dm", dp={"epsilon": 1.0}))
    with pytest.raises(InputError, match="privacy guarantee"):
        labelled_views(private, toy_data, TEACHER, 1)


def test_the_command_stores_views(tmp_path: Path, capsys: pytest.CaptureFixture[str], digits: ImageData) -> None:
    select(digits, "random", 1, generator(0, "set")).save(tmp_path / "set.safetensors")
    with pytest.raises(SystemExit) as ended:
        main(["label", str(tmp_path / "set.safetensors"), "--data", "digits", "--teacher", "MLP:1", "--views", "4", "--protocol", "rded"])
    assert not ended.value.code
    out = " ".join(capsys.readouterr().out.split())
    made = CondensedSet.load(tmp_path / "set-labelled.safetensors")
    assert made.views is not None
    assert made.views.labels.shape == (4, 10, 10)
    recipe = protocol("rded", digits.spec, images=10)
    assert (made.views.mix, made.views.augmentation, made.labels.dtype) == (recipe.mix, recipe.augmentation, torch.int64)
    assert made.views.shares is not None
    assert bool((made.views.shares < 1).any())
    assert f"{made.nbytes:,} bytes" in out
    assert "of the views keep their class" in out
