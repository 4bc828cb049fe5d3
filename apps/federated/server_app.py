"""The Flower ServerApp: waits for the clients, and runs the strategy's rounds."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid, ServerApp

from apps.federated.client_app import data_of, torch_threads
from apps.federated.condense import partition_of
from apps.federated.exchange import Exchange
from apps.federated.messages import Context, settings_of
from apps.federated.roster import WAIT_SECONDS, Roster, keys_of
from apps.federated.rules import rule_for
from apps.federated.settings import ALONE, Settings
from apps.federated.strategy import Federation, Weights
from distill.data import ImageData
from distill.errors import InputError
from distill.evaluation import accuracy
from distill.locks import Held, locked
from distill.networks import create
from distill.randomness import generator
from distill.records import write_json, writing

LOCK_SECONDS = 30.0


def serve(
    grid: Grid, settings: Settings, data: ImageData, folder: Path | None = None, keys: dict[str, int] | None = None
) -> list[dict[str, Any]]:
    """All rounds; one dict a round, the same as the lines of ``rounds.jsonl`` in ``folder``. ``keys``: see `roster.keys_of`."""
    if settings.strategy in ALONE:
        raise InputError(f"strategy {settings.strategy!r} sends no messages; it is not run through Flower.")
    with torch_threads(settings.threads), only_writer(folder):
        count = settings.partition.num_partitions
        least = 1 if settings.min_clients is None else settings.min_clients
        roster = Roster(count, keys, WAIT_SECONDS if settings.wait is None else settings.wait, least)
        network = create(settings.network, data.spec, generator(settings.seed, "server", "weights"), data.device)
        weights: Weights = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}

        judged = data if settings.upload.classes is None else data.subset(settings.upload.classes)  # what nobody sends nobody learns

        def judge(weights: Weights) -> float:
            network.load_state_dict(weights)
            return accuracy(network, judged, settings.split)

        rule = rule_for(settings, data.spec, count, folder)
        sizes = [len(part) for part in partition_of(data, settings).parts]
        strategy = Federation(settings, rule, data.spec, weights, roster, judge=judge, folder=folder, sizes=sizes)
        if strategy.done < settings.rounds:
            strategy.run(Exchange(grid))
        return strategy.lines


@contextlib.contextmanager
def only_writer(folder: Path | None) -> Iterator[None]:
    """Hold the lock of the folder with the rounds; the system lets go of it when the process ends, however it ends.

    A ServerApp that outlives its run for a moment is waited for; two that write the same rounds would make one damaged file.
    """
    if folder is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            with writing(folder):
                stack.enter_context(locked(folder / ".rounds.lock", LOCK_SECONDS))
        except Held:
            raise InputError(f"{folder}: another ServerApp writes its rounds there; end it, or choose another folder.") from None
        yield


def told(line: dict[str, Any]) -> list[str]:
    """A round's line in words: accuracy and bytes, then everyone who was left out, and why."""
    overrun = f", {line['overrun']:.1f} s beyond the timeout" if line["overrun"] >= 0.1 else ""
    moved = f"{line['up']} bytes up, {line['down']} down"
    said = [f"round {line['round']}: accuracy {line['accuracy']:.2f} %, {moved}, {line['dropped']} dropped{overrun}"]
    for client in line["clients"]:
        if client["status"] != "accepted" or client["note"]:
            said.append("; ".join(filter(None, [f"  client {client['client']}: {client['status']}", client["why"], client["note"]])))
    said += [f"  node {each['node']}: left out; {each['why']}" for each in line["unknown"]]
    said += [f"  client {each['client']}: its answer to round {each['round']} came after its end and was not used" for each in line["late"]]
    return [*said, *([f"  {line['note']}"] if line["note"] else [])]


def server_app() -> ServerApp:
    """A new ServerApp: settings and data from the run's config; rounds go to the folder ``out``, when it is given."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        settings = settings_of(context.run_config)
        out = str(context.run_config.get("out", ""))
        folder = Path(out) if out else None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        keys = str(context.run_config.get("node-keys", ""))
        if not keys:
            print("no node-keys: client numbers are what the nodes themselves say")
        data = data_of(settings, str(context.run_config.get("data-root", "")))
        for line in serve(grid, settings, data, folder, keys_of(Path(keys)) if keys else None):
            print("\n".join(told(line)))
        if folder is not None:
            write_json(folder / "finished.json", {"rounds": settings.rounds + 1})

    return app
