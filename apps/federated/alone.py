"""Two bounds without communication: each client alone, and all data in one place, with the same model, local SGD and first weights."""

from apps.federated.averaging import local_sgd
from apps.federated.client_app import torch_threads
from apps.federated.condense import partition_of, shard
from apps.federated.settings import Settings
from distill.data import ImageData
from distill.evaluation import accuracy
from distill.networks import create
from distill.randomness import generator
from distill.records import Json


def run_alone(settings: Settings, data: ImageData) -> list[dict[str, Json]]:
    """Train without communication; a "round" is the local SGD of one round of the strategies that send weights.

    Args:
        settings: with strategy "local" (the mean accuracy of clients that train alone) or "central" (one network on all data, whose rounds
            have as many optimiser steps as all clients take together).
        data: the whole data set.

    Returns:
        One dict per round, with the same keys as those of `server_app.serve`.
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
            line: dict[str, Json] = {
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
