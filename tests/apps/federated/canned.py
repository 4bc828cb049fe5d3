"""A Flower app whose clients send what real clients sent once: the real server, and ClientApps that start quickly."""

import re
from pathlib import Path

import numpy as np

from apps.federated import engines
from apps.federated.client_app import client_app
from apps.federated.inline import run_inline
from apps.federated.messages import Context, Message
from apps.federated.settings import Settings
from scenarios.federated.cells import FLOWER_APP

# Imports no torch: a ClientApp is a new process for every message of a deployment.
CLIENT = """
import sys
sys.path.insert(0, {root!r})
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from apps.federated.packing import in_the_form_asked
from tests.apps.federated.changes import KINDS, changed

app = ClientApp(mods=[in_the_form_asked])

@app.query("who")
def who(message, context):
    return Message(RecordDict({{"facts": MetricRecord({{"partition-id": int(context.node_config["partition-id"])}})}}), reply_to=message)

@app.train("condense")
def condense(message, context):
    client, number = int(context.node_config["partition-id"]), int(message.content["ask"]["round"])
    with np.load({canned!r} + f"/{{client}}.npz") as arrays:
        upload = ArrayRecord({{name: Array(arrays[name]) for name in arrays}})
    content = RecordDict({{"upload": upload, "facts": MetricRecord({{"partition-id": client, "round": number, "seconds": 0.1}})}})
    if client >= {honest}:
        turn = (number - 1) * {hostile} + client - {honest}
        content = changed(content, list(KINDS)[turn % len(KINDS)], turn // len(KINDS))
    return Message(content, reply_to=message)
"""


def canned_app(place: Path, made: Settings, honest: int) -> Path:
    """The app's folder. Clients from number ``honest`` on make one change each round (changes.py); ``made`` has one round of uploads."""
    canned = place / "canned"
    canned.mkdir(parents=True)
    real = client_app()

    def client(message: Message, context: Context) -> Message:
        reply = real(message, context)
        if "upload" in reply.content:
            arrays = {name: array.numpy() for name, array in reply.content["upload"].items()}
            np.savez(canned / f"{context.node_config['partition-id']}.npz", **arrays)
        return reply

    run_inline(made, client=client)
    hostile = made.partition.num_partitions - honest
    app = place / "app" / "hostile_app"
    app.mkdir(parents=True)
    (app / "__init__.py").write_text("")
    (app / "client_app.py").write_text(CLIENT.format(root=str(engines.ROOT), canned=str(canned), honest=honest, hostile=hostile))
    (app / "server_app.py").write_text("from apps.federated.server_app import server_app\n\napp = server_app()\n")
    text = (FLOWER_APP / "pyproject.toml").read_text()
    (app.parent / "pyproject.toml").write_text(re.sub(r"[a-z_.]+(?=\.(server|client)_app:app)", "hostile_app", text))
    return app.parent
