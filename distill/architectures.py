"""The architectures of the dataset-distillation papers, for any image size.

The 32x32 variants of Zhao, Mopuri and Bilen (ICLR 2021) and Zhao and Bilen (ICML 2021, WACV 2023). ``ConvNet`` is three times
[3x3 convolution of width 128, instance norm, ReLU, 2x2 average pooling] and a linear layer; suffixes change one axis each:
``D<depth>``, ``W<width>``, activation ``AS|AR|AL|ASwish``, norm ``NN|BN|LN|IN|GN``, pooling ``NP|MP|AP``, for example ``ConvNetW64D2LNMP``.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.errors import InputError, unknown_name
from distill.pooling import AveragePool
from distill.spec import DataSpec

# Names and specs may come from other parties, so the size of a network is limited before it is allocated.
MAX_DEPTH = 16
MAX_WIDTH = 4096

_SUFFIX = re.compile(
    r"D(?P<depth>[0-9]{1,6})|W(?P<width>[0-9]{1,6})|(?P<activation>ASwish|AS|AR|AL)|(?P<norm>[NBLIG]N)|(?P<pooling>[NMA]P)"
)
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"AS": nn.Sigmoid, "AR": nn.ReLU, "AL": nn.LeakyReLU, "ASwish": nn.SiLU}
_POOLINGS: dict[str, Callable[[], nn.Module]] = {"NP": nn.Identity, "MP": lambda: nn.MaxPool2d(2), "AP": AveragePool}


class Network(nn.Module):
    """``forward = head(neck(body(images)))``; images are (N, C, H, W), the result (N, classes)."""

    def __init__(self, body: nn.Sequential, neck: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.neck = neck
        self.head = head
        self.made_for: tuple[str, tuple[int, int, int], int] | None = None  # name, image shape and number of classes

    def features(self, images: Tensor) -> Tensor:
        """The last feature map, (N, C', H', W'); for the MLP its last hidden layer, (N, D)."""
        return self.body(images)  # type: ignore[no-any-return]

    def embed(self, images: Tensor) -> Tensor:
        """The input of the last linear layer, (N, D)."""
        return self.neck(self.body(images))  # type: ignore[no-any-return]

    def activations(self, images: Tensor) -> list[Tensor]:
        """Outputs of each block's activation (after the norm, before the pooling) in order, then `embed`; DataDAM matches them."""
        outputs = []
        for layer in self.body:
            images = layer(images)
            if isinstance(layer, nn.ReLU | nn.LeakyReLU | nn.Sigmoid | nn.SiLU | _ResidualBlock):
                outputs.append(images)
        return [*outputs, self.neck(images)]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of normalised images (N, C, H, W)."""
        return self.head(self.neck(self.body(images)))  # type: ignore[no-any-return]


class _GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm`, as separate operations when it is compiled, so that the compiler can fuse it with the next ones."""

    def forward(self, images: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(images)
        count, channels, height, width = images.shape
        # At least float32, even if the convolutions run in bfloat16: a variance needs the precision.
        wide = images if images.dtype == torch.float64 else images.float()
        grouped = wide.view(count, self.num_groups, channels // self.num_groups, height, width)
        variance, mean = torch.var_mean(grouped, (2, 3, 4), correction=0, keepdim=True)
        normal = ((grouped - mean) * torch.rsqrt(variance + self.eps)).view(images.shape)
        return (normal * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(images.dtype)


class _ResidualBlock(nn.Module):
    """He et al. (CVPR 2016), basic block; ``average_pool`` halves by pooling instead of by a stride."""

    def __init__(self, inputs: int, width: int, stride: int, norm: str, *, average_pool: bool) -> None:
        super().__init__()
        pools = [AveragePool()] if average_pool and stride == 2 else []
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


Builder = Callable[[str, DataSpec], Network]


@dataclass(frozen=True)
class _Style:
    depth: int = 3
    width: int = 128
    activation: str = "AR"
    norm: str = "IN"
    pooling: str = "AP"


def check_name(name: str) -> None:
    """Raises `InputError` (with the nearest listed name) unless ``name`` is in `NAMES` or is ConvNet with suffixes."""
    if isinstance(name, str) and name.startswith("ConvNet"):
        _style(name)
    elif not isinstance(name, str) or name not in NETWORKS:
        raise unknown_name("network", name, NETWORKS)


def _style(name: str) -> _Style:
    axes: dict[str, str] = {}
    position = len("ConvNet")
    while position < len(name):
        suffix = _SUFFIX.match(name, position)
        if suffix is None or suffix.lastgroup is None:
            raise unknown_name("network", name, NETWORKS)
        axis, value = suffix.lastgroup, suffix[suffix.lastgroup]
        if axis in axes:
            raise InputError(f"network {name[:80]!r} gives its {axis} twice; each of depth, width, activation, norm, pooling at most once.")
        axes[axis] = value
        position = suffix.end()
    usual = _Style()
    style = _Style(
        int(axes.get("depth", usual.depth)),
        int(axes.get("width", usual.width)),
        axes.get("activation", usual.activation),
        axes.get("norm", usual.norm),
        axes.get("pooling", usual.pooling),
    )
    if not 1 <= style.depth <= MAX_DEPTH:
        raise InputError(f"network {name!r} has depth {style.depth}; allowed: 1 to {MAX_DEPTH}.")
    if not 1 <= style.width <= MAX_WIDTH:
        raise InputError(f"network {name!r} has width {style.width}; allowed: 1 to {MAX_WIDTH}.")
    if style.norm == "GN" and style.width % 4:
        raise InputError(f"network {name!r} has 4 norm groups and width {style.width}; use a width that 4 divides.")
    return style


def build(name: str, spec: DataSpec) -> Network:
    """The network called ``name`` for the spec's image shape and classes, with torch's initial weights; `InputError` as `check_name`."""
    check_name(name)
    return NETWORKS.get(name, _convnet)(name, spec)


def _convnet(name: str, spec: DataSpec) -> Network:
    style = _style(name)
    return _stacked(name, spec, 3, ((style.width,),) * style.depth, style)


def _alexnet(norm: str) -> Builder:
    return lambda name, spec: _stacked(name, spec, 5, ((128,), (192,), (256, 192, 192)), _Style(norm=norm, pooling="MP"))


def _vgg11(norm: str) -> Builder:
    blocks = ((64,), (128,), (256, 256), (512, 512), (512, 512))
    return lambda name, spec: _stacked(name, spec, 3, blocks, _Style(norm=norm, pooling="MP"))


def _linear(name: str, spec: DataSpec) -> Network:
    """Softmax regression: the features are the pixels."""
    return Network(nn.Sequential(nn.Flatten()), nn.Identity(), nn.Linear(math.prod(spec.shape), spec.num_classes))


def _mlp(name: str, spec: DataSpec) -> Network:
    body = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(spec.shape), 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
    return Network(body, nn.Identity(), nn.Linear(128, spec.num_classes))


def _stacked(name: str, spec: DataSpec, kernel: int, blocks: tuple[tuple[int, ...], ...], style: _Style) -> Network:
    """ConvNet, AlexNet, VGG: blocks of convolutions, each block closed by a pooling. ``kernel`` holds for the single-convolution blocks."""
    # An instance norm of a single pixel is constant, so that at least 2 x 2 pixels are needed even without pooling.
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


def _lenet(name: str, spec: DataSpec) -> Network:
    _check_size(name, spec, 16)
    padding = _enlarged(spec)
    height, width = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in spec.shape[1:])
    first = (nn.Conv2d(spec.channels, 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2))
    neck = nn.Sequential(nn.Flatten(), nn.Linear(16 * height * width, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU())
    return Network(nn.Sequential(*first, *second), neck, nn.Linear(84, spec.num_classes))


def _resnet18(norm: str, *, average_pool: bool = False) -> Builder:
    return lambda name, spec: _residual(name, spec, norm, average_pool=average_pool)


def _residual(name: str, spec: DataSpec, norm: str, *, average_pool: bool) -> Network:
    # The last norms must see more than one pixel: a stride rounds the side up, pooling rounds it down.
    _check_size(name, spec, 16 if average_pool else 9)
    layers: list[nn.Module] = [nn.Conv2d(spec.channels, 64, 3, padding=1, bias=False), *_norm(norm, 64), nn.ReLU()]
    inputs = 64
    for width, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        layers.append(_ResidualBlock(inputs, width, stride, norm, average_pool=average_pool))
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
    return [_GroupNorm(4 if norm == "GN" else width, width)]


def _enlarged(spec: DataSpec) -> int:
    """Extra padding of the first convolution: the papers bring MNIST's 28x28 to 32x32 there (not in the MLP and the ResNets)."""
    return 2 if spec.shape == (1, 28, 28) else 0


def _check_size(name: str, spec: DataSpec, smallest: int) -> None:
    if min(spec.height, spec.width) + 2 * _enlarged(spec) < smallest:
        raise InputError(
            f"network {name[:80]!r} needs images of at least {smallest}x{smallest}; data set {spec.name!r} has {spec.height}x{spec.width};"
            " use larger images or a shallower network."
        )


# The networks by name; a new network is an entry here. ConvNet takes any suffixes; the listed ones are those of the papers.
NETWORKS: dict[str, Builder] = {
    "Linear": _linear,
    "MLP": _mlp,
    "ConvNet": _convnet,
    "LeNet": _lenet,
    "AlexNet": _alexnet("NN"),
    "AlexNetBN": _alexnet("BN"),
    "VGG11": _vgg11("IN"),
    "VGG11BN": _vgg11("BN"),
    "ResNet18": _resnet18("IN"),
    "ResNet18BN": _resnet18("BN"),
    "ResNet18_AP": _resnet18("IN", average_pool=True),
    "ResNet18BN_AP": _resnet18("BN", average_pool=True),
    **{f"ConvNet{depth}": _convnet for depth in ("D1", "D2", "D3", "D4")},
    **{f"ConvNet{width}": _convnet for width in ("W32", "W64", "W128", "W256")},
    **{f"ConvNet{activation}": _convnet for activation in _ACTIVATIONS},
    **{f"ConvNet{norm}": _convnet for norm in ("NN", "BN", "LN", "IN", "GN")},
    **{f"ConvNet{pooling}": _convnet for pooling in _POOLINGS},
}
NAMES: tuple[str, ...] = tuple(NETWORKS)
