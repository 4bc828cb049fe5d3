"""``distill import``: a set that another code base saved, as a condensed set's file."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from scenarios.commands.options import Device, Root, Size, check_new, data_table, torch_device
from scenarios.engine.complaints import printable, terminal_width, wrapped


def import_set(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="What the authors' script saved: .pt, .npz or .npy.")],
    data: Annotated[str, typer.Option(help="The data set that it was made from.")],
    out: Annotated[Path, typer.Option(help="The condensed set's file.")] = Path("imported.safetensors"),
    values: Annotated[
        str | None, typer.Option(help="What the images are, where the files do not say it: pixels, normalised or whitened (ZCA).")
    ] = None,
    decode: Annotated[str | None, typer.Option(help="none, or formation:F for grids of F x F small images (factor F).")] = None,
    lr: Annotated[str | None, typer.Option(metavar="NUMBER", help="The learned step size, where no file has it; or none.")] = None,
    labels: Annotated[str | None, typer.Option(help="What soft labels are: probabilities, logits or scores.")] = None,
    experiment: Annotated[int | None, typer.Option(min=0, help="Which of several sets in one file, from 0.")] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Train one small network on the set and test it on real images.")
    ] = True,
    size: Size = None,
    device: Device = "auto",
    data_root: Root = None,
) -> None:
    """Read a set of another code base (DC, DSA, DM, MTT, DATM, IDC, DANCE, NCFM and others), safely, and save it in this one's format."""
    from distill.configure import configure
    from distill.errors import clipped
    from distill.foreign.layouts import LAYOUTS
    from distill.foreign.reading import read_foreign
    from distill.foreign.working import NETWORK, explanation, try_out
    from distill.set_notes import set_notes
    from scenarios.engine.folder import data_of
    from scenarios.engine.schema import DataTable
    from scenarios.engine.study import Options

    check_new(out)
    where = torch_device(device)
    table = configure(DataTable, data_table(data, size, None, None, None), "distill import")
    images = data_of(table, Options(data_root=data_root, device=where, seed=0))
    step = _step_size(lr)
    tiny = read_foreign(files, images, values=values, decode=decode, lr=step, labels=labels, experiment=experiment).to(where)
    tiny.save(out)
    config = tiny.provenance.config
    soft = f"soft labels ({tiny.label_kind})" if tiny.labels.is_floating_point() else "class numbers"
    lines = [
        f"{out}: {tiny!r}",
        f"read as {config['layout']} ({LAYOUTS[config['layout']].source}): images {config['values']}, decode {config['decode']}, labels "
        f"{soft}, learned lr {'none' if tiny.lr is None else f'{tiny.lr:.6g}'}",
    ]
    if "stated_accuracy" in config:
        lines.append(f"its file states an accuracy of {config['stated_accuracy']:.1f} %, over all its experiments and by their evaluation")
    lines += [f"warning: {note}" for note in set_notes(tiny)]
    if check:
        works = try_out(tiny, images)
        lines.append(f"check: {NETWORK} trained on it classifies {works}")
        if works.at_chance:
            why = explanation(tiny, files, images, labels=labels, experiment=experiment)
            lines.append(f"warning: this is chance, so something was read wrongly: {why}")
    lines.append(f"next: distill evaluate {out} --data {data}")
    typer.echo("\n".join(wrapped(clipped(printable(line), 2000), terminal_width()) for line in lines))


def _step_size(text: str | None) -> float | Literal["none"] | None:
    """A number, "none", or None where the option was not given."""
    from distill.errors import InputError, clipped

    if text is None:
        return None
    if text == "none":
        return "none"
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--lr is {clipped(text)!r}; allowed: a positive number, or none.") from None
