"""Sets of other code bases: read from what the authors' scripts save, and written in formats that other programs read."""

from distill.foreign.reading import read_foreign as read_foreign
from distill.foreign.writing import EXPORTS as EXPORTS
from distill.foreign.writing import export as export
