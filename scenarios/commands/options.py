"""Options that several commands take, and what a device's name means."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scenarios.engine.record import Tables

Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated.")]
Out = Annotated[Path, typer.Option(help="Where run folders go.")]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same bits.")]
Grid = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE[,VALUE...]", help="Change one setting; may be repeated. Values between commas make a grid of runs."
    ),
]
Seeds = Annotated[str | None, typer.Option(metavar="A..B", help="Several seeds, for example 0..4 or 0,3,7: one run each.")]
Jobs = Annotated[int | None, typer.Option(help="Runs of a grid at a time; default: one a core as far as memory goes, one on a GPU.")]
Dpi = Annotated[
    int | None,
    typer.Option(help="Dots per inch, 30 to 1200; default: 110 for PNG, 300 for images inside PDF and SVG. Journals ask for 300."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
Root = Annotated[Path | None, typer.Option(help="Folder of the data sets; default: $DISTILL_DATA.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")]
ResumeFrom = Annotated[
    Path | None,
    typer.Option(metavar="RUN_DIR", help="Start from the checkpoint of a run that stopped or diverged, with other step sizes."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]

Protocol = Annotated[
    str,
    typer.Option(
        help="dc, dsa, dm, mtt, datm, datadam, datadam-paper, idc, ncfm, frepo, laptop; with a teacher: rded, sre2l, edc (docs/methods.md)."
    ),
]
CORESETS = (
    "random, herding, kcenter, kmeans, class_mean, noise; by networks trained on the data: herding_features, kcenter_features, "
    "kmeans_features, forgetting, el2n, grand, rded"
)
Scorer = Annotated[
    str | None,
    typer.Option(metavar="NETWORK:EPOCHS", help="Networks trained on the data that such coresets choose by; default: ConvNet:20."),
]
Size = Annotated[int | None, typer.Option(min=1, help="Resize images of folders, MHIST and digits to this many pixels a side.")]
Classes = Annotated[str | None, typer.Option(metavar="A,B..C", help="Use these classes only, by number: 0,1,7 or 0..4.")]
Validation = Annotated[float | None, typer.Option(metavar="FRACTION", help="Hold out this fraction of the training images.")]
Imbalance = Annotated[
    float | None, typer.Option(metavar="RATIO", help="Long-tailed training images: the largest class has RATIO times the smallest's.")
]


def data_table(name: str, size: int | None, classes: str | None, validation: float | None, imbalance: float | None) -> "Tables":
    """The ``[data]`` table that these options say."""
    chosen = None if classes is None else class_numbers(classes)
    table = {"name": name, "size": size, "classes": chosen, "validation": validation, "imbalance": imbalance}
    return {key: value for key, value in table.items() if value is not None}


def class_numbers(text: str) -> list[int]:
    """``0..2,7`` is 0, 1, 2, 7."""
    from distill.errors import InputError, clipped
    from distill.spec import MAX_CLASSES

    numbers: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,9})\s*(?:\.\.\s*(\d{1,9})\s*)?", part, re.ASCII)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if not first <= last < MAX_CLASSES:
            raise InputError(f"--classes {clipped(text)!r}: allowed: class numbers from 0 and ranges, for example 0,1,7 or 0..4.")
        if twice := [number for number in numbers if first <= number <= last]:
            raise InputError(f"--classes {clipped(text)!r} names class {twice[0]} twice; give each class once.")
        numbers += range(first, last + 1)
    return sorted(numbers)


def check_new(path: Path) -> None:
    """`InputError` where a command that makes a new file would replace one."""
    from distill.errors import InputError

    if path.is_dir():
        raise InputError(f"{path}: is a folder; give a file's name (--out).")
    if path.exists() or path.is_symlink():
        raise InputError(f"{path}: is there already; give a new file (--out).")


def refuse_unused(options: "Mapping[str, object]", why: str, instead: str = "") -> None:
    """`InputError` for those of ``options`` that were given, as they would have no effect.

    Args:
        options: values by option; None and False stand for one that was not given.
        why: the reason, for example "without --views".
        instead: what else can be done, for example "give --views N".
    """
    from distill.errors import InputError

    given = [option for option, value in options.items() if value is not None and value is not False]
    if given:
        verb, them = ("has", "it") if len(given) == 1 else ("have", "them")
        do = f"{instead}, or leave {them} out" if instead else f"leave {them} out"
        raise InputError(f"{', '.join(given)} {verb} no effect {why}; {do}.")


def torch_device(name: str) -> str:
    """The torch name of ``--device``; `InputError` for an unknown one or a GPU that is not there."""
    import torch

    from distill.errors import InputError, unknown_name

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise unknown_name("device", name, ["cpu", "cuda", "auto"])
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' was asked for, and torch finds no GPU here; use --device cpu or auto.")
    return f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and "LOCAL_RANK" in os.environ else name
