"""The table of rules: how the server turns checked answers into new weights, by strategy."""

from pathlib import Path

from apps.federated.answers import Rule
from apps.federated.guided import GUIDES
from apps.federated.image_rule import CondensedUnion
from apps.federated.settings import WEIGHTS, Settings
from apps.federated.weight_rules import WEIGHT_RULES, Made
from distill.data import Split
from distill.networks import Factory, create
from distill.randomness import generator
from distill.spec import DataSpec


def rule_for(
    settings: Settings,
    spec: DataSpec,
    clients: int,
    folder: Path | None = None,
    *,
    network: Factory | None = None,
    held_out: Split | None = None,
) -> Rule:
    """The rule of ``settings.strategy``.

    Args:
        settings: of the run.
        spec: of the data.
        clients: of the federation.
        folder: gets the last round's union, or the server's own set.
        network: in place of the one that the settings name.
        held_out: the server's images that admission checks uploads with, normalised.
    """
    if settings.strategy not in WEIGHTS:
        rule = GUIDES[settings.strategy].rule if settings.strategy in GUIDES else CondensedUnion
        return rule(settings, spec, folder, network=network, held_out=held_out)
    made = create(network or settings.network, spec, generator(settings.seed, "server", "names"))
    names = [name for name, _ in made.named_parameters()]
    return WEIGHT_RULES[settings.strategy](settings, clients, names, Made(network or settings.network, spec, folder))
