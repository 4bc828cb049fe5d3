"""Facts in a method's file: settings for other uses than the paper's, and the range that its authors published."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from distill.errors import InputError, clipped

MATCHES = ("features", "gradients", "trajectories", "")

Settings = Mapping[str, object]


@dataclass(frozen=True)
class Paper:
    """A published setting for one data set and number of images.

    Attributes:
        source: repository and file, or paper, that the setting comes from.
        protocol: how the set is evaluated, a name in `distill.train.PROTOCOLS`.
        network: evaluation network.
        zca: whether the images are whitened.
        settings: fields of the method's config that differ from their defaults.
    """

    source: str
    protocol: str = "dm"
    network: str = "ConvNet"
    zca: bool = False
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Presets:
    """Class attribute ``presets`` of a method. Every field is a table of config fields unless another type is named here.

    Attributes:
        paper: the paper's setting as a function of data set name and images a class; None: no scenario names are made for the method.
        released: the same for released code that differs from its paper.
        short: a run on two CPU cores, for images of 28 x 28 to 32 x 32 pixels.
        small: what differs from ``short`` where methods are compared (CIFAR-10, ten images a class, width 64).
        short_step: step size of ``short`` for each image a class; None: one for all numbers.
        grey_step: ``short_step`` for images of one channel; None: the same.
        short_by_data: what differs from ``short`` by data set.
        digits: ``short`` for the built-in digits.
        memory: a replay memory's experience, a few seconds to a minute for two classes on two CPU cores.
        client: a federated client's upload.
        sweep: what a short sweep over step sizes reduces; nothing here may change the scale of the step size.
        cost: position in lists of scenarios, which start with the cheapest method.
        published_ipc: largest published number of images a class by data set, "" for every other; empty: not known.
        above: what to do above that number, at one step size.
        batchnorm_at_50: whether the authors match networks with batch norm only at 50 images a class.
    """

    paper: Callable[[str, int], Paper] | None = None
    released: Callable[[str, int], Paper] | None = None
    short: Settings = field(default_factory=dict)
    small: Settings = field(default_factory=dict)
    short_step: float | None = None
    grey_step: float | None = None
    short_by_data: Mapping[str, Settings] = field(default_factory=dict)
    digits: Settings = field(default_factory=dict)
    memory: Settings = field(default_factory=dict)
    client: Settings = field(default_factory=lambda: {"augmentation": "none"})
    sweep: Settings = field(default_factory=dict)
    cost: int = 100
    published_ipc: Mapping[str, int] = field(default_factory=dict)
    above: str = ""
    batchnorm_at_50: bool = False

    def short_form(self, ipc: int, channels: int = 3, data: str = "") -> dict[str, object]:
        """``short`` at ``ipc`` images a class, for images with this many channels, of this data set."""
        step = self.grey_step if channels == 1 and self.grey_step is not None else self.short_step
        return {**self.short, **({} if step is None else {"lr_img": step * ipc}), **self.short_by_data.get(data, {})}


def presets_of(method: type) -> Presets:
    """``method.presets``, or the defaults of `Presets`. Raises `InputError` if the attribute is something else."""
    presets = getattr(method, "presets", None)
    if presets is None:
        return Presets()
    if not isinstance(presets, Presets):
        raise InputError(f"method {method.__name__}: presets is {clipped(presets, 60)}; allowed: a distill.methods.presets.Presets.")
    return presets


def matched_by(method: type) -> str:
    """``method.matches``: what the method compares between real and synthetic images.

    "features" are mean features of each class by itself, so that a class can be condensed alone and released as a difference from a private
    start; "gradients" and "trajectories" compare classes. "" (also where the attribute is missing) is unknown, and treated as comparing
    classes. Raises `InputError` for any other value.
    """
    matches = getattr(method, "matches", "")
    if matches not in MATCHES:
        allowed = ", ".join(repr(name) for name in MATCHES)
        raise InputError(f"method {method.__name__}: matches is {clipped(matches, 60)!r}; allowed: {allowed}.")
    return str(matches)
