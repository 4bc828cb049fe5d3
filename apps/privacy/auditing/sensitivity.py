"""What one example adds to a release: its own row, no longer than the norm that the noise is for, in its own class, whoever else is there.

Canaries in several classes, with augmentation, some of which break whatever computes on them. The questions of one run are asked again
on data with one canary more or less; for this the noise is a millionth of the norm, so that chance has no part in the comparison.
"""

import functools
import itertools
from pathlib import Path

import torch
from torch import Tensor

from apps.privacy.auditing.checks import Check, attempted, certain
from apps.privacy.auditing.questions import (
    ANSWERED,
    ASKED,
    CLIP,
    POPULATION,
    RELEASED,
    Make,
    answer_given,
    images_of,
    made,
    part_of,
    trained_once,
    watch,
)
from apps.privacy.ledger import Ledger
from apps.privacy.private_statistics import PrivateStatistics
from apps.privacy.release import Plan
from distill.data import ImageData

LENGTHS = (0.6, 1.03, 1.002, 0.97, 1.08, 5.0)  # of the features of canaries over the clip; those of gradients are what they are
LABELS = [0, 0, 1, 1, 2, 2, 1, 2]
NOTHING = 6  # whose pixels are no numbers, so that it counts as nothing; infinite ones may be cut to the range of pixels
BROKEN = {NOTHING: torch.nan, 7: torch.inf}
TINY = 1e-6  # noise multiplier; with up to 10,000 numbers its length is below a thousandth of the norm
TOLERANCE = 2e-3  # of the norm
EXPERT_EPSILON, EXPERT_TOLERANCE = 1e8, 0.05


def sensitivity_checks(make: Make) -> list[Check]:
    """One check for each kind of release, one of the norm, and one of what is made of releases."""
    data = images_of(LABELS, broken=BROKEN, lengths=LENGTHS)
    kinds = [attempted(f"sensitivity, {kind}", functools.partial(_added_up, make, data, kind)) for kind in ASKED]
    return [
        *kinds,
        attempted("sensitivity, experts", functools.partial(_experts, make, data)),
        attempted("norm", functools.partial(_public_norm, make, data)),
        attempted("post-processing", functools.partial(_post_processing, make)),
    ]


def _quiet(make: Make, data: ImageData) -> PrivateStatistics:
    """Statistics with all releases planned at noise multiplier `TINY`."""
    statistics = made(make, data, 1e7, 1e-5)
    statistics._plan = Plan(100, 1.0, TINY)
    statistics.start_plan = Plan(3, 1.0, TINY)
    return statistics


def _added_up(make: Make, data: ImageData, kind: str) -> Check:
    everyone, size = _quiet(make, data), range(len(LABELS))
    parts = [*([place] for place in size), *([place for place in size if place != gone] for gone in size)]
    seen, faults, longest = watch(everyone, [_quiet(make, part_of(data, part)) for part in parts]), [], 0.0
    answer = ASKED[kind](everyone, 1)
    if not seen:
        faults.append("an answer was given without a release")
    for number, each in enumerate(seen, 1):
        tolerance = TOLERANCE * each.norm
        if not all(bool(released.isfinite().all()) for released in (each.released, *each.others)):
            faults.append(f"release {number} is not finite: an example whose row is not a number gets into the sum")
            continue
        if kind in ANSWERED and answer is not None:
            public = each.released[:, 0] * len(each.released) / POPULATION  # a row for each class, or one for all
            if not torch.allclose(answer.double(), public, atol=1e-5 * each.norm, rtol=1e-4):
                faults.append("an answer is not the release over the public number of examples")
        alone, others = each.others[: len(LABELS)], each.others[len(LABELS) :]
        for gone, (own, rest) in enumerate(zip(alone, others, strict=True)):
            change = each.released - rest
            length = float(change.norm()) / each.norm
            longest = max(longest, length)
            elsewhere = [position for position in range(len(change)) if len(change) > 1 and position != LABELS[gone]]
            if not length <= (TOLERANCE if gone == NOTHING else 1 + TOLERANCE):
                faults.append(f"an example changes release {number} by {length:.3f} times the norm that its noise is for")
            elif not float(change[elsewhere].norm()) <= tolerance:
                faults.append(f"an example changes other classes of release {number} than its own")
            elif not float((change - own).norm()) <= tolerance:
                faults.append(f"what an example adds to release {number} depends on the other examples")
        if kind in ANSWERED and not longest > 0.9:
            faults.append(f"rows longer than the norm are cut to {longest:.3f} of it, less than the noise is for")
    return certain(f"sensitivity, {kind}", faults, f"an example changes a release by at most {longest:.4f} times its norm")


def _experts(make: Make, data: ImageData) -> Check:
    """One step of DP-SGD, from all canaries and from each; the noise is that of epsilon `EXPERT_EPSILON`."""

    def step(chosen: list[int]) -> Tensor:
        statistics = made(make, part_of(data, chosen), EXPERT_EPSILON, 1e-5, releases=None, start_releases=0)
        return trained_once(statistics, 1, 1)[0, 0] / CLIP

    changes = [step([place]) for place in range(len(LABELS))]
    whole, faults = step(list(range(len(LABELS)))), []
    longest = max(float(change.norm()) for change in changes)
    if not bool(whole.isfinite().all()):
        faults.append("a step is not finite: an example whose gradient is not a number gets into it")
    elif not float((whole - torch.stack(changes).sum(0)).norm()) <= EXPERT_TOLERANCE * len(LABELS) ** 0.5:
        faults.append("a step is not the sum of what each example adds to it")
    if not longest <= 1 + EXPERT_TOLERANCE:
        faults.append(f"an example changes a step by {longest:.3f} times the clip that its noise is for")
    if not float(changes[NOTHING].norm()) <= EXPERT_TOLERANCE:
        faults.append("an example whose gradient is not a number changes a step")
    return certain("sensitivity, experts", faults, f"an example changes a step by at most {longest:.4f} times the clip")


def _public_norm(make: Make, data: ImageData) -> Check:
    """Without a clip the norm of a question comes from public numbers: it is the same for all private data, and is published."""
    norms = []
    for part in (data, part_of(data, [0]), part_of(data, [LENGTHS.index(max(LENGTHS))])):
        statistics = made(make, part, 1e7, 1e-5, clip=None)
        seen = watch(statistics)
        for ask in ANSWERED.values():
            ask(statistics, 1)
        norms.append([each.norm for each in seen])
    faults = [] if norms[0] and norms[0] == norms[1] == norms[2] else [f"norms of three data sets differ: {norms}"]
    return certain("norm", faults, f"without a clip, {', '.join(f'{norm:.3g}' for norm in norms[0])} for any private data")


def _post_processing(make: Make) -> Check:
    """An answer is made of releases and public numbers alone: with the same releases it is the same for other private data."""
    faults, size = [], len(LABELS)
    for kind in ASKED:
        first, other = (_quiet(make, part_of(images_of(LABELS[:-2]), part)) for part in (list(range(size - 2)), [0, 2, 3]))
        seen = watch(first)
        answer = ASKED[kind](first, 1)
        if not torch.equal(answer, answer_given(other, kind, [each.released for each in seen])):
            faults.append(f"an answer of {kind} depends on private data in another way than through its releases")
    return certain("post-processing", faults, "answers depend on private data through their releases only")


def ledger_check(make: Make, folder: Path, epsilon: float, delta: float) -> Check:
    """The account on disk: as many releases as were made, also of those that were dropped; files hold the noised sums and nothing else."""
    import json

    import safetensors

    statistics = made(make, images_of(LABELS), epsilon, delta, ledger=folder)
    seen, faults = watch(statistics), []
    for kind, time in itertools.product(ASKED, (1, 2)):
        if (kind, time) != ("start", 2):
            ASKED[kind](statistics, time)
    for kind in ANSWERED:  # questions that were answered before
        ANSWERED[kind](statistics, 1)
    distinct: dict[str, Tensor] = {}
    for each in seen:
        if each.key in distinct and not torch.equal(distinct[each.key], each.released):
            faults.append("the same question has two answers")
        distinct.setdefault(each.key, each.released)
    account = json.loads((folder / "account.json").read_text())
    if (own := images_of(LABELS).fingerprint) in (folder / "account.json").read_text():
        faults.append(f"account.json holds the fingerprint of the private data, {own[:8]}..., by which a guess of them can be tested")
    files = {path.name: path for path in folder.iterdir() if path.name not in ("account.json", "PRIVATE-data.json", ".lock")}
    counts = {
        "releases made": len(distinct),
        "files": len(files),
        "the account's file": sum(int(times) for _, _, times in account["history"]),
        "the statement": int(str(statistics.privacy["releases"])),
    }
    if len(set(counts.values())) > 1:
        faults.append("numbers of releases differ: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    by_bytes = {tensor.float().numpy().tobytes() for tensor in distinct.values()}
    for name, path in sorted(files.items()):
        try:
            with safetensors.safe_open(path, framework="pt") as opened:
                held, facts = {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
        except (safetensors.SafetensorError, OSError):
            faults.append(f"{name} is not a release's file")
            continue
        if sorted(held) != ["released"] or held["released"].float().numpy().tobytes() not in by_bytes:
            faults.append(f"{name} holds something else than the noised sums that were answered")
        elif path.stat().st_size > held["released"].nbytes + 4096 or not set(facts) <= {"key", "steps", "before", "account", "norm"}:
            faults.append(f"{name} holds more than one release")
    again = made(make, images_of(LABELS), epsilon, delta, ledger=folder)
    before = sum(step.times for step in again.history)
    reopened = ANSWERED["features"](again, 1)
    if before != len(distinct) or sum(step.times for step in again.history) != before:
        faults.append("a folder that is opened again makes releases that it has, or has lost some")
    elif seen and not torch.allclose(reopened.double(), seen[0].released[:, 0] * len(RELEASED) / POPULATION, rtol=1e-4, atol=1e-6):
        faults.append("a folder that is opened again answers otherwise")
    faults += _dropped(make, epsilon, delta)
    return certain("ledger", faults, f"{len(distinct)} releases, in files and in the account")


def _dropped(make: Make, epsilon: float, delta: float) -> list[str]:
    """Releases that no longer fit into memory stay in the account."""
    statistics = made(make, images_of(LABELS), epsilon, delta, start_releases=0)
    for time in range(1, 5):
        ledger: Ledger = statistics._ledger
        ledger._bytes += 1 << 40
        ANSWERED["features"](statistics, time)
    counted = sum(step.times for step in statistics.history)
    return [] if counted == 4 else [f"4 releases were made and {counted} are counted: one that is dropped from memory leaves the account"]
