"""One check of the audit, and how many checks share the error that is allowed to all of them together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distill.errors import clipped


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: of the check.
        p: the probability of at least this deviation if the mechanism is correct; 0 or 1 where chance has no part in it.
        words: what was seen.
    """

    name: str
    p: float
    words: str

    def fails(self, allowed: float) -> bool:
        """Whether the deviation is rarer than ``allowed``."""
        return not self.p >= allowed

    def __str__(self) -> str:
        return f"{self.name}: {self.words}, p = {self.p:.2g}"


def certain(name: str, faults: Sequence[str], words: str) -> Check:
    """A check without chance: it fails where there are ``faults``, of which the first three are given."""
    return Check(name, 0.0, "; ".join(faults[:3])) if faults else Check(name, 1.0, words)


def attempted(name: str, run: Callable[[], Check]) -> Check:
    """The check that ``run`` makes; where the mechanism raises, a failed one: a correct mechanism answers whatever the examples are."""
    try:
        return run()
    except Exception as error:
        return Check(name, 0.0, f"the mechanism stops: {type(error).__name__}: {clipped(error, 160)}")
