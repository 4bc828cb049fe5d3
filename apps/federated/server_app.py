"""The Flower ServerApp: waits for the clients, and runs the strategy's rounds."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from flwr.serverapp import Grid, ServerApp

from apps.federated.admission import held_out_images
from apps.federated.client_app import data_of, torch_threads
from apps.federated.condense import partition_of
from apps.federated.exchange import Exchange
from apps.federated.given import Images, server_data
from apps.federated.messages import Context, settings_of
from apps.federated.overdue import in_words
from apps.federated.roster import WAIT_SECONDS, Roster, keys_of
from apps.federated.rules import rule_for
from apps.federated.settings import ALONE, Settings, check_clients
from apps.federated.strategy import Federation, Weights
from distill.data import ImageData
from distill.errors import InputError
from distill.evaluation import accuracy
from distill.locks import Held, locked
from distill.networks import Factory, check_outputs, create
from distill.randomness import generator
from distill.records import Json, write_json, writing

LOCK_SECONDS = 30.0


def serve(
    grid: Grid,
    settings: Settings,
    data: ImageData,
    folder: Path | None = None,
    keys: dict[str, int] | None = None,
    *,
    own_shards: bool = False,
    network: Factory | None = None,
) -> list[dict[str, Json]]:
    """Run all rounds.

    Args:
        grid: Flower's connection to the clients.
        settings: of the run.
        data: the whole data set, or with ``own_shards`` the server's part of it; the server measures accuracy on it.
        folder: for ``rounds.jsonl`` and the checkpoint; None: nothing is written.
        keys: the nodes' public keys; see `roster.keys_of`.
        own_shards: clients have their own images: the settings' partition is not used, and as many take part as there are.
        network: in place of the one that the settings name.

    Returns:
        One dict per round, equal to the lines of ``rounds.jsonl``.

    Raises:
        InputError: the strategy sends no messages, or another ServerApp writes in ``folder``.
    """
    if settings.strategy in ALONE:
        raise InputError(f"strategy {settings.strategy!r} sends no messages; it is not run through Flower.")
    with torch_threads(settings.threads), only_writer(folder):
        count = None if own_shards else settings.partition.num_partitions
        if not own_shards:
            check_clients(settings)
        least = 1 if settings.min_clients is None else settings.min_clients
        roster = Roster(count, keys, WAIT_SECONDS if settings.wait is None else settings.wait, least)
        module = create(network or settings.network, data.spec, generator(settings.seed, "server", "weights"), data.device)
        if network is not None:
            check_outputs(module, data.spec, "the app's network")
        weights: Weights = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}

        judged = (
            data if settings.upload.classes is None else data.subset(settings.upload.classes)
        )  # classes that no client sends are not learned

        def judge(weights: Weights) -> float:
            module.load_state_dict(weights)
            return accuracy(module, judged, settings.split)

        held_out = held_out_images(data, settings.admission)
        rule = rule_for(settings, data.spec, count or 1, folder, network=network, held_out=held_out)
        held = None
        if not own_shards:
            counts = partition_of(data, settings).counts(data.train.labels.cpu().numpy(), data.spec.num_classes)
            held = [tuple(part) for part in counts.tolist()]
        strategy = Federation(settings, rule, data.spec, weights, roster, judge=judge, folder=folder, held=held)
        if strategy.done < settings.rounds:
            strategy.run(Exchange(grid))
        return strategy.lines


@contextlib.contextmanager
def only_writer(folder: Path | None) -> Iterator[None]:
    """Hold the lock of the folder with the rounds; the system releases it when the process ends.

    A ServerApp that is about to end is waited for; two that write the same rounds would damage the file.
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


def report(line: Mapping[str, Json]) -> list[str]:
    """A round in words: accuracy and bytes, then each client that was left out, with the reason."""
    late_by = line["overrun"]
    overrun = f", {late_by:.1f} s beyond the timeout" if isinstance(late_by, float) and late_by >= 0.1 else ""
    moved = f"{line['up']} bytes up, {line['down']} down"
    texts = [f"round {line['round']}: accuracy {line['accuracy']:.2f} %, {moved}, {line['dropped']} dropped{overrun}"]
    for client in _entries(line, "clients"):
        if client["status"] != "accepted" or client["note"]:
            parts = [f"  client {client['client']}: {client['status']}", client["why"], client["note"]]
            texts.append("; ".join(str(part) for part in parts if part))
    texts += [f"  node {each['node']}: left out; {each['why']}" for each in _entries(line, "unknown")]
    texts += [f"  {in_words(each)}" for each in _entries(line, "late")]
    return [*texts, *([f"  {line['note']}"] if line["note"] else [])]


def _entries(line: Mapping[str, Json], name: str) -> list[dict[str, Json]]:
    """The objects in one list of a round's line."""
    entries = line[name]
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def server_app(
    data: Images | Callable[[Context], Images] | None = None,
    network: Factory | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ServerApp:
    """A new ServerApp. Settings come from the run's config; rounds are written to its folder ``out``, if it has one.

    Args:
        data: the server's own images, on which accuracy is measured; see `given.server_data`. The clients then have their own ones, and
            the settings' partition is not used. None: the data set that the run names, divided among the clients.
        network: a function of the data spec that returns a module, in place of the network that the run names.
        mean: of the own images, per channel, of pixels in [0, 1]; None: computed from them. Clients normalise by it.
        std: likewise.
    """
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
        own, root = data is not None, str(context.run_config.get("data-root", ""))
        images = data_of(settings, root) if data is None else server_data(data, context, settings, mean, std)
        bound = keys_of(Path(keys)) if keys else None
        for line in serve(grid, settings, images, folder, bound, own_shards=own, network=network):
            print("\n".join(report(line)))
        if folder is not None:
            write_json(folder / "finished.json", {"rounds": settings.rounds + 1})

    return app
