"""The file of a condensed set: one safetensors file with a JSON header, read as untrusted input; no pickle.

The header is the text of the metadata key ``distill``. FORMAT 1 has the tensors ``images`` (float32, or uint8 with ``quantisation``) and
``labels``, perhaps ``whitening_mean`` and ``whitening_matrix``, and the keys format, spec, lr, augmentation, provenance, quantisation.
FORMAT 2 adds at least one of these; a set without any is written as FORMAT 1.

- ``spec``: normalisation_origin, classes_origin, population_origin ("published", "given", "computed"; left out: computed). They are
  written where something was given, or where the set has a privacy statement, which rests on them. In a file they are statements
  of its author: what a private run may treat as public is decided by the data's own spec.
- ``label_kind``: of soft labels that are not probabilities.
- ``decode``: {"kind": ..., and plain parameters} (`distill.decode`): ``images`` are stored rows, which decode to the images.
- ``step_sizes``: {"order": "sequence" or "cycle"}, with the tensor ``step_sizes`` and perhaps ``step_batches``.
- ``start_weights``: {"network": name or null, "sha256": digest or null}, with tensors ``start_weights.<name>`` where there is no digest.
- ``views``: {"augmentation", "mix"}, with the tensors ``view_labels`` (float16), ``view_seeds``, and ``view_partners`` and ``view_shares``
  where views are mixed.

`distill.set_parts` has the meaning, shapes and limits of step sizes and start weights, `distill.views` those of views.
"""

import dataclasses
import json
import math
import struct
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Protocol

import pydantic
import safetensors.torch
from torch import Tensor

from distill.configure import config_class
from distill.decode import Decode, from_parameters
from distill.errors import InputError, clipped
from distill.labels import DEFAULT_KIND
from distill.set_parts import MAX_TENSORS, StartWeights, StepSizes
from distill.spec import DataSpec
from distill.views import Views
from distill.whitening import Whitening

FORMAT = 1
FORMAT_WITH_PARTS = 2
WEIGHTS = "start_weights."
MAX_FILE_BYTES = 1 << 30  # of bytes that another party sent
# Of a file that the user names, and so of what `CondensedSet.save` writes: 200 classes x 200 images of 64 px are 2 GB.
MAX_OWN_BYTES = 16 << 30
MAX_HEADER_BYTES = 4 << 20
_DTYPES = {"F32": 4, "F16": 2, "U8": 1, "I64": 8}


@config_class
class Provenance:
    """Where a set comes from: enough to make it again.

    Attributes:
        method: name of the method.
        config: its settings.
        seed: of the run.
        fingerprint: of the data, or None.
        versions: of packages.
        seconds: running time.
        dp: statement of private statistics about their releases, or None.
    """

    method: str
    config: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    fingerprint: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    seconds: Annotated[float, pydantic.Field(ge=0)] = 0.0
    dp: dict[str, Any] | None = None


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid", strict=True))
class StepFacts:
    order: str


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid", strict=True))
class WeightFacts:
    network: str | None = None
    sha256: str | None = None


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid", strict=True))
class ViewFacts:
    augmentation: str
    mix: str | None = None


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid", strict=True))
class Header:
    format: int
    spec: DataSpec
    lr: float | None
    augmentation: str | None
    provenance: Provenance
    quantisation: tuple[tuple[float, float], ...] | None
    label_kind: str | None = None
    decode: dict[str, Any] | None = None
    step_sizes: StepFacts | None = None
    start_weights: WeightFacts | None = None
    views: ViewFacts | None = None

    @property
    def later(self) -> bool:
        """Whether it has anything that came with FORMAT 2."""
        parts = (self.label_kind, self.decode, self.step_sizes, self.start_weights, self.views)
        return any(part is not None for part in parts) or any(origin != "computed" for origin in self.spec.origins.values())


def _check_layout(data: bytes, max_bytes: int) -> None:
    """Check header length, tensor names, dtypes and sizes before safetensors allocates memory."""
    if len(data) > max_bytes:
        raise InputError(f"{len(data)} bytes; allowed: at most {max_bytes}.")
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if not 2 <= length <= MAX_HEADER_BYTES or 8 + length > len(data):
        raise InputError("not a condensed set: no safetensors header, or the file is cut off.")
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__")["distill"]
        names, body = sorted(header), len(data) - 8 - length
        if not isinstance(metadata, str) or not _known_tensors(names):
            raise InputError(f"holds the tensors {clipped(names)}; allowed: images and labels, with a 'distill' header.")
        for name in names:
            dtype, shape = header[name]["dtype"], header[name]["shape"]
            if (
                dtype not in _DTYPES
                or len(shape) > 4
                or not all(type(n) is int and 0 <= n <= body for n in shape)
                or math.prod(shape) * _DTYPES[dtype] > body
            ):
                raise InputError(f"tensor {name} claims {str(dtype)[:20]} {str(shape)[:60]}, which the file cannot hold.")
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"not a condensed set: damaged header ({type(error).__name__}: {str(error)[:80]}).") from None


def parse(data: bytes, max_bytes: int = MAX_FILE_BYTES) -> tuple[dict[str, Tensor], Header]:
    """A file's tensors and header, checked before memory of the stated size is allocated; raises `InputError`."""
    _check_layout(data, max_bytes)
    try:
        tensors = safetensors.torch.load(data)
        with_metadata = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"]["distill"]
        header = pydantic.TypeAdapter(Header).validate_json(with_metadata)
        json.dumps(dataclasses.asdict(header.provenance), allow_nan=False)  # can be saved again
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))[:80] or "it"
        raise InputError(
            f"the header does not fit: {where}: {first['msg'][:100]} (given {ascii(str(first['input'])[:60])[:80]})."
        ) from None
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError, RuntimeError) as error:
        raise InputError(f"not a condensed set: {str(error)[:120]}.") from None
    if header.format not in (FORMAT, FORMAT_WITH_PARTS):
        raise InputError(
            f"format {str(header.format)[:20]}; allowed: {FORMAT} or {FORMAT_WITH_PARTS} (made by another version of this toolkit)."
        )
    if (header.format == FORMAT_WITH_PARTS) != header.later:
        raise InputError(
            f"format {header.format} and label_kind {header.label_kind!r:.40}; allowed: 2 with a label_kind or another part that "
            "came with it, 1 without."
        )
    return tensors, header


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """A file's content; `InputError` where it is missing, is not a file, or has more than ``max_bytes``."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise InputError(f"{path}: is not a file; give a condensed set's .safetensors file.")
        if size > max_bytes:
            raise InputError(f"{path}: {size} bytes; allowed: at most {max_bytes}.")
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None


def _known_tensors(names: list[str]) -> bool:
    """Whether a file may hold these: images, labels, a whole whitening, step sizes, start weights, views."""
    weights = [name for name in names if name.startswith(WEIGHTS)]
    alone = set(names) - set(weights)
    white = {"whitening_matrix", "whitening_mean"} & alone
    steps = {"step_sizes", "step_batches"} & alone
    views = {"view_labels", "view_seeds", "view_partners", "view_shares"} & alone
    rest = alone - white - steps - views
    return len(white) != 1 and steps != {"step_batches"} and len(weights) <= 2 * MAX_TENSORS and rest == {"images", "labels"}


class Stored(Protocol):
    """The parts of a `distill.condensed.CondensedSet` that are checked and written here."""

    @property
    def spec(self) -> DataSpec: ...
    @property
    def provenance(self) -> Provenance: ...
    @property
    def whitening(self) -> Whitening | None: ...
    @property
    def label_kind(self) -> str: ...
    @property
    def decode(self) -> Decode | None: ...
    @property
    def step_sizes(self) -> StepSizes | None: ...
    @property
    def start_weights(self) -> StartWeights | None: ...
    @property
    def views(self) -> Views | None: ...


def later_facts(condensed: Stored) -> dict[str, object]:
    """Format, spec and the keys of FORMAT 2 that this set needs, for the header."""
    spec, facts = condensed.spec.facts, dict[str, object]()
    origin_fields = {f"{name}_origin": origin for name, origin in condensed.spec.origins.items()}
    if "given" in origin_fields.values() or (condensed.provenance.dp is not None and set(origin_fields.values()) != {"computed"}):
        spec |= origin_fields
    if condensed.label_kind != DEFAULT_KIND:
        facts["label_kind"] = condensed.label_kind
    if condensed.decode is not None:
        facts["decode"] = {**condensed.decode.parameters, "kind": condensed.decode.kind}
    if condensed.step_sizes is not None:
        facts["step_sizes"] = {"order": condensed.step_sizes.order}
    if condensed.start_weights is not None:
        facts["start_weights"] = {"network": condensed.start_weights.network, "sha256": condensed.start_weights.sha256}
    if condensed.views is not None:
        facts["views"] = {"augmentation": condensed.views.augmentation, "mix": condensed.views.mix}
    later = bool(facts) or spec.keys() != condensed.spec.facts.keys()
    return {"format": FORMAT_WITH_PARTS if later else FORMAT, "spec": spec, **facts}


def later_tensors(condensed: Stored) -> dict[str, Tensor]:
    """The tensors of FORMAT 2 by name."""
    steps = {} if condensed.step_sizes is None else condensed.step_sizes.tensors
    weights = {} if condensed.start_weights is None else condensed.start_weights.tensors
    views = {} if condensed.views is None else condensed.views.tensors
    return {**steps, **views, **{f"{WEIGHTS}{name}": tensor for name, tensor in weights.items()}}


def later_parts(
    tensors: dict[str, Tensor], header: Header, max_bytes: int = MAX_OWN_BYTES
) -> tuple[StepSizes | None, StartWeights | None, Decode | None, Views | None]:
    """The parts that FORMAT 2 adds, checked; raises `InputError` if tensors and header disagree."""
    weights = {name.removeprefix(WEIGHTS): tensors[name] for name in sorted(tensors) if name.startswith(WEIGHTS)}
    stored = {name for name in tensors if name.startswith("view_")}
    for name, present, stated in (
        ("step_sizes", "step_sizes" in tensors, header.step_sizes),
        ("start_weights", bool(weights), header.start_weights),
        ("views", bool(stored), header.views),
    ):
        digest = name == "start_weights" and header.start_weights is not None and header.start_weights.sha256 is not None
        if present != (stated is not None) and not (digest and not present):
            raise InputError(f"{name} is in the {'tensors' if present else 'header'} and not in the {'header' if present else 'tensors'}.")
    steps = None if header.step_sizes is None else StepSizes(tensors["step_sizes"], header.step_sizes.order, tensors.get("step_batches"))
    start, views = header.start_weights, None
    initial = None if start is None else StartWeights(weights, start.sha256, start.network)
    if header.views is not None:
        if not {"view_labels", "view_seeds"} <= stored:
            raise InputError(f"views are stored as {clipped(sorted(stored))}; allowed: with view_labels and view_seeds.")
        mixing = header.views.mix, tensors.get("view_partners"), tensors.get("view_shares")
        views = Views(tensors["view_labels"], tensors["view_seeds"], header.views.augmentation, *mixing)
    return steps, initial, _form(tensors, header, max_bytes), views


def _form(tensors: dict[str, Tensor], header: Header, max_bytes: int) -> Decode | None:
    """How stored rows decode, if the images are no larger than ``max_bytes``."""
    if header.decode is None:
        return None
    facts = dict(header.decode)
    form = from_parameters(facts.pop("kind", None), facts)
    # Stored rows may be far smaller than what they decode to.
    size = len(tensors["labels"]) * form.copies * math.prod(header.spec.shape) * 4 if tensors["labels"].ndim else 0
    if not 0 < size <= max_bytes:
        raise InputError(f"decodes to {size} bytes; allowed: 1 to {max_bytes}.")
    return form


def check_size(count: int, spec: DataSpec, label_values: int = 1, per_value: int = 4) -> None:
    """Raises `InputError` if a set would be larger than its file may be.

    Args:
        count: number of images.
        spec: their shape and class names.
        label_values: number of values per label.
        per_value: bytes per pixel and channel.
    """
    size = count * (math.prod(spec.shape) * per_value + 8 * label_values)
    if size > MAX_OWN_BYTES:
        raise InputError(
            f"{count} images of {' x '.join(map(str, spec.shape))} are a file of {size / 1e9:.3g} GB; allowed: at most "
            f"{MAX_OWN_BYTES / 1e9:.3g} GB. Ask for fewer images a class (ipc), or smaller images."
        )
    names = sum(len(json.dumps(name)) + 2 for name in spec.classes)
    if names > MAX_HEADER_BYTES // 2:
        raise InputError(f"the class names take {names} bytes; a set's file has room for {MAX_HEADER_BYTES // 2}: give shorter names.")


def loadable(data: bytes) -> bytes:
    """The bytes, unchanged; raises `InputError` if `CondensedSet.load` would refuse them for their size."""
    header = struct.unpack("<Q", data[:8])[0]
    for what, size, most in (
        ("file", len(data), MAX_OWN_BYTES),
        ("header, with the provenance and the class names,", header, MAX_HEADER_BYTES),
    ):
        if size > most:
            raise InputError(f"the set's {what} takes {size} bytes; allowed: at most {most}.")
    return data
