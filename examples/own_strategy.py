"""A Flower strategy of your own: uploads of all rounds are kept, and networks learn from their union. In a ServerApp the grid is given."""

import json
from dataclasses import asdict

from flwr.serverapp.strategy import FedAvg

import distill
from apps.federated.client_app import client_app
from apps.federated.inline import LocalGrid, quiet_flower, task_identity
from apps.federated.messages import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict, parts_of
from apps.federated.settings import from_mapping, to_json
from apps.federated.union import union
from apps.federated.wire import Limits, decode

data, sets = distill.load("digits"), []
upload = {"ipc": 1, "networks": "fresh", "settings": {"iterations": 15}}
settings = from_mapping({"network": "ConvNetD1W32", "partition": {"num_partitions": 3}, "upload": upload})


class Growing(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        ask = {"ask": ConfigRecord({"round": server_round, "spec": json.dumps(asdict(data.spec))})}
        return [Message(RecordDict(ask), dst_node_id=node, message_type="train.condense") for node in grid.get_node_ids()]

    def aggregate_train(self, server_round, replies):
        limits = Limits(data.spec, classes=tuple(range(10)), per_class=1)  # what was asked for
        for reply in [reply for reply in replies if not reply.has_error()]:
            try:
                sets.append(decode(parts_of(reply.content, "upload"), limits))
            except distill.InputError as error:  # another party's bytes: that upload is dropped, not the round
                print("dropped:", error)
        print(distill.evaluate(union(sets), data, network="ConvNetD1W32", seeds=2, baselines=[]))
        return None, MetricRecord({"images": len(union(sets))})


with quiet_flower(), task_identity():  # Flower's message types and the real client app, all in this process
    grid = LocalGrid(client_app(data), {"settings": to_json(settings)}, clients=3)
    Growing(fraction_evaluate=0.0).start(grid, initial_arrays=ArrayRecord(), num_rounds=2)
