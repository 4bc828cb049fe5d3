"""Create networks, by name or from a user's function, from a given random generator and no global one."""

import copy
import math
import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from distill.architectures import NAMES as NAMES
from distill.architectures import Network, build
from distill.architectures import check_name as check_listed
from distill.devices import normal, own_stream
from distill.errors import InputError, a_kind, clipped
from distill.spec import DataSpec

Factory = str | Callable[[DataSpec], nn.Module]

# Names and specs may come from other parties, so the size of a network is limited before it is allocated.
MAX_PARAMETERS = 2_000_000_000

# A user's functions by the names in the user's scenario (scenarios/engine/own.py). Names from other parties are looked up here and never
# imported.
OWN: dict[str, Callable[[DataSpec], nn.Module]] = {}

_factory_lock = threading.RLock()


def check_name(name: str) -> None:
    """Raises `InputError` (with the nearest listed name) unless ``name`` is a listed network, ConvNet with suffixes, or one of `OWN`."""
    if not (isinstance(name, str) and name in OWN):
        check_listed(name)


def create(network: Factory, spec: DataSpec, generator: torch.Generator, device: torch.device | str = "cpu") -> nn.Module:
    """Create a freshly initialised network.

    Args:
        network: a name (see `check_name`), or a function of the data spec that returns a module. Such a function runs with torch's global
            CPU generator seeded from ``generator`` and restored afterwards, so its initialisation is reproducible; what it draws on a GPU
            is not.
        spec: image shape and number of classes.
        generator: source of the initial weights.
        device: where the network is placed.

    Returns:
        The network in training mode; it maps normalised images (N, C, H, W) to logits (N, K).

    Raises:
        InputError: for an unknown name, images that are too small for the network, or a function that returns no module.
    """
    if isinstance(network, str) and network in OWN:
        network = OWN[network]
    if isinstance(network, str):
        with torch.device("meta"):
            built = build(network, spec)
        if parameter_count(built) > MAX_PARAMETERS:
            raise InputError(
                f"network {network!r} on {spec.channels}x{spec.height}x{spec.width} images would have {parameter_count(built):,} "
                f"parameters; at most {MAX_PARAMETERS:,} are allowed; use a smaller network or smaller images."
            )
        built.to_empty(device=device)
        initialise(built, generator)
        built.made_for = (network, spec.shape, spec.num_classes)
        return built
    if isinstance(network, nn.Module) or not callable(network):
        raise InputError(f"network is {a_kind(network)}; give a name or a function of the data spec: lambda spec: MyNet(...).")
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device).item())
    with _factory_lock:
        state = torch.get_rng_state()
        try:
            torch.default_generator.manual_seed(seed)
            own = network(spec)
        finally:
            torch.set_rng_state(state)
    if not isinstance(own, nn.Module):
        name = getattr(network, "__name__", "")
        which = f"the network function {name!r}" if name.isidentifier() else "the network function"
        raise InputError(f"{which} returned an object of type {type(own).__name__}; allowed: a torch.nn.Module.")
    return own.to(device)


def check_outputs(network: nn.Module, spec: DataSpec, what: str, described: Callable[[Exception], str] | None = None) -> None:
    """One pass of two empty images through a user's network, which it leaves unchanged.

    Args:
        network: the network.
        spec: of the images.
        what: the network, in messages.
        described: an exception of the network in words, in place of its type and text.

    Raises:
        InputError: the network fails, or its outputs are not of shape (2, K).
    """
    modes = [(part, part.training) for part in network.modules()]
    device = next((weights.device for weights in network.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            logits = network.eval()(torch.zeros(2, *spec.shape, device=device))
    except InputError:
        raise
    except Exception as error:
        reason = f"{what} raised {type(error).__name__}: {clipped(error, 160)}" if described is None else described(error)
        raise InputError(f"{reason}; allowed: images of shape (n, {', '.join(map(str, spec.shape))}).") from error
    finally:
        for part, mode in modes:
            part.training = mode
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else None
    if shape != (2, spec.num_classes):
        outputs = f"an object of type {type(logits).__name__}" if shape is None else f"shape {shape}"
        raise InputError(f"{what} gives {outputs} for 2 images; allowed: shape (2, {spec.num_classes}), one column a class.")


def renew(
    network: Factory, current: nn.Module | None, spec: DataSpec, generator: torch.Generator, device: torch.device | str = "cpu"
) -> nn.Module:
    """As `create`, on the CPU bit for bit; if ``current`` is the named network already, its weights are redrawn in place.

    The result is in training mode, has no gradients, and all its parameters are trainable.
    """
    if isinstance(network, str) and network not in OWN:
        generator = own_stream(generator, device) or generator  # new weights in each step are drawn where they are used
    if isinstance(network, str) and isinstance(current, Network) and current.made_for == (network, spec.shape, spec.num_classes):
        current.to(device)
        initialise(current, generator)
        current.zero_grad(set_to_none=True)
        return current.requires_grad_(True).train()
    return create(network, spec, generator, device)


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Redraw all weights in place from PyTorch's default distributions.

    Convolutions and linear layers: weights and biases U(-1/sqrt(fan_in), 1/sqrt(fan_in)); norms: ones and zeros, statistics reset.
    Raises `InputError` for a layer of another type that has parameters.
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
    if parameter.device.type in (generator.device.type, "meta"):  # "meta" has no values and no generator
        parameter.uniform_(-bound, bound, generator=None if parameter.is_meta else generator)
    else:
        drawn = torch.empty(parameter.shape, dtype=parameter.dtype, device=generator.device)
        parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))


def embed(network: nn.Module, images: Tensor) -> Tensor:
    """Features that distribution matching compares: the flattened input of the last linear layer.

    Args:
        network: a module; its method ``embed(images)`` is used if it has one, else the `nn.Linear` layer that runs last is observed.
        images: normalised, (N, C, H, W).

    Returns:
        (N, D).

    Raises:
        InputError: if no linear layer runs.
    """
    if callable(method := getattr(network, "embed", None)):
        return method(images)  # type: ignore[no-any-return]
    seen: list[Tensor] = []
    _watching(network, seen, images)
    return seen[-1]


class UnitFeatures(nn.Module):
    """A network whose features have length 1 for every image; its outputs stay.

    Networks of different kinds then weigh alike in distribution matching, and clipping at 1 changes nothing.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def embed(self, images: Tensor) -> Tensor:
        """Unit vectors (N, D)."""
        return nn.functional.normalize(embed(self.network, images))

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.network(images)
        return outputs


def _watching(network: nn.Module, seen: list[Tensor], images: Tensor) -> Tensor:
    """The network's output; ``seen`` gets the flattened input of the last linear layer."""

    def watch(_: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        seen[:] = [(args[0] if args else named["input"]).flatten(1)]

    handles = [m.register_forward_pre_hook(watch, with_kwargs=True) for m in network.modules() if isinstance(m, nn.Linear)]
    try:
        outputs: Tensor = network(images)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise InputError(f"{type(network).__name__} has no torch.nn.Linear layer to take features from; give it a method embed(images).")
    return outputs


def embed_and_logits(network: nn.Module, images: Tensor) -> Tensor:
    """`embed` and the network's output side by side, (N, D + K): what FedDM compares (Xiong et al., CVPR 2023, eq. 8)."""
    if isinstance(network, Network):
        features = network.embed(images)
        return torch.cat([features, network.head(features)], 1)
    seen: list[Tensor] = []
    outputs = _watching(network, seen, images)
    return torch.cat([seen[-1], outputs], 1)


def activations(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Outputs of the network's activation layers in the order they run, then `embed`: what DataDAM matches.

    Uses the network's method ``activations(images)`` if it has one, else observes the activation modules of torch.nn.
    """
    if callable(method := getattr(network, "activations", None)):
        return method(images)  # type: ignore[no-any-return]
    seen: list[Tensor] = []
    handles = [
        m.register_forward_hook(lambda _, args, output: seen.append(output))
        for m in network.modules()
        if isinstance(m, nn.ReLU | nn.LeakyReLU | nn.Sigmoid | nn.SiLU | nn.Tanh | nn.GELU | nn.ELU)
    ]
    try:
        features = embed(network, images)
    finally:
        for handle in handles:
            handle.remove()
    return [*seen, features]


def around(network: nn.Module, centre: Tensor, radius: float, generator: torch.Generator) -> None:
    """Put the network's parameters on the sphere of this radius around ``centre`` (P,), in a random direction.

    Gaussian noise over all weights, scaled to Euclidean length ``radius``, as FedDM (Xiong et al., CVPR 2023) samples its networks.
    """
    noise = normal(tuple(centre.shape), generator, centre.device)
    put_weights(network, centre + noise * (radius / noise.norm()))


def put_weights(network: nn.Module, weights: Tensor) -> None:
    """Copy weights (P,) into the network's parameters, in place: a captured CUDA graph reads them where it has read them before."""
    parameters: list[Tensor] = list(network.parameters())
    parts = weights.detach().split([p.numel() for p in parameters])
    with torch.no_grad():
        torch._foreach_copy_(parameters, [part.view_as(p) for part, p in zip(parts, parameters, strict=True)])


def has_batchnorm(network: nn.Module) -> bool:
    """Whether an image's output depends on the others of its batch."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())


def parameter_count(network: nn.Module) -> int:
    """Number of all parameters, trainable or not."""
    return sum(parameter.numel() for parameter in network.parameters())


def flops(network: nn.Module, spec: DataSpec) -> int:
    """Operations of one image's forward pass in evaluation mode; a multiply-add counts as 2, norms and activations as 0."""
    twin = copy.deepcopy(network).eval()
    like = next(twin.parameters(), torch.empty(0))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        twin(torch.zeros((1, *spec.shape), dtype=like.dtype, device=like.device))
    return int(counter.get_total_flops())
