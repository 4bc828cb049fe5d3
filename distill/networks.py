"""The small networks of the dataset-distillation papers, for any image size, made without touching a global random generator.

Architectures: the 32x32 variants of Zhao, Mopuri and Bilen (ICLR 2021) and Zhao and Bilen (ICML 2021, WACV 2023). ``ConvNet`` is
three times [3x3 convolution of width 128, instance norm, ReLU, 2x2 average pooling] and a linear layer; suffixes change one axis each:
``D<depth>``, ``W<width>``, activation ``AS|AR|AL|ASwish``, norm ``NN|BN|LN|IN|GN``, pooling ``NP|MP|AP``, for example ``ConvNetW64D2LNMP``.
"""

import copy
import math
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from distill.errors import InputError, unknown_name
from distill.spec import DataSpec

Factory = str | Callable[[DataSpec], nn.Module]

NAMES: tuple[str, ...] = (
    *("MLP", "ConvNet", "LeNet", "AlexNet", "AlexNetBN", "VGG11", "VGG11BN"),
    *("ResNet18", "ResNet18BN", "ResNet18_AP", "ResNet18BN_AP"),
    *("ConvNetD1", "ConvNetD2", "ConvNetD3", "ConvNetD4", "ConvNetW32", "ConvNetW64", "ConvNetW128", "ConvNetW256"),
    *("ConvNetAS", "ConvNetAR", "ConvNetAL", "ConvNetASwish"),
    *("ConvNetNN", "ConvNetBN", "ConvNetLN", "ConvNetIN", "ConvNetGN"),
    *("ConvNetNP", "ConvNetMP", "ConvNetAP"),
)

# Names and specs can come from other parties, so a network's size is bounded before it is allocated.
MAX_DEPTH = 16
MAX_WIDTH = 4096
MAX_PARAMETERS = 2_000_000_000

_SUFFIX = re.compile(
    r"D(?P<depth>[0-9]{1,6})|W(?P<width>[0-9]{1,6})|(?P<activation>ASwish|AS|AR|AL)|(?P<norm>[NBLIG]N)|(?P<pooling>[NMA]P)"
)
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"AS": nn.Sigmoid, "AR": nn.ReLU, "AL": nn.LeakyReLU, "ASwish": nn.SiLU}
_POOLINGS: dict[str, Callable[[], nn.Module]] = {"NP": nn.Identity, "MP": lambda: nn.MaxPool2d(2), "AP": lambda: nn.AvgPool2d(2)}

_factory_lock = threading.RLock()


class Network(nn.Module):
    """``forward = head(neck(body(images)))``; images are (N, C, H, W), the result (N, classes)."""

    def __init__(self, body: nn.Sequential, neck: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.neck = neck
        self.head = head
        self.made_for: tuple[Any, ...] = ()

    def features(self, images: Tensor) -> Tensor:
        """The last feature map, (N, C', H', W'); for the MLP its last hidden layer, (N, D)."""
        return self.body(images)  # type: ignore[no-any-return]

    def embed(self, images: Tensor) -> Tensor:
        """The input of the last linear layer, (N, D)."""
        return self.neck(self.body(images))  # type: ignore[no-any-return]

    def activations(self, images: Tensor) -> list[Tensor]:
        """Output of each block's activation (after the norm, before the pooling), in order, then `embed`: what DataDAM matches."""
        outputs = []
        for layer in self.body:
            images = layer(images)
            if isinstance(layer, nn.ReLU | nn.LeakyReLU | nn.Sigmoid | nn.SiLU | _ResidualBlock):
                outputs.append(images)
        return [*outputs, self.neck(images)]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.neck(self.body(images)))  # type: ignore[no-any-return]


class _ResidualBlock(nn.Module):
    """He et al. (CVPR 2016), basic block; ``average_pool`` halves by pooling instead of by a stride."""

    def __init__(self, inputs: int, width: int, stride: int, norm: str, average_pool: bool) -> None:
        super().__init__()
        pools = [nn.AvgPool2d(stride)] if average_pool and stride > 1 else []
        step = 1 if average_pool else stride
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, width, 3, step, padding=1, bias=False),
            *_norm(norm, width),
            nn.ReLU(),
            *pools,
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            *_norm(norm, width),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != width:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, step, bias=False), *pools, *_norm(norm, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


@dataclass(frozen=True)
class _Style:
    depth: int = 3
    width: int = 128
    activation: str = "AR"
    norm: str = "IN"
    pooling: str = "AP"


def create(network: Factory, spec: DataSpec, generator: torch.Generator, device: torch.device | str = "cpu") -> nn.Module:
    """A freshly initialised network for ``spec``, on ``device``, in training mode.

    ``network`` is a name (see `check_name`) or a function of the `DataSpec` that returns a module. Such a function runs with the global CPU
    generator seeded from ``generator`` and put back afterwards, so its own initialisation is kept and repeats; what it draws on a GPU is
    not covered, so let it build on the CPU. Raises `InputError` for an unknown name, images that are too small, or a wrong result.
    """
    if isinstance(network, str):
        with torch.device("meta"):
            made = _build(network, spec)
        if parameter_count(made) > MAX_PARAMETERS:
            raise InputError(
                f"network {network!r} on {spec.channels}x{spec.height}x{spec.width} images would have {parameter_count(made):,} parameters;"
                f" at most {MAX_PARAMETERS:,} are allowed; use a smaller network or smaller images."
            )
        made.to_empty(device=device)
        initialise(made, generator)
        made.made_for = (network, spec.shape, spec.num_classes)
        return made
    if isinstance(network, nn.Module) or not callable(network):
        raise InputError(f"network is a {type(network).__name__}; give a name or a function of the data spec: lambda spec: MyNet(...).")
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device).item())
    with _factory_lock:
        state = torch.get_rng_state()
        try:
            torch.default_generator.manual_seed(seed)
            own = network(spec)
        finally:
            torch.set_rng_state(state)
    if not isinstance(own, nn.Module):
        raise InputError(f"the network function returned a {type(own).__name__}; it must return a torch.nn.Module.")
    return own.to(device)


def renew(
    network: Factory, current: nn.Module | None, spec: DataSpec, generator: torch.Generator, device: torch.device | str = "cpu"
) -> nn.Module:
    """The same as `create`, bit for bit, but a named network that ``current`` already is gets new weights in place: no allocation.

    Like a new network it is in training mode, has no gradients, and all its parameters are trainable.
    """
    if isinstance(network, str) and isinstance(current, Network) and current.made_for == (network, spec.shape, spec.num_classes):
        current.to(device)
        initialise(current, generator)
        current.zero_grad(set_to_none=True)
        return current.requires_grad_(True).train()
    return create(network, spec, generator, device)


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Redraws all weights in place from PyTorch's default distributions, on the generator's device.

    Convolutions and linear layers: weights and biases U(-1/sqrt(fan_in), 1/sqrt(fan_in)); norms: ones and zeros, statistics reset.
    Raises `InputError` for a layer of another kind that has parameters of its own.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            for parameter in layer.parameters(recurse=False):
                _uniform_(parameter, bound, generator)
        elif isinstance(layer, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm):
            layer.reset_parameters()
        elif any(True for _ in layer.parameters(recurse=False)):
            raise InputError(
                f"no default initialisation is known for {type(layer).__name__} layers; pass a function that builds the network."
            )


@torch.no_grad()
def _uniform_(parameter: Tensor, bound: float, generator: torch.Generator) -> None:
    if parameter.device == generator.device:
        parameter.uniform_(-bound, bound, generator=generator)
    else:
        drawn = torch.empty(parameter.shape, dtype=parameter.dtype, device=generator.device)
        parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))


def embed(network: nn.Module, images: Tensor) -> Tensor:
    """The flattened input of the network's last linear layer, (N, D): the features that distribution matching compares.

    Uses ``network.embed`` where there is one, else watches the `nn.Linear` layer that runs last. Raises `InputError` when none runs.
    """
    if callable(own := getattr(network, "embed", None)):
        return own(images)  # type: ignore[no-any-return]
    seen: list[Tensor] = []

    def watch(_: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        seen[:] = [args[0] if args else named["input"]]

    handles = [m.register_forward_pre_hook(watch, with_kwargs=True) for m in network.modules() if isinstance(m, nn.Linear)]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise InputError(f"{type(network).__name__} has no torch.nn.Linear layer to take features from; give it a method embed(images).")
    return seen[0].flatten(1)


def has_batchnorm(network: nn.Module) -> bool:
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def flops(network: nn.Module, spec: DataSpec) -> int:
    """Operations of one image's forward pass in evaluation mode; a multiply-add counts as 2, norms and activations as 0."""
    twin = copy.deepcopy(network).eval()
    like = next(twin.parameters(), torch.empty(0))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        twin(torch.zeros((1, *spec.shape), dtype=like.dtype, device=like.device))
    return int(counter.get_total_flops())


def check_name(name: str) -> None:
    """Raises `InputError` (with the nearest listed name) unless ``name`` is in `NAMES` or is ConvNet with suffixes."""
    if isinstance(name, str) and name.startswith("ConvNet"):
        _style(name)
    elif name not in NAMES:
        raise unknown_name("network", name, NAMES)


def _style(name: str) -> _Style:
    given: dict[str, Any] = {}
    position = len("ConvNet")
    while position < len(name):
        found = _SUFFIX.match(name, position)
        if found is None or found.lastgroup is None:
            raise unknown_name("network", name, NAMES)
        axis, value = found.lastgroup, found[found.lastgroup]
        if axis in given:
            raise InputError(f"network {name[:80]!r} gives its {axis} twice; each of depth, width, activation, norm, pooling at most once.")
        given[axis] = int(value) if axis in ("depth", "width") else value
        position = found.end()
    style = _Style(**given)
    if not 1 <= style.depth <= MAX_DEPTH:
        raise InputError(f"network {name!r} has depth {style.depth}; allowed: 1 to {MAX_DEPTH}.")
    if not 1 <= style.width <= MAX_WIDTH:
        raise InputError(f"network {name!r} has width {style.width}; allowed: 1 to {MAX_WIDTH}.")
    if style.norm == "GN" and style.width % 4:
        raise InputError(f"network {name!r} has 4 norm groups and width {style.width}; use a width that 4 divides.")
    return style


def _build(name: str, spec: DataSpec) -> Network:
    check_name(name)
    norm = "BN" if "BN" in name else "IN"
    if name == "MLP":
        return _mlp(spec)
    if name == "LeNet":
        return _lenet(spec)
    if name.startswith("ResNet18"):
        return _resnet18(name, spec, norm, average_pool=name.endswith("_AP"))
    if name.startswith("AlexNet"):
        return _stacked(name, spec, 5, ((128,), (192,), (256, 192, 192)), _Style(norm="BN" if norm == "BN" else "NN", pooling="MP"))
    if name.startswith("VGG11"):
        return _stacked(name, spec, 3, ((64,), (128,), (256, 256), (512, 512), (512, 512)), _Style(norm=norm, pooling="MP"))
    style = _style(name)
    return _stacked(name, spec, 3, ((style.width,),) * style.depth, style)


def _mlp(spec: DataSpec) -> Network:
    body = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(spec.shape), 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
    return Network(body, nn.Identity(), nn.Linear(128, spec.num_classes))


def _stacked(name: str, spec: DataSpec, kernel: int, blocks: tuple[tuple[int, ...], ...], style: _Style) -> Network:
    """ConvNet, AlexNet, VGG: blocks of convolutions, each block closed by a pooling. ``kernel`` holds for the single-convolution blocks."""
    # An instance norm of a single pixel is constant, so even without pooling two pixels a side are needed.
    _check_size(name, spec, 2 if style.pooling == "NP" else 2 ** len(blocks))
    padding = _enlarged(spec)
    height, width, inputs = spec.height + 2 * padding, spec.width + 2 * padding, spec.channels
    layers: list[nn.Module] = []
    for widths in blocks:
        size = kernel if len(widths) == 1 else 3
        for outputs in widths:
            layers += [nn.Conv2d(inputs, outputs, size, padding=size // 2 + padding), *_norm(style.norm, outputs, height, width)]
            layers.append(_ACTIVATIONS[style.activation]())
            inputs, padding = outputs, 0
        layers.append(_POOLINGS[style.pooling]())
        if style.pooling != "NP":
            height, width = height // 2, width // 2
    return Network(nn.Sequential(*layers), nn.Flatten(), nn.Linear(inputs * height * width, spec.num_classes))


def _lenet(spec: DataSpec) -> Network:
    _check_size("LeNet", spec, 16)
    padding = _enlarged(spec)
    height, width = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in spec.shape[1:])
    first = (nn.Conv2d(spec.channels, 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2))
    neck = nn.Sequential(nn.Flatten(), nn.Linear(16 * height * width, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU())
    return Network(nn.Sequential(*first, *second), neck, nn.Linear(84, spec.num_classes))


def _resnet18(name: str, spec: DataSpec, norm: str, average_pool: bool) -> Network:
    # The last norms must see more than one pixel: a stride rounds the side up, pooling rounds it down.
    _check_size(name, spec, 16 if average_pool else 9)
    layers: list[nn.Module] = [nn.Conv2d(spec.channels, 64, 3, padding=1, bias=False), *_norm(norm, 64), nn.ReLU()]
    inputs = 64
    for width, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        layers.append(_ResidualBlock(inputs, width, stride, norm, average_pool))
        inputs = width
    if average_pool:
        return Network(nn.Sequential(*layers), nn.Flatten(), nn.Linear(512 * (spec.height // 8) * (spec.width // 8), spec.num_classes))
    return Network(nn.Sequential(*layers), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(512, spec.num_classes))


def _norm(norm: str, width: int, height: int = 0, length: int = 0) -> list[nn.Module]:
    if norm == "NN":
        return []
    if norm == "BN":
        return [nn.BatchNorm2d(width)]
    if norm == "LN":
        return [nn.LayerNorm([width, height, length])]
    return [nn.GroupNorm(4 if norm == "GN" else width, width)]


def _enlarged(spec: DataSpec) -> int:
    """Extra padding of the first convolution: the papers bring MNIST's 28x28 to 32x32 there (not in the MLP and the ResNets)."""
    return 2 if spec.shape == (1, 28, 28) else 0


def _check_size(name: str, spec: DataSpec, smallest: int) -> None:
    if min(spec.height, spec.width) + 2 * _enlarged(spec) < smallest:
        raise InputError(
            f"network {name[:80]!r} needs images of at least {smallest}x{smallest}; data set {spec.name!r} has {spec.height}x{spec.width};"
            " use larger images or a shallower network."
        )
