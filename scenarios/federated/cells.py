"""The runs of a federated study, one for each strategy and seed: each folder is a ledger; as many run at once as there are cores."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apps.federated.attacks import AttackConfig
from apps.federated.settings import ALONE, REMEMBERING, Settings
from distill.data import ImageData
from distill.errors import InputError
from distill.processes import WorkerFailed, at_once, side_by_side
from distill.records import read_lines, write_json_lines, write_whole
from scenarios.engine.folder import load_data
from scenarios.engine.record import Line
from scenarios.engine.study import Options
from scenarios.federated.attacked import Row, backdoor
from scenarios.federated.left_out import left_out
from scenarios.federated.schema import FederatedStudy

if TYPE_CHECKING:
    from apps.federated.inline import Client

Lines = list[Line]
# What `flwr run` takes, and Flower's engines here. It stands on this floor, where a client of one app may meet another app.
FLOWER_APP = Path(__file__).parent / "flower_app"


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        settings: of the run.
        folder: where it keeps its rounds.
        name: what messages call it.
        may_fail: no error if no client was ever accepted; its accuracy stays that of the first weights.
        attack: of its hostile clients; None: all are honest.
        answers: where answers of clients are kept that runs of the study share; None: nowhere.
    """

    settings: Settings
    folder: Path
    name: str
    may_fail: bool = False
    attack: AttackConfig | None = None
    answers: Path | None = None

    def lines(self) -> Lines:
        """The rounds that its folder holds."""
        return list(read_lines(self.folder / "rounds.jsonl"))

    def finished(self) -> bool:
        """Whether its folder holds its last round."""
        lines = self.lines()
        return bool(lines) and lines[-1]["round"] == self.settings.rounds

    def answered(self, lines: Lines) -> Lines:
        """The lines; `InputError` with the reasons where no client was accepted in any round: nothing was learned then."""
        clients = [client for line in lines for client in line["clients"]]
        if clients and not self.may_fail and not any(client["status"] == "accepted" for client in clients):
            reasons = Counter(f"{client['status']}: {client['why']}" for client in clients)
            text = "; ".join(f"{reason} ({count} of {len(clients)} answers)" for reason, count in reasons.most_common(2))
            raise InputError(f"{self.name}: no client was accepted in any round. {text}")
        return lines


def row_cell(study: FederatedStudy, row: Row, settings: Settings, folder: Path) -> Cell:
    """The run of a row and seed in a study's folder."""
    name, answers = row.name(study), None if study.attack is None else folder / "answers"
    may_fail = row.attack is not None  # all uploads may be excluded
    place = folder / "runs" / f"{name}-s{settings.seed}"
    return Cell(row.applied(settings), place, f"{name}, seed {settings.seed}", may_fail, row.attack, answers)


def run_cells(study: FederatedStudy, cells: Sequence[Cell], options: Options, data: ImageData, say: Callable[[str], None]) -> None:
    """Run every cell that its folder does not hold finished.

    On the inline engine of a CPU, several processes of ``threads`` threads each share the cells (a cell's bits do not depend on it).
    Flower's engines start their own processes, so their cells run one after the other.

    Args:
        study: the study.
        cells: its runs, one for each strategy and seed.
        options: where and how it is run.
        data: the study's data.
        say: prints a line.
    """
    waiting = [cell for cell in cells if not cell.finished()]
    # A worker process does not know the user's own method or network.
    workers = 1 if study.merged.get("own") else at_once(len(waiting), study.settings.threads)
    if workers > 1 and study.federation.engine == "inline" and options.device == "cpu":
        _side_by_side(study, waiting, options, workers, say)
        return
    for cell in waiting:
        start = time.monotonic()
        say(_told(cell, run_cell(study, cell, options, data), time.monotonic() - start))


def run_cell(study: FederatedStudy, cell: Cell, options: Options, data: ImageData) -> Lines:
    """Run a cell to its end, from the last round that its folder holds; returns its rounds."""
    settings, own, root = cell.settings, cell.folder, str(options.data_root or "")
    own.mkdir(parents=True, exist_ok=True)
    if settings.strategy in ALONE:
        from apps.federated.alone import run_alone

        lines = run_alone(settings, data)
        write_json_lines(own / "rounds.jsonl", lines)
        return lines
    file, privacy = None, None
    if study.privacy is not None:
        from scenarios.federated.node import of_study, written

        file, privacy = of_study(study.privacy, settings, own / "releases", root, f"{study.name}: [privacy]")
    if study.federation.engine == "inline":
        from apps.federated.inline import run_inline

        client = None if cell.answers is None else _attacked(cell, cell.answers, data)
        lines = cell.answered(run_inline(settings, data, own, client, data_root=root, privacy=privacy))
        backdoor(own, settings, cell.attack, data)
        return lines
    from apps.federated.engines import lines_of, run_deployment, run_simulation

    # The clients' memory of these engines ends with them, so a strategy that needs it starts again.
    if settings.strategy in REMEMBERING or settings.upload.warm_start:
        (own / "checkpoint.safetensors").unlink(missing_ok=True)
    path = None
    if file is not None:
        path = own / "PRIVATE-clients.toml"
        write_whole(path, written(file))
    account = (run_simulation if study.federation.engine == "simulation" else run_deployment)(settings, own, FLOWER_APP, root, path)
    write_json_lines(own / "flower.jsonl", [account])
    return cell.answered(lines_of(own))


def _attacked(cell: Cell, answers: Path, data: ImageData) -> "Client":
    """The clients of a study with attacks: honest answers are computed once, whatever the row."""
    from apps.federated.client_app import client_app
    from apps.federated.hostile import hostile, remembered

    honest = remembered(client_app(data), cell.settings, answers)
    return honest if cell.attack is None else hostile(honest, cell.attack, cell.settings, data)


def _told(cell: Cell, lines: Lines, seconds: float) -> str:
    moved = sum(line["up"] + line["down"] for line in lines) / 1e6
    done = f"{cell.name}: {lines[-1]['accuracy']:.2f} % after {cell.settings.rounds} rounds, {moved:.3f} MB, {seconds:.0f} s"
    return "\n  ".join([done, *left_out(lines)])


def _side_by_side(study: FederatedStudy, waiting: Sequence[Cell], options: Options, workers: int, say: Callable[[str], None]) -> None:
    try:
        for cell, seconds in side_by_side(_runner, (study, options), waiting, workers):
            say(_told(cell, cell.lines(), seconds))
    except WorkerFailed as failed:
        raise InputError(f"{failed.job.name}: {failed.reason.rstrip('.')}. What is finished is kept: add --resume.") from None


def _runner(study: FederatedStudy, options: Options) -> Callable[[Cell], None]:
    """What a worker does with a cell, on data that it loads once."""
    data = load_data(study, options)

    def work(cell: Cell) -> None:
        run_cell(study, cell, options, data)

    return work
