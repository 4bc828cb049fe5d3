"""``distill label``: a set with a teacher's outputs as its labels."""

from pathlib import Path
from typing import Annotated

import typer

from scenarios.commands.evaluation.data import data_for
from scenarios.commands.evaluation.teacher import teacher_table
from scenarios.commands.options import Classes, Device, Root, Size, torch_device


def label(
    condensed: Annotated[Path, typer.Argument(metavar="SET.safetensors", help="A condensed set's file.")],
    data: Annotated[str, typer.Option(help="The data set that it was made from, which trains the teacher.")],
    teacher: Annotated[str, typer.Option(metavar="NETWORK:EPOCHS", help="The teacher, as ConvNet:20.")],
    out: Annotated[Path | None, typer.Option(help="The new file; default: the set's name and -labelled, next to the set.")] = None,
    size: Size = None,
    classes: Classes = None,
    device: Device = "auto",
    data_root: Root = None,
) -> None:
    """Write the same images with a teacher's outputs as soft labels; the teacher is trained once and kept in the cache."""
    from distill.condensed import CondensedSet
    from distill.configure import configure
    from distill.evaluation import accuracy
    from distill.set_notes import teacher_notes
    from distill.teachers import Teacher, check_teacher, labelled, teacher_network

    table = configure(Teacher, teacher_table(teacher) or {}, "distill label: --teacher")
    check_teacher(table)
    where = torch_device(device)
    tiny = CondensedSet.load(condensed).to(where)
    images = data_for(tiny, data, size, classes, None, None, root=data_root, device=where)
    made = labelled(tiny, images, table)
    target = out or condensed.with_name(f"{condensed.stem}-labelled.safetensors")
    made.save(target)
    network = teacher_network(images, table, progress=False)
    right = accuracy(network, images)
    kept = 100 * float((made.hard_labels == tiny.hard_labels).float().mean())
    typer.echo(f"{target}: {len(made)} images, labels by {table}, whose test accuracy is {right:.1f} %")
    for line in teacher_notes(table, network, images):
        typer.echo(f"warning: {line}")
    typer.echo(f"{made.nbytes:,} bytes ({tiny.nbytes:,} before); {kept:.0f} % of the images keep their class as the most likely one")
