"""`MemoryConfig`: what a memory may hold and how it is made, checked before the first image comes."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from apps.continual.condensing import check_method, check_settings, decode_of
from apps.continual.form import Form
from distill.decode import Decode
from distill.errors import InputError, clipped
from distill.spec import DataSpec


@dataclass(frozen=True)
class MemoryConfig:
    """What a memory may hold and how it is made.

    The budget is ``items`` or ``nbytes`` in all (both: both hold), shared equally among the (task, class) groups seen so far: when groups
    arrive, the older ones are condensed again to their smaller share. A class that comes back is merged into its group, past and present
    weighed by their numbers; with ``returning`` "separate" it is another group. ``per_class`` fixes the share instead; the memory grows
    up to the budget, if there is one, and old groups stay unchanged. ``method`` is a name of `METHODS` or of a coreset, ``settings`` its
    config fields (under them: the method's ``presets.memory``). With the setting ``decode``, which coresets have too, items are stored
    rows of several images (`Form`). ``mean`` and ``std`` are the stream's normalisation; with
    them uint8 storage keeps real images exactly, and pictures show pixels. Raises `InputError` for settings that are
    wrong whatever the images are.
    """

    method: str = "dm"
    items: int | None = None
    nbytes: int | None = None
    per_class: int | None = None
    storage: Literal["float32", "uint8"] = "float32"
    seed: int = 0
    name: str = "stream"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    settings: dict[str, object] = dataclasses.field(default_factory=dict)
    returning: Literal["merge", "separate"] = "merge"

    def __post_init__(self) -> None:
        check_method(self.method)
        check_settings(self.method, self.settings)
        for field in ("items", "nbytes", "per_class"):
            value = getattr(self, field)
            if value is not None and not (type(value) is int and value >= 1):
                raise InputError(f"the memory's {field} is {clipped(value)}; allowed: a whole number of 1 or more, or None.")
        if type(self.seed) is not int or not isinstance(self.name, str):
            raise InputError(f"the memory's seed is {clipped(self.seed)!r} and its name {clipped(self.name)!r}; allowed: an int and text.")
        DataSpec(self.name, 1, 1, 1, ("0",), (0.0,), (1.0,))  # says what is wrong with a name
        if self.storage not in ("float32", "uint8"):
            raise InputError(f"the memory's storage is {clipped(self.storage)!r}; allowed: float32, uint8.")
        if self.returning not in ("merge", "separate"):
            raise InputError(f"the memory's returning is {clipped(self.returning)}; allowed: merge, separate.")
        if self.items is None and self.nbytes is None and self.per_class is None:
            raise InputError("the memory has no budget; give items, nbytes, per_class, or a budget and per_class.")
        self._check_normalisation()
        least = self.per_class or 1
        if self.items is not None and self.items < least:
            raise InputError(
                f"the memory has {self.items} items for all classes and {least} for one (per_class); raise the one or lower the other."
            )
        if self.storage == "uint8" and self.decode is not None and not self.decode.pixels:
            raise InputError(f"storage uint8 is of pixels, and {self.decode.kind} rows are none; take float32.")
        pixel = Form((len(self.mean or (0.0,)), 1, 1))
        smallest = least * pixel.item_bytes(self.storage) + pixel.group_bytes(self.storage)
        if self.nbytes is not None and self.nbytes < smallest:
            raise InputError(
                f"the memory has {self.nbytes} bytes in all, and a class of {least} one-pixel image{'s' if least > 1 else ''} alone takes "
                f"{smallest} as {self.storage}; raise nbytes (max_bytes)."
            )

    @property
    def decode(self) -> Decode | None:
        """How stored rows become images, or None where images are stored."""
        return decode_of(self.method, self.settings)

    @property
    def copies(self) -> int:
        """Images of an item."""
        return 1 if self.decode is None else self.decode.copies

    def shares(self, groups: int, form: Form, logits: int = 0, hint: str = "") -> list[int]:
        """Items for each of ``groups`` groups, the oldest first.

        What does not divide is dealt out, one item more for each of the oldest groups. A group's share never grows as others come.

        Args:
            groups: their number.
            form: how images are stored.
            logits: outputs stored for each image (DER).
            hint: added to the message of the error.

        Raises:
            InputError: the budget has no item for one of the groups.
        """
        limits = [] if self.items is None else [self.items]
        if self.nbytes is not None:
            free = self.nbytes - groups * form.group_bytes(self.storage)
            limits.append(max(0, free) // form.item_bytes(self.storage, logits))
        share = self.per_class or min(limits) // groups
        if share < 1 or any(share * groups > limit for limit in limits):
            budget = " and ".join(f"{n} {what}" for n, what in ((self.items, "items"), (self.nbytes, "bytes")) if n)
            raise InputError(
                f"the memory's budget of {budget} has no room for {max(1, share)} item{'s' if share > 1 else ''} in each of {groups} "
                f"classes; {'lower per_class' if self.per_class and self.per_class > 1 else 'raise it'}"
                f"{' or use storage uint8' if self.nbytes and self.storage == 'float32' else ''}{hint}."
            )
        if self.per_class:
            return [share] * groups
        return [share + (place < min(limits) % groups) for place in range(groups)]

    def _check_normalisation(self) -> None:
        mean, std = self.mean, self.std
        if not all(values is None or isinstance(values, tuple | list) for values in (mean, std)):
            raise InputError(f"the stream's mean is {clipped(mean)} and its std {clipped(std)}; allowed: tuples of numbers, one a channel.")
        if (mean is None) != (std is None) or len(mean or ()) != len(std or ()) or mean == ():
            raise InputError("mean and std of the stream must be given together, a number for each channel.")
        values = (*(mean or ()), *(std or ()))
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values)
        if not numbers or not all(value > 0 for value in std or ()):
            raise InputError(f"the stream's mean is {clipped(mean)} and its std {clipped(std)}; allowed: finite numbers, std above 0.")
