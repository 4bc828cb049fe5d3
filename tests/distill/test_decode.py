"""Stored rows and the images they decode to: against slow definitions, through every method's update, in files, and in baselines."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.comparison import learner_set, training_of
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.decode import Decode, Formation, Frequency, LowRank, as_text, from_text
from distill.errors import InputError
from distill.evaluation import evaluate
from distill.set_file import later_parts, parse
from distill.shared_config import SharedConfig
from distill.spec import DataSpec
from distill.synthetic import Synthetic
from distill.train import Recipe, train_network
from tests.conftest import toy

KINDS: list[Decode] = [Formation(2), Formation(3), Frequency(5), LowRank(2)]


def spec_of(height: int, width: int, channels: int = 2) -> DataSpec:
    return DataSpec("toy", channels, height, width, ("a", "b", "c"), (0.4, 0.6)[:channels], (0.2, 0.3)[:channels])


def stored_set(decode: Decode, seed: int = 0, side: int = 8) -> CondensedSet:
    spec = spec_of(side, side)
    rows = torch.randn((4, *decode.stored_shape(spec)), generator=torch.Generator().manual_seed(seed))
    return CondensedSet(rows, torch.tensor([0, 1, 1, 2]), spec, decode=decode)


@pytest.mark.parametrize(("height", "width", "factor"), [(8, 8, 2), (9, 8, 2), (7, 10, 3), (8, 12, 4)])
def test_a_formation_is_padded_cut_and_enlarged(height: int, width: int, factor: int) -> None:
    spec = spec_of(height, width)
    rows = torch.randn((3, 2, height, width), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = Formation(factor).decoded(rows, spec)
    assert found.shape == (3 * factor**2, 2, height, width)
    tall, wide = math.ceil(height / factor), math.ceil(width / factor)
    place = 0
    for row in rows:
        canvas = torch.empty((2, tall * factor, wide * factor), dtype=torch.float64)
        for channel in range(2):
            canvas[channel] = (0.5 - spec.mean[channel]) / spec.std[channel]  # pixel value 0.5
        canvas[:, :height, :width] = row
        for down in range(factor):
            for right in range(factor):
                cell = canvas[:, down * tall : (down + 1) * tall, right * wide : (right + 1) * wide]
                assert torch.allclose(found[place], slow_bilinear(cell, height, width), atol=1e-12)
                place += 1


def slow_bilinear(cell: Tensor, height: int, width: int) -> Tensor:
    """Each pixel by its four neighbours, pixel centres at half numbers, borders repeated."""
    _, tall, wide = cell.shape
    result = torch.empty((len(cell), height, width), dtype=cell.dtype)
    for y in range(height):
        for x in range(width):
            down = max(0.0, (y + 0.5) * tall / height - 0.5)
            right = max(0.0, (x + 0.5) * wide / width - 0.5)
            top, left = min(int(down), tall - 1), min(int(right), wide - 1)
            bottom, far = min(top + 1, tall - 1), min(left + 1, wide - 1)
            a, b = down - top, right - left
            upper = (1 - b) * cell[:, top, left] + b * cell[:, top, far]
            lower = (1 - b) * cell[:, bottom, left] + b * cell[:, bottom, far]
            result[:, y, x] = (1 - a) * upper + a * lower
    return result


@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 5)])
def test_frequencies_are_the_lowest_of_the_cosine_transform(height: int, width: int) -> None:
    spec, count = spec_of(height, width), 4
    waves = {}
    for u in range(height):
        for v in range(width):
            wave = torch.empty((height, width), dtype=torch.float64)
            for y in range(height):
                for x in range(width):
                    wave[y, x] = math.cos(math.pi * u * (y + 0.5) / height) * math.cos(math.pi * v * (x + 0.5) / width)
            waves[u, v] = wave / wave.norm()
    lowest = sorted(waves, key=lambda key: ((key[0] / height) ** 2 + (key[1] / width) ** 2, key))[:count]
    images = torch.randn((2, 2, height, width), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rows = Frequency(count).encoded(images, spec)
    expected = torch.stack([(images * waves[key]).sum((2, 3)) for key in lowest], 2)
    assert torch.allclose(rows, expected, atol=1e-12)
    back = sum(rows[:, :, k, None, None] * waves[key] for k, key in enumerate(lowest))
    assert torch.allclose(Frequency(count).decoded(rows, spec), back, atol=1e-12)
    everything = Frequency(height * width)
    assert torch.allclose(everything.decoded(everything.encoded(images, spec), spec), images, atol=1e-12)


@pytest.mark.parametrize(("height", "width", "rank"), [(4, 6, 2), (5, 3, 1), (4, 4, 4)])
def test_a_low_rank_row_is_the_nearest_product(height: int, width: int, rank: int) -> None:
    spec = spec_of(height, width)
    images = torch.randn((3, 2, height, width), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    rows = LowRank(rank).encoded(images, spec)
    assert rows.shape == (3, *LowRank(rank).stored_shape(spec)) == (3, 2, rank, height + width)
    found = LowRank(rank).decoded(rows, spec)
    for image, row, product in zip(images.flatten(0, 1), rows.flatten(0, 1), found.flatten(0, 1), strict=True):
        slow = torch.zeros((height, width), dtype=torch.float64)
        for column in row:
            slow += torch.outer(column[:height], column[height:])
        assert torch.allclose(product, slow, atol=1e-12)
        # Eckart and Young: no product of this rank is nearer than the root of the left out eigenvalues of the image's own product.
        left_out = torch.linalg.eigvalsh(image @ image.T).sort().values[: height - rank].clamp_min(0)
        assert torch.allclose((image - product).square().sum(), left_out.sum(), atol=1e-10)
    again = LowRank(rank).encoded(found, spec)
    assert torch.allclose(LowRank(rank).decoded(again, spec), found, atol=1e-10)
    assert torch.allclose(again.abs(), rows.abs(), atol=1e-6)
    assert (rows[..., :height].gather(3, rows[..., :height].abs().argmax(3, keepdim=True)) > 0).all(), "signs do not depend on the machine"


def test_a_rank_above_the_shorter_side_is_refused() -> None:
    with pytest.raises(InputError, match="rank 5; allowed: at most 4, the shorter side"):
        LowRank(5).stored_shape(spec_of(4, 6))


@pytest.mark.parametrize("decode", KINDS, ids=as_text)
def test_the_pulled_back_gradient_is_that_of_the_stored_rows(decode: Decode) -> None:
    made = stored_set(decode)
    synthetic = Synthetic(made)
    weights = torch.randn(synthetic.images.shape, generator=torch.Generator().manual_seed(3))

    def loss(rows: Tensor) -> Tensor:
        return (decode.decoded(rows, made.spec).sin() * weights.to(rows)).sum()

    rows = synthetic.stored.double().requires_grad_(True)
    (expected,) = torch.autograd.grad(loss(rows), rows)
    before = synthetic.stored.clone()
    leaves = [images for images, _ in synthetic.per_class()]
    parts = weights.split([len(part) for part in leaves])
    gradients = [torch.autograd.grad((leaf.sin() * part).sum(), leaf)[0] for leaf, part in zip(leaves, parts, strict=True)]
    synthetic.descend(gradients, lr=0.5, momentum=0.0)
    assert torch.allclose((before - synthetic.stored) / 0.5, expected.float(), atol=1e-4)


@pytest.mark.parametrize("decode", KINDS, ids=as_text)
def test_counts_and_bytes_are_of_what_is_stored_and_files_keep_it(decode: Decode, tmp_path: Path) -> None:
    made = stored_set(decode)
    assert (len(made), made.ipc, made.counts) == (4, 2, (1, 2, 1))
    assert made.nbytes == made.images.numel() * 4 + 4 * 8
    plain = made.decoded()
    assert len(plain) == 4 * decode.copies
    assert plain.decode is None
    assert plain.decoded() is plain
    assert plain.labels.tolist() == [label for label in [0, 1, 1, 2] for _ in range(decode.copies)]
    assert torch.equal(plain.images[decode.copies : 2 * decode.copies], decode.decoded(made.images[1:2], made.spec))
    assert len(made.dataset()) == len(made.pixels()) == len(plain)
    made.save(tmp_path / "set.safetensors")
    again = CondensedSet.load(tmp_path / "set.safetensors")
    assert again.decode == decode
    assert torch.equal(again.images, made.images)
    assert again.to_bytes() == made.to_bytes()
    assert again.subset([1]).decode == decode
    assert CondensedSet.concat([made, again]).decode == decode
    with pytest.raises(InputError, match=r"stored in different forms \(.* and none\); join their decoded\(\) sets"):
        CondensedSet.concat([made, plain])
    decoded_bytes = len(plain) * 2 * 8 * 8 * 4
    with pytest.raises(InputError, match=rf"decodes to {decoded_bytes} bytes; allowed: 1 to {decoded_bytes - 1}"):
        later_parts(*parse(made.to_bytes()), decoded_bytes - 1)


def test_only_pixels_are_quantised_and_clamped() -> None:
    small = stored_set(Formation(2)).quantised()
    assert small.nbytes == 4 * 2 * 8 * 8 + 2 * 8 + 4 * 8
    assert CondensedSet.from_bytes(small.to_bytes()).decode == Formation(2)
    waves = stored_set(Frequency(5))
    with pytest.raises(InputError, match=r"stores frequency rows; take decoded\(\) first"):
        waves.quantised()
    with pytest.raises(InputError, match="frequency:5 rows are no pixels"):
        Synthetic(waves, SharedConfig(clamp=True))


@pytest.mark.parametrize("text", ["formation:2", "frequency:64", "lowrank:4", "none"])
def test_settings_are_read_and_written(text: str) -> None:
    assert as_text(from_text(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "formation",
        "formation:",
        "formation:1",
        "formation:17",
        "formation:2:2",
        "palette:3",
        "formation:-2",
        "lowrank:0",
        "lowrank:5000",
        "",
    ],
)
def test_wrong_settings_are_one_line(text: str) -> None:
    with pytest.raises(InputError) as caught:
        from_text(text)
    assert "\n" not in str(caught.value)


def test_real_images_in_a_formation_are_shrunk_into_its_cells() -> None:
    spec = spec_of(8, 8)
    images = torch.rand((4, 2, 8, 8), generator=torch.Generator().manual_seed(4))
    stored = Formation(2).encoded(images, spec)
    assert torch.allclose(stored[0, :, :4, 4:], F.avg_pool2d(images[1], 2), atol=1e-6)
    assert stored.shape == (1, 2, 8, 8)
    odd = Formation(2).encoded(torch.zeros((4, 2, 9, 9)), spec_of(9, 9))
    assert odd.shape == (1, 2, 9, 9)


def test_baselines_of_a_decoded_set_are_stored_in_its_form(toy_data: ImageData) -> None:
    decode = Formation(2)
    rows = decode.encoded(toy_data.normalised("train", torch.arange(12)), toy_data.spec)
    made = CondensedSet(rows, torch.tensor([0, 1, 2]), toy_data.spec, decode=decode)
    recipe = Recipe(epochs=1, batch_size=8)
    formed = learner_set("random-decoded", made, toy_data, 0)
    assert isinstance(formed, CondensedSet)
    assert (len(formed), formed.decode, formed.nbytes) == (3, decode, made.nbytes)
    assert training_of("random-decoded", made, toy_data, recipe).images == 12 == training_of("condensed", made, toy_data, recipe).images
    assert training_of("random", made, toy_data, recipe).images == 3
    found = evaluate(made, toy_data, network="ConvNetD1W32", recipe=recipe, seeds=1, baselines=("random", "whole"), progress=False)
    assert list(found.rows) == ["condensed", "random", "random-decoded", "whole"]
    assert "decode to 12 images" in found.notes[0]
    with pytest.raises(InputError, match="stores its images plainly; leave it out"):
        learner_set("random-decoded", made.decoded(), toy_data, 0)
    with pytest.raises(InputError, match="stores its images plainly; leave it out"):  # before a network is trained
        evaluate(made.decoded(), toy_data, network="ConvNetD1W32", recipe=recipe, seeds=1, baselines=("random-decoded",), progress=False)


def test_a_class_with_fewer_images_repeats_them_in_its_last_row() -> None:
    data = toy()
    few = dataclasses.replace(data, train=dataclasses.replace(data.train))
    count = few.counts[0]
    made = CondensedSet(torch.zeros((count, *data.spec.shape)), torch.zeros(count, dtype=torch.int64), data.spec, decode=Formation(2))
    formed = learner_set("random-decoded", made, few, 0)
    assert len(formed) == -(-count // 4)


def test_a_learner_of_a_decoded_set_is_that_of_its_decoded_images() -> None:
    made, recipe = stored_set(Formation(2)), Recipe(epochs=2, batch_size=4, augmentation="none")
    first, second = (train_network(source, "ConvNetD1W32", recipe, 0) for source in (made, made.decoded()))
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)
