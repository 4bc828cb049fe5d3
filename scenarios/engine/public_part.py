"""The part of a private run's folder that may be handed on, public/; everything else in the folder is private, and says that it is.

public/ holds what a guarantee covers: sets, the releases that they were made from, pictures of the sets, and the guarantee in words. What
was computed on private images without noise (accuracies, counts, distances, attack scores, twins, random images, checkpoints, pictures of
real images, times) stays outside.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from apps.privacy.ledger import PRIVATE_FILE
from apps.privacy.statement import guarantee
from distill.condensed import CondensedSet
from distill.figures import image_grid
from distill.records import write_whole
from scenarios.engine.record import Results

FOLDER = "public"
MARK = "PRIVATE.txt"
WORDS = "GUARANTEE.txt"
SAME_TIME = 946_684_800  # 2000-01-01, of every file in public/
_MARK = f"""PRIVATE: hand on nothing of this folder but what is in {FOLDER}/.

Files outside {FOLDER}/ were computed from private images without noise, or belong to the run that did: record.json, metrics.jsonl,
report.html and figures/ have exact counts, accuracies, distances and pictures of real images; sets named exact-* and random images have no
guarantee; folders named *releases hold a fingerprint of the private images ({PRIVATE_FILE}).
{FOLDER}/{WORDS} says which guarantee holds for {FOLDER}/. The complete folder is needed to continue the run.
"""


def mark(folder: Path, *more: str) -> None:
    """Say at the top of a private run's folder that it is private; ``more`` are further sentences. Call it before there is anything."""
    write_whole(folder / MARK, "\n".join([_MARK, *more]))


def is_private(folder: Path, config: Mapping[str, object]) -> bool:
    """Whether a run folder, or the pipeline that it is a stage of, holds what is private."""
    marked = any((place / MARK).exists() for place in (folder, folder.parent.parent))
    parts = config.get("stages")
    stages = parts.values() if isinstance(parts, Mapping) else ()
    return marked or bool(config.get("privacy")) or any(isinstance(part, Mapping) and bool(part.get("privacy")) for part in stages)


def place(folder: Path, path: str | Path) -> Path:
    """Where a file of public/ is: there, or at the top of the folder, as runs of version 0.1 left it."""
    current = folder / path
    earlier = folder / current.name
    return earlier if earlier.exists() and not current.exists() else current


def load(study: object, folder: Path, path: Path) -> CondensedSet:
    """A set of public/."""
    return CondensedSet.load(place(folder, path))


def taken_over(folder: Path, path: Path) -> None:
    """A set that a run of version 0.1 left at the top of its folder moves into public/, without its time."""
    earlier, current = folder / path.name, folder / path
    if earlier.exists():
        if not current.exists():
            covered(CondensedSet.load(earlier)).save(current)
        earlier.unlink()


def covered(condensed: CondensedSet) -> CondensedSet:
    """The set without what its guarantee does not cover: the time that it took, and a fingerprint of the data."""
    return dataclasses.replace(condensed, provenance=dataclasses.replace(condensed.provenance, seconds=0.0, fingerprint=None))


def has_guarantee(condensed: CondensedSet) -> bool:
    """Whether the set's statement holds as far as it can be recomputed."""
    return not guarantee(condensed.provenance.dp).startswith("No privacy guarantee")


def hand_over(folder: Path, sets: Mapping[str, CondensedSet], total: Mapping[str, object] | None, releases: Iterable[Path] = ()) -> Results:
    """Fill public/ and return what a record says of it, under the key ``public``.

    What is stated is written before what it is about: wherever a kill falls, public/ never holds more than its own words count.

    Args:
        folder: the run's folder.
        sets: by file name, without its suffix. One without a guarantee, as with a seed for tests, is left out.
        total: the statement of everything in public/ together; None where there is none.
        releases: folders of ledgers whose releases go with the sets.

    Returns:
        ``files``, ``statement`` (``total`` without the account's random id) and ``guarantee`` in words.
    """
    public, lines, files = folder / FOLDER, [], [folder / FOLDER / WORDS]
    for name, condensed in sets.items():
        words = guarantee(condensed.provenance.dp)
        if not has_guarantee(condensed):
            lines.append(f"{name}: left out. {words}")
            for suffix in ("safetensors", "png"):
                (public / f"{name}.{suffix}").unlink(missing_ok=True)
        else:
            lines.append(f"{name}.safetensors: {words}")
    stated = None if total is None else {name: value for name, value in total.items() if name != "account"}
    together = f"All files of this folder together: {guarantee(stated)}"
    write_whole(public / WORDS, "\n\n".join(["What is guaranteed about the files of this folder.", *lines, together]) + "\n")
    for ledger in releases:
        # The account is read after the files were listed, so that it counts them, and written before them.
        kept = [*sorted(ledger.glob("release-*.safetensors")), *sorted(ledger.glob("expert-*.safetensors"))]
        for file in [ledger / "account.json", *kept]:
            copy = public / ledger.name / file.name
            if not file.exists():  # somebody has deleted the working copy of a set that is done
                continue
            if file.suffix == ".json" or not copy.exists():
                write_whole(copy, file.read_bytes())
            files.append(copy)
    for name, condensed in sets.items():
        if has_guarantee(condensed):
            covered(condensed).save(public / f"{name}.safetensors")
            if not (public / f"{name}.png").exists():
                image_grid(condensed, f"Images of the set {name}").save(public / f"{name}.png")
            files += [public / f"{name}.safetensors", public / f"{name}.png"]
    # The time between two of them tells how many images there are; that of a folder is its last file's.
    for path in [*files, *{path.parent for path in files}]:
        os.utime(path, (SAME_TIME, SAME_TIME))
    return {"files": sorted(str(path.relative_to(folder)) for path in files), "statement": stated, "guarantee": guarantee(stated)}


def handing_on(record: Mapping[str, object], this: str) -> str:
    """What of a private run may be handed on, in one sentence; ``this`` names what the sentence is printed in: "this page"."""
    results = record.get("results")
    part = results.get("public") if isinstance(results, Mapping) else None
    facts = part if isinstance(part, Mapping) else {}
    stated = facts.get("statement")
    files = facts.get("files")
    if not isinstance(stated, Mapping) or not isinstance(files, list) or str(facts.get("guarantee")).startswith("No privacy guarantee"):
        return f"Private: hand on neither {this} nor any other file of this run; none has been sorted out as covered by a guarantee."
    epsilon, delta = stated.get("epsilon"), stated.get("delta")
    numbers = f"({epsilon:.2f}, {delta:.1e})" if isinstance(epsilon, float | int) and isinstance(delta, float | int) else "the stated"
    return (
        f"Private: hand on the {len(files)} files in {FOLDER}/ only, which together are under {numbers}-differential privacy. Neither "
        f"{this} nor any other file of this run may be handed on: they show figures and images of private data."
    )
