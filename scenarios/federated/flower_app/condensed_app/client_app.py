"""Flower's entry point of the client."""

from apps.federated.client_app import client_app

app = client_app()
