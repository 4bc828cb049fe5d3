"""A user's script that is killed and started again, `resume`, and reading an experience."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from apps.continual import memory_file
from apps.continual.engine import avalanche, quiet_and_seeded
from apps.continual.strategies import benchmark
from apps.continual.streams import class_incremental
from distill.errors import InputError
from tests.conftest import toy

pytest.importorskip("avalanche")
from apps.continual import reading
from apps.continual.buffer import CondensedBuffer
from apps.continual.online_buffer import OnlineCondensedBuffer
from apps.continual.reading import read
from tests.apps.continual.test_buffer import DM, naive

ROOT = Path(__file__).parents[3]
STREAM = class_incremental(toy(classes=4, channels=3), 2, 0)

# Runs scripts in processes of their own (forks: Avalanche is imported once), some of which kill themselves: SIGKILL tidies nothing up.
DRIVER = """
import os, signal, sys
from pathlib import Path

import safetensors.torch
import torch

import distill.run
from apps.continual import CondensedBuffer, attach
from avalanche.training.supervised import DER


def dies_at(owner, name, call):
    real, left = getattr(owner, name), [call]

    def counted(*given, **named):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)

    setattr(owner, name, counted)


def run(code, folder, owner=None, name="", call=0):
    folder.mkdir(exist_ok=True)
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        distill.run.CHECKPOINT_SECONDS = -1.0
        if owner is not None:
            dies_at(owner, name, call)
        names = {}
        exec(code, names)
        memory = names["buffer"].memory
        logits = [group.logits for group in memory.groups if group.logits is not None]
        tensors = {**names["model"].state_dict(), "images": memory.images, "labels": memory.labels}
        tensors |= {"logits": torch.cat(logits)} if logits else {}
        safetensors.torch.save_file(tensors, "end.safetensors")
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)


here = Path(sys.argv[1])
for place in sorted(here.glob("*.py")):
    code = compile(place.read_text(), place.name, "exec")
    whole, parts = here / f"{place.stem}-whole", here / f"{place.stem}-parts"
    ends = [run(code, whole)]
    ends.append(run(code, parts, torch.optim.SGD, "step", 3))  # in training on the second experience
    ends.append(run(code, parts, distill.run, "save_checkpoint", 3))  # in condensing a later one
    ends.append(run(code, parts, torch, "save", 2))  # after the memory's file, before the model's
    ends.append(run(code, parts))
    files = len(list((parts / "memories").glob("memory-*")))
    one, other = (safetensors.torch.load_file(folder / "end.safetensors") for folder in (whole, parts))
    same = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    print(place.stem, ends, files, "logits" in one, same)
"""

STRATEGIES = {
    "der": None,
    "er_ace": "attach(ER_ACE(model=model, optimizer=optimiser, mem_size=30, batch_size_mem=6, train_mb_size=32, train_epochs=4), buffer)",
    "replay": "Naive(model=model, optimizer=optimiser, train_mb_size=32, train_epochs=4, plugins=[Replay(30, storage_policy=buffer)])",
}


def test_the_readmes_script_is_killed_three_times_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    """As printed but for its size, and for its strategy: DER, ER-ACE (which fills its memory before it trains), replay."""
    page = (ROOT / "apps" / "continual" / "README.md").read_text()
    (script,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "resume" in block]
    smaller = {
        "torch.arange(len(data.train))), data.train.labels": "torch.arange(300)), data.train.labels[:300]",
        '"ConvNetD1W32"': '"ConvNetD1W8"',
        'method="dm"': 'method="dm", iterations=3, network="ConvNetD1W8", progress=False',
        "train_epochs=4": "train_epochs=1, evaluator=None",
    }
    for name, line in STRATEGIES.items():
        code = script if line is None else re.sub(r"(?m)^strategy = .*$", f"strategy = {line}", script)
        others = "ER_ACE, Naive\nfrom avalanche.training.plugins import ReplayPlugin as Replay"
        code = code.replace("supervised import DER", f"supervised import DER, {others}")
        for printed, small in smaller.items():
            assert printed in code, printed
            code = code.replace(printed, small)
        (tmp_path / f"{name}.py").write_text(code)
    (tmp_path / "driver").write_text(textwrap.dedent(DRIVER))
    command = [sys.executable, "-W", "ignore", str(tmp_path / "driver"), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=900)
    said = [line for line in done.stdout.splitlines() if line.split()[0] in STRATEGIES]
    assert said == [f"{name} [0, -9, -9, -9, 0] 5 {name == 'der'} True" for name in sorted(STRATEGIES)], done.stdout + done.stderr[-2000:]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_a_buffer_is_resumed_with_its_own_settings(tmp_path: Path) -> None:
    experiences, agent = benchmark(STREAM).train_stream, naive(STREAM[0])
    options = {"per_class": 2, "storage": "uint8", "seed": 3, "max_bytes": 9999, "mean": (0.5,) * 3, "std": (0.2,) * 3, "data_name": "mine"}
    first = CondensedBuffer(8, folder=tmp_path, progress=False, **options, **DM)  # type: ignore[arg-type]
    for experience in experiences:
        first.post_adapt(agent, experience)
    last = CondensedBuffer.resume(tmp_path, like=experiences[0], transform=torch.neg)
    assert last.memory.config == first.memory.config
    assert torch.equal(last.memory.images, first.memory.images)
    assert torch.equal(last.buffer[0][0], -first.buffer[0][0])
    earlier = CondensedBuffer.resume(tmp_path, like=experiences[0], finished=1, progress=False)
    assert earlier.memory.experiences == 1
    earlier.post_adapt(agent, experiences[1])
    assert torch.equal(earlier.memory.images, first.memory.images)
    with pytest.raises(InputError, match=r"after 2 experiences has this one already, .* call resume\(\.\.\., finished=1\)"):
        last.post_adapt(agent, experiences[1])
    with pytest.raises(InputError, match=r"has no memory-4\.safetensors, the memory after 5 experiences"):
        CondensedBuffer.resume(tmp_path, like=experiences[0], finished=5)
    for wrong in (0, -1, True, "2"):
        with pytest.raises(InputError, match=r"finished is .*allowed: 1 or more"):
            CondensedBuffer.resume(tmp_path, like=experiences[0], finished=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has no memory-<number>"):
        CondensedBuffer.resume(tmp_path / "..", like=experiences[0])
    without = memory_file.Memory(memory_file.MemoryConfig("random", per_class=2))
    memory_file.save(without, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="has no budget in items"):
        CondensedBuffer.resume(tmp_path / "m.safetensors", like=experiences[0])


@pytest.mark.parametrize(
    ("like", "words"),
    [
        (None, "like is of type NoneType; allowed: an experience of the stream, or its data set"),
        ([], "like is of type list;"),
        (
            lambda: class_incremental(toy(classes=4, channels=1), 2, 0),
            r"holds items \(3, 8, 8\), and the stream of like has \(1, 8, 8\)",
        ),
    ],
)
@pytest.mark.parametrize("kind", [CondensedBuffer, OnlineCondensedBuffer])
def test_another_stream_is_one_line_and_changes_nothing(kind: type[CondensedBuffer], like: Any, words: str, tmp_path: Path) -> None:
    buffer = kind(8, "random", progress=False)
    buffer.post_adapt(naive(toy(classes=4, channels=3)), benchmark(STREAM).train_stream[0])
    buffer.save(tmp_path / "memory")
    like = benchmark(like()).train_stream[0] if callable(like) else like
    with pytest.raises(InputError, match=words):
        kind.resume(tmp_path / "memory", like)
    before = buffer.buffer
    with pytest.raises(InputError, match=words):
        buffer.load(tmp_path / "memory", like)
    assert buffer.buffer is before


def test_an_experience_that_came_twice_is_no_mistake_where_nothing_was_resumed(tmp_path: Path) -> None:
    experiences, agent = benchmark(STREAM).train_stream, naive(STREAM[0])
    buffer = CondensedBuffer(8, "random", per_class=2, folder=tmp_path)
    for _ in range(2):
        buffer.post_adapt(agent, experiences[0])
    assert buffer.memory.experiences == 2


def test_an_online_buffer_is_resumed_with_its_queue(tmp_path: Path) -> None:
    experiences = benchmark(STREAM).train_stream
    first = OnlineCondensedBuffer(8, "random", per_class=2, queue=500, every=3)
    first.post_adapt(None, experiences[0])
    first.save(tmp_path / "b.safetensors")
    again = OnlineCondensedBuffer.resume(tmp_path / "b.safetensors", like=experiences[0])
    assert (again.queue.size, again.queue.every, again.queue.calls, len(again.queue)) == (500, 3, 1, len(first.queue))
    for buffer in (first, again):
        buffer.post_adapt(None, experiences[1])
        buffer.flush()
    assert torch.equal(again.memory.images, first.memory.images)
    with pytest.raises(InputError, match="images wait in its queue"):
        CondensedBuffer.resume(tmp_path / "b.safetensors", like=experiences[0])


# Reading


def dataset_from(items: Any, targets: list[int], evaluation: Any = None) -> Any:
    utils = avalanche("avalanche.benchmarks.utils")
    described = [utils.DataAttribute(targets, "targets"), utils.TaskLabels([0] * len(items))]
    groups = utils.TransformGroups({"train": lambda x: x * 0, "eval": evaluation})
    return utils.TaskAwareSupervisedClassificationDataset([items], data_attributes=described, transform_groups=groups)


def _dataset(name: str) -> Any:
    """Data sets of Avalanche over the same images: plain, cut and joined, transformed in one of two ways."""
    images, labels = torch.rand(90, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(90) % 3
    plain = TensorDataset(images, labels)
    plain.targets = labels.tolist()  # type: ignore[attr-defined]
    half = Subset(plain, list(range(0, 90, 2)))

    class Own(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[0] + 1, int(self.tensors[1][index])

    join = avalanche("avalanche.benchmarks.utils").concat_datasets
    whole, cut = dataset_from(plain, plain.targets), dataset_from(half, plain.targets[::2])  # type: ignore[attr-defined]
    own, shifted = dataset_from(Own(images, labels), labels.tolist()), dataset_from(plain, labels.tolist(), lambda x: x - 0.5)
    joined = join([whole.subset([5, 3, 80]), cut, whole.subset([1])])
    if name == "nc":
        with quiet_and_seeded(0):
            made = avalanche("avalanche.benchmarks").nc_benchmark(plain, plain, 3, task_labels=True, seed=0)
        return made.train_stream[1].dataset
    return {
        "plain": whole,
        "subset": cut,
        "joined": joined,
        "joined again": join([joined, whole]).subset([95, 0, 3, 47, 48, 49, 50]),
        "evaluation too": shifted,
        "frozen": shifted.eval().freeze_transforms(),
        "own": own,
        "mixed": join([whole, own]),
        "ours": benchmark(STREAM).train_stream[0].dataset,
    }[name]


SLOWLY = ("evaluation too", "frozen", "own", "mixed")


@pytest.mark.parametrize("name", ["plain", "subset", "joined", "joined again", "nc", "ours", *SLOWLY])
def test_an_experience_is_read_at_once_as_item_by_item(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, parts = _dataset(name), list[int]()
    monkeypatch.setattr(reading, "PART", 7)
    real = reading._in_parts
    monkeypatch.setattr(reading, "_in_parts", lambda *given: (parts.append(1), real(*given))[1])
    state = torch.get_rng_state()
    images, labels, tasks = read(dataset)
    assert torch.equal(torch.get_rng_state(), state)
    items = [dataset.eval()[place] for place in range(len(dataset))]
    assert torch.equal(images, torch.stack([item[0] for item in items]))
    assert labels.tolist() == [int(item[1]) for item in items]
    assert tasks.tolist() == [int(item[2]) for item in items]
    assert (labels.dtype, tasks.dtype) == (torch.int64, torch.int64)
    assert bool(parts) == (name in SLOWLY), "read one by one although it is tensors, or at once although it is not"
    images.zero_()
    assert dataset.eval()[0][0].abs().sum() > 0, "its own copy"


def test_workers_read_the_same_and_draw_from_no_global_generator() -> None:
    dataset = _dataset("own")
    state = torch.get_rng_state()
    alone, together = read(dataset), read(dataset, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    buffer = CondensedBuffer(6, "random", num_workers=2)
    buffer.post_adapt(None, SimpleNamespace(dataset=dataset))
    assert sorted(buffer.memory.labels.tolist()) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(InputError, match="num_workers is '-1'"):
        CondensedBuffer(6, "random", num_workers=-1)


def test_reading_calls_each_item_about_once() -> None:
    """No time is measured here (benchmarks/reading.py does): items are asked for once each, and `LOOKED_AT` of them and the first again."""
    asked = list[int]()

    class Counted(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            asked.append(index)
            return self.tensors[0][index], 0

    items = Counted(torch.zeros(500, 1, 4, 4))
    dataset = dataset_from(items, [0] * 500)
    read(dataset)
    assert len(asked) <= 500 + 1 + reading.LOOKED_AT
    asked.clear()
    assert sum(len(batch[1]) for batch in DataLoader(dataset.eval(), batch_size=64, generator=torch.Generator())) == len(asked) == 500


def test_images_of_two_shapes_are_one_line() -> None:
    class Two(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            return torch.zeros(1, 4, 4 + index // 3), 0

    items = Two(torch.zeros(5))
    with pytest.raises(InputError, match=r"items of \(1, 4, 4\), \(1, 4, 5\); allowed: one image shape"):
        read(dataset_from(items, [0] * 5))


def test_a_view_that_distorts_some_images_is_warned_about() -> None:
    """Every second reading of an item is another image: the first item alone would show it half of the time."""

    class Flips(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            image = self.tensors[0][index]
            return (image.flip(2) if torch.rand((), generator=draws) < 0.5 else image), 0

    items = Flips(torch.arange(1024.0).view(64, 1, 4, 4))
    dataset = dataset_from(items, [0] * 64)
    for seed in range(8):
        draws = torch.Generator().manual_seed(seed)
        with pytest.warns(UserWarning, match="another image each time"):
            read(dataset)
