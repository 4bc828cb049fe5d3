"""`Drawing`: a figure with its text, as PNG, PDF or SVG; and checks of what the figure font can show."""

import functools
import io
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from distill.errors import InputError, unknown_name
from distill.records import write_whole

FORMATS = ("png", "pdf", "svg")
DPI = 110  # for a screen; journals ask for 300
MIN_DPI, MAX_DPI = 30, 1200
MAX_PIXELS = 150_000_000  # of one figure
_RIGHT_TO_LEFT = {"R", "AL", "AN"}


@dataclass(frozen=True)
class Drawing:
    """A figure with its text.

    Attributes:
        figure: the figure.
        heading: a few words on its content.
        caption: how to read it.
        legend: one line per class, if the figure has class numbers in place of names.
    """

    figure: Figure
    heading: str
    caption: str = ""
    legend: tuple[str, ...] = ()

    def encoded(self, form: str = "png", dpi: int | None = None) -> bytes:
        """Encode the figure; the same figure gives the same bytes.

        Heading, caption and legend are in the file's metadata. In PDF and SVG lines and letters are vectors and images keep their pixels.

        Args:
            form: "png", "pdf" or "svg".
            dpi: dots per inch, 30 to 1200; default: 110 for PNG, 300 for the images inside a PDF or SVG.
        """
        if form not in FORMATS:
            raise unknown_name("figure format", form, FORMATS)
        dpi = check_dpi(dpi if dpi is not None else DPI if form == "png" else 300)
        width, height = self.figure.get_size_inches()
        if (pixels := width * height * dpi**2) > MAX_PIXELS:
            most = int((MAX_PIXELS / (width * height)) ** 0.5)
            raise InputError(f"the figure would have {pixels / 1e6:.0f} million pixels at {dpi} dpi; allowed for it: at most {most} dpi.")
        title, words = _plain(self.heading), _plain("\n".join([self.caption, *self.legend]))
        # No date or version in the file; TrueType letters in a PDF, since many journals refuse Type 3.
        facts: dict[str, str | None] = {
            "png": {"Software": None, "Title": title, "Description": words},
            "pdf": {"Creator": None, "Producer": None, "CreationDate": None, "Title": title, "Subject": words},
            "svg": {"Creator": None, "Date": None, "Title": title, "Description": words},
        }[form]
        buffer = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "distill", "pdf.fonttype": 42}):
            self.figure.savefig(buffer, format=form, dpi=dpi, bbox_inches="tight", metadata=facts)
        return buffer.getvalue()

    def save(self, path: str | Path, dpi: int | None = None) -> None:
        """Write the figure in the format of the file's suffix (.png, .pdf or .svg), completely or not at all."""
        path = Path(path)
        write_whole(path, self.encoded(format_of(path), dpi))


def format_of(path: Path) -> str:
    """The format of a file's suffix; raises `InputError` for another suffix or none."""
    form = path.suffix.lower().removeprefix(".")
    if form not in FORMATS:
        state = f"ends in {path.suffix!r}" if path.suffix else "is a folder" if path.is_dir() else "has no suffix"
        raise InputError(f"{path}: {state}; a figure's file ends in {', '.join(f'.{form}' for form in FORMATS)}.")
    return form


def check_dpi(dpi: int) -> int:
    if not MIN_DPI <= dpi <= MAX_DPI:
        raise InputError(f"dpi is {dpi}; allowed: {MIN_DPI} to {MAX_DPI}.")
    return dpi


# Text on figures, which may be in any script


def can_show(text: str) -> bool:
    """Whether the figure font has all characters, none is a control character, and the text runs from left to right."""
    there = _letters()
    return bool(text.strip()) and all(
        char.isprintable() and ord(char) in there and unicodedata.bidirectional(char) not in _RIGHT_TO_LEFT for char in text
    )


@functools.cache
def _letters() -> frozenset[int]:
    """Code points of the figure font."""
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def escaped(text: str) -> str:
    """Text with dollar signs escaped, which would start a formula."""
    return text.replace("$", r"\$")


def title_text(text: str, width: int = 70, lines: int = 2) -> str:
    """A title of at most ``lines`` lines; empty if the font cannot show it."""
    return escaped("\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" ..."))) if can_show(text) else ""


def class_labels(names: Mapping[int, str], width: int, lines: int) -> tuple[dict[int, str], tuple[str, ...]]:
    """Labels of classes on a figure: their full names, wrapped, or their numbers and a legend.

    Numbers are used if a name does not fit into ``lines`` lines of ``width`` characters, if the font cannot show it, or if two names look
    the same.

    Returns:
        labels: text for each class id of ``names``.
        legend: one line a class ("7: name"), empty when the labels are the names.
    """
    wrapped = {label: textwrap.wrap(name, width) for label, name in names.items()}
    alike = {unicodedata.normalize("NFKC", " ".join(name.split())) for name in names.values()}
    if all(can_show(name) for name in names.values()) and len(alike) == len(names) and all(len(w) <= lines for w in wrapped.values()):
        return {label: escaped("\n".join(lines_of_name)) for label, lines_of_name in wrapped.items()}, ()
    return {label: str(label) for label in names}, tuple(f"{label}: {name or '(no name)'}" for label, name in names.items())


def left_out(shown: int, whole: int, what: str) -> list[str]:
    """["first 20 of 100 classes"]; empty if all are shown."""
    return [f"first {shown} of {whole} {what}"] if shown < whole else []


def joined(parts: Sequence[str]) -> str:
    return "; ".join(part for part in parts if part)


def _plain(text: str) -> str:
    """Text for metadata, without control characters except line breaks."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)
