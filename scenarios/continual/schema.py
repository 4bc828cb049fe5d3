"""Tables of a "continual" scenario, and the study they make."""

import functools
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from distill.configure import config_class, configure
from distill.coresets import CORESETS
from distill.errors import InputError, unknown_name
from distill.methods import METHODS
from distill.networks import check_name
from distill.protocols import check_untaught
from distill.recipe import Recipe
from distill.teachers import Teacher, check_teacher
from scenarios.engine.given import Given
from scenarios.engine.record import Config, Tables
from scenarios.engine.schema import DataTable, check_tables, checked, config_hash, plain_values

STRATEGIES = ("scratch", "gdumb", "replay", "er_ace", "der", "scr", "none", "lwf", "joint")
LAST, ONE_ROW = "last", ("joint", "last")  # a learner that has no name in ``strategies``; those that learn at the end only
ALONE = ("none", "lwf", "joint")  # strategies without a memory
T = TypeVar("T")


@config_class
class StreamTable:
    """``[stream]``: what arrives when. "class": the data's classes in ``experiences`` equal parts, one seeded order for each of ``orders``.
    "domain": the data set, then ``domains``, each with all classes (``orders`` are then seeds). "online": as "class", seen once, ``mini``
    images at a time, of which the ``queue`` most recent are condensed every ``every`` mini-batches. Classes come back in "domain" and in:
    "permuted": all classes ``experiences`` times, each time with another fixed order of the pixels; "rotated": likewise, turned by angles
    below ``degrees`` (180); "repetition": ``classes_each`` (2) classes in an experience, no image twice; "blurry": as "class", with the
    share ``blurred`` (0.1) of the images in other experiences. What a memory does with such classes is ``returning`` in ``[memory]``."""

    DIFFERENT = ("domains",)

    setting: Literal["class", "domain", "online", "permuted", "rotated", "repetition", "blurry"] = "class"
    experiences: Annotated[int, Field(ge=1)] = 5
    orders: Annotated[int, Field(ge=1)] = 3
    domains: tuple[str, ...] = ()
    mini: Annotated[int, Field(ge=1)] = 10
    queue: Annotated[int, Field(ge=1)] = 64
    every: Annotated[int, Field(ge=1)] = 6
    degrees: Annotated[float, Field(gt=0, le=360)] | None = None
    classes_each: Annotated[int, Field(ge=1)] | None = None
    blurred: Annotated[float, Field(ge=0, le=1)] | None = None


OPTIONS = {"degrees": "rotated", "classes_each": "repetition", "blurred": "blurry"}  # of [stream], and the setting that has them
RETURNING = ("domain", "permuted", "rotated", "repetition", "blurry")  # settings whose classes come back


@config_class
class MemoryTable:
    """``[memory]``: ``methods`` (condensation methods, coresets, "reservoir", and compressed real images, which have bytes only:
    "random-zlib", "random-jpeg50", "random-webp50") at ``per_class`` float32 images a class, and at the bytes of ``bytes_of`` float32
    images a class (2.6, for example) in each of ``storages``. ``share`` "shrinking" gives the first classes more and condenses them
    again when others come. ``decode`` is how memories whose name ends in "-decoded" ("random-decoded", "dm-decoded") store their
    images. ``[memory.teacher]`` is trained on each experience and labels the images of memories whose name ends in "-labelled"
    ("dm-labelled"). ``returning`` "merge" (where it is not given) folds a class that comes back into its images, "separate" gives it
    further ones. Settings of a method go into ``[settings.<method>]``; "dm-decoded" has those of "dm", and over them its own."""

    DIFFERENT = ("methods", "per_class", "bytes_of", "storages")

    methods: Annotated[tuple[str, ...], Field(min_length=1)] = ("random", "class_mean", "dm")
    per_class: tuple[Annotated[int, Field(ge=1)], ...] = (1,)
    bytes_of: tuple[Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0)], ...] = ()
    storages: tuple[Literal["uint8", "float32"], ...] = ("uint8", "float32")
    share: Literal["fixed", "shrinking"] = "fixed"
    decode: str | None = None
    teacher: Teacher | None = None
    returning: Literal["merge", "separate"] | None = None


@config_class
class LearnerTable:
    """``[learner]``: ``strategies`` on the stream with ``network``, and again with each of ``others`` ("scratch@MLP"), networks that a
    memory was not condensed with, for example; ``nets`` networks for each class order ("scratch" only). ``protocol`` (or
    ``[learner.recipe]``) trains "scratch", ``[learner.joint]`` "joint"; ``[training]`` is for Avalanche's learners. Each network of
    ``last`` is trained from scratch once for each memory, on the last one of the first class order ("last@ResNet18"): for networks that
    take long."""

    DIFFERENT = ("strategies", "others", "last")

    strategies: Annotated[tuple[str, ...], Field(min_length=1)] = ("scratch",)
    network: str = "ConvNet"
    others: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    last: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    nets: Annotated[int, Field(ge=1)] = 1
    protocol: str = "laptop"
    recipe: Recipe | None = None
    joint: Recipe | None = None
    split: Literal["test", "validation"] = "test"

    @property
    def learners(self) -> dict[str, tuple[str, str]]:
        """(strategy, network) of each learner by its name: the strategy's, with ``@network`` for one of ``others``."""
        named = {strategy: (strategy, self.network) for strategy in self.strategies}
        more = {f"{strategy}@{network}": (strategy, network) for network in self.others or () for strategy in self.strategies}
        return named | more | {f"{LAST}@{network}": (LAST, network) for network in self.last or ()}


@dataclass(frozen=True)
class ContinualStudy:
    """``kind = "continual"``."""

    name: str
    title: str
    data: DataTable
    stream: StreamTable
    memory: MemoryTable
    learner: LearnerTable
    training: Config  # of apps.continual.strategies.Training
    settings: dict[str, Config]
    merged: Config
    given: Given | None = None  # of a pipeline: the set that is the first experience
    kind: str = "continual"

    @property
    def hash(self) -> str:
        """Eight letters that change with any setting."""
        return config_hash(self.merged)


def study(name: str, title: str, tables: Tables, source: str) -> ContinualStudy:
    """Check a scenario's tables."""
    from apps.continual.strategies import Training

    kinds = {"data": DataTable, "stream": StreamTable, "memory": MemoryTable, "learner": LearnerTable, "training": Training}
    check_tables(tables, (*kinds, "settings"), source, "continual", ["data"])

    def read(key: str, kind: type[T]) -> T:
        return configure(kind, tables.get(key, {}), f"{source}: [{key}]")

    data, stream, memory = read("data", DataTable), read("stream", StreamTable), read("memory", MemoryTable)
    learner, training = read("learner", LearnerTable), read("training", Training)
    if data.zca:
        raise InputError(f"{source}: [data]: zca is for condensed sets that are used white; a stream's images are not.")
    _check_stream(stream, f"{source}: [stream]")
    _check_learner(learner, f"{source}: [learner]")
    _check_memory(memory, stream, learner, f"{source}: [memory]")
    _check_teacher(memory, stream, learner, source)
    if training.exemplar_transform is not None and "reservoir" in memory.methods:
        raise InputError(f"{source}: [training]: exemplar_transform is not for the memory 'reservoir' (Avalanche's); leave one out.")
    settings = _settings(memory, tables.get("settings", {}), source)
    plain = {key: plain_values(table) for key, table in zip(kinds, (data, stream, memory, learner, training), strict=True)}
    config = {"kind": "continual", **plain, "settings": settings}
    return ContinualStudy(name, title, data, stream, memory, learner, plain["training"], settings, config)


def _check_stream(stream: StreamTable, where: str) -> None:
    if bool(stream.domains) != (stream.setting == "domain"):
        raise InputError(f'{where}: domains are for setting "domain", which needs one or more; setting is {stream.setting!r}.')
    for option, setting in OPTIONS.items():
        if getattr(stream, option) is not None and stream.setting != setting:
            raise InputError(f"{where}: {option} is for setting {setting!r}; setting is {stream.setting!r}.")


def _check_learner(learner: LearnerTable, where: str) -> None:
    check_untaught(learner.recipe, learner.protocol, where)
    for strategy in learner.strategies:
        if strategy not in STRATEGIES:
            raise unknown_name(f"{where}: key 'strategies': value", strategy, STRATEGIES)
    check_name(learner.network)
    others, last = learner.others or (), learner.last or ()
    for key, networks in (("others", others), ("last", last)):
        for network in networks:
            checked(where, key, functools.partial(check_name, network))
    if learner.network in others:
        raise InputError(f"{where}: others has {learner.network!r}, which is the learner's network; name each network once.")


def _check_memory(memory: MemoryTable, stream: StreamTable, learner: LearnerTable, where: str) -> None:
    """`InputError` unless there are memories, and each can be made of the stream and used by the learners."""
    from apps.continual.benchmark import DECODED
    from apps.continual.compressed import COMPRESSED
    from apps.continual.labels import LABELLED

    real = ("reservoir", *COMPRESSED)
    for method in memory.methods:
        if method.removesuffix(LABELLED).removesuffix(DECODED) not in (*METHODS, *CORESETS) and method not in real:
            raise unknown_name(f"{where}: key 'methods': value", method, (*METHODS, *CORESETS, *real))
    if any(method.removesuffix(LABELLED).endswith(DECODED) for method in memory.methods) != (memory.decode is not None):
        raise InputError(f"{where}: decode and memories named METHOD{DECODED} go together; give both, or none of them.")
    if not memory.per_class and not memory.bytes_of:
        raise InputError(f"{where}: per_class and bytes_of are empty; give at least one number.")
    merged = stream.setting in RETURNING and memory.returning != "separate"
    if memory.returning is not None and stream.setting not in RETURNING:
        raise InputError(f"{where}: returning is for classes that come back (setting {', '.join(RETURNING)}); leave it out.")
    if stream.setting == "online" and memory.share == "shrinking":
        raise InputError(f'{where}: share is "shrinking"; allowed with an online stream: "fixed".')
    if memory.bytes_of and "der" in learner.strategies:
        raise InputError(f'{where}: bytes_of with strategy "der" is not offered: its outputs take bytes too; use per_class.')
    compressed = next((method for method in memory.methods if method in COMPRESSED), None)
    if compressed and (not memory.bytes_of or memory.share == "shrinking" or stream.setting == "online" or merged):
        raise InputError(
            f"{where}: {compressed} has a number of bytes for each class of an experience; allowed: with bytes_of, "
            'share = "fixed", not in an online stream, and with returning = "separate" where classes come back.'
        )
    if "scr" in learner.strategies and (by_image := [method for method in memory.methods if method in real]):
        raise InputError(f"{where}: {by_image[0]} with strategy 'scr', which needs the mean of each class; take methods or coresets only.")


def _settings(memory: MemoryTable, given: Tables, source: str) -> dict[str, Config]:
    """The settings of each memory that has some, by its name; ``given`` are the tables ``[settings.<method>]``."""
    from apps.continual.benchmark import DECODED
    from apps.continual.compressed import COMPRESSED
    from apps.continual.condensing import decode_of, settings_of
    from apps.continual.labels import LABELLED

    names = list(dict.fromkeys(method.removesuffix(LABELLED) for method in memory.methods))
    for method, table in given.items():
        if method not in (*names, *(name.removesuffix(DECODED) for name in names)) or not isinstance(table, dict):
            raise unknown_name(f"{source}: [settings]: method", method, [name for name in names if name.removesuffix(DECODED) in METHODS])
    settings = {}
    for name in names:
        if (method := name.removesuffix(DECODED)) in ("reservoir", *COMPRESSED):
            continue
        decoded = {} if method == name else {"decode": memory.decode, **given.get(name, {})}
        try:
            chosen = settings_of(method, {**given.get(method, {}), **decoded})
            if method in CORESETS:
                decode_of(method, chosen)
        except InputError as error:
            raise InputError(f"{source}: memory {name!r}: {error}") from None
        if method in METHODS:
            configure(METHODS[method][0], chosen, f"{source}: [settings.{name}]")
        if method in METHODS or chosen:
            settings[name] = chosen
    return settings


def _check_teacher(memory: MemoryTable, stream: StreamTable, learner: LearnerTable, source: str) -> None:
    """`InputError` unless a study with labels of teachers stores them when an experience is there, for learners that take them."""
    from apps.continual.labels import LABELLED

    where, named = f"{source}: [memory]", [method for method in memory.methods if method.endswith(LABELLED)]
    if learner.joint is not None and learner.joint.teacher is not None:
        raise InputError(f"{source}: [learner]: joint.teacher is not offered: all real images have class numbers; leave it out.")
    if bool(named) != (memory.teacher is not None):
        raise InputError(f"{where}: a teacher and memories named METHOD{LABELLED} go together; give both, or none of them.")
    if memory.teacher is None:
        return
    checked(where, "teacher", functools.partial(check_teacher, memory.teacher))
    if stream.setting == "online" or memory.share == "shrinking" or (stream.setting in RETURNING and memory.returning != "separate"):
        raise InputError(f"{where}: {named[0]} needs whole experiences, a fixed share and separate groups: an image keeps its first label.")
    if memory.bytes_of:
        raise InputError(f"{where}: bytes_of with {named[0]} is not offered: its labels take bytes too; use per_class.")
    if other := [name for name in learner.strategies if name not in (*ALONE, "scratch")]:
        raise InputError(
            f"{where}: {named[0]} with strategy {other[0]!r}, whose items carry class numbers; use 'scratch', or 'der' without a teacher: "
            "it stores the learner's outputs."
        )
