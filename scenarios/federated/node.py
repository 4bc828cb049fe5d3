"""A node's privacy file: what the clients of this machine give, whatever a server asks. The parts of two applications meet here.

The file is TOML. A SuperNode finds it by ``privacy`` in its node config or by the variable ``DISTILL_PRIVACY``. In a study that runs on
this machine the ``[privacy]`` table is the clients' own file; `written` makes one of it for the engines that are processes.
"""

import dataclasses
import functools
import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field

from apps.federated.client_privacy import ClientPrivacy
from apps.federated.settings import Settings, data_settings
from apps.federated.tables import PrivacyRequest
from apps.privacy.budget import EXPERTS_SHARE
from apps.privacy.networks import drawn_once
from apps.privacy.private_start import private_kmeans
from apps.privacy.private_statistics import PrivateStatistics
from apps.privacy.public_experts import load_public
from apps.privacy.uploads import granted_statistics
from distill.condensed import CondensedSet
from distill.configure import config_class, configure
from distill.data import ImageData
from distill.errors import InputError, clipped, unknown_name
from distill.networks import Factory
from scenarios.engine.record import Config

if TYPE_CHECKING:
    from apps.federated.messages import Context

STATISTICS: Final = "apps.privacy.private_statistics:PrivateStatistics"
# By the names that a file may use, the longer ones of earlier versions among them. Nothing else is looked up, and nothing imported.
Start = Callable[[PrivateStatistics, int, int], CondensedSet]
Pool = Callable[[str, int], Factory]
STARTS: dict[str, Start] = {"kmeans": private_kmeans, "apps.privacy.private_start:private_kmeans": private_kmeans}
NETWORKS: dict[str, Pool] = {"drawn_once": drawn_once, "apps.privacy.networks:drawn_once": drawn_once}
# Of `PrivateStatistics`, beside what is counted for each upload.
OPTIONS = (
    "population",
    "releases",
    "sample_rate",
    "start_releases",
    "start_share",
    "experts_share",
    "experts_clip",
    "clip",
    "centred",
    "public_start",
    "insecure_seed",
)


@config_class
class PrivacyTable:
    """``[privacy]`` of a federated study, and most of a node's file: ``epsilon`` and ``delta`` are of all uploads of a client together.

    ``start`` is a private start and ``networks`` a fixed pool of networks, both by name (`STARTS`, `NETWORKS`); ``public_experts`` is the
    name of a public data set that the node has; the others are keywords of `apps.privacy.PrivateStatistics`.
    """

    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    population: Annotated[int, Field(ge=1)] | None = None
    start: str | None = None
    start_releases: Annotated[int, Field(ge=0)] = 0
    start_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    experts_share: Annotated[float, Field(gt=0, lt=1)] = EXPERTS_SHARE
    experts_clip: Annotated[float, Field(gt=0)] = 1.0
    public_experts: str | None = None
    networks: str | None = None
    releases: Annotated[int, Field(ge=1)] | None = None
    sample_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    clip: Annotated[float, Field(gt=0)] | None = None
    centred: bool = False
    public_start: str | None = None
    insecure_seed: Annotated[int, Field(ge=0)] | None = None
    statistics: Literal["apps.privacy.private_statistics:PrivateStatistics"] = STATISTICS


@config_class
class NodeFile(PrivacyTable):
    """A node's file: the table above, and what the study says there for its own clients (`ClientPrivacy`)."""

    ledger: str = ""
    uploads: Annotated[int, Field(ge=1)] = 1
    classes: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    methods: tuple[str, ...] = ("dm",)
    ipc: Annotated[int, Field(ge=1)] = 100
    iterations: Annotated[int, Field(ge=1)] = 10_000
    data: str | None = None
    data_root: str = ""


def checked(table: Config, where: str) -> Config:
    """The keys of a study's ``[privacy]`` as they were given, with long names; `InputError` says what is wrong."""
    values = configure(PrivacyTable, table, where)
    _parts(values, where)
    long = {"statistics": STATISTICS, **table}
    for key, names in (("start", STARTS), ("networks", NETWORKS)):
        if key in long:
            long[key] = next(name for name in reversed(names) if names[name] is names[long[key]])
    return long


def client_privacy(file: NodeFile, where: str) -> ClientPrivacy:
    """A node file as the value that a client takes; ``where`` opens the messages. Raises `InputError`."""
    start, networks = _parts(file, where)
    if not file.ledger:
        raise InputError(
            f'{where}: key "ledger" is missing; name the folder that keeps what was released, for example "/srv/distill/ledger".'
        )
    pool = None if networks is None or file.releases is None else functools.partial(_pool, networks, file.releases)
    return ClientPrivacy(
        statistics=functools.partial(_statistics, file),
        epsilon=file.epsilon,
        delta=file.delta,
        ledger=Path(file.ledger).expanduser(),
        start=start,
        networks=pool,
        **{name: getattr(file, name) for name in ("uploads", "classes", "methods", "ipc", "iterations", "data", "data_root")},
    )


def of_study(table: Config, cell: Settings, ledger: Path, data_root: str, where: str) -> tuple[NodeFile, ClientPrivacy]:
    """The clients' file for one run of a study whose ``[privacy]`` is ``table``: every round may have an upload, made as [upload] says."""
    limits = {"uploads": cell.rounds, "classes": cell.upload.classes, "methods": (cell.upload.method,), "ipc": cell.upload.ipc}
    places = {"ledger": str(ledger.resolve()), "data": data_settings(cell), "data_root": data_root}
    file = configure(NodeFile, {**table, **limits, "iterations": 2**53, **places}, where)
    return file, client_privacy(file, where)


def check_statistics(table: Config, settings: Settings, data: ImageData, root: str | None = None) -> None:
    """`InputError` for what the clients' statistics would refuse: numbers that were computed from the images, a size that nobody knows, and
    public experts' data (in ``root``; None: they are not looked at) that do not fit."""
    options = {name: table[name] for name in OPTIONS if name in table}
    if root is not None:
        options["public_experts"] = load_public(table.get("public_experts"), data, root or None)
    share = settings.rounds
    PrivateStatistics(data, table["epsilon"] / share, table.get("delta", 1e-5) / share, classes=settings.upload.classes, **options)


def request(table: Config, rounds: int) -> PrivacyRequest:
    """What the server of a study asks for: a round's equal part of what its clients give."""
    return PrivacyRequest(table["epsilon"] / rounds)


def written(file: NodeFile) -> str:
    """The file's text, which `read` takes."""
    kept = {name: value for name, value in dataclasses.asdict(file).items() if value is not None}
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in kept.items())


def read(path: Path) -> ClientPrivacy:
    """A node's file. `InputError` names what is wrong in it, for the node's owner; a client says nothing of it.

    A relative ``ledger`` is beside the file: a node that is started in another place has the same account.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({clipped(error, 200)}); a privacy file is TOML.") from None
    privacy = client_privacy(configure(NodeFile, values, str(path)), str(path))
    return dataclasses.replace(privacy, ledger=path.absolute().parent / privacy.ledger)


def of_node(context: "Context") -> ClientPrivacy | None:
    """The privacy of the node that this context is of, by its own config or environment; None where neither names a file.

    `InputError` for an empty name, which a variable of a shell that is not set leaves: such a node does not answer without privacy.
    """
    path = context.node_config.get("privacy", os.environ.get("DISTILL_PRIVACY"))
    if path is None:
        return None
    if not str(path).strip():
        raise InputError("the node's privacy file has an empty name; give its path, or leave privacy and DISTILL_PRIVACY out.")
    return read(Path(str(path)))


def _parts(table: PrivacyTable, where: str) -> tuple[Start | None, Pool | None]:
    for key, name, names in (("start", table.start, STARTS), ("networks", table.networks, NETWORKS)):
        if name is not None and name not in names:
            raise unknown_name(f"{where}: key {key!r}: value", name, names)
    if table.networks is not None and table.releases is None:
        raise InputError(f"{where}: networks that come back need to be counted: set releases, a whole number.")
    if table.start is not None and table.start_releases < 2:
        raise InputError(f"{where}: a private start needs start_releases of 2 or more; 6 is a good number.")
    return STARTS.get(table.start or ""), NETWORKS.get(table.networks or "")


def _pool(networks: Pool, releases: int, name: str) -> Factory:
    return networks(name, releases)


def _statistics(
    file: NodeFile,
    data: ImageData,
    epsilon: float,
    delta: float,
    classes: tuple[int, ...] | None,
    folder: Path,
    name: str,
) -> PrivateStatistics:
    options = {option: getattr(file, option) for option in OPTIONS}
    options["public_experts"] = load_public(file.public_experts, data, file.data_root or None)
    return granted_statistics(data, epsilon, delta, folder, name, (file.epsilon, file.delta), classes=classes, **options)
