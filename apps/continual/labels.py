"""Labels of teachers in a replay memory: each has seen one experience, as the images that it labels.

A teacher's outputs for the classes of its experience become probabilities, when the experience is there, and are stored with the images.
What DER stores instead are the outputs of the learner itself (`apps.continual.strategies`).
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from apps.continual.memory import Memory
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.teachers import Teacher, outputs_on, teacher_network

LABELLED = "-labelled"  # a memory's name after its method's, where its images have labels of a teacher


def labelled_memories(memories: Sequence[Memory], stream: Sequence[ImageData], teacher: Teacher) -> list[CondensedSet]:
    """The set of each memory with the labels of one teacher an experience, probabilities (N, K) that are 0 outside its classes.

    Args:
        memories: the memory after each experience; classes have a fixed share, so that an image keeps its label.
        stream: the experiences.
        teacher: what is trained on each experience; the cache on disk spares training it again.
    """
    networks = [teacher_network(data, teacher, progress=False) for data in stream[: len(memories)]]
    sets = []
    for memory in memories:
        condensed, labels = memory.condensed(stream[0].spec).to(stream[0].device), []
        for group, part in zip(memory.groups, condensed.images.split([group.count for group in memory.groups]), strict=True):
            one = dataclasses.replace(condensed, images=part, labels=torch.full((len(part),), group.label, device=part.device))
            labels.append(_among(outputs_on(one, networks[group.experience]), stream[group.experience].classes))
        sets.append(dataclasses.replace(condensed, labels=torch.cat(labels)).made_for(condensed.classes))
    return sets


def label_bytes(memory: Memory, stream: Sequence[ImageData]) -> int:
    """Bytes of the labels: a float32 number for each class of an image's experience."""
    return sum(4 * len(stream[group.experience].classes) * group.count for group in memory.groups)


def _among(outputs: Tensor, classes: Sequence[int]) -> Tensor:
    """Softmax of outputs (n, K) over some classes; the others have probability 0."""
    chosen = torch.tensor(classes, device=outputs.device)
    return torch.zeros_like(outputs).index_copy(1, chosen, outputs[:, chosen].softmax(1))
