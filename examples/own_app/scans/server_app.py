"""The server has 300 images of its own, on which accuracy is measured."""

from apps.federated.server_app import server_app
from scans.mine import Net, Scans


def network(spec):
    return Net(spec.num_classes)


app = server_app(data=Scans(slice(300)), network=network)
