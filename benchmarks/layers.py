"""What a compiled pass of real images spends outside of its convolutions: python -m benchmarks.layers [--json FILE] [--rounds N]

python -m benchmarks.layers --page        its table in docs/speed.md from benchmarks/expected/layers.json

CIFAR-10 shapes, ConvNet-3 of width 128, chunks of 20 and 40 images, one thread, processor seconds, no gradient: the larger side of a DM
step. The network is timed as it is, compiled, and with each convolution alone, in the same layout: what the rest could at most save.
"""

import argparse
import copy
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.page import with_layers
from distill.fast import Precision, accelerated
from distill.memory import keep_freed_memory
from distill.networks import create
from distill.randomness import generator
from distill.records import environment, read_json, write_json, write_whole
from distill.spec import DataSpec

KEPT = Path(__file__).parent / "expected" / "layers.json"
PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
PRECISIONS: tuple[Precision, ...] = ("float32", "bf16")
CHUNKS = (20, 40)


def forms(precision: Precision, chunk: int) -> dict[str, Callable[[], object]]:
    """What is timed: the whole pass plain and compiled, and each convolution alone."""
    network = create("ConvNet", DataSpec("made", 3, 32, 32, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3), generator(0, "layers"))
    images = torch.randn(chunk, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    inputs: list[Tensor] = []
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    hooks = [layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for layer in convolutions]
    network(images)
    for hook in hooks:
        hook.remove()
    device = torch.device("cpu")
    made: dict[str, Callable[[], object]] = {
        "plain": functools.partial(accelerated(network, device, 0.0, precision, "off"), images),
        "compiled": functools.partial(accelerated(network, device, 0.0, precision, "on"), images),
    }
    for place, (layer, given) in enumerate(zip(convolutions, inputs, strict=True), 1):
        alone = copy.deepcopy(layer).to(dtype=kind, memory_format=torch.channels_last)  # type: ignore[call-overload]
        made[f"convolution {place}"] = functools.partial(alone, given.to(kind).contiguous(memory_format=torch.channels_last))
    return made


def timed(rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds an image of each form, the median of rounds in which all take turns."""
    found = {}
    for precision in PRECISIONS:
        for chunk in CHUNKS:
            made = forms(precision, chunk)
            taken: dict[str, list[float]] = {name: [] for name in made}
            for number in range(rounds + 1):  # the first compiles
                for name, work in made.items():
                    start = time.process_time()
                    for _ in range(5):
                        work()
                    if number:
                        taken[name].append(1e6 * (time.process_time() - start) / 5 / chunk)
            found[f"{precision}, {chunk} images"] = {name: statistics.median(values) for name, values in taken.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    if options.page:
        write_whole(PAGE, with_layers(PAGE.read_text(), read_json(KEPT)))
        return
    torch.set_num_threads(1)
    keep_freed_memory()
    with torch.no_grad():
        found = timed(options.rounds)
    record = {"environment": environment("cpu"), "rounds": options.rounds, "microseconds": found}
    print(with_layers("", record))
    if options.json:
        write_json(options.json, record)


if __name__ == "__main__":
    main()
