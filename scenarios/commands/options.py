"""Options that several commands take, and what a device's name means."""

import os
from pathlib import Path
from typing import Annotated

import typer

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
Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
Root = Annotated[Path | None, typer.Option(help="Folder of the data sets; default: $DISTILL_DATA.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]


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
