"""The inline engine: the same apps in this process, one client after the other. For tests, debugging and small studies."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.numpy
from flwr.app import Metadata
from flwr.serverapp import Grid

from apps.federated.client_app import client_app, data_of
from apps.federated.client_privacy import ClientPrivacy
from apps.federated.given import Shard
from apps.federated.messages import Context, Error, Message, RecordDict, record_of
from apps.federated.server_app import serve
from apps.federated.settings import Settings, to_json
from apps.federated.wire import Arrays, parse_npy
from distill.data import ImageData
from distill.networks import Factory
from distill.records import CannotWrite, Json, write_whole

FIRST_NODE = 1000
CRASHED = 2  # Flower's code for a ClientApp that raised

# A ClientApp, or a test's own: None is a client that never answers.
Client = Callable[[Message, Context], Message | None]


class LocalGrid(Grid):
    """A Flower grid that passes each message to ``client`` directly. ``folder`` keeps the state of clients for runs that are resumed."""

    waits = False  # an answer that is not there at once will not come

    def __init__(
        self, client: Client, run_config: Mapping[str, bool | float | int | str], clients: int, folder: Path | None = None
    ) -> None:
        self.client, self.folder = client, folder
        self.contexts: dict[int, Context] = {}
        for number in range(clients):
            node = FIRST_NODE + number
            config: dict[str, bool | float | int | str] = {"partition-id": number, "num-partitions": clients}
            self.contexts[node] = Context(1, node, config, self._remembered(node), dict(run_config))
        self.waiting: dict[str, Message] = {}
        self.sent = 0

    def set_run(self, run: object) -> None:
        return None

    @property
    def run(self) -> Any:
        return None

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names = []
        for message in messages:
            self.sent += 1
            names.append(name := str(self.sent))
            self.waiting[name] = self._numbered(message, name)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """The clients work when their answers are taken, so that each can be reported as it comes."""
        for name in message_ids:
            if (message := self.waiting.pop(name, None)) is not None and (reply := self._answer(message)) is not None:
                yield reply

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return list(self.pull_messages(self.push_messages(messages)))

    def _numbered(self, message: Message, name: str) -> Message:
        m = message.metadata
        metadata = Metadata(m.run_id, name, m.src_node_id, m.dst_node_id, "", m.group_id, m.created_at, m.ttl, m.message_type)
        numbered: Message = Message(metadata=metadata, content=message.content)  # type: ignore[call-overload]  # Flower's own form
        return numbered

    def _answer(self, message: Message) -> Message | None:
        context = self.contexts[message.metadata.dst_node_id]
        try:
            reply = self.client(message, context)
        except CannotWrite:  # here all clients share the server's disk
            raise
        except Exception as error:  # as Flower does: a client's crash is an answer, not ours
            reply = Message(Error(CRASHED, f"{type(error).__name__}: {error}"), reply_to=message)
        self._remember(message.metadata.dst_node_id, context)
        return reply

    def _remember(self, node: int, context: Context) -> None:
        if self.folder is not None and context.state:
            tensors = {
                f"{key}/{name}": parse_npy(array.data, name)
                for key, record in context.state.array_records.items()
                for name, array in record.items()
            }
            write_whole(self.folder / f"{node}.safetensors", safetensors.numpy.save(tensors))

    def _remembered(self, node: int) -> RecordDict:
        path = None if self.folder is None else self.folder / f"{node}.safetensors"
        records: dict[str, Arrays] = {}
        if path is not None and path.exists():
            for name, array in safetensors.numpy.load(path.read_bytes()).items():
                key, _, inner = name.partition("/")
                records.setdefault(key, {})[inner] = array
        return RecordDict({key: record_of(arrays) for key, arrays in records.items()})


def run_inline(
    settings: Settings,
    data: ImageData | None = None,
    folder: Path | None = None,
    client: Client | None = None,
    data_root: str = "",
    privacy: ClientPrivacy | None = None,
    *,
    shard: Shard | None = None,
    network: Factory | None = None,
) -> list[dict[str, Json]]:
    """A whole run in this process.

    Args:
        settings: of the run.
        data: the whole data set; None: loaded by name.
        folder: where rounds, checkpoint and the clients' states are kept; None: nowhere.
        client: replaces the ClientApp, in tests of misbehaving clients.
        data_root: where the data set is looked for.
        privacy: the privacy that each client gives.
        shard: the clients' own images, for a user's own app; ``data`` are then the server's.
        network: in place of the one that the settings name.

    Returns:
        One dict per round; see `server_app.serve`.
    """
    with quiet_flower(), task_identity():
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        config = {"settings": to_json(settings), "data-root": data_root}
        states = None if folder is None else folder / "clients"
        data = data_of(settings, data_root) if data is None else data
        app = client or client_app(data if shard is None else None, lambda context: privacy, shard=shard, network=network)
        grid = LocalGrid(app, config, settings.partition.num_partitions, states)
        return serve(grid, settings, data, folder, own_shards=shard is not None, network=network)


@contextlib.contextmanager
def quiet_flower() -> Iterator[None]:
    """Show only warnings of Flower's log inside the block."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def task_identity() -> Iterator[None]:
    """Set the sender of messages inside the block, an internal value that otherwise only Flower's runtime sets."""
    from flwr.supercore.task_identity import TaskIdentity

    names = ("_run_id", "_task_id", "_node_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    for name in names:
        setattr(TaskIdentity, name, 1)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)
