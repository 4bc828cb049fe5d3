"""Speed of the core: a step of each method compared with a plain loop written from its paper; both take turns.

python -m benchmarks.core [--json FILE] [--rounds N] [--only dm,gm,datadam,mtt,evaluation,memory] [--width 128] [--device cpu|cuda]
python -m benchmarks.core --page         the table of docs/speed.md from benchmarks/expected/core.json

CIFAR-10 shapes, ConvNet-3, 10 images per class, 256 real images per class; random data, because the speed does not depend on their content.
Medians over rounds; GFLOP/s count convolutions and linear layers only. An error is that of the image gradient against the plain loop's.
A processor that does not compute in bfloat16 has no rows of it.

"plain" runs in a new process for each part, as a user's script does; "plain, memory kept" in this process, with the setting of the C
library that the `distill` command makes (distill/memory.py). Both take turns with the other forms in every round.
"""

import argparse
import copy
import functools
import multiprocessing
import statistics as numbers
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from benchmarks import plain
from benchmarks.page import with_table
from distill.adjoint import Student, View, matching_gradient, stepwise
from distill.augment import DSA, augment, strategy
from distill.condensed import CondensedSet
from distill.data import ImageData, Split
from distill.devices import has_bfloat16
from distill.evaluation import accuracy
from distill.fast import Compile, Precision
from distill.memory import keep_freed_memory
from distill.methods.datadam import DataDAM, DataDAMConfig
from distill.methods.dm import DM, DMConfig
from distill.methods.gm import GM, GMConfig
from distill.networks import create, flops
from distill.randomness import generator
from distill.records import environment, peak_memory_bytes, read_json, write_json, write_whole
from distill.spec import DataSpec
from distill.statistics import ExactStatistics
from distill.train import Recipe, train_network

CLASSES, IPC, BATCH, TEST, MTT_STEPS, JUDGES, JUDGE_STEPS = 10, 10, 256, 10_000, 10, 5, 8
TARGETS = {  # at least this many times the plain loop on an idle 2-core AVX-512 CPU: float32, bf16
    "dm": {"float32": 2.4, "bf16": 4.0},
    "gm": {"float32": 1.8, "bf16": 2.5},
    "datadam": {"float32": 3.0, "bf16": 4.0},
    "training": {"float32": 1.8, "bf16": 3.0},
    "test pass": {"float32": 1.8, "bf16": 3.0},
    "mtt": {"adjoint": 1.0},
}
KEPT = Path(__file__).parent / "expected" / "core.json"
PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
FORMS: tuple[tuple[Precision, Compile], ...] = (("float32", "off"), ("float32", "on"), ("bf16", "on"))
Work = Callable[[], Any]


class Setting:
    """The random data, images and network of all measurements."""

    def __init__(self, device: str, width: int) -> None:
        self.device, self.width, self.name = device, width, f"ConvNetW{width}"
        draws = generator(0, "benchmark")
        self.spec = DataSpec("made", 3, 32, 32, tuple(str(c) for c in range(CLASSES)), (0.5,) * 3, (0.25,) * 3)

        def split(count: int) -> Split:
            images = torch.randint(0, 256, (count, 3, 32, 32), generator=draws, dtype=torch.uint8)
            return Split(images, torch.arange(CLASSES).repeat_interleave(count // CLASSES))

        self.data = ImageData(self.spec, split(BATCH * CLASSES), split(0), split(TEST)).to(device)
        self.real = [self.data.normalised("train", self.data.class_indices(c)) for c in range(CLASSES)]
        self.images = torch.randn(CLASSES * IPC, 3, 32, 32, generator=generator(1, "images")).to(device)
        self.labels = torch.arange(CLASSES, device=device).repeat_interleave(IPC)
        self.tiny = CondensedSet(self.images, self.labels, self.spec)
        self.network = create(self.name, self.spec, generator(0, "steps"), device)
        self.forward = flops(self.network, self.spec)

    def segment(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, View]:
        """Arguments of MTT's gradient: start, target, images, labels, step size and batches."""
        start = torch.nn.utils.parameters_to_vector(self.network.parameters()).detach().clone()
        target = start + 0.01 * torch.randn(start.shape, generator=generator(0, "target")).to(self.device)
        return start, target, self.images, self.labels, torch.tensor(0.01, device=self.device), lambda step, x, y: (x, y)

    def plain(self, part: str) -> Work:
        """The part's plain loop; a matching step gives (loss, image gradient)."""
        counts, network = [IPC] * CLASSES, copy.deepcopy(self.network)

        def same(images: Tensor, _: int) -> Tensor:
            return images

        def train() -> None:
            for seed in range(JUDGES):
                draws, fresh = generator(seed, "training"), create(self.name, self.spec, generator(seed, "weights"), self.device)
                view = functools.partial(augment, strategy=strategy(DSA), generator=draws)
                plain.train(fresh, self.images, self.labels, JUDGE_STEPS, 0.01, view)

        test, test_labels = self.data.normalised("test", torch.arange(TEST)), self.data.test.labels
        forms: dict[str, Work] = {
            "dm": lambda: plain.dm(network, self.real, self.images, counts, same),
            "gm": lambda: plain.gm(network, self.real, self.images, counts, same),
            "datadam": lambda: plain.datadam(network, self.real, self.images, counts, same, power=4.0, weight=1.0, feature_weight=0.01),
            "mtt": lambda: plain.mtt(network, *self.segment(), steps=MTT_STEPS),
            "training": train,
            "test pass": lambda: plain.test_pass(network, test, test_labels),
        }
        return forms[part]

    def ours(self, part: str) -> dict[str, Work]:
        if part == "mtt":
            return {"adjoint": self.adjoint(compile=False), "adjoint, compiled": self.adjoint(compile=True)}
        forms: dict[str, Work] = {}
        for precision, compile in FORMS:
            if precision == "bf16" and not has_bfloat16(self.images.device.type):
                continue
            label = f"{precision}{', compiled' if compile == 'on' else ''}"
            if part == "training":
                recipe = Recipe(max_steps=JUDGE_STEPS, schedule="constant", augmentation=DSA, precision=precision, compile=compile)
                forms[label] = functools.partial(self.judges, recipe)
            elif part == "test pass":
                forms[label] = functools.partial(accuracy, self.network, self.data, precision=precision, compile=compile)
            else:
                forms[label] = self.step(part, precision, compile)
        return forms

    def judges(self, recipe: Recipe) -> None:
        for seed in range(JUDGES):
            train_network(self.tiny, self.name, recipe, seed)

    def adjoint(self, *, compile: bool) -> Work:
        student = Student(copy.deepcopy(self.network), compile=compile)

        def gradient() -> tuple[Tensor, Tensor]:
            start, target, images, labels, lr, view = self.segment()
            gradients = matching_gradient(student, start, target, images, labels, lr, stepwise(view), steps=MTT_STEPS)
            return gradients.loss, gradients.images

        return gradient

    def step(self, part: str, precision: Precision, compile: Compile) -> Work:
        """One step of the method from these images, on this network, with full classes as batches and no augmentation."""
        kinds: dict[str, tuple[Callable[..., object], Callable[..., DM | GM | DataDAM], dict[str, int]]] = {
            "dm": (DMConfig, DM, {}),
            "gm": (GMConfig, GM, {"outer_steps": 1}),
            "datadam": (DataDAMConfig, DataDAM, {}),
        }
        config, kind, extra = kinds[part]
        common = {"network": self.name, "batch_real": BATCH, "augmentation": "none", "lr_img": 1.0, "momentum": 0.0, **extra}
        method, statistics = kind(config(**common, precision=precision, compile=compile), self.tiny), ExactStatistics(self.data)

        def step() -> tuple[Tensor, Tensor]:
            method.synthetic.images.copy_(self.images)
            loss = method.step(statistics, generator(0, "steps"))["loss"]
            return loss, self.images - method.synthetic.images

        return step

    def work(self, part: str) -> float:
        """Floating-point operations of one round; second derivatives of a batch count as nine forward passes."""
        real, synthetic = CLASSES * BATCH * self.forward, CLASSES * IPC * self.forward
        return {
            "dm": real + 2 * synthetic,
            "gm": 3 * real + 9 * synthetic,
            "datadam": real + 2 * synthetic,
            "mtt": MTT_STEPS * 9 * synthetic,
            "training": JUDGES * JUDGE_STEPS * 3 * synthetic,
            "test pass": TEST * self.forward,
        }[part]


def seconds(work: Work, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def plain_process(connection: Connection, part: str, device: str, width: int) -> None:
    """Run one plain part for each True that is received, until a False."""
    form = Setting(device, width).plain(part)
    while connection.recv():
        connection.send(seconds(form, device))


class Row(TypedDict, total=False):
    times: list[float]
    seconds: float
    ratio: float
    gflops: float
    loss: float
    gradient_error: float


def measure(part: str, setting: Setting, rounds: int) -> dict[str, Row]:
    """Median seconds of each form; the first, untimed round warms up and compiles."""
    device = setting.device
    context = multiprocessing.get_context("spawn")
    other, far = context.Pipe()
    worker = context.Process(target=plain_process, args=(far, part, device, setting.width), daemon=True)
    worker.start()

    def elsewhere() -> float:
        other.send(True)
        return float(other.recv())

    truth = setting.plain(part)
    forms = setting.ours(part)
    rows = {name: Row(times=[]) for name in ("plain", "plain, memory kept", *forms)}
    if part not in ("training", "test pass"):
        loss, expected = truth()[:2]
        rows["plain"]["loss"] = float(loss)
        for name, form in forms.items():
            loss, gradient = form()
            rows[name] |= {"loss": float(loss), "gradient_error": float((gradient - expected).norm() / expected.norm())}
    for place in range(rounds + 1):
        for name, row in rows.items():
            taken = elsewhere() if name == "plain" else seconds(truth if name == "plain, memory kept" else forms[name], device)
            if place:
                row["times"].append(taken)
    other.send(False)
    worker.join()
    base = numbers.median(rows["plain"]["times"])
    for name, row in rows.items():
        row["seconds"] = numbers.median(row["times"])
        row |= {"ratio": base / row["seconds"], "gflops": setting.work(part) / row["seconds"] / 1e9}
        error = f"   image gradient within {row['gradient_error']:.1e}" if "gradient_error" in row else ""
        print(f"{part:12}{name:22}{row['seconds']:9.3f} s{row['ratio']:8.2f} x{row['gflops']:9.1f} GFLOP/s{error}", flush=True)
    return rows


def limits(device: str) -> dict[str, float]:
    """GFLOP/s that the machine can reach: large matrix products, and the network's inner convolution."""
    draws, speeds = torch.Generator(device), {}
    for dtype in (torch.float32, torch.bfloat16) if has_bfloat16(device) else (torch.float32,):
        a = torch.randn(2048, 2048, device=device, generator=draws).to(dtype)
        images = torch.randn(256, 128, 16, 16, device=device, generator=draws).to(dtype).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(128, 128, 3, 3, device=device, generator=draws).to(dtype)
        name = str(dtype).removeprefix("torch.")
        for what, work, operations in (
            ("matmul", lambda a=a: a @ a, 2 * 2048**3),
            ("convolution", lambda i=images, w=weight: torch.conv2d(i, w, padding=1), 2 * 256 * 256 * 128 * 128 * 9),
        ):
            speeds[f"{name} {what}"] = operations / min(seconds(work, device) for _ in range(9)) / 1e9
    return speeds


def memory_of(form: str, width: int) -> int:
    """Peak resident bytes of a new process that computes one MTT gradient: "adjoint-50" is 50 student steps by the adjoint."""
    code = f"from benchmarks.core import segment_alone; segment_alone({form!r}, {width})"
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()[-1])


def segment_alone(form: str, width: int) -> None:
    method, steps = form.split("-")
    setting = Setting("cpu", width)
    if method == "plain":
        plain.mtt(setting.network, *setting.segment(), steps=int(steps))
    else:
        start, target, images, labels, lr, view = setting.segment()
        matching_gradient(Student(setting.network), start, target, images, labels, lr, stepwise(view), steps=int(steps))
    print(peak_memory_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="dm,gm,datadam,mtt,evaluation,memory")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.page:
        write_whole(PAGE, with_table(PAGE.read_text(), read_json(KEPT)))
        return
    keep_freed_memory()
    setting = Setting(options.device, options.width)
    limit = limits(options.device)
    print("limits: " + ", ".join(f"{name} {value:.0f} GFLOP/s" for name, value in limit.items()))
    results: dict[str, dict[str, Row]] = {}
    memory: dict[str, int] = {}
    for name in options.only.replace("evaluation", "training,test pass").split(","):
        if name != "memory":
            results[name] = measure(name, setting, options.rounds)
        elif options.device == "cpu":
            memory = {form: memory_of(form, options.width) for form in ("adjoint-10", "adjoint-50", "plain-10")}
            print("peak memory: " + ", ".join(f"{form} {value / 1e9:.2f} GB" for form, value in memory.items()))
    for name, ratios in TARGETS.items():
        for label, ratio in ratios.items():
            best = max((row["ratio"] for form, row in results.get(name, {}).items() if form.startswith(label)), default=None)
            if best is not None:
                print(f"{name}, {label}: {best:.2f} x, target {ratio} x: {'reached' if best >= ratio else 'MISSED'}")
    facts = {"width": options.width, "ipc": IPC, "batch_real": BATCH, "classes": CLASSES, "rounds": options.rounds, "limits_gflops": limit}
    measured = {**results, **({"memory": memory} if memory else {})}
    record = {**facts, "results": measured, "environment": environment(options.device), "peak_memory_bytes": peak_memory_bytes()}
    if options.json:
        write_json(options.json, record)


if __name__ == "__main__":
    main()
