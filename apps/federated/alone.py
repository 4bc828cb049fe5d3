"""The two bounds that send nothing: every client by itself, and all data in one place. Same model, same local SGD, same first weights."""

from typing import Any

from apps.federated.averaging import local_sgd
from apps.federated.client_app import torch_threads
from apps.federated.condense import partition_of, shard
from apps.federated.settings import Settings
from distill.data import ImageData
from distill.evaluation import accuracy
from distill.networks import create
from distill.randomness import generator


def run_alone(settings: Settings, data: ImageData) -> list[dict[str, Any]]:
    """One line a round, as `server_app.serve` gives them; a "round" is one round's local SGD of the weight-sending rivals.

    "local": the mean accuracy over clients, each by itself. "central": one network on all data; a round is as many optimiser steps as
    all clients take together.
    """
    with torch_threads(settings.threads):
        if settings.strategy == "central":
            parts = [data]
        else:
            partition = partition_of(data, settings)
            parts = [shard(data, partition, client) for client in range(len(partition.parts))]
        networks = [create(settings.network, data.spec, generator(settings.seed, "server", "weights"), data.device) for _ in parts]
        config = settings.local
        if settings.strategy == "central" and config.max_steps is not None:
            config = type(config)(**{**config.__dict__, "max_steps": config.max_steps * settings.partition.num_partitions})
        lines = []
        for number in range(settings.rounds + 1):
            if number:
                for client, (network, part) in enumerate(zip(networks, parts, strict=True)):
                    local_sgd(network, part, config, generator(settings.seed, "alone", client, "round", number))
            values = [accuracy(network, data, settings.split) for network in networks]
            mean = sum(values) / len(values)
            line = {
                "round": number,
                "accuracy": mean,
                "up": 0,
                "down": 0,
                "images": 0,
                "dropped": 0,
                "strays": 0,
                "note": "",
                "clients": [],
            }
            lines.append(line)
        return lines
