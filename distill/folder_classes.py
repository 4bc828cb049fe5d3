"""Class numbers for the image files of a folder; checks names, spellings, and files that are listed twice."""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from distill.errors import InputError, clipped, unknown_name
from distill.label_tables import SPLITS, sorted_labels


@dataclass(frozen=True)
class Layout:
    """Image files with their classes.

    Attributes:
        classes: class names.
        parts: image files and class numbers by split: "train", and "test" and "val" if they exist.
        notes: for the user.
    """

    classes: tuple[str, ...]
    parts: dict[str, tuple[list[Path], list[int]]]
    notes: tuple[str, ...] = ()


def _folded(name: str) -> str:
    """A name without differences of capitals and of composed or separate accents."""
    return unicodedata.normalize("NFC", name).casefold()


def numbered(top: Path, labelled: dict[str, list[tuple[Path, str]]], what: str, notes: list[str]) -> Layout:
    """Number the classes, which are those of the training split.

    Args:
        top: the folder.
        labelled: (file, class name) pairs by split.
        what: begins the messages of errors.
        notes: sentences for the user, which are extended.

    Raises:
        InputError: for a name that is not UTF-8, a class that is not in the training split, or a file of two classes.
    """
    # Class folders keep the order of torchvision's ImageFolder, in which "10" comes before "2".
    by_folder = all(name in file.parts for file, name in labelled["train"])
    names = sorted({name for _, name in labelled["train"]}) if by_folder else sorted_labels(name for _, name in labelled["train"])
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{what}: class {clipped(name)!r} has a name that is not UTF-8; rename it (convmv -f latin1 -t utf8)."
            ) from None
    number = {name: place for place, name in enumerate(names)}
    folded: dict[str, list[str]] = {}
    for name in names:
        folded.setdefault(_folded(name), []).append(name)
    alike = [same for same in folded.values() if len(same) > 1]
    if alike:
        notes.append(f"classes that differ in capitals only are different classes: {clipped(', '.join(alike[0]))}.")
    parts: dict[str, tuple[list[Path], list[int]]] = {}
    seen: dict[tuple[int, int], tuple[Path, int, str]] = {}
    repeated: list[Path] = []
    for part in SPLITS:
        kept: tuple[list[Path], list[int]] = ([], [])
        renamed: set[str] = set()
        for file, name in labelled.get(part, ()):
            near = folded.get(_folded(name), [])
            if name not in number and len(near) != 1:
                raise unknown_name(f"{what}: {part} class", name, names)
            renamed |= {f"{name} is {near[0]}"} if name not in number else set()
            label = number[name if name in number else near[0]]
            facts = file.stat()
            before = seen.setdefault((facts.st_dev, facts.st_ino), (file, label, part))
            if before[1] != label:
                raise InputError(
                    f"{what}: {before[0]} and {file} are one file (a link), of the classes {clipped(names[before[1]])!r} and "
                    f"{clipped(name)!r}; take one away."
                )
            if before[0] != file and before[2] == part:
                repeated.append(file)
                continue
            kept[0].append(file)
            kept[1].append(label)
        if renamed:
            notes.append(f"{part}: classes spelt differently than in train: {clipped(', '.join(sorted(renamed)))}.")
        if part in labelled:
            parts[part] = kept
    if repeated:
        notes.append(f"{len(repeated)} files are links to others of their class and are read once, {repeated[0]} for example.")
    return Layout(_titles(top, names), parts, tuple(map(_line, notes)))


def _titles(top: Path, names: list[str]) -> tuple[str, ...]:
    """Class names; WordNet ids (n01443537) are replaced by their words in words.txt, which Tiny-ImageNet has."""
    words = top / "words.txt"
    if not words.is_file() or not all(re.fullmatch(r"n\d{8}", name) for name in names):
        return tuple(names)
    try:
        lines = (line.partition("\t") for line in words.read_text(encoding="utf-8").splitlines())
        known = {wnid: text.split(",")[0].strip()[:100] for wnid, _, text in lines}
    except (OSError, UnicodeDecodeError):
        return tuple(names)
    titles = [known.get(name) or name for name in names]
    return tuple(title if titles.count(title) == 1 else f"{title} ({name})" for title, name in zip(titles, names, strict=True))


def _line(note: str) -> str:
    return clipped(" ".join(note.split()), 500)
