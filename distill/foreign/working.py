"""Whether an imported set works: one small network is trained on it. Accuracy at chance means that something was read wrongly."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from distill.chance import Working, working
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.decode import as_text
from distill.errors import Diverged, InputError
from distill.evaluation import fitted
from distill.foreign.reading import VALUES, read_foreign
from distill.networks import Factory
from distill.train import train_network

NETWORK = "ConvNetW32"


def try_out(condensed: CondensedSet, data: ImageData, network: Factory = NETWORK) -> Working:
    """Train one network on the set and classify real training images; test images are not used."""
    data = fitted(condensed, data)
    try:
        return working(train_network(condensed, network, "laptop", 0, data.device), data)
    except Diverged:
        return working(None, data)


def explanation(
    condensed: CondensedSet,
    paths: Sequence[str | Path],
    data: ImageData,
    *,
    labels: str | None = None,
    experiment: int | None = None,
    network: Factory = NETWORK,
) -> str:
    """Sentences on why a set may be at chance: other readings of the same files that are not, else what to compare.

    Args:
        condensed: the set as it was read.
        paths: its files.
        data: the data.
        labels: as it was given to `read_foreign`.
        experiment: as it was given.
        network: network of `try_out`.
    """
    config = condensed.provenance.config
    better = []
    lr: float | Literal["none"] = condensed.lr or "none"
    for values in VALUES:
        if values == config["values"]:
            continue
        try:
            other = read_foreign(paths, data, values=values, decode=as_text(condensed.decode), lr=lr, labels=labels, experiment=experiment)
            works = try_out(other, data, network)
        except InputError:
            continue
        if not works.at_chance:
            better.append(f"--values {values} gives {works}")
    if better:
        return f"the images were read as {config['values']}; {' and '.join(better)}."
    return (
        f"no other reading of the values does better. Compare the order of the classes with {', '.join(condensed.spec.classes[:3])}, ...; "
        "the data set; and whether the run had diverged (its own accuracy is in its log)."
    )
