"""A method of your own in one file: DM with an L1 distance between mean features. Run it: distill run examples/own-method.toml"""

from dataclasses import dataclass

from torch import autograd, stack

from distill.networks import create, embed
from distill.synthetic import Synthetic


@dataclass(frozen=True)
class MyMethodConfig:  # the class's name and "Config"; its fields are the keys of [method]
    iterations: int = 100
    lr_img: float = 0.1
    network: str = "ConvNetD1W32"
    augmentation: str = "none"
    initial: str = "real"


class MyMethod:
    def __init__(self, config, initial, network=None):  # network: None, or a function that takes the place of the config's name
        self.config, self.synthetic, self.network = config, Synthetic.start(initial), network or config.network
        self.total_steps = config.iterations

    @property
    def condensed(self):
        return self.synthetic.to_set(self.config.augmentation)

    def step(self, statistics, generator):  # one update of the images
        net = create(self.network, statistics.spec, generator, statistics.device).requires_grad_(False)
        real = statistics.class_means(lambda images: embed(net, images), 64, None, generator)
        images = [part for part, _ in self.synthetic.per_class()]
        loss = (real - stack([embed(net, part).mean(0) for part in images])).abs().sum()
        self.synthetic.descend(list(autograd.grad(loss, images)), self.config.lr_img, momentum=0.5)
        return {"loss": loss.detach()}

    def state(self):  # what a checkpoint keeps: tensors by name
        return self.synthetic.state()

    def load_state(self, state):
        self.synthetic.load_state(state)
