"""Pieces of a self-contained HTML page: escaped text, tables that scroll in their own box, pictures inside the file."""

import base64
import html
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from distill.errors import InputError

MAX_BYTES = 5_000_000
MAX_PICTURE = 50_000_000  # bytes of a figure's file that is opened at all
_SCALES = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15)
_COLOURS = 128
_LINES, _LETTERS = 210, 500  # of a figure's words
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 62rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.25rem; line-height: 1.25; } h3 { font-size: 1rem; }
section { border-top: 2px solid #8886; margin-top: 2rem; }
.question { font-style: italic; } .answer { font-size: 1.1rem; } .small { font-size: .85rem; opacity: .85; }
.reason { font-weight: bold; border-left: 4px solid #c44; padding-left: .7rem; }
/* The shadow at the right edge is under the table's end: it shows as long as there is more to scroll to. */
.wide { overflow-x: auto; margin: 1rem 0; background:
 linear-gradient(to left, Canvas 40%, transparent) right / 3rem 100% no-repeat local,
 linear-gradient(to left, #8889, transparent) right / 1rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; vertical-align: top; border-bottom: 1px solid #8884; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas; white-space: normal; min-width: 8rem; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; max-width: 100%; }
figure img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; display: block; }
figcaption ul { columns: 12rem; padding-left: 1rem; }
pre { white-space: pre-wrap; font-size: .85rem; }
@media print {
 :root { color-scheme: light; font-size: 11px; } body { max-width: none; padding: 0; } details { display: none; }
 .wide { overflow: visible; background: none; } th, td { white-space: normal; overflow-wrap: anywhere; padding-right: .4rem; }
 th:first-child, td:first-child { position: static; min-width: 0; } figure, tr { break-inside: avoid; }
}
"""


@dataclass(frozen=True)
class Picture:
    """A figure as it goes into the page, with the heading, caption and legend lines of its metadata (`distill.drawing`)."""

    png: bytes
    width: int
    height: int
    title: str = ""
    words: tuple[str, ...] = ()

    @property
    def weight(self) -> int:
        """Bytes of the image, and of the words counted as if they were image."""
        return len(self.png) + sum(len(html.escape(line).encode()) + 10 for line in (self.title, *self.words))


def text(content: object, tag: str = "p", name: str = "") -> str:
    """An element with escaped text."""
    return f"<{tag}{f' class={name}' if name else ''}>{html.escape(str(content))}</{tag}>"


def listed(lines: Sequence[str]) -> str:
    """A list with one item for each line."""
    return f"<ul>{''.join(text(line, 'li') for line in lines)}</ul>"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Header and rows in a box that scrolls sideways, so that the page does not."""
    if not rows:
        return ""
    head, *body = ("".join(text(cell, tag) for cell in row) for row, tag in zip(rows, ["th"] + ["td"] * len(rows), strict=False))
    lines = "".join(f"<tr>{row}</tr>" for row in body)
    return f"<div class=wide tabindex=0><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"


def picture(figure: Picture, name: str, label: str = "") -> str:
    """A figure with its heading, its label (of one among several runs), its caption and its legend; ``name`` is the alternative text."""
    data = base64.b64encode(figure.png).decode()
    image = f"<img alt='{html.escape(name)}' width={figure.width} height={figure.height} src='data:image/png;base64,{data}'>"
    under = " ".join(part for part in (f"{label}." if label else "", *figure.words[:1]) if part)
    caption = (text(under, "span") if under else "") + (listed(figure.words[1:]) if figure.words[1:] else "")
    below = f"<figcaption class=small>{caption}</figcaption>" if caption else ""
    return f"<figure>{text(figure.title, 'h3') if figure.title else ''}{image}{below}</figure>"


def folded(title: str, content: str) -> str:
    """Text that the reader opens by its title."""
    return f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(content)}</pre></details>"


def whole(title: str, body: str) -> str:
    """The page around its parts."""
    head = "<meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'>"
    return f"<!doctype html><html lang=en><head>{head}{text(title, 'title')}<style>{_STYLE}</style></head><body>{body}</body></html>\n"


def fitted(paths: Sequence[Path], room: int) -> dict[Path, Picture]:
    """The figures, in at most ``room`` bytes of page: unchanged, else with fewer colours, else smaller; those that do not fit are left out.

    A file that is no picture is left out, too. Raises `InputError` for a figure that cannot be read from the disk.
    """
    room = room * 3 // 4 - 400 * len(paths)  # base64, and the tags around it
    originals = {path: figure for path in paths if (figure := _opened(path)) is not None}
    pictures = originals
    for scale in _SCALES:
        if sum(figure.weight for figure in pictures.values()) <= room:
            return pictures
        pictures = {path: _smaller(figure, scale) for path, figure in originals.items()}
    kept: dict[Path, Picture] = {}
    for path, figure in pictures.items():
        if figure.weight <= room:
            kept[path] = figure
            room -= figure.weight
    return kept


def _opened(path: Path) -> Picture | None:
    try:
        if path.stat().st_size > MAX_PICTURE:
            return None
        png = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
                image.load()
                known = getattr(image, "text", {})
                lines = str(known.get("Description", "")).split("\n")[:_LINES]
                words = tuple(line[:_LETTERS] for line in lines if line.strip())
                return Picture(png, *image.size, str(known.get("Title", ""))[:_LETTERS], words)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None


def _smaller(figure: Picture, scale: float) -> Picture:
    """The picture in few colours, its sides times ``scale`` of what they are; shown as wide as before."""
    with Image.open(io.BytesIO(figure.png), formats=["PNG"]) as image:
        plain = Image.new("RGB", image.size, "white")
        opaque = image.convert("RGBA")
        plain.paste(opaque, mask=opaque.getchannel("A"))
    width = max(1, round(min(plain.width, figure.width * scale)))
    plain = plain.resize((width, max(1, round(plain.height * width / plain.width))), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    plain.quantize(_COLOURS).save(out, "PNG", optimize=True)
    return min(figure, replace(figure, png=out.getvalue()), key=lambda picture: len(picture.png))
