"""How many images each class gets: the same for all, counts by class, or in proportion to the classes' sizes."""

import heapq
import re
from collections.abc import Mapping, Sequence

from distill.errors import InputError, clipped
from distill.statistics import RealStatistics

# 10; {3: 5, "rest": 1} (class numbers, as text too); "proportional:10", where 10 is the mean.
Ipc = int | Mapping[int, int] | Mapping[str, int] | str
REST = "rest"
MAX_IPC = 100_000
ALLOWED = 'a whole number, counts by class such as {3: 5, "rest": 1}, or "proportional:10" (10 in the mean)'


def checked(ipc: object) -> int | dict[str, int] | str:
    """``ipc`` in the form that files keep: a whole number, counts by class number (as text) or ``rest``, or ``proportional:<mean>``.

    Raises `InputError` for anything else, whatever the data are.
    """
    if isinstance(ipc, str) and re.fullmatch(r"proportional:[1-9][0-9]{0,5}", ipc) and int(ipc.partition(":")[2]) <= MAX_IPC:
        return ipc
    if isinstance(ipc, Mapping) and ipc:
        counts = {str(label): count for label, count in ipc.items()}
        names = len(counts) == len(ipc) and all(re.fullmatch(rf"{REST}|0|[1-9][0-9]{{0,6}}", label) for label in counts)
        if names and all(type(count) is int and 1 <= count <= MAX_IPC for count in counts.values()):
            return counts
    elif type(ipc) is int and 1 <= ipc <= MAX_IPC:
        return ipc
    raise InputError(f"ipc is {clipped(ipc)}; allowed: 1 or more images, up to {MAX_IPC}: {ALLOWED}.")


def counts_of(ipc: Ipc, statistics: RealStatistics) -> int | tuple[int, ...]:
    """Images of every class (K,), 0 for classes without real images; one whole number where all classes of the data have the same.

    Raises `InputError` for counts that do not fit the data's classes, and for "proportional" where sizes of classes are not shown.
    """
    wanted, classes = checked(ipc), statistics.classes
    if isinstance(wanted, int):
        return wanted
    if isinstance(wanted, str):
        sizes = getattr(statistics, "class_sizes", None)
        if sizes is None:
            raise InputError(f"ipc is {wanted!r}, and these statistics do not show how large classes are; give counts by class.")
        found = dict(zip(classes, proportional(sizes, int(wanted.partition(":")[2])), strict=True))
    else:
        rest = wanted.get(REST)
        named = {int(label): count for label, count in wanted.items() if label != REST}
        if foreign := sorted(set(named) - set(classes)):
            raise InputError(f"ipc names the classes {clipped(foreign)}, which have no training images; allowed: {clipped(list(classes))}.")
        if rest is None and (missing := [label for label in classes if label not in named]):
            raise InputError(f"ipc has no count for the classes {clipped(missing)}; add them, or {REST} for all others.")
        found = {label: named.get(label, rest or 0) for label in classes}
    if len(set(found.values())) == 1:
        return found[classes[0]]
    return tuple(found.get(label, 0) for label in range(statistics.spec.num_classes))


def proportional(sizes: Sequence[int], mean: int) -> list[int]:
    """Counts in proportion to ``sizes``, ``mean`` in the mean, at least one each: the rest goes one by one to the class that is furthest
    below its share (Webster's method: the largest size / (count + 1/2); the first of equals)."""
    counts = [1] * len(sizes)
    waiting = [(-size / 1.5, place) for place, size in enumerate(sizes)]
    heapq.heapify(waiting)
    for _ in range((mean - 1) * len(sizes)):
        place = waiting[0][1]
        counts[place] += 1
        heapq.heapreplace(waiting, (-sizes[place] / (counts[place] + 0.5), place))
    return counts
