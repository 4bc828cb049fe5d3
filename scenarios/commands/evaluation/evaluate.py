"""``distill evaluate``: networks trained on a condensed set, beside its baselines."""

from pathlib import Path
from typing import Annotated

import typer

from scenarios.commands.evaluation.data import data_for
from scenarios.commands.options import Classes, Device, Imbalance, Root, Size, Validation, torch_device
from scenarios.engine.complaints import printable, terminal_width, wrapped


def evaluate(
    condensed: Annotated[Path, typer.Argument(metavar="SET.safetensors", help="A condensed set's file.")],
    data: Annotated[str, typer.Option(help="The data set that it was made from.")],
    network: Annotated[list[str] | None, typer.Option(help="Network; repeat for cross-architecture. Default: ConvNet.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Networks trained for each set.")] = 5,
    protocol: Annotated[str, typer.Option(help="dc, dsa, dm, datadam, datadam-paper or laptop.")] = "laptop",
    baseline: Annotated[list[str] | None, typer.Option(help="random, herding, kcenter, kmeans, class_mean, whole or none; repeat.")] = None,
    whole_epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs for the baseline 'whole'; default: as many steps as for the others.")
    ] = None,
    size: Size = None,
    classes: Classes = None,
    validation: Validation = None,
    imbalance: Imbalance = None,
    device: Device = "auto",
    data_root: Root = None,
) -> None:
    """Train networks on a condensed set and on its baselines, and print test accuracies with their intervals."""
    from apps.privacy.statement import guarantee
    from distill.condensed import CondensedSet
    from distill.errors import InputError
    from distill.evaluation import evaluate as judge
    from distill.networks import check_name
    from scenarios.engine import own
    from scenarios.reporting.text import as_text

    if "none" in (baseline or []) and len(baseline or []) > 1:
        raise InputError("--baseline none goes alone; give none, or the baselines that you want.")
    baselines = [] if baseline == ["none"] else baseline or ["random", "whole"]
    networks = network or ["ConvNet"]
    own.register(own.Places(networks=(("evaluation", "networks"),)), {"evaluation": {"networks": networks}}, "distill evaluate")
    for name in networks:
        check_name(name)
    where = torch_device(device)
    tiny = CondensedSet.load(condensed).to(where)
    images = data_for(tiny, data, size, classes, validation, imbalance, root=data_root, device=where)
    found = judge(tiny, images, network=networks, recipe=protocol, seeds=seeds, baselines=baselines, whole_epochs=whole_epochs)
    width = terminal_width()
    remarks = "\n".join(found.remarks()).replace("one recipe for all: ", f"one recipe for all ({protocol}): ")
    text = as_text(found.table(), width=width) + "\n" + wrapped(remarks, width)
    typer.echo("\n".join(map(printable, text.splitlines())))
    if tiny.provenance.dp:
        typer.echo(wrapped(printable(guarantee(tiny.provenance.dp)), terminal_width()))
