"""What each private example contributes to a release: one clipped row, whatever the example is.

Clipping is flat (over all coordinates of the row) and a row with a number that is not finite is zeroed before it: a single example then
moves a sum of rows by at most the clipping norm.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from distill.batches import Augment, Embed, chunk_size
from distill.errors import InputError

# Gradients of this many examples are held at once: 41 MB for a ConvNet-3 of width 128 at 32 examples.
GRADIENT_CHUNK = 32


def clipped(rows: Tensor, norm: float) -> Tensor:
    """The rows (n, D), each scaled down to Euclidean length ``norm`` where it is longer; rows that are not finite become zero."""
    rows = torch.where(torch.isfinite(rows).all(1, keepdim=True), rows, 0.0)
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
    # A millionth below the norm, so that rounding to float32 cannot end above it.
    factor: Tensor = (norm / (length * (1 + 1e-6))).clamp(max=1.0)
    return rows * factor.to(rows.dtype)


def through(embed: Embed, augment: Augment | None, position: int) -> Embed:
    """The features of images as the class at ``position`` is augmented."""
    return embed if augment is None else lambda images: embed(augment(images, position))


def feature_rows(view: Callable[[Tensor], Tensor], images: Tensor) -> Iterator[Tensor]:
    """The features (n, D) of images (N, C, H, W), chunk by chunk; nothing for no images."""
    with torch.no_grad():
        for part in images.split(chunk_size(images)):
            if len(part):
                yield view(part).float()


def middles(views: Sequence[Callable[[Tensor], Tensor]], images: Sequence[Tensor]) -> Tensor:
    """(K, D): mean feature of each class's (public) images."""
    return torch.stack([torch.cat(list(feature_rows(view, part))).mean(0) for view, part in zip(views, images, strict=True)])


def gradient_rows(network: nn.Module, images: Tensor, labels: Tensor, chunk: int = GRADIENT_CHUNK) -> Iterator[Tensor]:
    """Gradients (n, P) of each example's cross-entropy for all trainable parameters, flat in the order of ``network.parameters()``.

    Memory is bounded by the chunk. A wrapped network (`distill.fast.Fast`) is seen through: its compiled forward has no per-example form.
    """
    network = plain(network)
    trainable = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in network.named_parameters() if not p.requires_grad} | dict(network.named_buffers())

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        outputs: Tensor = functional_call(network, {**parameters, **fixed}, (image[None],))
        return F.cross_entropy(outputs, label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    for part, target in zip(images.split(chunk), labels.split(chunk), strict=True):
        if len(part):  # vmap refuses a batch of nothing
            found = each(trainable, part, target)
            yield torch.cat([found[name].flatten(1) for name in trainable], 1)


def plain(network: nn.Module) -> nn.Module:
    """The network inside `distill.fast.Fast`, or the network itself."""
    inner = getattr(network, "network", None)
    return plain(inner) if isinstance(inner, nn.Module) else network


def check_separable(network: nn.Module, known: set[str]) -> None:
    """`InputError` when a layer mixes the examples of a batch or keeps statistics of them, as Opacus' validator says it.

    ``known`` are forms of networks that passed before, which are not looked at again; this one joins them.
    """
    form = str(type(network)) + str(network)
    if form in known:
        return
    try:
        from opacus.validators import ModuleValidator
    except ImportError:
        raise InputError('private gradients need opacus: pip install "distill-apps[privacy]"') from None
    errors = ModuleValidator.validate(plain(network), strict=False)
    if errors:
        raise InputError(
            f"{type(plain(network)).__name__} cannot be made private ({str(errors[0])[:160]}); BatchNorm mixes the examples of a batch: "
            "use a network with instance or group norm, for example ConvNet."
        )
    known.add(form)
