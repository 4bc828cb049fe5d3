"""What a released set and the releases that are published with it say about its own guarantee, whatever code made them.

Nobody can see the noise in a release, but its length: a release is a sum of rows plus the noise, so its numbers are at least as large as
those of the noise alone, and so are the differences and sums of two releases. Where they are smaller, less noise was added than is
stated, or the same noise twice. Nothing here can show that a guarantee holds.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import scipy.stats

from apps.privacy.accounting import Steps
from apps.privacy.auditing.checks import Check, certain
from apps.privacy.ledger import ACCOUNT
from apps.privacy.public import is_part
from apps.privacy.statement import guarantee
from distill.condensed import CondensedSet
from distill.errors import InputError, clipped
from distill.records import read_json

MAX_FILES, MAX_BYTES, MAX_VECTORS = 20_000, 2 << 30, 4_000
UNSTATED = "No privacy guarantee"


@dataclass(frozen=True)
class Evidence:
    """What was found about one set.

    Attributes:
        sentence: the guarantee that its maker states, recomputed.
        checks: of its releases.
        unseen: what could not be examined, in words.
        confidence: of all checks together.
    """

    sentence: str
    checks: tuple[Check, ...]
    unseen: tuple[str, ...]
    confidence: float

    @property
    def failed(self) -> tuple[Check, ...]:
        """Checks that contradict the statement."""
        return tuple(check for check in self.checks if check.fails((1 - self.confidence) / max(1, len(self.checks))))

    @property
    def holds(self) -> bool:
        """False where the statement is none, or is contradicted."""
        return not self.failed and not self.sentence.startswith(UNSTATED)

    def __str__(self) -> str:
        verdict = "no contradiction, which proves nothing"
        if not self.holds:
            nothing = self.sentence == guarantee(None)
            verdict = "the set states no guarantee" if nothing else "CONTRADICTION: do not rely on this guarantee"
        return "\n".join(
            [self.sentence, *map(str, self.checks), *(f"Not examined: {part}." for part in self.unseen), f"Result: {verdict}."]
        )


def evidence(made: CondensedSet, releases: Path | None = None, confidence: float = 0.999) -> Evidence:
    """Examine a set's statement, and the folder of ``releases`` that is published with it.

    Raises:
        InputError: the folder cannot be read.
    """
    stated = made.provenance.dp
    unseen = ["the code that made the set, its clipping and its sampling"]
    if not stated or releases is None:
        return Evidence(guarantee(stated), (), (*unseen, "the noise, because no releases were given"), confidence)
    account, history, vectors, faults, others = _read(releases)
    if account != stated.get("account"):
        faults.insert(0, "the releases belong to another account than the set")
    elif not is_part(stated.get("history"), history):
        faults.insert(0, "the account of the releases is not that of the set")
    checks = [certain("releases", faults, f"{len(vectors)} sums of releases belong to the set's account")]
    checks += noise_length(vectors)
    if others:
        unseen.append(f"{others} files of releases without the norm of their rows (experts, and releases of earlier versions)")
    return Evidence(guarantee(stated), tuple(checks), tuple(unseen), confidence)


def noise_length(vectors: dict[str, np.ndarray]) -> list[Check]:
    """Checks of the length of sums over their stated noise (n,), alone, together and in pairs; one-sided, with Bonferroni in each check."""
    if not vectors:
        return []
    alone = {name: float(scipy.stats.chi2.cdf(np.square(vector).sum(), len(vector))) for name, vector in vectors.items()}
    name = min(alone, key=lambda key: alone[key])
    ratio = float(np.sqrt(np.square(vectors[name]).mean()))
    numbers = sum(map(len, vectors.values()))
    total = float(scipy.stats.chi2.cdf(sum(float(np.square(vector).sum()) for vector in vectors.values()), numbers))
    words = f"{numbers} numbers, in {name} {ratio:.3f} times as large as the stated noise"
    checks = [Check("size of noise", min(1.0, 2 * min(total, len(alone) * alone[name])), words)]
    smallest, words, pairs = 1.0, "no pair", 0
    for length in sorted({len(vector) for vector in vectors.values()}):
        names = [key for key, vector in vectors.items() if len(vector) == length][:MAX_VECTORS]
        rows = np.stack([vectors[key] for key in names])
        squares, products = np.square(rows).sum(1), rows @ rows.T
        for sign in (1.0, -1.0):
            # The difference (or sum) of two with independent noise, over sqrt(2): at least chi-square of their length.
            totals = (squares[:, None] + squares[None] - sign * 2 * products) / 2
            totals[np.tril_indices(len(names))] = np.inf
            row, column = np.unravel_index(int(totals.argmin()), totals.shape)
            pairs += len(names) * (len(names) - 1) // 2
            p = float(scipy.stats.chi2.cdf(totals[row, column], length))
            if len(names) > 1 and p <= smallest:
                smallest, words = p, f"{names[row]} and {names[column]}"
    return [*checks, Check("independence of noise", min(1.0, pairs * smallest), f"nearest are {words}, of {pairs} pairs")]


def _read(folder: Path) -> tuple[object, list[Steps], dict[str, np.ndarray], list[str], int]:
    """The account's id and history, sums over their stated noise by name, faults, and how many files cannot be examined."""
    if not (folder / ACCOUNT).is_file():
        raise InputError(f"{folder}: has no {ACCOUNT}; give the folder of releases that was published with the set (<name>-releases).")
    account = read_json(folder / ACCOUNT)
    try:
        history = [Steps(float(noise), float(rate), int(times)) for noise, rate, times in account["history"]]
        identity = account["account"]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{folder / ACCOUNT}: holds no history of releases.") from None
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > MAX_FILES or sum(path.stat().st_size for path in files) > MAX_BYTES:
        raise InputError(f"{folder}: holds {len(files)} files of releases; allowed: up to {MAX_FILES} of {MAX_BYTES >> 30} GiB together.")
    vectors: dict[str, np.ndarray] = {}
    faults: list[str] = []
    others, counted = 0, 0
    for path in files:
        try:
            with safetensors.safe_open(path, framework="numpy") as opened:
                facts, names, released = opened.metadata() or {}, list(opened.keys()), opened.get_tensor("released")
            noise, rate, times = json.loads(facts["steps"])
            counted += int(times)
            known = (float(noise), float(rate)) in [step[:2] for step in history]
            norm = float(facts["norm"]) if "norm" in facts else None
        except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, json.JSONDecodeError) as error:
            raise InputError(f"{path}: is no file of a release ({clipped(error, 100)}).") from None
        if names != ["released"]:
            faults.append(f"{path.name} holds more than a release")
        if facts.get("account") != identity or not known:
            faults.append(f"{path.name} is not of this account")
        if norm is None or released.ndim != 3:
            others += 1
            continue
        if not (np.isfinite(released).all() and 0 < norm * noise < np.inf):
            faults.append(f"{path.name} holds numbers that are not finite, or no noise")
            continue
        for position, rows in enumerate(released):
            vectors[f"{path.stem}, class {position + 1}"] = rows.astype(np.float64).ravel() / (norm * noise)
    total = sum(step.times for step in history)
    if counted > total:
        faults.append(f"{counted} releases are in the files and {total} in the account")
    return identity, history, vectors, faults, others
