"""Sets with the labels of one teacher, which all architectures learn from: it is trained once, on the study's training images."""

import dataclasses
import time
from collections.abc import Mapping, Sequence

import safetensors.torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from apps.nas.ledger import Ledger
from apps.nas.study import SetProxy
from distill.comparison import LABEL_ONLY, learner_set
from distill.condensed import CondensedSet
from distill.networks import create
from distill.randomness import generator
from distill.records import write_whole
from distill.teachers import Teacher, stored, teacher_network
from scenarios.engine.study import Run

LABELLED = "-labelled"


def added(names: Sequence[str], teacher: Teacher | None) -> list[str]:
    """The names of the sets that a teacher adds to those of a study."""
    return [] if teacher is None or not names else [*(f"{name}{LABELLED}" for name in names), LABEL_ONLY]


def with_labels(sets: Mapping[str, SetProxy], teacher: Teacher | None, run: Run, ledger: Ledger, copies: int) -> dict[str, SetProxy]:
    """The sets, each also with the teacher's labels (``NAME-labelled``), and "label-only": images of noise with its labels.

    The cost of the teacher counts once for each of them: to rank with one set takes all of it.

    Args:
        sets: those of the study.
        teacher: what labels them; None: nothing is added.
        run: the study at work.
        ledger: keeps what the teacher cost.
        copies: draws of noise.
    """
    if teacher is None or not sets:
        return dict(sets)
    data, (network, seconds) = run.data, _teacher(teacher, run, ledger)
    first = next(iter(sets.values())).sets[0]
    noise = [learner_set(LABEL_ONLY, first, data, run.options.seed * 1000 + number) for number in range(copies)]
    more = {**sets, LABEL_ONLY: SetProxy(tuple(one for one in noise if isinstance(one, CondensedSet)), 0.0, "coreset")}
    taught = {
        name if name == LABEL_ONLY else f"{name}{LABELLED}": dataclasses.replace(
            proxy, sets=tuple(stored(one, network, teacher) for one in proxy.sets), seconds=proxy.seconds + seconds
        )
        for name, proxy in more.items()
    }
    return {**sets, **taught}


def _teacher(teacher: Teacher, run: Run, ledger: Ledger) -> tuple[nn.Module, float]:
    """The trained network and what its training cost; a run that continues reads both. The user's cache is not used: it costs nothing."""
    data = run.data
    path, key = run.folder / "teacher.safetensors", ("teacher", teacher.network, teacher.seed, "")
    if not path.exists() or key not in ledger.rows:
        run.say(f"training the teacher: {teacher}")
        wall, processor = time.monotonic(), time.process_time()
        network = teacher_network(data, teacher, cached=False, progress=False)
        seconds, cores = time.monotonic() - wall, time.process_time() - processor
        write_whole(path, safetensors.torch.save({"weights": parameters_to_vector(network.parameters()).cpu()}))
        ledger.add({"stage": key[0], "id": key[1], "seed": key[2], "key": key[3], "seconds": seconds, "cpu_seconds": cores})
    network = create(teacher.network, data.spec, generator(teacher.seed, "teacher"), data.device)
    vector_to_parameters(safetensors.torch.load(path.read_bytes())["weights"].to(data.device), network.parameters())
    row = ledger.rows[key]
    return network.eval().requires_grad_(False), row["cpu_seconds" if run.options.device == "cpu" else "seconds"]
