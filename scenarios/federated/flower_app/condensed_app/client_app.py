"""Flower's entry point of the client: what privacy it gives is in its node's own file."""

from apps.federated.client_app import client_app
from scenarios.federated.node import of_node

app = client_app(privacy=of_node)
