"""Rows of a federated study with hostile clients: each strategy without an attack and with each, with and without admission."""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from apps.federated import checkpoint
from apps.federated.attacks import ATTACKS, AttackConfig, success
from apps.federated.settings import ALONE, WEIGHTS, Settings
from distill.data import ImageData
from distill.networks import create
from distill.randomness import generator
from distill.records import read_json, write_json
from scenarios.federated.schema import FederatedStudy

BACKDOOR = "backdoor.json"


@dataclass(frozen=True)
class Row:
    """A row of a study's table: a strategy, the attack on it (None: none), and whether uploads are checked."""

    strategy: str
    attack: AttackConfig | None = None
    admission: bool = True

    def name(self, study: FederatedStudy) -> str:
        """``feddm``, ``feddm+flip-0.3``, ``feddm+flip-0.3+admission``; the last part only where a study has both."""
        parts = [self.strategy, *([f"{self.attack.kind}-{self.attack.clients:g}"] if self.attack else [])]
        return "+".join([*parts, *(["admission"] if self.admission and study.attack is not None and _checks(study, self.strategy) else [])])

    def applied(self, settings: Settings) -> Settings:
        """A run's settings; without admission if the row has none."""
        return settings if self.admission else dataclasses.replace(settings, admission=type(settings.admission)())


def rows(study: FederatedStudy) -> Iterator[Row]:
    """All rows in the order of the table: without an [attack] table one a strategy."""
    if (table := study.attack) is None:
        yield from map(Row, study.federation.strategies)
        return
    attacks = [None, *(AttackConfig(kind, share) for kind, share in itertools.product(table.kinds, table.clients))]
    for strategy, attack in itertools.product(study.federation.strategies, attacks):
        if attack is not None and (
            strategy in ALONE or (strategy in WEIGHTS and (ATTACKS[attack.kind].soft or ATTACKS[attack.kind].knows))
        ):
            continue  # nobody sends anything, trains on soft labels, or checks images
        yield Row(strategy, attack, admission=False)
        if _checks(study, strategy):
            yield Row(strategy, attack)


def _checks(study: FederatedStudy, strategy: str) -> bool:
    """Whether the study checks the uploads of a strategy."""
    return study.settings.admission.kind != "none" and strategy not in (*WEIGHTS, *ALONE)


def backdoor(folder: Path, settings: Settings, attack: AttackConfig | None, data: ImageData) -> float | None:
    """Percent of other classes' images that a run's last network calls the target with the attack's trigger; kept in the run's folder.

    None for an attack without a trigger.
    """
    trigger = None if attack is None else ATTACKS[attack.kind].trigger
    if trigger is None:
        return None
    if not (folder / BACKDOOR).exists():
        network = create(settings.network, data.spec, generator(0, "any"), data.device)
        network.load_state_dict(checkpoint.load(folder / checkpoint.NAME, None)[1])
        write_json(folder / BACKDOOR, {"success": success(network, data, settings.split, trigger)})
    return float(read_json(folder / BACKDOOR)["success"])
