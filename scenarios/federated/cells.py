"""The runs of a federated study, one for each strategy and seed: each folder is a ledger; as many run at once as there are cores."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from apps.federated.settings import ALONE, REMEMBERING, Settings
from distill.data import ImageData
from distill.errors import InputError
from distill.processes import WorkerFailed, at_once, side_by_side
from distill.records import read_lines, write_json_lines, write_whole
from scenarios.engine.folder import load_data
from scenarios.engine.record import Line
from scenarios.engine.study import Options
from scenarios.federated.left_out import left_out
from scenarios.federated.schema import FederatedStudy

Lines = list[Line]
# What `flwr run` takes, and Flower's engines here. It stands on this floor, where a client of one app may meet another app.
FLOWER_APP = Path(__file__).parent / "flower_app"


def run_cells(
    study: FederatedStudy, cells: Sequence[Settings], options: Options, data: ImageData, folder: Path, say: Callable[[str], None]
) -> None:
    """Run every cell that its folder does not hold finished.

    On the inline engine of a CPU, several processes of ``threads`` threads each share the cells (a cell's bits do not depend on it).
    Flower's engines start their own processes, so their cells run one after the other.

    Args:
        study: the study.
        cells: its runs, one for each strategy and seed.
        options: where and how it is run.
        data: the study's data.
        folder: the run folder.
        say: prints a line.
    """
    waiting = [cell for cell in cells if not finished(cell, folder)]
    workers = at_once(len(waiting), study.settings.threads)
    if workers > 1 and study.federation.engine == "inline" and options.device == "cpu":
        _side_by_side(study, waiting, options, folder, workers, say)
        return
    for cell in waiting:
        start = time.monotonic()
        say(_told(cell, run_cell(study, cell, options, data, folder), time.monotonic() - start))


def place(cell: Settings, folder: Path) -> Path:
    """Where a cell keeps its rounds."""
    return folder / "runs" / f"{cell.strategy}-s{cell.seed}"


def lines_of_cell(cell: Settings, folder: Path) -> Lines:
    """The rounds that a cell's folder holds."""
    return list(read_lines(place(cell, folder) / "rounds.jsonl"))


def finished(cell: Settings, folder: Path) -> bool:
    """Whether a cell's folder holds its last round."""
    lines = lines_of_cell(cell, folder)
    return bool(lines) and lines[-1]["round"] == cell.rounds


def run_cell(study: FederatedStudy, cell: Settings, options: Options, data: ImageData, folder: Path) -> Lines:
    """Run a cell to its end, from the last round that its folder holds; returns its rounds."""
    own, root = place(cell, folder), str(options.data_root or "")
    own.mkdir(parents=True, exist_ok=True)
    if cell.strategy in ALONE:
        from apps.federated.alone import run_alone

        lines = run_alone(cell, data)
        write_json_lines(own / "rounds.jsonl", lines)
        return lines
    file, privacy = None, None
    if study.privacy is not None:
        from scenarios.federated.node import of_study, written

        file, privacy = of_study(study.privacy, cell, own / "releases", root, f"{study.name}: [privacy]")
    if study.federation.engine == "inline":
        from apps.federated.inline import run_inline

        return answered(cell, run_inline(cell, data, own, data_root=root, privacy=privacy))
    from apps.federated.engines import lines_of, run_deployment, run_simulation

    # The clients' memory of these engines ends with them, so a strategy that needs it starts again.
    if cell.strategy in REMEMBERING or cell.upload.warm_start:
        (own / "checkpoint.safetensors").unlink(missing_ok=True)
    path = None
    if file is not None:
        path = own / "PRIVATE-clients.toml"
        write_whole(path, written(file))
    account = (run_simulation if study.federation.engine == "simulation" else run_deployment)(cell, own, FLOWER_APP, root, path)
    write_json_lines(own / "flower.jsonl", [account])
    return answered(cell, lines_of(own))


def answered(cell: Settings, lines: Lines) -> Lines:
    """The lines of a run; `InputError` with the reasons where no client was accepted in any round: nothing was learned then."""
    clients = [client for line in lines for client in line["clients"]]
    if clients and not any(client["status"] == "accepted" for client in clients):
        reasons = Counter(f"{client['status']}: {client['why']}" for client in clients)
        text = "; ".join(f"{reason} ({count} of {len(clients)} answers)" for reason, count in reasons.most_common(2))
        raise InputError(f"strategy {cell.strategy!r}, seed {cell.seed}: no client was accepted in any round. {text}")
    return lines


def _told(cell: Settings, lines: Lines, seconds: float) -> str:
    moved = sum(line["up"] + line["down"] for line in lines) / 1e6
    done = f"{cell.strategy}, seed {cell.seed}: {lines[-1]['accuracy']:.2f} % after {cell.rounds} rounds, {moved:.3f} MB, {seconds:.0f} s"
    return "\n  ".join([done, *left_out(lines)])


def _side_by_side(
    study: FederatedStudy, waiting: Sequence[Settings], options: Options, folder: Path, workers: int, say: Callable[[str], None]
) -> None:
    try:
        for cell, seconds in side_by_side(_runner, (study, options, folder), waiting, workers):
            say(_told(cell, lines_of_cell(cell, folder), seconds))
    except WorkerFailed as failed:
        where = f"strategy {failed.job.strategy!r}, seed {failed.job.seed}"
        raise InputError(f"{where}: {failed.reason.rstrip('.')}. What is finished is kept: add --resume.") from None


def _runner(study: FederatedStudy, options: Options, folder: Path) -> Callable[[Settings], None]:
    """What a worker does with a cell, on data that it loads once."""
    data = load_data(study, options)

    def work(cell: Settings) -> None:
        run_cell(study, cell, options, data, folder)

    return work
