"""An attack of your own on a condensed set: scores, higher for members, go to the same figures and bounds as the built-in attacks."""

import torch

import distill
from apps.privacy.audit import one_run_epsilon
from apps.privacy.metrics import membership

data = distill.load("digits", validation=0.5, seed=0)  # members are the training half; the validation half was never seen
tiny = distill.condense(data, "dm", ipc=5, network="ConvNetD1W32", iterations=40)
network = distill.train_network(tiny, "ConvNetD1W32", "laptop", seed=0)


def my_attack(images):
    """How near a point's features are to those of the nearest condensed image: (n,)."""
    with torch.no_grad():
        return -torch.cdist(distill.embed(network, images), distill.embed(network, tiny.images)).amin(1)


inside, outside = (my_attack(data.normalised(part, torch.arange(len(getattr(data, part))))) for part in ("train", "validation"))
print(membership(inside.numpy(), outside.numpy()))
print(f"epsilon is at least {one_run_epsilon(inside.numpy(), outside.numpy(), delta=1e-3):.2f}")
