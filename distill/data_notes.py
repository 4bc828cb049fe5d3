"""Sentences about the classes of data that are allowed but seldom intended."""

from collections.abc import Sequence

from distill.errors import clipped


def one_class_note(names: Sequence[str], present: Sequence[int]) -> tuple[str, ...]:
    """The note on data of a single class, for which accuracies are meaningless; nothing for other data.

    Args:
        names: class names.
        present: the classes that have training images.
    """
    if len(present) > 1:
        return ()
    name = clipped(names[present[0]])
    return (f"all training images are of one class, {name!r}: every network is right about them, so an accuracy says nothing.",)


def class_notes(names: Sequence[str], counts: Sequence[int], tested: set[int]) -> tuple[str, ...]:
    """One sentence for each kind of unusual class.

    Args:
        names: class names.
        counts: training images of each class.
        tested: the classes that have test images.
    """
    present = [label for label, count in enumerate(counts) if count]
    notes = list(one_class_note(names, present))
    empty = [label for label, count in enumerate(counts) if not count]
    if empty and len(names) > 1:
        advice = "subtract 1 from labels that start at 1" if empty == [0] else "number the classes without gaps"
        notes.append(f"{len(empty)} of {len(names)} classes have no training images ({_named(names, empty)}); {advice}, or leave them out.")
    untested = [label for label in present if label not in tested]
    if tested and untested:
        notes.append(f"{len(untested)} of {len(names)} classes have no test images ({_named(names, untested)}).")
    return tuple(notes)


def _named(names: Sequence[str], labels: Sequence[int]) -> str:
    return ", ".join(clipped(names[label], 40) for label in labels[:5]) + (", ..." if len(labels) > 5 else "")
