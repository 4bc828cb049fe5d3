"""What methods make of the same data, side by side.

python -m kept.gallery PICTURE.png SET.safetensors [SET.safetensors ...]     one row a set, named by its method
"""

import sys
from pathlib import Path

from distill.condensed import CondensedSet
from distill.drawing import format_of
from distill.errors import InputError
from distill.figures import method_rows


def main(arguments: list[str]) -> None:
    """Draw the gallery of a finished run's sets from the command line's arguments."""
    if len(arguments) < 2:
        raise SystemExit("usage: python -m kept.gallery PICTURE.png SET.safetensors [SET.safetensors ...]")
    picture, *files = map(Path, arguments)
    format_of(picture)
    sets = {}
    for file in files:
        condensed = CondensedSet.load(file)
        sets[condensed.provenance.method] = condensed
    first = next(iter(sets.values())).spec
    if any(s.spec.shape != first.shape or s.spec.classes != first.classes for s in sets.values()):
        raise InputError("the sets are of different data; allowed: sets of the same data.")
    method_rows(sets).save(picture)


if __name__ == "__main__":
    main(sys.argv[1:])
