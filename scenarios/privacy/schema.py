"""The tables of a privacy study, checked."""

import dataclasses
import functools
import re
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import pydantic
from pydantic import Field

from apps.privacy.inversion import DLG, Inversion
from distill.comparison import coreset_of
from distill.configure import STRICT, configure
from distill.coresets import TRAINED
from distill.errors import InputError, unknown_name
from distill.methods import METHODS
from distill.methods.presets import matched_by
from distill.networks import check_name
from distill.protocols import PROTOCOLS
from distill.recipe import Recipe
from distill.teachers import Teacher
from scenarios.engine.record import Config, Tables
from scenarios.engine.schema import DataTable, EvaluationTable, checked, config_hash, evaluation_of, method_of, plain_values

EXPERTS_SHARE = 0.3  # that of `apps.privacy.budget`
ARMS = ("method", "private", "random", "whole")
ATTACKED = ("lira", "nearest")  # beside the loss attack, where a study names no others
Poison = Literal["naive", "optimised", "invisible", "doorping", "doorping-clamped"]
NAIVE_OPTIMISED: tuple[Poison, ...] = ("naive", "optimised")
MEASURES = ("pixels", "structure", "features")  # those of `apps.privacy.visual`, which takes seconds to load


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class PrivacyTable:
    """``[privacy]``: the budget, and what it is spent on.

    ``start`` "kmeans" spends ``start_share`` of the budget on a private start in ``start_releases`` releases. ``networks`` is how many
    networks there are, random ones or draws from the method's ``pool``: with 0 every step has its own network and release.
    ``experts_share`` of the budget trains the networks of a pool of trained ones, with gradients clipped at ``experts_clip``;
    ``public_experts``, a public data set's name, is what they are trained on instead, at no cost. A teacher in ``[evaluation.recipe]``
    labels the sets: it is trained with ``teacher_share`` of the budget, or on the ``public_experts``. ``centred`` releases features as
    differences from the private start's, which a smaller ``clip`` can hold. ``twin`` makes a second set without noise or clipping from the
    same start with the same networks, so that one sees what the noise costs.
    """

    epsilon: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    sample_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    clip: Annotated[float, Field(gt=0)] | None = None
    population: Annotated[int, Field(ge=1)] | None = None
    start: Literal["noise", "kmeans"] = "noise"
    start_releases: Annotated[int, Field(ge=2)] = 7
    start_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    networks: Annotated[int, Field(ge=0)] = 0
    experts_share: Annotated[float, Field(gt=0, lt=1)] = EXPERTS_SHARE
    experts_clip: Annotated[float, Field(gt=0)] = 1.0
    public_experts: str = ""
    teacher_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    centred: bool = False
    twin: bool = True


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class AuditTable:
    """``[audit]``: see `apps.privacy.canaries.audit`."""

    epsilon: Annotated[float, Field(gt=0, le=10_000)] = 4.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    runs: Annotated[int, Field(ge=200, le=2304)] = 2000
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.999


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class AttackTable:
    """``[attack]``: in each of ``runs``, a fair coin puts every image of ``pool`` (None: all) in or out; each arm learns from those in.

    ``networks`` networks are trained on each arm's set, their losses averaged; all points of the pool are attacked. An arm is "method" (the
    study's), "private", "random" (as many real images), "whole", or a method's name, whose settings are in ``[attack.methods.NAME]``.
    ``ratios`` are sizes of sets as parts of a class, in place of the study's ipc; ``subsets`` lists sizes (images a class)
    of random real subsets: the one whose accuracy is closest to a condensed set's is compared with it.
    ``[attack.whole_recipe]`` trains the arm "whole", which needs more steps than a handful of images.
    ``attacks`` are names in `apps.privacy.attacks.ATTACKS`, made beside "loss"; "lira", "lira-offline", "calibrated" and "rmia" need an
    even number of ``runs`` from 6.
    """

    runs: Annotated[int, Field(ge=2)] = 4
    arms: tuple[str, ...] = ("method", "random", "whole")
    networks: Annotated[int, Field(ge=1)] = 1
    pool: Annotated[int, Field(ge=100)] | None = None
    methods: dict[str, Config] = dataclasses.field(default_factory=dict)
    ratios: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    subsets: tuple[Annotated[int, Field(ge=1)], ...] = ()
    whole_recipe: Recipe | None = None
    attacks: tuple[str, ...] = ATTACKED


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class VisualTable:
    """``[visual]``: see `apps.privacy.visual.visual_privacy`."""

    measures: Annotated[tuple[str, ...], Field(min_length=1)] = MEASURES
    holdout: Literal["test", "validation"] = "test"
    network: str = "ConvNet"
    limit: Annotated[int, Field(ge=1)] | None = None


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class PoisoningTable:
    """``[poisoning]``: see `apps.privacy.poisoning.PoisonedStatistics`; ``steps`` of Adam on the optimised trigger a matching step.

    Each of ``triggers`` has a set and is tried on all of them. "doorping" is `apps.privacy.doorping.Doorping`, with ``doorping_steps`` of
    Adam at most a matching step, whose pixels may leave [0, 1]; those of "doorping-clamped" may not. "invisible" changes every
    pixel by at most 8 of 255 levels.
    """

    target: Annotated[int, Field(ge=0)] = 0
    portion: Annotated[float, Field(gt=0, lt=1)] = 0.01
    size: Annotated[int, Field(ge=1)] = 2
    steps: Annotated[int, Field(ge=1)] = 5
    triggers: Annotated[tuple[Poison, ...], Field(min_length=1)] = NAIVE_OPTIMISED
    doorping_steps: Annotated[int, Field(ge=1)] = 1000


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class InversionTable:
    """``[inversion]``: what a client of ``client_images`` random training images reveals of ``victims`` of them.

    A gradient of one image at fresh weights of each of ``networks`` ("dlg" is `apps.privacy.inversion.dlg_network`) is inverted as
    ``[inversion.search]`` says; the study's method makes the client's upload, and ``[inversion.privacy]``, with the keys of [privacy], a
    private one for each epsilon.
    """

    victims: Annotated[int, Field(ge=2)] = 100
    client_images: Annotated[int, Field(ge=2)] = 6000
    networks: Annotated[tuple[str, ...], Field(min_length=1)] = ("dlg",)
    search: Inversion = Inversion()
    privacy: PrivacyTable | None = None

    def __post_init__(self) -> None:
        if self.victims > self.client_images:
            raise InputError(f"inversion.victims is {self.victims}; allowed: at most client_images, {self.client_images}.")


# Keys that came later: where they are not used, hashes stay as they were.
LATER: dict[str, Config] = {
    "privacy": {"experts_share": EXPERTS_SHARE, "experts_clip": 1.0, "public_experts": "", "teacher_share": 0.3, "centred": False},
    "attack": {"attacks": ATTACKED},
    "poisoning": {"triggers": NAIVE_OPTIMISED, "doorping_steps": 1000},
}
PARTS = ("privacy", "audit", "attack", "visual", "poisoning", "inversion")
SHARED = ("epsilon", "delta", "population")  # of all arms
T = TypeVar("T")


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class ArmTable:
    """``[arms.NAME]``: a further private set of a study with [privacy], under the same epsilon from a separate account.

    ``[arms.NAME.method]`` is its method, with the study's images a class; ``[arms.NAME.privacy]`` are keys that replace those of [privacy].
    """

    method: Config
    privacy: Config = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class PrivacyStudy:
    """``kind = "privacy"``: each part is there when its table is."""

    name: str
    title: str
    data: DataTable
    method: str
    ipc: int
    settings: Config  # of the method, as they were given
    privacy: PrivacyTable | None
    evaluation: EvaluationTable
    audit: AuditTable | None
    attack: AttackTable | None
    visual: VisualTable | None
    poisoning: PoisoningTable | None
    inversion: InversionTable | None
    merged: Config
    arms: dict[str, "PrivacyStudy"] = dataclasses.field(default_factory=dict)  # by name, each with the rest of this study
    arm: str = ""  # the name of this arm; empty: the study itself
    kind: str = "privacy"

    @property
    def made(self) -> tuple["PrivacyStudy", ...]:
        """The study and its arms."""
        return (self, *self.arms.values())

    @property
    def label(self) -> str:
        """What rows of a table call it: the method, or the arm's name."""
        return self.arm or self.method

    @property
    def hash(self) -> str:
        """Eight letters that change with any setting."""
        return config_hash(self.merged)


def study(name: str, title: str, tables: Tables, source: str) -> PrivacyStudy:
    """Check the tables; `InputError` names file, key and what is allowed."""
    for key, table in tables.items():
        if key not in (known := ("data", *PARTS, "method", "arms", "evaluation")):
            raise unknown_name(f"{source}: key", key, ("kind", "title", *known))
        if not isinstance(table, dict):
            raise InputError(f"{source}: [{key}] is not a table; a privacy study needs one.")

    def read(key: str, kind: type[T]) -> T | None:
        return configure(kind, tables[key], f"{source}: [{key}]") if key in tables else None

    privacy, audit, attack = read("privacy", PrivacyTable), read("audit", AuditTable), read("attack", AttackTable)
    visual, poisoning, inversion = read("visual", VisualTable), read("poisoning", PoisoningTable), read("inversion", InversionTable)
    parts = dict(zip(PARTS, (privacy, audit, attack, visual, poisoning, inversion), strict=True))
    if not any(parts.values()):
        raise InputError(f"{source}: has none of the tables {', '.join(f'[{key}]' for key in PARTS)}; a privacy study needs one.")
    data = configure(DataTable, tables["data"], f"{source}: [data]") if "data" in tables else DataTable("digits")
    table = dict(tables.get("method", {}))
    method, ipc, settings = method_of(dict(table), f"{source}: [method]")
    if len(ipc) != 1:
        raise InputError(f"{source}: [method]: key 'ipc' is {list(ipc)}; allowed: one whole number in a privacy study.")
    plain_settings = {key: value for key, value in table.items() if key not in ("name", "ipc")}
    evaluation = evaluation_of(dict(tables.get("evaluation", {})), f"{source}: [evaluation]")
    if (teacher := (evaluation.recipe or PROTOCOLS[evaluation.protocol]).teacher) is not None:
        _check_teacher(teacher, f"{source}: [evaluation]", tables)
    if chosen := [name for name in evaluation.baselines if coreset_of(name) in TRAINED]:
        raise InputError(
            f"{source}: [evaluation]: baseline {chosen[0]} is chosen by networks that are trained on the private images without noise, and "
            "these are kept outside the run's folder; allowed: random, herding, kcenter, kmeans, class_mean, whole."
        )
    if evaluation.best:
        raise InputError(f"{source}: [evaluation]: best reproduces published figures of sets without a guarantee; leave it out.")
    if attack is not None:
        _check_arms(attack, f"{source}: [attack]", private=privacy is not None)
    if visual is not None:
        for measure in visual.measures:
            if measure not in MEASURES:
                raise unknown_name(f"{source}: [visual]: key 'measures': value", measure, MEASURES)
        checked(f"{source}: [visual]", "network", functools.partial(check_name, visual.network))
    for network in () if inversion is None else inversion.networks:
        if network != DLG:
            checked(f"{source}: [inversion]", "networks", functools.partial(check_name, network))
    # A table that came later and is not given leaves the hash of older studies as it was.
    plain: Config = {k: plain_values(v) if v else None for k, v in parts.items() if v or k in ("privacy", "audit", "attack")}
    for part, defaults in LATER.items():
        for key in [key for key, default in defaults.items() if parts[part] is not None and getattr(parts[part], key) == default]:
            plain[part].pop(key)
    if privacy is None or not privacy.centred:
        pass
    elif privacy.start != "kmeans":
        raise InputError(f'{source}: [privacy]: centred = true needs something to be centred on; add start = "kmeans".')
    elif (matches := matched_by(METHODS[method][1])) != "features":  # gradients and weights are not released as differences
        words = f"matches {matches}" if matches else 'does not state that (class attribute matches = "features")'
        raise InputError(f"{source}: [privacy]: centred = true is for methods that match features, as dm and datadam; {method!r} {words}.")
    merged = {"kind": "privacy", "data": plain_values(data), "method": {"name": method, "ipc": ipc[0], **plain_values(settings)}}
    merged |= {**plain, "evaluation": plain_values(evaluation)}
    arms = _arms(name, title, tables, source)
    if arms:
        merged["arms"] = {arm: {key: made.merged[key] for key in ("method", "privacy")} for arm, made in arms.items()}
    parts_made = (privacy, evaluation, audit, attack, visual, poisoning, inversion)
    return PrivacyStudy(name, title, data, method, ipc[0], plain_settings, *parts_made, merged, arms)


def _arms(name: str, title: str, tables: Tables, source: str) -> dict[str, PrivacyStudy]:
    """The studies of ``[arms]``, each checked as a study by itself."""
    made, own = {}, tables.get("arms", {})
    if own and "privacy" not in tables:
        raise InputError(f"{source}: [arms] are private sets; give a table [privacy], which has their epsilon.")
    for arm, given in own.items():
        where = f"{source}: [arms.{arm}]"
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", arm):
            raise InputError(f"{where}: allowed: names of small letters, digits and hyphens, as ncfm-public.")
        table = configure(ArmTable, given, where)
        for key, inner, other in [("ipc", table.method, "method"), *((key, table.privacy, "privacy") for key in SHARED)]:
            if key in inner:
                raise InputError(f"{where}: key {key!r} of {other} is not for here; allowed: one for all arms, in [{other}].")
        ipc = {key: value for key, value in tables.get("method", {}).items() if key == "ipc"}
        its: Tables = {key: value for key, value in tables.items() if key in ("data", "evaluation")}
        its |= {"method": {**ipc, **table.method}, "privacy": {**tables["privacy"], **table.privacy}}
        made[arm] = dataclasses.replace(study(name, title, its, where), arm=arm)
    if (clash := dict(tables.get("method", {})).get("name", "dm")) in made:
        raise InputError(f"{source}: [arms.{clash}]: is the name of the study's own method; give the arm another one, as {clash}-public.")
    return made


def _check_teacher(teacher: Teacher, where: str, tables: Tables) -> None:
    """`InputError` unless a teacher is trained within the budget of private sets, which are released with its labels."""
    if "privacy" not in tables:
        raise InputError(f"{where}: a teacher is trained on the private images without noise; leave recipe.teacher out, or add [privacy].")
    if teacher.labels != "images":
        raise InputError(f'{where}: a private set is released with its labels; set recipe.teacher.labels = "images".')
    if others := [name for name in ("attack", "poisoning") if name in tables]:
        raise InputError(f"{where}: recipe.teacher labels private sets, and [{others[0]}] trains on others; make it a separate study.")


def _check_arms(table: AttackTable, where: str, *, private: bool) -> None:
    for arm in table.arms:
        if arm not in (*ARMS, *METHODS):
            raise unknown_name(f"{where}: key 'arms': value", arm, (*ARMS, *METHODS))
    from apps.privacy.attacks import ATTACKS, FEWEST_RUNS, SHADOWED  # takes seconds to load

    for name in table.attacks:
        if name not in ATTACKS:
            raise unknown_name(f"{where}: key 'attacks': value", name, ATTACKS)
        if name in SHADOWED[1:] and (table.runs < FEWEST_RUNS or table.runs % 2):
            raise InputError(f"{where}: the attack {name!r} with {table.runs} runs; allowed: an even number of runs from {FEWEST_RUNS}.")
    if "private" in table.arms and not private:
        raise InputError(f"{where}: the arm 'private' needs a table [privacy].")
    for name, settings in table.methods.items():
        if name not in table.arms:
            raise unknown_name(f"{where}: key 'methods': an arm", name, table.arms)
        for key in ("name", "ipc"):
            if key in settings:
                raise InputError(f"{where}: methods.{name}: key {key!r} is not for here; allowed: the method's settings.")
        method_of({"name": name, **settings}, f"{where}: methods.{name}")
