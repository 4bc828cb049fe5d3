"""The tables of a federated run's settings: what clients upload, how the server learns, local SGD, averages of weights, privacy.

FedDM's defaults are those of Xiong et al., CVPR 2023: SGD on the pixels with step size 1 and momentum 0.5, 256 real images a class,
rho = 5, no augmentation; they are the method's ``presets.client``.
"""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from apps.federated.wire import Pixels
from distill.configure import config_class
from distill.teachers import Teacher
from distill.train import Recipe


@config_class
class UploadConfig:
    """What a client condenses and sends.

    Attributes:
        method: a name in `METHODS`.
        ipc: images per class that the client holds.
        pixels: type of the pixels that are sent.
        networks: "received" starts the method's networks from the server's weights; "fresh" draws new ones (no weights are sent down).
        warm_start: start from the client's images of the round before.
        classes: labels that are asked for; None: every class.
        settings: fields of the method's config; for "dm" the defaults are FedDM's.
        labels: None: class numbers. "received" (from the server's weights) or "local" (from a ``teacher`` that is trained on the client's
            images): soft labels of the uploaded images, condensed or real (`apps.federated.labels`).
        soft_share: part of a label that comes from the network, below one half; None: 0.4.
        teacher: of "local" labels.
    """

    method: str = "dm"
    ipc: Annotated[int, Field(ge=1, le=10_000)] = 10
    pixels: Pixels = "uint8"
    networks: Literal["received", "fresh"] = "received"
    warm_start: bool = False
    classes: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    settings: dict[str, object] = field(default_factory=dict)
    labels: Literal["received", "local"] | None = None
    soft_share: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    teacher: Teacher | None = None


@config_class
class ServerConfig:
    """How the server learns from the union, starting from the weights that it sent.

    Attributes:
        recipe: of the training; the published one is 500 epochs of SGD.
        radius: project the new weights onto the ball of this radius around the old ones; None: no limit.
        client_weights: "equal" counts every image the same, "clients" every client, "examples" a client by n_k / n, its share of all real
            images. With "represented" an image counts by the real images that it stands for: those of its class that the client has,
            divided by the images of the class that it sent.
        memory: number of earlier rounds whose unions are kept and learned from too.
    """

    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=500, schedule="constant", augmentation="none"))
    radius: Annotated[float, Field(gt=0)] | None = None
    client_weights: Literal["equal", "clients", "examples", "represented"] = "equal"
    memory: Annotated[int, Field(ge=0)] = 0


@config_class
class LocalConfig:
    """Local SGD of the strategies that send weights.

    Attributes:
        epochs: passes over the client's images in a round.
        max_steps: limit on a round's optimiser steps; None: no limit.
        batch_size: images per step.
        lr: step size.
        momentum: of SGD.
        weight_decay: of SGD.
        proximal_mu: of FedProx, whose loss is that of the batch plus mu / 2 * |w - w_received|^2.
        augmentation: of the images (`distill.augment.strategy`); "auto": DSA's for the data.
    """

    epochs: Annotated[int, Field(ge=1)] = 1
    max_steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 64
    lr: Annotated[float, Field(gt=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    proximal_mu: Annotated[float, Field(ge=0)] = 0.01
    augmentation: str = "none"

    def steps(self, examples: int) -> int:
        """The number of optimiser steps of a client with ``examples`` training images in a round."""
        whole = self.epochs * -(-examples // self.batch_size)
        return whole if self.max_steps is None else min(whole, self.max_steps)


@config_class
class AveragingConfig:
    """How the server puts weights together, for the strategies with a setting of their own.

    Attributes:
        fedavgm_lr: step size of the server's SGD (FedAvgM).
        fedavgm_momentum: its momentum.
        fedadam_lr: step size of the server's Adam (FedAdam).
        fedadam_beta1: decay of its first moment.
        fedadam_beta2: decay of its second moment.
        fedadam_tau: added to the root of its second moment; a larger one adapts less.
        feddyn_alpha: weight of FedDyn's regularisation, on the server and the clients.
        scaffold_weights: "equal" counts every client once in SCAFFOLD's means, as its paper does; "examples" by n_k / n, as FedAvg does.
        malicious: share of the clients that krum, multikrum and fedtrimmedavg assume malicious.
    """

    fedavgm_lr: Annotated[float, Field(gt=0)] = 1.0
    fedavgm_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    fedadam_lr: Annotated[float, Field(gt=0)] = 0.01
    fedadam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    fedadam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    fedadam_tau: Annotated[float, Field(gt=0)] = 0.001
    feddyn_alpha: Annotated[float, Field(gt=0)] = 0.1
    scaffold_weights: Literal["equal", "examples"] = "equal"
    malicious: Annotated[float, Field(ge=0, lt=0.5)] = 0.3


@config_class
class PrivacyRequest:
    """Uploads must be private and cost at most ``epsilon`` each; None: what each client gives. A client may refuse a request."""

    epsilon: Annotated[float, Field(gt=0)] | None = None
