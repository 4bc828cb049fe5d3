"""Each node gives the images that are its own."""

from apps.federated.client_app import client_app
from scans.mine import Net, Scans


def shard(context):
    return Scans(slice(300 + int(context.node_config["partition-id"]), None, int(context.node_config["num-partitions"])))


def network(spec):
    return Net(spec.num_classes)


app = client_app(shard=shard, network=network)
