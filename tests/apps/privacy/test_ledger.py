"""The account is never below what was released: kills, deletions, two processes, other data, other settings, other accounts."""

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.privacy import PrivateStatistics, private_statistics
from apps.privacy import ledger as ledgers
from apps.privacy.ledger import PRIVATE_FILE, Ledger
from apps.privacy.private_start import private_kmeans
from distill.condensed import CondensedSet
from distill.errors import CannotWrite, InputError
from distill.experts import ExpertConfig
from distill.networks import create
from tests.apps.privacy.test_private_statistics import NETWORK, draws, pixels, private, public_toy

pytest.importorskip("opacus")


def scaled(factor: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda images: factor * images.flatten(1)


def ask(statistics: PrivateStatistics, *factors: float) -> None:
    for factor in factors:
        statistics.class_means(scaled(factor), 4, None, draws())


def test_two_objects_of_one_folder_share_one_account(tmp_path: Path) -> None:
    first, second = private(ledger=tmp_path / "a", releases=10), private(ledger=tmp_path / "a", releases=10)
    for turn in range(5):
        ask(first, 1.0 + turn)
        ask(second, 11.0 + turn)
    assert first.privacy["releases"] == second.privacy["releases"] == 10
    with pytest.raises(InputError, match="budget is spent"):
        ask(second, 50.0)
    ask(second, 1.0, 2.0)  # the first one's answers cost nothing
    assert second.privacy["releases"] == 10


def wait_for(done: Callable[[], bool], working: list[multiprocessing.process.BaseProcess]) -> None:
    """Until it is done; fails where one of the processes ends instead."""
    while not done():
        assert all(process.is_alive() for process in working), "a process stopped with an error"
        time.sleep(0.01)


PLANNED = 20_001  # one, and all that 20 processes can ask for


def _work(folder: Path, offset: int) -> None:
    statistics = private(ledger=folder / "a", releases=PLANNED, epsilon=8.0)
    answers = os.open(folder / f"answers-{offset}", os.O_WRONLY | os.O_CREAT)
    for turn in range(1000):
        ask(statistics, 1.0 + offset + turn)
        os.write(answers, b"x")


def test_two_processes_killed_at_any_moment_are_all_counted(tmp_path: Path) -> None:
    """Whoever saw an answer paid for it: the account is at least the number of different questions that were answered."""
    context, chance = multiprocessing.get_context("fork"), random.Random(5)
    ask(private(ledger=tmp_path / "a", releases=PLANNED, epsilon=8.0), 0.5)  # the plan is made
    for turn in range(10):
        offsets = [100_000 * turn + 10_000 * k for k in range(2)]
        pair = [context.Process(target=_work, args=(tmp_path, offset)) for offset in offsets]
        for process in pair:
            process.start()
        paths = [tmp_path / f"answers-{offset}" for offset in offsets]
        wait_for(lambda paths=paths: all(p.exists() and p.stat().st_size > 1 for p in paths), pair)  # type: ignore[arg-type]
        time.sleep(0.05 * chance.random())
        for process in pair:
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
    answered = 1 + sum(path.stat().st_size for path in tmp_path.glob("answers-*"))
    counted = private(ledger=tmp_path / "a", releases=PLANNED, epsilon=8.0).privacy["releases"]
    assert answered > 40
    assert counted >= answered
    files = list((tmp_path / "a").glob("release-*.safetensors"))
    assert counted == len(files), "a release on the disk was not counted, or one was counted without a file"


def test_an_expert_killed_before_its_account_still_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ExpertConfig(experts=2, epochs=1, batch_size=12, lr=0.1, network=NETWORK)
    statistics = private(releases=None, epsilon=8.0, ledger=tmp_path / "a")

    class Killed(Exception):
        pass

    written = Ledger._write

    def write(self: Ledger) -> None:
        if (tmp_path / "a" / "expert-0000.safetensors").exists():
            raise Killed
        written(self)

    monkeypatch.setattr(Ledger, "_write", write)
    with pytest.raises(Killed):
        statistics.trajectories(config, NETWORK)
    monkeypatch.setattr(Ledger, "_write", written)
    again = private(releases=None, epsilon=8.0, ledger=tmp_path / "a")
    assert again.privacy["releases"] == 3, "the expert is on the disk and was not counted"
    again.trajectories(config, NETWORK)
    assert again.privacy["releases"] == 6
    assert again.privacy["epsilon"] <= 8.0


def test_what_another_process_left_uncounted_is_counted_by_the_one_that_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The account's file did not change, so only the release's own file tells."""
    living = private(ledger=tmp_path / "a", releases=10)
    ask(living, 1.0)
    killed = private(ledger=tmp_path / "a", releases=10)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_write", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ask(killed, 2.0)
    ask(living, 3.0)
    assert living.privacy["releases"] == private(ledger=tmp_path / "a", releases=10).privacy["releases"] == 3
    ask(living, 2.0)
    assert living.privacy["releases"] == 3, "the kept answer to the other's question costs nothing"


def test_what_a_kill_left_half_written_is_gone_before_anybody_counts(tmp_path: Path) -> None:
    """A whole release in a temporary file would be one more than was paid for."""
    ask(private(ledger=tmp_path / "a"), 1.0)
    for name in (".release-00000001.safetensors.77.part", f".{PRIVATE_FILE}.77.part"):
        (tmp_path / "a" / name).write_bytes(b"x")
    private(ledger=tmp_path / "a")
    assert not list((tmp_path / "a").glob(".*.part"))
    assert (tmp_path / "a" / PRIVATE_FILE).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("file", ["release-", "account"])
def test_a_release_that_a_full_disk_does_not_take_is_not_answered(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was written of it counts, in this process and in the next."""
    statistics = private(ledger=tmp_path / "a", releases=10)
    ask(statistics, 1.0)

    def full(write: Callable[..., None]) -> Callable[..., None]:
        def wrapped(path: Path, *args: object, **named: object) -> None:
            if Path(path).name.startswith(file):
                raise CannotWrite(f"{path}: no space left")
            write(path, *args, **named)

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("write_whole", "write_json"):
            patch.setattr(ledgers, name, full(getattr(ledgers, name)))
        for _ in range(2):
            with pytest.raises(CannotWrite, match="no space left"):
                ask(statistics, 2.0)
    made = len(list((tmp_path / "a").glob("release-*")))
    again = private(ledger=tmp_path / "a", releases=10)
    assert made <= statistics.privacy["releases"]
    assert made <= again.privacy["releases"] <= statistics.privacy["releases"]
    ask(again, 3.0)
    assert again.privacy["releases"] >= made + 1


def test_the_lock_is_held_from_the_budget_to_the_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a release is made, nobody else with the folder gets as far as making one: the last of a budget is made once."""
    first, second = private(ledger=tmp_path / "a", releases=1), private(ledger=tmp_path / "a", releases=1)
    made, answers = [], []
    noised = private_statistics.noised_sums

    def slow(*args: object, **named: object) -> torch.Tensor:
        made.append(threading.current_thread())
        if len(made) == 1:
            other = threading.Thread(target=lambda: answers.append(second.class_means(pixels, 4, None, draws())))
            other.start()
            other.join(1.0)
            assert other.is_alive(), "it waits"
            made.append(other)
        return noised(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(private_statistics, "noised_sums", slow)
    found = first.class_means(pixels, 4, None, draws())
    made[1].join(30)
    assert len(made) == 2, "one release, and the thread that waited for it"
    assert torch.equal(answers[0], found)
    assert first.privacy["releases"] == second.privacy["releases"] == 1


def test_an_expert_of_other_first_weights_is_no_answer(tmp_path: Path) -> None:
    """Functions share names: what tells two networks apart is what they are, and where they begin."""

    def named(seed: int) -> Callable[[object], torch.nn.Module]:
        def received(spec: object) -> torch.nn.Module:
            return create(NETWORK, spec, torch.Generator().manual_seed(seed), torch.device("cpu"))  # type: ignore[arg-type]

        return received

    config = ExpertConfig(experts=1, epochs=1, batch_size=12, lr=0.1, network=NETWORK)
    private(releases=None, epsilon=8.0, ledger=tmp_path / "a").trajectories(config, named(1))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="other settings"):
        private(releases=None, epsilon=8.0, ledger=tmp_path / "a").trajectories(config, named(2))  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"lr": 0.2}, {"seed": 9}, {"network": "ConvNetW32"}])
def test_experts_of_other_settings_are_no_answer(tmp_path: Path, change: dict[str, object]) -> None:
    config = ExpertConfig(experts=1, epochs=1, batch_size=12, lr=0.1, network=NETWORK)
    private(releases=None, epsilon=8.0, ledger=tmp_path / "a").trajectories(config, NETWORK)
    other = dataclasses.replace(config, **change)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="other settings"):
        private(releases=None, epsilon=8.0, ledger=tmp_path / "a").trajectories(other, other.network)


@pytest.mark.parametrize(
    "change",
    [{"insecure_seed": 0}, {"releases": 6}, {"sample_rate": 0.5}, {"clip": 2.0}, {"population": 40}, {"classes": (0, 1)}, {"delta": 1e-4}],
)
def test_a_ledger_of_other_settings_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """Releases whose noise can be repeated above all: they would be taken for secure ones."""
    ask(private(ledger=tmp_path / "a", **change), 1.0)
    with pytest.raises(InputError, match="other settings"):
        private(ledger=tmp_path / "a")


def test_a_ledger_of_other_private_data_is_refused(tmp_path: Path) -> None:
    ask(private(ledger=tmp_path / "a"), 1.0)
    with pytest.raises(InputError, match="other private data"):
        private(public_toy(seed=7), ledger=tmp_path / "a")
    secret = public_toy().fingerprint
    holding = [path.name for path in (tmp_path / "a").iterdir() if secret.encode() in path.read_bytes()]
    assert holding == [PRIVATE_FILE]


def test_a_folder_whose_account_is_gone_is_refused(tmp_path: Path) -> None:
    statistics = private(ledger=tmp_path / "a")
    ask(statistics, 1.0, 2.0)
    (tmp_path / "a" / "account.json").unlink()
    for use in (lambda: private(ledger=tmp_path / "a"), lambda: ask(statistics, 3.0)):
        with pytest.raises(InputError, match=r"account\.json is missing"):
            use()
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(InputError):
        ask(statistics, 3.0)


def test_a_run_whose_ledger_was_deleted_is_refused_with_a_private_start_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start fills a new ledger before the run goes on: that there is a history does not make it the history of the checkpoint."""
    import distill
    import distill.run as runs

    monkeypatch.setattr(runs, "CHECKPOINT_SECONDS", -1.0)
    path, folder = tmp_path / "c", tmp_path / "c-releases"

    def run(stop: int, steps: int = 3) -> CondensedSet:
        statistics = private(releases=steps, start_releases=2, epsilon=4.0, ledger=folder)
        start = private_kmeans(statistics, 1)
        means, made = statistics.class_means, [0]

        def counting(*arguments: object, **named: object) -> torch.Tensor:
            made[0] += 1
            if made[0] > stop:
                raise KeyboardInterrupt
            return means(*arguments, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(statistics, "class_means", counting)
        return distill.condense(statistics, "dm", ipc=1, initial=start, network=NETWORK, iterations=steps, checkpoint=path, resume=True)

    with pytest.raises(KeyboardInterrupt):
        run(stop=2)
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    shutil.rmtree(folder)
    with pytest.raises(InputError):
        run(stop=9)
    # An older copy of the folder does not know all that was released either.
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    (folder / "release-00000003.safetensors").unlink()
    account = json.loads((folder / "account.json").read_text())
    account["history"][-1][2] -= 1
    (folder / "account.json").write_text(json.dumps(account))
    with pytest.raises(InputError, match="what was spent is not known"):
        run(stop=9)
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    assert (run(stop=9).provenance.dp or {})["releases"] == 5


def test_an_account_that_was_put_back_to_an_earlier_one_is_refused(tmp_path: Path) -> None:
    statistics = private(ledger=tmp_path / "a")
    ask(statistics, 1.0)
    account = json.loads((tmp_path / "a" / "account.json").read_text())
    account["history"] = []
    (tmp_path / "a" / "account.json").write_text(json.dumps(account))
    with pytest.raises(InputError, match="replaced"):
        ask(statistics, 2.0)
    # A new process counts the releases that are there.
    assert private(ledger=tmp_path / "a").privacy["releases"] == 1


def test_a_start_of_another_account_is_no_start_of_this_one() -> None:
    """Two accounts of one plan: the start of the first cannot pass as released by the second, whose history says nothing of it."""

    def made() -> tuple[PrivateStatistics, CondensedSet]:
        statistics = private(start_releases=2, epsilon=4.0)
        return statistics, private_kmeans(statistics, 1)

    (first, own), (_, foreign) = made(), made()
    first.begin(own, 5, 0, None)
    with pytest.raises(InputError, match="no privacy guarantee"):
        first.begin(foreign, 5, 0, None)


@pytest.mark.parametrize("classes", [(0, 0, 1), (0, 1, 3), (-1, 0), (), (True, 0), ("0",)])
def test_a_class_is_listed_once(classes: tuple[object, ...]) -> None:
    with pytest.raises(InputError, match="different whole numbers"):
        private(classes=classes)


# Where the noise of experts comes from


def first_words(seeds: np.ndarray, count: int) -> list[np.ndarray]:
    """The first outputs of torch's CPU generator (MT19937) for every seed at once."""
    words = [seeds.astype(np.uint32)]
    for index in range(1, 397 + count + 1):
        words.append(np.uint32(1812433253) * (words[-1] ^ (words[-1] >> np.uint32(30))) + np.uint32(index))
    found = []
    for index in range(count):
        both = (words[index] & np.uint32(0x80000000)) | (words[index + 1] & np.uint32(0x7FFFFFFF))
        out = words[index + 397] ^ (both >> np.uint32(1)) ^ np.where(both & np.uint32(1), np.uint32(0x9908B0DF), np.uint32(0))
        out ^= out >> np.uint32(11)
        out ^= (out << np.uint32(7)) & np.uint32(0x9D2C5680)
        out ^= (out << np.uint32(15)) & np.uint32(0xEFC60000)
        found.append(out ^ (out >> np.uint32(18)))
    return found


def likeliest_seed(released: torch.Tensor, seeds: int) -> tuple[int, float]:
    """The attack: the seed whose noise is most like a released vector, by its first 16 numbers, and the correlation of the whole."""
    uniform = [(word & np.uint32(0xFFFFFF)) / 2.0**24 for word in first_words(np.arange(seeds), 16)]
    score = np.zeros(seeds)
    for place in range(8):
        radius, angle = np.sqrt(-2 * np.log1p(-uniform[place])), 2 * np.pi * uniform[place + 8]
        score += radius * (np.cos(angle) * float(released[place]) + np.sin(angle) * float(released[place + 8]))
        score -= 0.5 * radius**2 * float(released[:16].std())
    best = int(score.argmax())
    noise = torch.randn(len(released), generator=torch.Generator().manual_seed(best))
    return best, float(torch.corrcoef(torch.stack([noise, released]))[0, 1])


def test_noise_of_a_torch_generator_is_taken_away_again_and_ours_is_not() -> None:
    """A seed below 2^20 is found from one noised vector in a second, and the clean sum with it; noise of the system's entropy has none."""
    clean = 0.05 * torch.randn(4096, generator=torch.Generator().manual_seed(1))
    noised = clean + torch.randn(4096, generator=torch.Generator().manual_seed(777_777))
    seed, correlation = likeliest_seed(noised, 1 << 20)
    recovered = noised - torch.randn(4096, generator=torch.Generator().manual_seed(seed))
    assert seed == 777_777
    assert correlation > 0.99
    assert float((recovered - clean).norm() / clean.norm()) < 1e-5
    _, correlation = likeliest_seed(clean + private().noise((4096,)).float(), 1 << 16)
    assert abs(correlation) < 0.2


def test_no_generator_of_torch_gives_noise_and_every_number_is_eight_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts, features and gradients: the operating system is asked for 8 bytes a number of noise and of a mask, and torch for none."""
    asked = [0]
    urandom = os.urandom

    def counting(count: int) -> bytes:
        asked[0] += count
        return urandom(count)

    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("noise of a torch generator")

    config = ExpertConfig(experts=1, epochs=1, batch_size=12, lr=0.1, network=NETWORK)
    statistics = private(releases=None, epsilon=8.0)
    import opacus.optimizers.optimizer as opacus_optimizer

    import apps.privacy.private_experts as experts

    created = experts.create(NETWORK, public_toy().spec, draws(), torch.device("cpu"))
    parameters = sum(p.numel() for p in created.parameters())
    monkeypatch.setattr(experts, "create", lambda *a, **k: created)  # public initial weights may come from a seed
    monkeypatch.setattr(os, "urandom", counting)
    for name in ("randn", "normal", "rand"):
        monkeypatch.setattr(torch, name, refuse)
    monkeypatch.setattr(torch.Tensor, "normal_", refuse)
    monkeypatch.setattr(opacus_optimizer, "_generate_noise", refuse)
    statistics.trajectories(config, NETWORK)
    assert asked[0] >= 3 * 8 * (parameters + 36)
    features = private()
    monkeypatch.setattr("apps.privacy.private_statistics.probe_images", lambda spec: torch.ones(3, *spec.shape))
    before = asked[0]
    features.class_means(pixels, 4, None, draws())
    assert asked[0] - before >= 8 * (3 * 64 + 36)


def test_an_example_whose_gradient_is_not_finite_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clipping passes NaN on: one such image would turn every weight of an expert into NaN, which tells that it is there."""
    data = public_toy()
    images = data.train.images.float() / 255
    images[5] = float("nan")
    broken = dataclasses.replace(
        data,
        train=dataclasses.replace(data.train, images=images),
        test=dataclasses.replace(data.test, images=data.test.images.float() / 255),
        validation=dataclasses.replace(data.validation, images=data.validation.images.float() / 255),
    )
    statistics = private(broken, releases=None, epsilon=8.0)
    monkeypatch.setattr(statistics, "sample", lambda rate: torch.ones(36, dtype=torch.bool))
    found = statistics.trajectories(ExpertConfig(experts=1, epochs=1, batch_size=12, lr=0.1, network=NETWORK), NETWORK)
    assert bool(torch.isfinite(found.weights(0, 1)).all())


def test_a_folder_that_kept_its_fingerprint_and_lost_the_rest_is_no_new_account(tmp_path: Path) -> None:
    ask(private(ledger=tmp_path / "a"), 1.0)
    for path in (tmp_path / "a").glob("*"):
        if path.name != PRIVATE_FILE:
            path.unlink()
    with pytest.raises(InputError, match="what was spent is not known"):
        private(ledger=tmp_path / "a")
    ask(private(ledger=tmp_path / "b"), 1.0)
    (tmp_path / "b" / PRIVATE_FILE).write_text("[]")
    with pytest.raises(InputError, match="other private data"):
        private(ledger=tmp_path / "b")
