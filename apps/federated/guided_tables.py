"""Settings of the strategies whose clients condense under the federation's guidance: tables of a run's `Settings`."""

from typing import Annotated

from pydantic import Field

from distill.configure import config_class


@config_class
class FedVCKConfig:
    """``[fedvck]``; defaults are those of the authors' code (Youth-49/FedVCK_2024), but for ``beta``, which that code lets fall each round.

    Attributes:
        gamma: slope of an image's score, sigmoid(gamma * (loss - threshold)).
        threshold: loss at which the score is one half; the authors take 0.3 on CIFAR-10.
        mix: share of the logits of the round before in those that the loss is of.
        beta: weight of the server's contrastive term, from the second round on; 0: none.
        temperature: of that term.
        neighbours: number of nearest classes whose images are an image's negatives.
    """

    gamma: Annotated[float, Field(gt=0)] = 1.0
    threshold: Annotated[float, Field(ge=0)] = 0.0
    mix: Annotated[float, Field(ge=0, le=1)] = 0.5
    beta: Annotated[float, Field(ge=0)] = 0.1
    temperature: Annotated[float, Field(gt=0)] = 0.1
    neighbours: Annotated[int, Field(ge=1)] = 5


@config_class
class FedMKConfig:
    """``[fedmk]``.

    Attributes:
        tau: slope of an image's weight, 1 / (1 + exp(-tau * loss)).
    """

    tau: Annotated[float, Field(gt=0)] = 1.0


@config_class
class FedAFConfig:
    """``[fedaf]``; defaults are those of a community's code, as the authors have published none.

    Attributes:
        local: weight of the clients' distance to the federation's mean logits.
        whole: weight of the server's divergence from the clients' soft labels.
        keep: share of the received weights in the network that images are matched in; the rest is a new random one.
        temperature: of soft labels.
    """

    local: Annotated[float, Field(ge=0)] = 0.8
    whole: Annotated[float, Field(ge=0)] = 0.8
    keep: Annotated[float, Field(ge=0, le=1)] = 0.9
    temperature: Annotated[float, Field(gt=0)] = 2.0


# What they set of the upload's method, where it has such a setting: FedVCK matches in the received network itself, FedAF in its own ones.
UPLOADS: dict[str, dict[str, object]] = {"fedvck": {"radius": 0.0}, "fedmk": {}, "fedaf": {"radius": None, "logits": True}}
