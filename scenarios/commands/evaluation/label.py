"""``distill label``: a set with a teacher's outputs as its labels, of each image or of stored views."""

from pathlib import Path
from typing import Annotated

import typer

from scenarios.commands.evaluation.data import data_for
from scenarios.commands.evaluation.teacher import teacher_table
from scenarios.commands.options import Classes, Device, Root, Size, check_new, refuse_unused, torch_device


def label(
    condensed: Annotated[Path, typer.Argument(metavar="SET.safetensors", help="A condensed set's file.")],
    data: Annotated[str, typer.Option(help="The data set that it was made from, which trains the teacher.")],
    teacher: Annotated[str, typer.Option(metavar="NETWORK:EPOCHS", help="The teacher, as ConvNet:20.")],
    views: Annotated[
        int | None, typer.Option(min=1, help="Store labels of this many augmented views of each image; default: of each image once.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="With --views: whose augmentation and mixing the views have.", show_default="laptop")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="With --views: seed of the augmentation.", show_default="0")] = None,
    out: Annotated[Path | None, typer.Option(help="The new file; default: the set's name and -labelled, next to the set.")] = None,
    size: Size = None,
    classes: Classes = None,
    device: Device = "auto",
    data_root: Root = None,
) -> None:
    """Write the same images with a teacher's outputs as soft labels; the teacher is trained once and kept in the cache."""
    import dataclasses

    from distill.condensed import CondensedSet
    from distill.configure import configure
    from distill.errors import InputError
    from distill.evaluation import accuracy, fitted
    from distill.protocols import protocol as recipe_named
    from distill.set_notes import teacher_notes
    from distill.teachers import Teacher, check_teacher, labelled, labelled_views, teacher_network

    if views is None:
        refuse_unused({"--protocol": protocol, "--seed": seed}, "without --views", "give --views N")
    target = out or condensed.with_name(f"{condensed.stem}-labelled.safetensors")
    if target.resolve() == condensed.resolve():
        raise InputError(f"--out is {target}, the set itself, whose classes would be lost; give another file.")
    check_new(target)
    table = configure(Teacher, teacher_table(teacher) or {}, "distill label: --teacher")
    check_teacher(table)
    where = torch_device(device)
    tiny = CondensedSet.load(condensed).to(where)
    images = data_for(tiny, data, size, classes, None, None, root=data_root, device=where)
    fitted(tiny, images)
    if unknown := sorted(set(tiny.hard_labels.tolist()) - set(images.classes)):
        raise InputError(
            f"the set has images of class {unknown[0]}, which the teacher would never see; allowed: --classes with all of them."
        )
    if views is None:
        made = labelled(tiny, images, table)
    else:
        recipe = recipe_named(protocol or "laptop", images.spec, images=len(tiny))
        made = labelled_views(
            tiny,
            images,
            table,
            views,
            augmentation=recipe.augmentation,
            mix=recipe.mix,
            mix_probability=recipe.mix_probability,
            mix_alpha=recipe.mix_alpha,
            seed=seed or 0,
        )
    made.save(target)
    network = teacher_network(images, table, progress=False)
    right = accuracy(network, images)
    what, given, known = "images", made.labels, tiny.hard_labels
    if made.views is not None:
        what, given, known = "views", made.views.labels, tiny.decoded().hard_labels
        typer.echo(f"{made.views}: a recipe must augment and mix alike")
    kept = 100 * float((given.argmax(-1) == known).float().mean())
    done = dataclasses.replace(table, labels="images" if made.views is None else "views")
    typer.echo(f"{target}: {len(made)} images, labels by {done}, whose test accuracy is {right:.1f} %")
    for line in teacher_notes(table, network, images):
        typer.echo(f"warning: {line}")
    typer.echo(f"{made.nbytes:,} bytes ({tiny.nbytes:,} before); {kept:.0f} % of the {what} keep their class as the most likely one")
