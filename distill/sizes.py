"""Number of images per class: the same for all, counts by class, or proportional to the classes' sizes."""

import heapq
import re
from collections.abc import Mapping, Sequence

import numpy as np

from distill.errors import InputError, clipped
from distill.statistics import RealStatistics

# 10; {3: 5, "rest": 1} (class numbers, as text too); "proportional:10", where 10 is the mean.
Ipc = int | Mapping[int, int] | Mapping[str, int] | str
REST = "rest"
MAX_IPC = 100_000
ALLOWED = 'a whole number, counts by class such as {3: 5, "rest": 1}, or "proportional:10" (10 in the mean)'


def checked(ipc: object) -> int | dict[str, int] | str:
    """``ipc`` as stored in files: a whole number, counts by class number (as text) or ``rest``, or ``proportional:<mean>``.

    Raises `InputError` for anything else.
    """
    if isinstance(ipc, str) and re.fullmatch(r"proportional:[1-9][0-9]{0,5}", ipc) and int(ipc.partition(":")[2]) <= MAX_IPC:
        return ipc
    if isinstance(ipc, Mapping) and ipc:
        counts = {str(label): count for label, count in ipc.items()}
        names = len(counts) == len(ipc) and all(re.fullmatch(rf"{REST}|0|[1-9][0-9]{{0,6}}", label) for label in counts)
        if names and all(type(count) is int and 1 <= count <= MAX_IPC for count in counts.values()):
            return counts
    elif isinstance(ipc, int | np.integer) and not isinstance(ipc, bool) and 1 <= ipc <= MAX_IPC:
        return int(ipc)  # also one of NumPy's
    raise InputError(f"ipc is {clipped(ipc)}; allowed: 1 or more images, up to {MAX_IPC}: {ALLOWED}.")


def counts_of(ipc: Ipc, statistics: RealStatistics) -> int | tuple[int, ...]:
    """Number of images of every class (K,), 0 for classes without real images; one number if all classes of the data have the same.

    Raises `InputError` for counts that do not fit the data's classes, and for "proportional" with statistics that do not give the
    sizes of classes.
    """
    requested, classes = checked(ipc), statistics.classes
    if isinstance(requested, int):
        return requested
    if isinstance(requested, str):
        sizes = getattr(statistics, "class_sizes", None)
        if sizes is None:
            raise InputError(f"ipc is {requested!r}, and these statistics do not show how large classes are; give counts by class.")
        counts = dict(zip(classes, proportional(sizes, int(requested.partition(":")[2])), strict=True))
    else:
        rest = requested.get(REST)
        named = {int(label): count for label, count in requested.items() if label != REST}
        if foreign := sorted(set(named) - set(classes)):
            raise InputError(f"ipc names the classes {clipped(foreign)}, which have no training images; allowed: {clipped(list(classes))}.")
        if rest is None and (missing := [label for label in classes if label not in named]):
            raise InputError(f"ipc has no count for the classes {clipped(missing)}; add them, or {REST} for all others.")
        counts = {label: named.get(label, rest or 0) for label in classes}
    if len(set(counts.values())) == 1:
        return counts[classes[0]]
    return tuple(counts.get(label, 0) for label in range(statistics.spec.num_classes))


def proportional(sizes: Sequence[int], mean: int) -> list[int]:
    """Counts proportional to ``sizes``, with average ``mean`` and at least one each.

    Webster's method: after one for each class, the next goes to the class with the largest size / (count + 1/2), the first among equals.
    """
    counts = [1] * len(sizes)
    waiting = [(-size / 1.5, place) for place, size in enumerate(sizes)]
    heapq.heapify(waiting)
    for _ in range((mean - 1) * len(sizes)):
        place = waiting[0][1]
        counts[place] += 1
        heapq.heapreplace(waiting, (-sizes[place] / (counts[place] + 0.5), place))
    return counts
