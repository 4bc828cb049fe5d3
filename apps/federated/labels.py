"""Soft labels of a client's upload: from the model that the server sent, or from a teacher of the client's own images.

A part of each label stays with the image's class, so that the server can count images by class; the rest is the network's softmax. The
weights of the first round are random, and labels of them are smoothed class labels.
"""

import dataclasses

import torch
import torch.nn.functional as F

from apps.federated.settings import Settings
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError
from distill.networks import Factory, create
from distill.teachers import outputs_on, teacher_network

SOFT_SHARE = 0.4  # of a label, where the settings name none


def with_labels(condensed: CondensedSet, data: ImageData, settings: Settings, received: Factory | None) -> CondensedSet:
    """The upload with the labels that the settings ask for: probabilities (N, K); unchanged where they ask for none.

    Args:
        condensed: what the client would send.
        data: the client's images, which train a local teacher.
        settings: of the run.
        received: makes the server's model, with its weights; None: it sent none.

    Raises:
        InputError: labels of the server's model are asked for, and it sent no weights.
    """
    kind, teacher = settings.upload.labels, settings.upload.teacher
    if kind is None:
        return condensed
    if kind == "local":
        assert teacher is not None  # `check` has seen to it
        network = teacher_network(data, teacher, progress=False)
    elif received is None:
        raise InputError("the settings ask for labels of the server's model, and the server sent no weights.")
    else:
        network = create(received, data.spec, torch.Generator().manual_seed(0), data.device).eval()
    share = settings.upload.soft_share or SOFT_SHARE
    hard = F.one_hot(condensed.hard_labels, data.spec.num_classes).float()
    soft = (1 - share) * hard + share * outputs_on(condensed, network).softmax(1)
    return dataclasses.replace(condensed, labels=soft).made_for(condensed.classes)
