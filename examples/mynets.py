"""A network of your own: a function of the data's spec. In Python it stands wherever a name does, in a scenario by its import path."""

from torch import nn

import distill


def make_net(spec):  # spec.channels, spec.height, spec.width, spec.num_classes
    return nn.Sequential(
        nn.Conv2d(spec.channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * (spec.height // 4) * (spec.width // 4), spec.num_classes),
    )


if __name__ == "__main__":
    data = distill.load("digits")
    tiny = distill.condense(data, "dm", network=make_net, iterations=30)
    print(distill.evaluate(tiny, data, network=[make_net, "MLP"], seeds=2, baselines=["random"]))
