"""What one stage of a pipeline hands to another: a condensed set with its name, the hash of its content, and its guarantee."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apps.federated.settings import ALONE, WEIGHTS
from distill.condensed import CondensedSet
from distill.errors import InputError, clipped
from distill.labels import DEFAULT_KIND
from distill.records import read_lines
from distill.set_file import later_tensors
from scenarios.engine.composition import one_after_another, side_by_side
from scenarios.engine.public_part import FOLDER, place
from scenarios.engine.schema import Study


@dataclasses.dataclass(frozen=True)
class Given:
    """``name`` is that of the stage it comes from. Before anything has run only the ``classes`` are known, and ``condensed`` is None."""

    name: str
    classes: tuple[int, ...]
    condensed: CondensedSet | None = None

    @property
    def made(self) -> CondensedSet:
        assert self.condensed is not None
        return self.condensed

    @property
    def fingerprint(self) -> str:
        """Sixteen letters that change with an image, a label, a step size or a start weight."""
        one = self.made
        digest = hashlib.sha256(one.images.detach().cpu().contiguous().numpy().data)
        digest.update(one.labels.cpu().contiguous().numpy().data)
        digest.update(repr((one.lr, one.spec.shape, one.spec.classes)).encode())
        if one.label_kind != DEFAULT_KIND:
            digest.update(one.label_kind.encode())
        for name, tensor in later_tensors(one).items():
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        if one.step_sizes is not None or one.start_weights is not None:
            digest.update(repr((getattr(one.step_sizes, "order", None), getattr(one.start_weights, "sha256", None))).encode())
        return digest.hexdigest()[:16]


def handed_on(study: Any, seed: int = 0) -> dict[str, Path]:
    """The sets that a finished study of this kind leaves in its folder, by name; nothing where it leaves none."""
    if study.kind == "condense":
        single = len(study.ipc) == 1
        if not isinstance(study.ipc[0], int):
            largest = study.ipc[0].values() if isinstance(study.ipc[0], dict) else ()
            return {f"ipc{max(largest)}" if largest else "proportional": Path("condensed.safetensors")}
        return {f"ipc{ipc}": Path("condensed.safetensors" if single else f"condensed-ipc{ipc}.safetensors") for ipc in study.ipc}
    if study.kind == "federated":
        runs = [seed * 1000 + k for k in range(study.federation.seeds)]
        uploads = [name for name in study.federation.strategies if name not in (*WEIGHTS, *ALONE)]
        return {f"{name}-{k}": Path("runs", f"{name}-s{run}", "union.safetensors") for name in uploads for k, run in enumerate(runs)}
    if study.kind == "privacy" and getattr(study, "privacy", None) is not None:
        return {f"epsilon{epsilon:g}": Path(FOLDER, f"condensed-epsilon{epsilon:g}.safetensors") for epsilon in study.privacy.epsilon}
    if study.kind == "nas":
        return {f"{method}-{i}": Path(f"{method}-{i}.safetensors") for method in study.methods for i in range(study.sets.copies)}
    return {}


def classes_of(study: Any) -> tuple[int, ...] | None:
    """The classes that a study's sets will hold; None is all that the data have."""
    wanted = study.settings.upload.classes if study.kind == "federated" else study.data.classes
    return None if wanted is None else tuple(sorted(set(wanted)))


def load_set(study: Study, folder: Path, path: Path) -> CondensedSet:
    """One set of a finished study. The union of private clients gets the statement of all that they released."""
    made = CondensedSet.load(place(folder, path))
    if study.kind != "federated":
        return made
    rounds = list(read_lines(folder / path.parent / "rounds.jsonl"))
    statement = side_by_side(statements(rounds))
    return made if statement is None else dataclasses.replace(made, provenance=dataclasses.replace(made.provenance, dp=statement))


def statements(rounds: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """What each client whose upload was accepted stated, round by round; None where it stated nothing."""
    found: dict[str, list[Any]] = {}
    for line in rounds:
        for client in line["clients"]:
            if client["status"] == "accepted":
                found.setdefault(str(client["client"]), []).append(client.get("privacy"))
    return found


def joined(name: str, sets: Sequence[CondensedSet], classes: tuple[int, ...]) -> Given:
    """One set of several, in order; `InputError` when the classes are not those that were planned."""
    union = sets[0] if len(sets) == 1 else CondensedSet.concat(sets)
    if len(sets) > 1:
        together = one_after_another([one.provenance.dp for one in sets])
        union = dataclasses.replace(union, provenance=dataclasses.replace(union.provenance, dp=together))
    held = tuple(label for label, count in enumerate(union.counts) if count)
    if held != classes:
        raise InputError(f"what {name!r} hands on holds the classes {clipped(list(held))}; expected: {clipped(list(classes))}.")
    return Given(name, classes, union)
