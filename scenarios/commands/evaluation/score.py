"""``distill score``: scores of condensed sets that do not depend on how their method evaluates its own, with a page."""

import base64
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from scenarios.commands.evaluation.data import data_for
from scenarios.commands.evaluation.networks import check_networks
from scenarios.commands.evaluation.teacher import scorer_table, teacher_table
from scenarios.commands.options import CORESETS, Classes, Device, Imbalance, Protocol, Root, Scorer, Size, torch_device
from scenarios.engine.complaints import printable, terminal_width, wrapped

if TYPE_CHECKING:
    from distill.condensed import CondensedSet
    from distill.data import ImageData
    from distill.scores import Measure, Scorecard
    from distill.scoring import Plan


def score(
    condensed: Annotated[list[Path], typer.Argument(metavar="SET.safetensors...", help="Files of one method's sets, of several seeds.")],
    data: Annotated[str, typer.Option(help="The data set that they were made from.")],
    network: Annotated[str, typer.Option(help="Evaluation network.")] = "ConvNet",
    seeds: Annotated[int, typer.Option(min=1, help="Networks trained for each row and set.")] = 3,
    protocol: Protocol = "laptop",
    max_steps: Annotated[int | None, typer.Option(min=1, help="Steps of each training, in place of the protocol's.")] = None,
    step: Annotated[
        list[float] | None, typer.Option(help="Step sizes to choose from, times the protocol's; repeat. Default: 0.3, 1, 3.")
    ] = None,
    architecture: Annotated[list[str] | None, typer.Option(help="Another network to test the sets on; repeat.")] = None,
    optimiser: Annotated[list[str] | None, typer.Option(help="sgd or adamw: compare under this one, too; repeat.")] = None,
    baseline: Annotated[list[str] | None, typer.Option(help=f"{CORESETS}; repeat. Default: random, herding.")] = None,
    whole_epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of the full training set; default: as many steps.")] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="NETWORK:EPOCHS", help="A teacher trained on the data, whose labels sets and coresets get.")
    ] = None,
    loss: Annotated[str | None, typer.Option(help="Loss with soft labels: ce, kl, mse, cosine or gift.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Temperature of the loss kl.")] = None,
    precision: Annotated[str | None, typer.Option(help="Of training: float32, tf32 or bf16; tests are float32.")] = None,
    compiled: Annotated[str | None, typer.Option("--compile", help="auto, on or off: whether training is compiled.")] = None,
    scorer: Scorer = None,
    validation: Annotated[float, typer.Option(metavar="FRACTION", help="Training images held out to choose step sizes.")] = 0.1,
    out: Annotated[Path, typer.Option(help="Folder of score.html, score.json and the rows that are done.")] = Path("scores"),
    size: Size = None,
    classes: Classes = None,
    imbalance: Imbalance = None,
    device: Device = "auto",
    data_root: Root = None,
) -> None:
    """Score condensed sets against random images and the full training set, each row with the same effort. The same command continues."""
    import dataclasses

    from distill.condensed import CondensedSet
    from distill.configure import configure
    from distill.protocols import protocol as recipe_named
    from distill.recipe import Recipe
    from distill.records import environment, write_json, write_whole
    from distill.scores import scorecard
    from distill.scoring import Plan, notes_on
    from distill.teachers import check_teacher
    from scenarios.reporting.text import as_text

    baselines = baseline or list(Plan().baselines)
    chooser = scorer_table(scorer, baselines)
    networks = [network, *(architecture or [])]
    check_networks(networks, "distill score")
    where = torch_device(device)
    sets = [CondensedSet.load(path).to(where) for path in condensed]
    images = data_for(sets[0], data, size, classes, validation, imbalance, root=data_root, device=where)
    named = dataclasses.asdict(recipe_named(protocol, images.spec, network, images=len(sets[0])))
    changed = {"max_steps": max_steps, "loss": loss, "temperature": temperature, "teacher": teacher_table(teacher)}
    changed |= {"precision": precision, "compile": compiled}
    recipe = configure(Recipe, named | {key: value for key, value in changed.items() if value is not None}, "distill score")
    if recipe.teacher is not None:
        check_teacher(recipe.teacher)
    settings = {
        "network": network,
        "recipe": dataclasses.asdict(recipe),
        "seeds": seeds,
        "steps": step or list(Plan().steps),
        "architectures": architecture or [],
        "optimisers": optimiser or [],
        "baselines": baselines,
        "whole_epochs": whole_epochs,
        "scorer": chooser,
    }
    plan = configure(Plan, settings, "distill score")
    found = _all(plan, sets, condensed, images, out)
    notes = notes_on(sets, images, plan)
    card = scorecard(sets, found, training_images=len(images.train) + len(images.validation), split="test", notes=notes)
    write_json(out / "score.json", {**card.as_dict(), "plan": settings, "data": data, "environment": environment(where)})
    write_whole(out / "score.html", _page(card, plan, sets, condensed))
    width = terminal_width()
    for rows in (card.table(), card.score_table()):
        typer.echo("\n".join(map(printable, as_text(rows, width=width).splitlines())) + "\n")
    for line in (*card.notes, card.sentence()):
        typer.echo(wrapped(printable(line), width))
    typer.echo(f"everything is in {out}")


def _all(plan: "Plan", sets: "Sequence[CondensedSet]", files: Sequence[Path], images: "ImageData", out: Path) -> "list[Measure]":
    """Every row; each is kept when it is done, and those of the same plan and sets are taken from the folder."""
    from rich.console import Console

    from distill.records import append_line, read_lines, write_whole
    from distill.scores import Line, Measure
    from distill.scoring import check_plan, measures

    # The same plan on other data, or with other images held out, is another measurement.
    facts = repr((plan, images.fingerprint, images.spec.facts, len(images.train), len(images.validation)))
    digest = hashlib.sha256(facts.encode() + b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    ledger = out / f"rows-{digest}.jsonl"
    done = [Measure.read(cast(Line, line)) for line in read_lines(ledger)]
    check_plan(sets, images, plan)
    found, console, start = [], Console(stderr=True), time.monotonic()
    if not console.is_terminal:  # which gets a line a row, as a row may take minutes
        typer.echo(f"scoring: {len(plan.steps)} networks for the step size and {plan.seeds} for the accuracy of each row and set", err=True)
    with console.status("scoring") as status:
        for measure in measures(sets, images, plan, done=done):
            if measure not in done:
                if not ledger.exists():
                    write_whole(ledger, "")  # with its folders
                append_line(ledger, measure.as_dict())
            found.append(measure)
            status.update(f"scoring: {measure.row}: {measure.mean:.1f} %")
            if not console.is_terminal:
                typer.echo(f"{measure.row}: {measure.mean:.1f} % ({time.monotonic() - start:.0f} s)", err=True)
    return found


def _page(card: "Scorecard", plan: "Plan", sets: "Sequence[CondensedSet]", files: Sequence[Path]) -> str:
    """The sentence, the scores, the accuracies and the first set's images as one HTML file."""
    from distill.figures import image_grid
    from scenarios.reporting import page

    title = f"{', '.join(path.name for path in files)}: scores"
    picture = base64.b64encode(image_grid(sets[0]).encoded("png", dpi=80)).decode()
    spreads = (
        f"Standard deviation over {card.sets} sets {card.spread_sets:.2f}, over the networks of one set {card.spread_networks:.2f} points."
    )
    return page.whole(
        title,
        "".join(
            [
                page.text(title, "h1"),
                page.text(card.sentence(), name="answer"),
                page.listed(card.notes) if card.notes else "",
                page.table(card.score_table()),
                page.text("Scores as defined by DD-Ranking (Li et al., 2025), from accuracies as fractions of 1.", name="small"),
                page.table(card.table()),
                page.text(
                    "Last step of each training; step sizes chosen on held-out training images, equally many for each row, with one "
                    f"network; {plan.seeds} networks a row and set, the same seeds in each row. {spreads}",
                    name="small",
                ),
                f"<figure><img alt='images of the first set' src='data:image/png;base64,{picture}'></figure>",
            ]
        ),
    )
