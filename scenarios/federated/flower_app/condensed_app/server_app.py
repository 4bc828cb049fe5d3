"""Flower's entry point of the server."""

from apps.federated.server_app import server_app

app = server_app()
