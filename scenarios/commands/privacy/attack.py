"""``distill attack``: membership inference on scores of any attack, on a model of one's own, or on a released set."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scenarios.commands.options import Device, Root, Size, check_new, refuse_unused, torch_device

if TYPE_CHECKING:
    import numpy as np

    from distill.data import ImageData

Scores = dict[str, tuple["np.ndarray", "np.ndarray"]]


def attack(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_SCORES",
            help="scores.npz or scores.csv (in_scores and out_scores, or score or loss with member); SET.safetensors; or mymodel:load, "
            "an import path of a function of the data spec that returns your trained PyTorch model.",
        ),
    ],
    data: Annotated[
        str | None, typer.Option(help="For a model or a set: the data it was trained on; the training images are members.")
    ] = None,
    others: Annotated[str | None, typer.Option(help="The split of the non-members: test or validation.", show_default="test")] = None,
    validation: Annotated[float | None, typer.Option(metavar="FRACTION", help="Hold out this fraction, as it was held out then.")] = None,
    shadow: Annotated[
        str | None,
        typer.Option(metavar="NETWORK", help="Shadow models: a name, or an import path. Default: the model's own layers with new weights."),
    ] = None,
    shadows: Annotated[
        int | None, typer.Option(min=0, help="Pairs of shadow models for a model; 0: the loss attack only.", show_default="4")
    ] = None,
    networks: Annotated[int | None, typer.Option(min=1, help="Networks that are trained on a set.", show_default="4")] = None,
    network: Annotated[str | None, typer.Option(help="Their architecture.", show_default="ConvNet")] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="How shadow models or networks on a set are trained.", show_default="laptop"),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=20, help="The most members, and others, that are attacked; default: all.")] = None,
    out: Annotated[Path | None, typer.Option(help="An .npz file for the scores of each attack.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bits.")] = 0,
    size: Size = None,
    device: Device = "auto",
    data_root: Root = None,
) -> None:
    """Print how well members can be recognised: AUC, advantage and true-positive rates at low false-positive rates, with intervals."""
    import numpy as np

    from apps.privacy.metrics import membership, reversed_warning
    from apps.privacy.score_files import read_scores
    from distill.errors import InputError, clipped
    from distill.records import write_whole

    if others not in (None, "test", "validation"):
        raise InputError(f"--others {clipped(others)!r}; allowed: test or validation.")
    if out is not None:
        check_new(out)
    suffix = Path(target).suffix.lower()
    of_set: dict[str, object] = {"--networks": networks, "--network": network}
    of_model: dict[str, object] = {"--shadow": shadow, "--shadows": shadows}
    of_data: dict[str, object] = {
        "--data": data, "--others": others, "--validation": validation, "--protocol": protocol, "--limit": limit, "--size": size,
        "--data-root": data_root,
    }  # fmt: skip
    split, training, note = others or "test", protocol or "laptop", ""
    if suffix in (".npz", ".csv", ".tsv"):
        refuse_unused(of_data | of_model | of_set, "on scores")
        scores: Scores = {"scores": read_scores(Path(target))}
    elif data is None:
        raise InputError(f"{clipped(target)!r} is no file of scores (.npz, .csv), so it needs --data, the data that it was trained on.")
    elif suffix == ".safetensors":
        refuse_unused(of_model, "on a condensed set, on which networks are trained", "give --network and --networks")
        scores = _of_set(
            Path(target),
            data,
            split,
            validation,
            network or "ConvNet",
            networks or 4,
            protocol=training,
            limit=limit,
            seed=seed,
            size=size,
            root=data_root,
            device=torch_device(device),
        )
    else:
        refuse_unused(of_set, "on a trained model", "give --shadow and --shadows")
        where = torch_device(device)
        images = _data(data, size, validation, data_root, where, seed)
        scores = _of_model(target, images, split, shadow, 4 if shadows is None else shadows, training, limit=limit, seed=seed)
        note = f"shadow models learned by the protocol {training}; the nearer it is to your training, the stronger the attack."
    for name, (members, outsiders) in scores.items():
        typer.echo(f"{name}: {membership(members, outsiders, seed=seed)}")
        if warning := reversed_warning(members, outsiders):
            typer.echo(f"warning: {warning}", err=True)
    if note:
        typer.echo(note)
    typer.echo("An attack that finds nothing proves nothing; a guarantee is one of `distill show`.")
    if out is not None:
        flat: dict[str, np.ndarray] = {}
        for name, (members, outsiders) in scores.items():
            flat |= {f"{name}.in_scores": members, f"{name}.out_scores": outsiders}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **flat)  # type: ignore[arg-type]  # numpy's types take any of the names for allow_pickle
        write_whole(out, buffer.getvalue())
        typer.echo(f"scores: {out}")


def _data(name: str, size: int | None, validation: float | None, root: Path | None, device: str, seed: int) -> "ImageData":
    from distill.data_sources import load

    return load(name, root, validation=validation or 0.0, seed=seed, device=device, size=size)


def _of_model(
    target: str, images: "ImageData", others: str, shadow: str | None, pairs: int, protocol: str, *, limit: int | None, seed: int
) -> Scores:
    import torch

    from apps.privacy.shadows import Fresh, attack_model, check_trained, pool_of
    from distill.errors import InputError, clipped
    from distill.networks import create
    from distill.protocols import protocol as of_protocol
    from distill.randomness import generator
    from scenarios.commands.evaluation.networks import check_networks

    if ":" not in target:
        raise InputError(
            f"{clipped(target)!r}; allowed: a file of scores (.npz, .csv), a condensed set (.safetensors), or an import path of a function "
            "that returns your trained model, as mymodel:load."
        )
    check_networks([target, *([shadow] if shadow else [])], "distill attack")
    pool, members = pool_of(images, others, limit, seed)
    model, again = (create(target, images.spec, generator(seed, "target", turn), images.device) for turn in range(2))
    check_trained(model, again, pool.normalised("train", torch.arange(min(8, len(pool.train)), device=images.device)))
    name = shadow or "ConvNet"
    recipe = of_protocol(protocol, images.spec, name, images=len(pool.train) // 2)
    return attack_model(model.eval(), pool, members, shadow or Fresh(model), recipe, pairs, seed)


def _of_set(
    path: Path,
    data: str,
    others: str,
    validation: float | None,
    network: str,
    networks: int,
    *,
    protocol: str,
    limit: int | None,
    seed: int,
    size: int | None,
    root: Path | None,
    device: str,
) -> Scores:
    """Networks trained on the set, and on as many random members; and the distance to the nearest image of each."""
    import numpy as np
    import torch

    from apps.privacy.attacks import losses_and_margins, nearest_scores, threshold_scores
    from apps.privacy.shadows import pool_of
    from distill.comparison import compared
    from distill.condensed import CondensedSet
    from distill.coresets import select
    from distill.evaluation import fitted
    from distill.randomness import generator
    from distill.train import train_on
    from scenarios.commands.evaluation.data import data_for
    from scenarios.commands.evaluation.networks import check_networks

    check_networks([network], "distill attack")
    made = CondensedSet.load(path).to(device)
    images = fitted(made, data_for(made, data, size, None, validation, None, root=root, device=device))
    pool, members = pool_of(images, others, limit, seed)
    recipe = compared(protocol, made, images, network)
    shown, labels = pool.normalised("train", torch.arange(len(pool.train), device=images.device)), pool.train.labels
    sources = {"set": made, "random images": select(images, "random", made.counts, generator(seed, "attack", "random"))}
    scores: Scores = {}
    for name, source in sources.items():
        first, *more = train_on(source, network, recipe, networks)
        losses = threshold_scores(losses_and_margins([first, *more], shown, labels)[0])
        near = nearest_scores(shown, source.decoded().images)
        scores |= {f"{name}, loss": (losses[members], losses[~members]), f"{name}, nearest image": (near[members], near[~members])}
    return {name: (np.asarray(inside), np.asarray(outside)) for name, (inside, outside) in scores.items()}
