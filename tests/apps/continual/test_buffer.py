"""The Avalanche adapter: item layouts, strategies that replay, and refusals where Avalanche would silently not replay."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from apps.continual.engine import avalanche, quiet_and_seeded
from apps.continual.strategies import Training, benchmark, learn
from apps.continual.streams import class_incremental
from distill.data import ImageData
from distill.errors import InputError
from distill.networks import create
from distill.randomness import generator
from tests.conftest import toy

pytest.importorskip("avalanche")
from apps.continual.buffer import CondensedBuffer, attach, outputs
from apps.continual.online_buffer import OnlineCondensedBuffer

DM = {"iterations": 3, "network": "ConvNetD1W8", "batch_real": 8}
SHORT = Training(epochs=2, gdumb_epochs=8, batch_size=8, batch_size_mem=4)


@pytest.fixture(scope="module")
def four() -> ImageData:
    return toy(classes=4, channels=3)


@pytest.fixture(scope="module")
def stream(four: ImageData) -> list[ImageData]:
    return class_incremental(four, 2, 0)


def naive(data: ImageData, plugins: list[Any] | None = None, **options: Any) -> Any:
    return strategy("Naive", data, plugins=plugins or [], **options)


def strategy(name: str, data: ImageData, model: Any = None, **options: Any) -> Any:
    model = model or create("ConvNetD1W8", data.spec, generator(0, "weights"))
    with quiet_and_seeded(0):
        quiet = avalanche("avalanche.training.plugins").EvaluationPlugin(loggers=[])
        optimiser = torch.optim.SGD(model.parameters(), lr=0.02)
        made = getattr(avalanche("avalanche.training.supervised"), name)
        return made(model=model, optimizer=optimiser, train_mb_size=8, train_epochs=1, evaluator=quiet, **options)


def layouts(four: ImageData) -> dict[str, Any]:
    """Streams of the three item layouts that Avalanche's builders give, from the same tensors."""
    every = four.normalised("train", torch.arange(len(four.train)))
    plain = TensorDataset(every, four.train.labels)
    plain.targets = four.train.labels.tolist()  # type: ignore[attr-defined]
    with quiet_and_seeded(0):
        generators = avalanche("avalanche.benchmarks")
        utils = avalanche("avalanche.benchmarks.utils")
        nc = generators.nc_benchmark(plain, plain, n_experiences=2, task_labels=False, seed=0)
        tasks = generators.nc_benchmark(plain, plain, n_experiences=2, task_labels=True, seed=0)
        two = utils.as_classification_dataset(plain)
        pairs = generators.class_incremental_benchmark({"train": two, "test": two}, num_experiences=2, seed=0)
    return {"nc": nc.train_stream, "tasks": tasks.train_stream, "pairs": pairs.train_stream}


@pytest.mark.parametrize("storage", ["float32", "uint8"])
@pytest.mark.parametrize("layout", ["nc", "tasks", "pairs"])
def test_items_have_the_streams_layout(layout: str, storage: str, four: ImageData) -> None:
    buffer = CondensedBuffer(8, storage=storage, progress=False, **DM)
    assert len(buffer.buffer) == 0
    agent = naive(four)
    for experience in layouts(four)[layout]:
        buffer.post_adapt(agent, experience)
        theirs, ours = experience.dataset[0], buffer.buffer[len(buffer.buffer) - 1]
        assert len(ours) == len(theirs)
        assert ours[0].shape == theirs[0].shape
        assert ours[0].dtype == theirs[0].dtype == torch.float32
        assert ours[0].device.type == "cpu"
        assert not ours[0].requires_grad
        assert type(ours[1]) is type(theirs[1])
        assert [int(x) for x in ours[2:]] == [int(x) for x in theirs[2:]], "the newest group has its experience's task label"
        assert len(buffer.buffer) <= buffer.max_size
        assert int(ours[1]) in {int(y) for y in experience.dataset.targets}
        joined = experience.dataset.concat(buffer.buffer)
        loader = torch.utils.data.DataLoader(joined, batch_size=len(joined), generator=torch.Generator())
        assert len(next(iter(loader))) == len(theirs)
    shown = torch.stack([buffer.buffer[i][0] for i in range(len(buffer.buffer))])
    assert torch.equal(shown, buffer.memory.images)
    assert [buffer.buffer[i][1] for i in range(len(shown))] == buffer.memory.labels.tolist()
    assert [int(y) for y in buffer.buffer.targets] == buffer.memory.labels.tolist()
    pixels = 8 * 3 * 8 * 8 * (1 if storage == "uint8" else 4)
    assert buffer.nbytes == pixels + 8 * 8 + (4 * 3 * 8 if storage == "uint8" else 0)


def test_the_evaluation_view_is_condensed_and_the_training_view_is_augmented(four: ImageData) -> None:
    """The exemplars do not see a training transform that would ruin the images; the buffer's own transform acts in training only."""
    plain = TensorDataset(four.normalised("train", torch.arange(len(four.train))), four.train.labels)
    plain.targets = four.train.labels.tolist()  # type: ignore[attr-defined]
    with quiet_and_seeded(0):
        made = avalanche("avalanche.benchmarks").nc_benchmark(
            plain, plain, 2, task_labels=False, seed=0, train_transform=lambda x: x * 0 - 100, eval_transform=lambda x: x + 1
        )
    buffer = CondensedBuffer(8, "class_mean", per_class=1, transform=lambda x: x + 1000)
    buffer.post_adapt(naive(four), made.train_stream[0])
    for item, group in zip(buffer.buffer.eval(), buffer.memory.groups, strict=True):
        own = four.subset([group.label])
        expected = own.normalised("train", torch.arange(len(own.train))).mean(0) + 1
        assert torch.allclose(item[0], expected, atol=1e-5)
    assert all(float(item[0].min()) > 900 for item in buffer.buffer.train())


@pytest.mark.parametrize("storage", ["float32", "uint8"])
@pytest.mark.parametrize("name", ["replay", "gdumb", "er_ace", "der"])
def test_every_strategy_replays_what_is_in_the_buffer(
    name: str, storage: str, stream: list[ImageData], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts the items of old classes that the model is trained on in the second experience: none would mean no replay."""
    buffer = CondensedBuffer(8, "class_mean", per_class=2, storage=storage)
    first = set(stream[0].classes)
    seen: list[int] = []
    supervised = avalanche("avalanche.training.supervised")
    module, method = {
        "replay": (supervised.Naive, "_before_forward"),
        "gdumb": (supervised.Naive, "_before_forward"),
        "er_ace": (supervised.ER_ACE, "_after_forward"),
        "der": (supervised.DER, "_after_forward"),
    }[name]
    real = getattr(module, method)

    def watched(self: Any, **kwargs: Any) -> Any:
        result = real(self, **kwargs)
        labels = self.mb_buffer_y if name == "er_ace" and self.replay_loader is not None else self.mb_y
        if self.experience.current_experience == 1:
            seen.append(sum(int(y) in first for y in labels))
        return result

    monkeypatch.setattr(module, method, watched)
    rows = list(learn(name, stream, "ConvNetD1W8", SHORT, 0, buffer=buffer, smallest=4))
    assert len(rows) == 2
    assert sum(seen) > 0
    assert all(0 <= value <= 100 for row in rows for value in row)
    assert len(buffer.buffer) == 8
    if name == "der":
        assert len(buffer.buffer[0]) == 4
        assert buffer.buffer[0][3].shape == (4,)


def test_der_gets_the_outputs_of_the_model_at_that_time(stream: list[ImageData]) -> None:
    made = strategy("DER", stream[0], mem_size=8, batch_size_mem=4)
    buffer = CondensedBuffer(8, "random", per_class=2)
    attach(made, buffer)
    experiences = benchmark(stream).train_stream
    expected = []
    for experience in experiences:
        with quiet_and_seeded(0):
            made.train(experience)
        expected.append(outputs(made.model, buffer.memory.images[-4:], "cpu"))
    found = torch.stack([buffer.buffer[i][3] for i in range(8)])
    assert torch.allclose(found, torch.cat(expected), atol=1e-5)
    assert buffer.nbytes == 8 * (3 * 64 * 4 + 8 + 4 * 4)


@pytest.mark.parametrize("name", ["ER_ACE", "DER"])
def test_where_avalanche_would_silently_not_replay_it_is_refused(name: str, stream: list[ImageData]) -> None:
    """Avalanche's own behaviour first: no replay loader, no word. With the condensed buffer: one clear line."""
    experiences = benchmark(stream).train_stream

    def train(made: Any) -> list[bool]:
        loaders: list[bool] = []
        before = made._after_forward
        made._after_forward = lambda **kwargs: (loaders.append(made.replay_loader is not None), before(**kwargs))
        for experience in experiences:
            with quiet_and_seeded(0):
                made.train(experience)
        return loaders

    assert not any(train(strategy(name, stream[0], mem_size=4, batch_size_mem=16)))
    made = attach(strategy(name, stream[0], mem_size=4, batch_size_mem=16), CondensedBuffer(4, "random", per_class=1))
    with pytest.raises(InputError, match=f"{name} would replay nothing: the buffer holds .* batch_size_mem=.* or less"):
        train(made)
    fits = attach(strategy(name, stream[0], mem_size=4, batch_size_mem=2), CondensedBuffer(4, "random", per_class=1))
    assert any(train(fits))


def test_attach_finds_the_one_storage_policy_or_says_why_not(four: ImageData) -> None:
    plugins = avalanche("avalanche.training.plugins")
    buffer = CondensedBuffer(8, "random")
    for given in (naive(four, [plugins.GDumbPlugin(mem_size=20)]), naive(four, [plugins.ReplayPlugin(mem_size=20)])):
        attach(given, buffer)
        holder = next(p for p in given.plugins if hasattr(p, "storage_policy"))
        assert holder.storage_policy is buffer
        assert holder.mem_size == 8
    with pytest.raises(InputError, match="has 0 storage policies"):
        attach(naive(four), buffer)
    with pytest.raises(InputError, match="has 2 storage policies"):
        attach(naive(four, [plugins.ReplayPlugin(mem_size=8), plugins.GDumbPlugin(mem_size=8)]), buffer)
    with quiet_and_seeded(0):
        head = avalanche("avalanche.models.dynamic_modules").IncrementalClassifier(4)
    with pytest.raises(InputError, match="this model's head grows"):
        attach(strategy("DER", four, model=torch.nn.Sequential(torch.nn.Flatten(), head), mem_size=8), buffer)


def test_what_the_buffer_cannot_be_told(four: ImageData) -> None:
    buffer = CondensedBuffer(8, "random")
    with pytest.raises(InputError, match="cannot be assigned"):
        buffer.buffer = None
    for wrong in (9, 0, "8", True):
        with pytest.raises(InputError, match=r"memory of 8 items cannot become one of .* allowed: 1 to 8"):
            buffer.resize(None, wrong)  # type: ignore[arg-type]
    buffer.resize(None, 8)
    with pytest.raises(InputError, match="max_size is 0"):
        CondensedBuffer(0)
    with pytest.raises(InputError, match="every is 0"):
        OnlineCondensedBuffer(8, every=0)
    images = TensorDataset(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4))
    images.targets = [0, 1, 2, 3]  # type: ignore[attr-defined]
    with quiet_and_seeded(0):
        raw = avalanche("avalanche.benchmarks").nc_benchmark(images, images, 2, task_labels=False, seed=0)
    with pytest.raises(InputError, match="put ToTensor"):
        buffer.post_adapt(naive(four), raw.train_stream[0])


def test_saved_and_loaded_without_pickle(stream: list[ImageData], tmp_path: Path) -> None:
    experiences = benchmark(stream).train_stream
    agent = naive(stream[0])
    first = CondensedBuffer(8, storage="uint8", progress=False, **DM)
    first.post_adapt(agent, experiences[0])
    first.save(tmp_path / "buffer.safetensors")
    again = CondensedBuffer(8, storage="uint8", progress=False, **DM)
    again.load(tmp_path / "buffer.safetensors", experiences[0])
    for buffer in (first, again):
        buffer.post_adapt(agent, experiences[1])
    assert torch.equal(first.memory.images, again.memory.images)
    assert [tuple(map(int, item[1:])) for item in first.buffer] == [tuple(map(int, item[1:])) for item in again.buffer]
    with pytest.raises(InputError, match="other settings"):
        CondensedBuffer(8, "random").load(tmp_path / "buffer.safetensors", experiences[0])


def test_online_streams_wait_in_a_queue(stream: list[ImageData]) -> None:
    """Mini-experiences of 4 items, a queue of 8, condensed every second one: groups grow only then, and past counts."""
    experiences = benchmark(stream).train_stream
    buffer = OnlineCondensedBuffer(8, per_class=2, queue=8, every=2, **DM)
    agent = naive(stream[0])
    online = avalanche("avalanche.benchmarks.scenarios.online").split_online_stream(experiences, 4, seed=0)
    sizes = []
    for mini in online:
        buffer.post_adapt(agent, mini)
        sizes.append((len(buffer.buffer), buffer.queue_nbytes > 0))
    assert sizes[0] == (0, True)
    assert sizes[1][0] > 0
    assert not sizes[1][1]
    assert sizes[-1][0] == 8
    assert sorted(int(y) for y in buffer.buffer.targets) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert sum(group.seen for group in buffer.memory.groups) == sum(len(e.dataset) for e in experiences)


def test_same_seed_same_matrix_and_global_state_untouched(stream: list[ImageData]) -> None:
    def rows(seed: int) -> list[list[float]]:
        buffer = CondensedBuffer(8, "random", seed=seed)
        return list(learn("replay", stream, "ConvNetD1W8", SHORT, seed, buffer=buffer))

    assert rows(0) == rows(0)


@pytest.mark.parametrize("storage", ["float32", "uint8"])
@pytest.mark.parametrize("method", ["random", "dm"])
def test_decoded_items_are_replayed_as_images(method: str, storage: str, four: ImageData, stream: list[ImageData]) -> None:
    """Four images an item: the data set, its classes and every learner have the images, and the memory's bytes are those of the items."""
    settings = {"decode": "formation:2", **(DM if method == "dm" else {})}
    buffer = CondensedBuffer(8, method, per_class=2, storage=storage, progress=False, **settings)
    plugin = avalanche("avalanche.training.plugins").ReplayPlugin(mem_size=8, batch_size_mem=8, storage_policy=buffer)
    agent = naive(four, [plugin])
    with quiet_and_seeded(0):
        for experience in benchmark(stream).train_stream:
            agent.train(experience, num_workers=0)
    assert (len(buffer.memory), len(buffer.buffer)) == (8, 32)
    items = [buffer.buffer[i] for i in range(32)]
    assert torch.allclose(torch.stack([item[0] for item in items]), buffer.memory.images, atol=1e-6)
    assert [item[1] for item in items] == buffer.memory.labels.tolist() == [int(y) for y in buffer.buffer.targets]
    assert {label: len(group.buffer) for label, group in buffer.buffer_groups.items()} == dict.fromkeys(range(4), 8)
    assert buffer.nbytes == 8 * (3 * 8 * 8 * (1 if storage == "uint8" else 4) + 8) + (4 * 3 * 8 if storage == "uint8" else 0)


@pytest.mark.parametrize("name", ["gdumb", "er_ace", "der"])
def test_learners_take_decoded_items(name: str, stream: list[ImageData]) -> None:
    """ER-ACE and DER fill a batch with more images than the buffer has items; DER stores outputs of each image, and counts them."""
    buffer = CondensedBuffer(4, "random", per_class=1, decode="formation:2")
    training = Training(epochs=1, gdumb_epochs=1, batch_size=8, batch_size_mem=8)
    rows = list(learn(name, stream, "ConvNetD1W8", training, 0, buffer=buffer, smallest=8))
    assert len(rows) == 2
    assert (len(buffer.memory), len(buffer.buffer)) == (4, 16)
    if name == "der":
        assert [tuple(group.logits.shape) for group in buffer.memory.groups if group.logits is not None] == [(4, 4)] * 4
        assert torch.equal(torch.stack([buffer.buffer[i][3] for i in range(4)]), buffer.memory.groups[0].logits)  # type: ignore[arg-type]
    assert buffer.nbytes == 4 * (3 * 8 * 8 * 4 + 8) + (16 * 4 * 4 if name == "der" else 0)


def test_an_online_buffer_of_decoded_items_counts_images(four: ImageData) -> None:
    """Two items are eight images: a replay batch of eight can be filled, one of nine never."""
    buffer = OnlineCondensedBuffer(2, "random", every=1, decode="formation:2")
    data = benchmark(class_incremental(four.subset([0, 1]), 1, 0)).train_stream[0]
    buffer.post_adapt(strategy("ER_ACE", four, mem_size=2, batch_size_mem=8), data)
    assert len(buffer.buffer) == 8
    data.current_experience = 1
    with pytest.raises(InputError, match="holds 8 items and batch_size_mem is 9"):
        OnlineCondensedBuffer(2, "random", every=1, decode="formation:2").post_adapt(
            strategy("ER_ACE", four, mem_size=2, batch_size_mem=9), data
        )
