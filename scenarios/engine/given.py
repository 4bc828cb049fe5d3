"""What one stage of a pipeline hands to another: a condensed set with its name, the hash of its content, and its guarantee."""

import dataclasses
import hashlib
from collections.abc import Sequence

from distill.condensed import CondensedSet
from distill.decode import as_text
from distill.errors import InputError, clipped
from distill.labels import DEFAULT_KIND
from distill.set_file import later_tensors
from scenarios.engine.composition import one_after_another


@dataclasses.dataclass(frozen=True)
class Given:
    """``name`` is that of the stage it comes from. Before anything has run only the ``classes`` are known, and ``condensed`` is None."""

    name: str
    classes: tuple[int, ...]
    condensed: CondensedSet | None = None

    @property
    def made(self) -> CondensedSet:
        """The set; it exists once the stage that makes it has run."""
        assert self.condensed is not None
        return self.condensed

    @property
    def fingerprint(self) -> str:
        """Sixteen letters that change with an image, a label, a stored view, a step size or a start weight."""
        condensed = self.made
        digest = hashlib.sha256(condensed.images.detach().cpu().contiguous().numpy().data)
        digest.update(condensed.labels.cpu().contiguous().numpy().data)
        digest.update(repr((condensed.lr, condensed.spec.shape, condensed.spec.classes)).encode())
        if condensed.decode is not None:
            digest.update(as_text(condensed.decode).encode())
        if condensed.label_kind != DEFAULT_KIND:
            digest.update(condensed.label_kind.encode())
        for name, tensor in later_tensors(condensed).items():
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        if condensed.views is not None:
            digest.update(str(condensed.views).encode())
        if condensed.step_sizes is not None or condensed.start_weights is not None:
            digest.update(repr((getattr(condensed.step_sizes, "order", None), getattr(condensed.start_weights, "sha256", None))).encode())
        return digest.hexdigest()[:16]


def joined(name: str, sets: Sequence[CondensedSet], classes: tuple[int, ...]) -> Given:
    """One set of several, in order; `InputError` when the classes are not those that were planned."""
    union = sets[0] if len(sets) == 1 else CondensedSet.concat(sets)
    if len(sets) > 1:
        together = one_after_another([condensed.provenance.dp for condensed in sets])
        union = dataclasses.replace(union, provenance=dataclasses.replace(union.provenance, dp=together))
    present = tuple(label for label, count in enumerate(union.counts) if count)
    if present != classes:
        raise InputError(f"what {name!r} hands on holds the classes {clipped(list(present))}; expected: {clipped(list(classes))}.")
    return Given(name, classes, union)
