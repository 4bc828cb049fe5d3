"""The kinds of studies, by name: the one file that names all of them. A kind is loaded when it is first asked for."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from scenarios.engine import folder, scenario
from scenarios.engine.record import Record, Tables
from scenarios.engine.study import AnyKind, Options, Study


def _condense() -> AnyKind:
    from scenarios.condense.kind import KIND

    return KIND


def _sweep_lr() -> AnyKind:
    from scenarios.condense.kind import SWEEP_LR

    return SWEEP_LR


def _federated() -> AnyKind:
    from scenarios.federated.kind import KIND

    return KIND


def _continual() -> AnyKind:
    from scenarios.continual.kind import KIND

    return KIND


def _privacy() -> AnyKind:
    from scenarios.privacy.kind import KIND

    return KIND


def _released() -> AnyKind:
    from scenarios.privacy.kind import RELEASED

    return RELEASED


def _nas() -> AnyKind:
    from scenarios.nas.kind import KIND

    return KIND


def _pipeline() -> AnyKind:
    from scenarios.pipeline.kind import kind

    return kind(KINDS)


class Loaded(Mapping[str, AnyKind]):
    """Kinds by name; each is imported when it is first asked for, so that ``--help`` and small studies stay quick."""

    def __init__(self, loaders: Mapping[str, Callable[[], AnyKind]]) -> None:
        self._loaders, self._kinds = dict(loaders), dict[str, AnyKind]()

    def __getitem__(self, name: str) -> AnyKind:
        if name not in self._kinds:
            self._kinds[name] = self._loaders[name]()
        return self._kinds[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaders)

    def __len__(self) -> int:
        return len(self._loaders)

    def __contains__(self, name: object) -> bool:
        return name in self._loaders


KINDS = Loaded(
    {
        "condense": _condense,
        "federated": _federated,
        "continual": _continual,
        "privacy": _privacy,
        "nas": _nas,
        "pipeline": _pipeline,
        "sweep_lr": _sweep_lr,
        "released": _released,
    }
)


def study(name: str, tables: Tables, source: str) -> Study:
    """Check a scenario's tables and make the study that they describe; ``source`` opens every message. Raises `InputError`."""
    return scenario.study(KINDS, name, tables, source)


def run_study(checked: Study, options: Options) -> tuple[Path, Record]:
    """Run (or continue, or find finished) a checked study; returns its folder and its record. See `scenarios.engine.folder.run_study`."""
    return folder.run_study(KINDS[checked.kind], checked, options)
