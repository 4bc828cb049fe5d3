"""What a step asks of a device, counted with or without one: operations, waits for the host, transfers, live bytes.

On device "meta", which computes shapes and no values, the code takes its branches for a GPU, so that these counts need none. Where the
host asks such a device for values, it gets ones.
"""

import copy
import dataclasses
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

from distill.condensed import CondensedSet
from distill.data import ImageData, Split
from distill.decode import from_text
from distill.experts import ExpertConfig, Trajectories
from distill.methods import METHODS
from distill.networks import Factory, create, parameter_count
from distill.randomness import generator
from distill.statistics import ExactStatistics
from distill.synthetic import Synthetic, initial_set

aten = torch.ops.aten
T = TypeVar("T")

READS = {aten._local_scalar_dense.default}
# Their results' sizes depend on values, which the host reads before it goes on.
SIZED_BY_VALUES = ("nonzero", "masked_select", "unique", "_unique", "_unique2", "unique_dim", "unique_consecutive", "equal")
MASKED = ("index", "index_put", "index_put_", "_index_put_impl_")


@dataclasses.dataclass
class Counts:
    """Of what ran inside a `Counting`.

    Attributes:
        operations: on the device, views not counted.
        waits: operations that make the host wait for the device, by name: reads of values, and copies between host and device that block.
        transfers: copies to the device that do not block.
        mixed: operations that got tensors of the host (other than single numbers) among the device's, by name.
        peak: largest sum of the sizes of the device's live tensors, bytes; what a library allocates inside an operation is not in it.
        names: operations by name.
        flops: floating-point operations of convolutions and matrix products; a multiply-add counts as 2.
    """

    operations: int = 0
    waits: Counter[str] = dataclasses.field(default_factory=Counter)
    transfers: int = 0
    mixed: Counter[str] = dataclasses.field(default_factory=Counter)
    peak: int = 0
    names: Counter[str] = dataclasses.field(default_factory=Counter)
    flops: int = 0


class Counting(TorchDispatchMode):
    """Counts what runs inside it: ``with Counting() as counts: step()``."""

    def __init__(self, device: str = "meta") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device, self.counts = device, Counts()
        self._live: dict[int, int] = {}
        self._bytes = 0

    def __enter__(self) -> Counts:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self.counts

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        kwargs = kwargs or {}
        given = tensors_of((args, kwargs))
        name = func.overloadpacket.__name__
        copies = func in (aten._to_copy.default, aten.copy_.default)
        answer = self._waits(func, name, given, args, kwargs) if self._here(given) or kwargs.get("device") is not None else None
        result = func(*args, **kwargs) if answer is None else answer
        made = tensors_of(result)
        if self._here([*given, *made]):
            self._hold([*given, *made])
            if not _views(func):
                self.counts.operations += 1
                self.counts.names[name] += 1
                self.counts.flops += _flops(func, args, kwargs, result)
            if not copies and self._here(given) and any(t.device.type == "cpu" and t.ndim for t in given):
                self.counts.mixed[name] += 1
            if func is aten.lift_fresh.default:  # `torch.tensor(values, device=...)`, and a list as an index
                self.counts.waits["tensor of host values"] += 1
        return result

    def _here(self, tensors: Sequence[Tensor]) -> bool:
        return any(t.device.type == self.device for t in tensors)

    def _waits(
        self, func: OpOverload, name: str, given: Sequence[Tensor], args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> object:
        """Count a wait; the answer on a device without values, or None."""
        if func in READS:
            self.counts.waits["read of a value"] += 1
            return None if self.device != "meta" else given[0].new_ones((), device="cpu").item()
        if name in SIZED_BY_VALUES or (name in MASKED and any(t.dtype in (torch.bool, torch.uint8) for t in tensors_of(args[1]))):
            self.counts.waits[name] += 1
        if func in (aten._to_copy.default, aten.copy_.default):
            source = given[-1] if func is aten.copy_.default else given[0]
            target = given[0].device if func is aten.copy_.default else torch.device(str(kwargs.get("device") or source.device))
            if source.device.type != target.type:
                blocks = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
                if target.type == self.device and not blocks:
                    self.counts.transfers += 1
                else:
                    self.counts.waits["copy to the host" if source.device.type == self.device else "copy to the device"] += 1
            if source.device.type == "meta" and target.type == "cpu":
                dtype = kwargs.get("dtype")
                return torch.ones(source.shape, dtype=dtype if isinstance(dtype, torch.dtype) else source.dtype)
        return None

    def _hold(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if tensor.device.type == self.device and storage._cdata not in self._live:
                self._live[storage._cdata] = storage.nbytes()
                self._bytes += storage.nbytes()
                weakref.finalize(storage, self._release, storage._cdata)
        self.counts.peak = max(self.counts.peak, self._bytes)

    def _release(self, key: int) -> None:
        self._bytes -= self._live.pop(key, 0)


def tensors_of(nested: object) -> list[Tensor]:
    """The tensors in lists, tuples and dicts."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(nested) if isinstance(leaf, Tensor)]


def _views(func: OpOverload) -> bool:
    """Whether an operation only describes its input's memory anew."""
    returns = func._schema.returns
    aliases = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    return aliases or func.overloadpacket in (aten.detach, aten.lift_fresh, aten._unsafe_view, aten._reshape_alias)


def _flops(func: OpOverload, args: tuple[object, ...], kwargs: dict[str, object], result: object) -> int:
    """torch's formulas, but of the gradients of a convolution: its own does not divide the gradient of the weights by the groups."""
    if func.overloadpacket is aten.convolution_backward:
        grad, images, weight, *_, transposed, _padding, _groups, wanted = args
        grad, images, weight = (list(tensor.shape) for tensor in (grad, images, weight) if isinstance(tensor, Tensor))
        return conv_flop_count(images, weight, grad, bool(transposed)) * (sum(wanted[:2]) if isinstance(wanted, list) else 0)
    formula = flop_registry.get(func.overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))


def made_data(classes: int, each: int, shape: tuple[int, int, int] = (3, 32, 32)) -> ImageData:
    """``each`` black training images of every class and one for the test; for counting, where values do not matter."""
    channels, height, width = shape
    images, labels = np.zeros((classes * each, height, width, channels), np.uint8), np.arange(classes).repeat(each)
    mean, std = (0.5,) * channels, (0.25,) * channels
    return ImageData.from_arrays("made", images, labels, images[::each], labels[::each], mean=mean, std=std)


def moved(value: T, device: str = "meta") -> T:
    """A copy on another device of tensors, data, sets and distillers, which could not be made on one without values."""
    if isinstance(value, Tensor):
        return value.to(device)  # type: ignore[return-value]
    if isinstance(value, tuple | list):
        return type(value)(moved(part, device) for part in value)
    if not isinstance(value, ImageData | Split | CondensedSet | Synthetic) and not hasattr(value, "total_steps"):
        return value
    result = copy.copy(value)
    result.__dict__.update({name: moved(part, device) for name, part in vars(value).items()})
    if isinstance(value, ImageData):
        result.__dict__.update(counts=value.counts, classes=value.classes)  # known on the host
    return result


class Untrained(ExactStatistics):
    """Statistics whose trained networks have random weights, so that nothing is trained for a pool or for MTT."""

    def trajectories(
        self, config: ExpertConfig, network: Factory, *, progress: bool | None = None, batch_real: int | None = None
    ) -> Trajectories:
        count = parameter_count(create(network, self.spec, generator(0, "experts"), "meta"))
        weights = 0.05 * torch.randn(count, generator=generator(0, "trajectories"))
        return Trajectories(config.experts, config.length, lambda expert, epoch: weights * (1 + 0.01 * epoch))


def step_of(method: str, data: ImageData, ipc: int, device: str = "meta", **settings: object) -> Callable[[], object]:
    """One step of a method on a device, from noise: a function without arguments, to be given to `counted`."""
    config, kind = METHODS[method]
    made = config(**settings)
    start = initial_set(ExactStatistics(data), "noise", ipc, generator(0, "start"), from_text(made.decode))
    whole = kind(made, start)
    if callable(begin := getattr(whole, "begin", None)):  # chooses images, which have no values on a device without them
        begin(ExactStatistics(data), generator(0, "begin"))
    distiller, statistics, draws = moved(whole, device), Untrained(moved(data, device)), generator(0, "steps")
    if callable(prepare := getattr(distiller, "prepare", None)):
        prepare(statistics, progress=False)
    return lambda: distiller.step(statistics, draws)


def counted(function: Callable[[], object], device: str = "meta", warm: int = 1) -> Counts:
    """Counts of one call after ``warm`` others, which make what is kept from call to call."""
    for _ in range(warm):
        with Counting(device):
            function()
    with Counting(device) as counts:
        function()
    return counts
