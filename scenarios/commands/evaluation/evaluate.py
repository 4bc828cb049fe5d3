"""``distill evaluate``: networks trained on a condensed set, beside its baselines."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from scenarios.commands.evaluation.data import data_for
from scenarios.commands.evaluation.networks import check_networks
from scenarios.commands.evaluation.teacher import scorer_table, teacher_table
from scenarios.commands.options import (
    CORESETS,
    Classes,
    Device,
    Imbalance,
    Protocol,
    Root,
    Scorer,
    Size,
    Validation,
    refuse_unused,
    torch_device,
)
from scenarios.engine.complaints import printable, terminal_width, wrapped


def evaluate(
    condensed: Annotated[Path, typer.Argument(metavar="SET.safetensors", help="A condensed set's file.")],
    data: Annotated[str, typer.Option(help="The data set that it was made from.")],
    network: Annotated[list[str] | None, typer.Option(help="Network; repeat for cross-architecture. Default: ConvNet.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Networks trained for each set.")] = 5,
    protocol: Protocol = "laptop",
    baseline: Annotated[list[str] | None, typer.Option(help=f"{CORESETS}, whole or none; repeat.")] = None,
    whole_epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs for the baseline 'whole'; default: as many steps as for the others.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="NETWORK:EPOCHS", help="A teacher trained on the data, which labels the images, as ConvNet:20.")
    ] = None,
    loss: Annotated[str | None, typer.Option(help="Loss with soft labels: ce, kl, mse, cosine or gift.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Temperature of the loss kl.")] = None,
    hard_weight: Annotated[float | None, typer.Option(help="Weight of the cross-entropy with hard labels, added to the loss.")] = None,
    scorer: Scorer = None,
    best: Annotated[bool, typer.Option("--best", help="Also report the best of 20 tests a training, selected on the test set.")] = False,
    size: Size = None,
    classes: Classes = None,
    validation: Validation = None,
    imbalance: Imbalance = None,
    device: Device = "auto",
    data_root: Root = None,
) -> None:
    """Train networks on a condensed set and on its baselines, and print test accuracies with their intervals."""
    from apps.privacy.statement import guarantee
    from distill import scored_coresets
    from distill.condensed import CondensedSet
    from distill.configure import configure
    from distill.errors import Diverged, InputError
    from distill.evaluation import evaluate as judge
    from distill.protocols import protocol as of_protocol
    from distill.recipe import Recipe
    from distill.teachers import check_teacher
    from scenarios.reporting.text import as_text

    if "none" in (baseline or []) and len(baseline or []) > 1:
        raise InputError("--baseline none goes alone; give none, or the baselines that you want.")
    baselines = [] if baseline == ["none"] else baseline or ["random", "whole"]
    if "whole" not in baselines:
        refuse_unused({"--whole-epochs": whole_epochs}, "without the baseline whole", "give --baseline whole")
    chooser = scorer_table(scorer, baselines)
    networks = network or ["ConvNet"]
    check_networks(networks, "distill evaluate")
    where = torch_device(device)
    tiny = CondensedSet.load(condensed).to(where)
    images = data_for(tiny, data, size, classes, validation, imbalance, root=data_root, device=where)
    labels = {"loss": loss, "temperature": temperature, "hard_weight": hard_weight, "teacher": teacher_table(teacher)}
    labels = {key: value for key, value in labels.items() if value is not None}
    recipe: Recipe | str = protocol
    if labels:
        named = dataclasses.asdict(of_protocol(protocol, images.spec, networks[0], images=len(tiny)))
        recipe = configure(Recipe, named | labels, f"distill evaluate: protocol {protocol}")
        if recipe.teacher is not None:
            check_teacher(recipe.teacher)
    found = judge(
        tiny,
        images,
        network=networks,
        recipe=recipe,
        seeds=seeds,
        baselines=baselines,
        whole_epochs=whole_epochs,
        scorer=None if chooser is None else configure(scored_coresets.Scorer, chooser, "distill evaluate: --scorer"),
        best=best,
    )
    width = terminal_width()
    remarks = "\n".join(found.remarks()).replace("one recipe for all: ", f"one recipe for all ({protocol}): ")
    text = as_text(found.table(), width=width) + "\n" + wrapped(remarks, width)
    typer.echo("\n".join(map(printable, text.splitlines())))
    if tiny.provenance.dp:
        typer.echo(wrapped(printable(guarantee(tiny.provenance.dp)), terminal_width()))
    measured = [one for row in found.rows.values() for one in row.values()]
    if all(one.failed == len(one.values) for one in measured):
        count = sum(one.failed for one in measured)
        every = "the only network" if count == 1 else f"every one of the {count} networks"
        raise Diverged(f"no accuracy was measured: {every} failed, for the reasons in the output; give another --protocol or --network.")
