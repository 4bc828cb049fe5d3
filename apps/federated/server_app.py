"""The Flower ServerApp: waits for the clients, asks who they are, and runs the strategy's rounds."""

import time
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid, ServerApp

from apps.federated.client_app import data_of, torch_threads
from apps.federated.condense import partition_of
from apps.federated.messages import ConfigRecord, Context, Message, MetricRecord, RecordDict, record_of, settings_of, whole
from apps.federated.rules import rule_for
from apps.federated.settings import ALONE, Settings
from apps.federated.strategy import Federation, Weights
from apps.federated.wire import encode_weights
from distill.data import ImageData
from distill.errors import InputError
from distill.evaluation import accuracy
from distill.networks import create
from distill.randomness import generator
from distill.records import write_json

WAIT_SECONDS = 120.0


def serve(grid: Grid, settings: Settings, data: ImageData, folder: Path | None = None) -> list[dict[str, Any]]:
    """All rounds; one dict a round, the same as the lines of ``rounds.jsonl`` in ``folder``."""
    if settings.strategy in ALONE:
        raise InputError(f"strategy {settings.strategy!r} sends no messages; it is not run through Flower.")
    with torch_threads(settings.threads):
        clients = introduce(grid, settings)
        network = create(settings.network, data.spec, generator(settings.seed, "server", "weights"), data.device)
        weights: Weights = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}

        judged = data if settings.upload.classes is None else data.subset(settings.upload.classes)  # what nobody sends nobody learns

        def judge(weights: Weights) -> float:
            network.load_state_dict(weights)
            return accuracy(network, judged, settings.split)

        rule = rule_for(settings, data.spec, settings.partition.num_partitions, folder)
        sizes = [len(part) for part in partition_of(data, settings).parts]
        strategy = Federation(settings, rule, data.spec, weights, clients, judge, folder, sizes)
        if strategy.done < settings.rounds:
            strategy.start(
                grid,
                record_of(encode_weights(strategy.weights)),
                num_rounds=settings.rounds - strategy.done,
                timeout=settings.timeout,
                evaluate_fn=strategy.evaluate,
            )
        return strategy.lines


def introduce(grid: Grid, settings: Settings) -> dict[int, int]:
    """Client numbers by node id: who is there, by their own word. A number that is out of range or taken is not let in.

    Waits for all partitions' nodes, at most `WAIT_SECONDS`, then goes on with those that came.
    """
    wanted, limit = settings.partition.num_partitions, WAIT_SECONDS
    start = time.monotonic()
    while len(nodes := sorted(grid.get_node_ids())) < wanted and time.monotonic() - start < limit:
        time.sleep(0.2)
    if not nodes:
        raise InputError(f"no client came within {limit:.0f} s; start SuperNodes, or look at their logs.")
    ask = [Message(RecordDict({"ask": ConfigRecord({"round": 0})}), dst_node_id=node, message_type="query.who") for node in nodes]
    found: dict[int, int] = {}
    for reply in sorted(grid.send_and_receive(ask, timeout=limit), key=lambda reply: reply.metadata.src_node_id):
        if reply.has_error():
            continue
        try:
            record = reply.content.get("facts")
            client = whole(dict(record) if isinstance(record, MetricRecord) else {}, "partition-id", 0, wanted - 1)
        except InputError:
            continue
        if client not in found.values():
            found[reply.metadata.src_node_id] = client
    if not found:
        raise InputError('no client said a partition-id that fits; give SuperNodes --node-config "partition-id=K num-partitions=N".')
    return found


def server_app() -> ServerApp:
    """A new ServerApp: settings and data from the run's config; rounds go to the folder ``out``, when it is given."""
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        settings = settings_of(context.run_config)
        out = str(context.run_config.get("out", ""))
        folder = Path(out) if out else None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        lines = serve(grid, settings, data_of(settings, str(context.run_config.get("data-root", ""))), folder)
        for line in lines:
            bytes_moved = f"{line['up']} bytes up, {line['down']} down"
            print(f"round {line['round']}: accuracy {line['accuracy']:.2f} %, {bytes_moved}, {line['dropped']} dropped")
        if folder is not None:
            write_json(folder / "finished.json", {"rounds": len(lines)})

    return app
