"""What a study is, whatever its kind: `Study`, how it is run (`Options`, `Run`), and what a `Kind` of study knows to do with it.

A kind is one package of `scenarios/` whose `kind.py` makes one `Kind`; `scenarios/catalogue.py` names all of them, and nothing else does.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from rich.console import Console

from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.drawing import Drawing
from scenarios.engine.own import Places
from scenarios.engine.record import Config, Record, Results, Rows, Tables
from scenarios.engine.schema import DataTable


class Study(Protocol):
    """A checked study. ``merged`` are its plain values with the defaults filled in: enough to repeat the run."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def data(self) -> DataTable: ...
    @property
    def merged(self) -> Config: ...
    @property
    def hash(self) -> str: ...


@dataclass(frozen=True)
class Options:
    """How a study is run, as opposed to what it is."""

    out: Path = Path("runs")
    data_root: Path | None = None
    seed: int = 0
    device: str = "cpu"
    resume: bool = False
    quiet: bool = False
    resume_from: Path | None = None  # another run's folder, whose checkpoints a condense study continues


@dataclass(frozen=True)
class Run:
    """A study at work: its folder, its data on their device, and ``results``, which become those of record.json."""

    options: Options
    data: ImageData
    folder: Path
    results: Results
    console: Console

    def say(self, text: str) -> None:
        """Print a line to the console."""
        say(self.console, text)


def say(console: Console, text: str) -> None:
    """Print a line; in a log it is not wrapped."""
    console.print(text, soft_wrap=not console.is_terminal, markup=False)


def _title(config: Config) -> str:
    return str(config.get("title") or config.get("scenario") or "")


@dataclass(frozen=True)
class View:
    """How a record of a kind is shown.

    Args:
        answer: the record in one sentence.
        table: its main table.
        question: what the study asks, from its configuration.
        missing: sentences about what was not run.
        remarks: sentences about what was left out of the run, and why.
        note: the text under the table.
        main: a regular expression of the figures that ``distill table`` shows first.
    """

    answer: Callable[[Record], str]
    table: Callable[[Record], Rows]
    question: Callable[[Config], str] = _title
    missing: Callable[[Record, Config], list[str]] = lambda record, config: []
    remarks: Callable[[Record], list[str]] = lambda record: []
    note: str = "Test accuracy in percent: mean and 95 % interval over networks, last epoch, one recipe for all sets."
    main: str = ".*"


NOBODY = Places()


def _no_sets(study: object, seed: int) -> dict[str, Path]:
    return {}


def _all_classes(study: Study) -> tuple[int, ...] | None:
    return study.data.classes


def _load(study: object, folder: Path, path: Path) -> CondensedSet:
    return CondensedSet.load(folder / path)


def _no_advice(study: object, data: ImageData) -> list[str]:
    return []


S = TypeVar("S", bound=Study)


@dataclass(frozen=True)
class Kind(Generic[S]):
    """A kind of study, whose checked studies are of the type ``S``.

    Args:
        name: the value of ``kind`` in a scenario file.
        read: (name, title, tables, source) to a checked study; ``source`` opens every message. Raises `InputError`.
        check: (study, data): raises `InputError` for what would fail after minutes of work.
        fill: (study, run): the work; what is in the folder already is not done again.
        draw: (folder, record) to named drawings, from what is in the folder alone.
        view: how its records are shown.
        sets: (study, seed) to the condensed sets that a finished run leaves, by name, as paths in its folder.
        classes: the classes of these sets; None where they have all of the data's.
        load: one of these sets.
        takes: how it uses a set of another stage of a pipeline ("as what is attacked"); empty where it takes none.
        needs_set: whether it cannot run without one.
        some_classes: whether that set may have fewer classes than its own data.
        with_set: the kind that a stage of this kind is when it takes a set, where that is another one.
        staged: whether it may be a stage of a pipeline.
        own: where a user's own code may be named.
        sharded: whether torchrun may share its work out between processes.
        advice: (study, data): sentences where its settings leave what authors published (`distill.methods.advice`); printed and recorded.
        continued: (study, run folder): the study that starts from that run's checkpoints; None where no study can.
    """

    name: str
    read: Callable[[str, str, Tables, str], S]
    check: Callable[[S, ImageData], None]
    fill: Callable[[S, Run], None]
    draw: Callable[[Path, Record], Iterator[tuple[str, Drawing]]]
    view: View
    sets: Callable[[S, int], Mapping[str, Path]] = _no_sets
    classes: Callable[[S], tuple[int, ...] | None] = _all_classes
    load: Callable[[S, Path, Path], CondensedSet] = _load
    takes: str = ""
    needs_set: bool = False
    some_classes: bool = False
    with_set: str = ""
    staged: bool = True
    own: Places = NOBODY
    sharded: bool = False
    advice: Callable[[S, ImageData], list[str]] = _no_advice
    continued: Callable[[S, Path], S] | None = None


AnyKind: TypeAlias = Kind[Any]  # of studies of a type that the engine does not know
Kinds = Mapping[str, AnyKind]
