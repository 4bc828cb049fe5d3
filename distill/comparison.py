"""Fair comparisons: baselines with the set's own counts, one recipe for all rows, and notes on differences between rows."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from distill.condensed import CondensedSet, Provenance
from distill.coresets import EVERY, TRAINED, available, select
from distill.data import ImageData
from distill.decode import Decode, as_text
from distill.errors import InputError, unknown_name
from distill.networks import Factory, create, parameter_count
from distill.protocols import protocol
from distill.randomness import generator
from distill.recipe import Recipe
from distill.records import Json
from distill.scored_coresets import Scorer
from distill.set_notes import set_notes, teacher_notes
from distill.train import resolved

# Real images stored in a decoded set's form: as many as it decodes to, in as many bytes.
DECODED = {f"{name}-decoded": name for name in EVERY if name not in ("class_mean", "noise")}
# A coreset with the labels of the recipe's teacher.
LABELLED = {f"{name}-labelled": name for name in (*EVERY, *DECODED)}
# Images of noise with the same labels: what a learner gets from the labels without any image.
LABEL_ONLY = "label-only"
TAUGHT = (*LABELLED, LABEL_ONLY)
BASELINES = (*EVERY, *DECODED, *TAUGHT, "whole")


@dataclass(frozen=True)
class Training:
    """How the networks of one row are trained.

    Attributes:
        images: number of training images.
        steps: optimiser steps.
        epochs: passes over the images.
        bytes: of a set as it is stored: images, labels, and what decodes them; None for all data.
        labels: "class", those of the teacher, or the set's own kind (`CondensedSet.label_kind`).
    """

    images: int
    steps: int
    epochs: float
    bytes: int | None = None
    labels: str = "class"

    def as_dict(self) -> dict[str, Json]:
        """For records."""
        more: dict[str, Json] = {"labels": self.labels} if self.bytes is None else {"bytes": self.bytes, "labels": self.labels}
        return {"images": self.images, "steps": self.steps, "epochs": round(self.epochs, 4), **more}


def row_label(name: str, row: Mapping[str, Json]) -> str:
    """A row's name for a table; "whole" states how long its networks were trained, which a protocol for small sets may limit."""
    if name != "whole" or "steps" not in row:
        return name
    steps, epochs = f"{row['steps']}", f"{row['epochs']:.3g}"
    return f"whole ({steps} step{'s' if steps != '1' else ''}, {epochs} epoch{'s' if epochs != '1' else ''})"


def no_baseline(what: str, name: str) -> InputError:
    """The error for an unknown baseline; forms and labels (-decoded, -labelled) are listed for a name that has one."""
    return unknown_name(what, name, BASELINES if "-" in name else (*EVERY, LABEL_ONLY, "whole"))


def coreset_of(baseline: str) -> str:
    """The coreset that a baseline is, whatever its form and labels; "whole" stays."""
    name = LABELLED.get(baseline, baseline)
    return DECODED.get(name, name)


def learner_set(name: str, condensed: CondensedSet, data: ImageData, seed: int, scorer: Scorer | None = None) -> CondensedSet | ImageData:
    """The training set of a baseline: a coreset with the set's own `CondensedSet.counts` (another draw for each seed), the same with more
    images in the set's stored form ("random-decoded"), or all data. With a teacher's labels ("random-labelled") the images are the same;
    "label-only" has standard normal noise in their place, as many images as the set decodes to, and class numbers that mean nothing.
    ``scorer`` is what a coreset of `TRAINED` chooses by."""
    if name == "whole":
        return data
    if name == LABEL_ONLY:
        copies = 1 if condensed.decode is None else condensed.decode.copies
        labels = torch.arange(data.spec.num_classes).repeat_interleave(copies * torch.tensor(condensed.counts))
        noise = torch.randn(len(labels), *data.spec.shape, generator=generator(seed, "coreset", name, condensed.ipc))
        origin = Provenance(LABEL_ONLY, seed=seed)
        return CondensedSet(noise, labels, data.spec, provenance=origin, whitening=data.whitening).to(data.device)
    name = LABELLED.get(name, name)
    if name in DECODED:
        with_decoded([name], condensed)  # refuses a plain set
        assert condensed.decode is not None
        return formed(data, DECODED[name], condensed.counts, condensed.decode, generator(seed, "coreset", name, condensed.ipc), scorer)
    if name not in EVERY:
        raise no_baseline("baseline", name)
    return select(data, name, condensed.counts, generator(seed, "coreset", name, condensed.ipc), scorer=scorer)


def formed(
    data: ImageData, name: str, ipc: int | Sequence[int], decode: Decode, draws: torch.Generator, scorer: Scorer | None = None
) -> CondensedSet:
    """A coreset whose images are stored in the form ``decode``: ``ipc`` stored rows a class (or counts (K,)), each of several images.

    A class with fewer images than that repeats them in its last row.
    """
    rows = [ipc] * data.spec.num_classes if isinstance(ipc, int) else list(ipc)
    chosen = select(data, name, [count * decode.copies for count in rows], draws, scorer=scorer)
    parts = []
    for label, count in enumerate(rows):
        images = chosen.images[chosen.labels == label]
        if count and len(images):
            count = min(count, -(-len(images) // decode.copies))
            parts.append(images[torch.arange(count * decode.copies, device=images.device) % len(images)])
    labels = torch.cat([torch.full((len(part) // decode.copies,), label) for label, part in zip(chosen.classes, parts, strict=True)])
    stored = decode.encoded(torch.cat(parts), data.spec)
    return dataclasses.replace(chosen, images=stored, labels=labels.to(stored.device), decode=decode)


def with_decoded(baselines: Sequence[str], condensed: CondensedSet) -> list[str]:
    """The baselines of a comparison; for a decoded set each coreset also in the set's form, which a plain set has not (`InputError`)."""
    asked_forms = [name for name in baselines if LABELLED.get(name, name) in DECODED]
    if condensed.decode is None and asked_forms:
        raise InputError(
            f"baseline {asked_forms[0]} is stored in the form of a decoded set, and this set stores its images plainly; leave it out."
        )
    more = [] if condensed.decode is None else [f"{name}-decoded" for name in baselines if f"{name}-decoded" in DECODED]
    asked = [*baselines, *(name for name in more if name not in baselines)]
    return sorted(asked, key="whole".__eq__)


def rows_of(baselines: Sequence[str], condensed: CondensedSet, recipe: Recipe) -> list[str]:
    """The baselines of a comparison under a recipe: those of `with_decoded`, and with a teacher each coreset also with its labels, and
    "label-only".

    Raises `InputError` for a baseline with a teacher's labels under a recipe without one.
    """
    names = with_decoded(baselines, condensed)
    if recipe.teacher is None:
        if wrong := [name for name in names if name in TAUGHT]:
            raise InputError(f"baseline {wrong[0]} has the labels of the recipe's teacher, and the recipe has none; leave it out.")
        return names
    more = [f"{name}-labelled" for name in names if f"{name}-labelled" in LABELLED]
    more += [LABEL_ONLY] if more else []
    return sorted([*names, *(name for name in more if name not in names)], key="whole".__eq__)


def compared(recipe: Recipe | str, condensed: CondensedSet, data: ImageData, network: Factory = "ConvNet") -> Recipe:
    """The recipe of a comparison for this network; the augmentation "auto" becomes the set's own, else DSA's strategy for the data."""
    recipe = protocol(recipe, data.spec, network, images=len(condensed)) if isinstance(recipe, str) else recipe
    return resolved(resolved(recipe, condensed) if condensed.augmentation else recipe, data)


def recipe_of(name: str, recipe: Recipe, whole_epochs: int | None) -> Recipe:
    """The recipe of one row. A teacher labels the set and the rows in `TAUGHT`; the others keep their hard labels. "whole" is trained
    for ``whole_epochs`` if they are given, with no limit on steps and the "step" schedule dropping at half of them."""
    if name != "condensed" and name not in TAUGHT:
        recipe = recipe.without_teacher
    if name != "whole" or whole_epochs is None:
        return recipe
    return dataclasses.replace(recipe, epochs=whole_epochs, max_steps=None, drop_epochs=None)


def training_of(name: str, condensed: CondensedSet, data: ImageData, recipe: Recipe, whole_epochs: int | None = None) -> Training:
    """How the networks of a row ("condensed" or a baseline) are trained under a comparison's recipe."""
    copies, row, name = 1 if condensed.decode is None else condensed.decode.copies, name, LABELLED.get(name, name)
    if name in ("condensed", LABEL_ONLY, "whole"):
        images = len(data.train) if name == "whole" else len(condensed) * copies
    elif name in DECODED:
        held = zip(condensed.counts, data.counts, strict=True)
        images = sum(copies * min(count, -(-most // copies)) for count, most in held)
    else:
        images = sum(available(data, condensed.counts))
    own = recipe_of(row, recipe, whole_epochs)
    labels = condensed.label_kind if row == "condensed" and condensed.labels.is_floating_point() else "class"
    labels = f"{len(condensed.views)} stored views" if row == "condensed" and condensed.views is not None else labels
    each = 8 + 4 * (condensed.images[0].numel() if name in DECODED else math.prod(data.spec.shape))  # float32 values and a class number
    stored = condensed.nbytes if name == "condensed" else None if name == "whole" else each * images // (copies if name in DECODED else 1)
    stored = 8 if name == LABEL_ONLY else stored  # the seed of the noise
    return Training(images, own.steps(images), own.passes(images), stored, labels if own.teacher is None else str(own.teacher))


def notes_on(
    condensed: CondensedSet,
    data: ImageData,
    recipe: Recipe,
    baselines: Sequence[str],
    teacher: nn.Module | None = None,
    *,
    scorer: Scorer | None = None,
) -> list[str]:
    """Traps (`distill.set_notes`), then differences between rows: sizes, if the data have too few images, what chose
    images, and a learned step size.

    ``teacher`` is the trained network of the recipe's teacher, which is tested.
    """
    notes = [*set_notes(condensed), *teacher_notes(recipe.teacher, teacher, data)]
    if chosen := [name for name in baselines if coreset_of(name) in TRAINED]:
        notes.append(f"{' and '.join(chosen)}: images chosen by what was trained on all real images, {scorer or Scorer()}")
    if condensed.decode is not None:
        notes.append(
            f"stored as {as_text(condensed.decode)}: {len(condensed)} stored rows ({condensed.nbytes:,} bytes) decode to "
            f"{len(condensed) * condensed.decode.copies} images; rows named -decoded are real images in the same form"
        )
    if condensed.views is not None and recipe.teacher is None:
        notes.append(
            f"the set has {condensed.views}, {condensed.nbytes:,} bytes in all; baselines have hard labels and new views, or the labels "
            "of a recipe's teacher"
        )
    few = [label for label, count in enumerate(condensed.counts) if count > data.counts[label]]
    small = [name for name in baselines if name != "whole"]
    if few and small:
        images = training_of("random", condensed, data, recipe).images
        notes.append(
            f"sizes differ: the set has {len(condensed)} images and {' and '.join(small)} {images}, because the data have fewer in "
            f"{'class' if len(few) == 1 else 'classes'} {', '.join(map(str, few[:10]))}{', ...' if len(few) > 10 else ''}"
        )
    if recipe.teacher is not None:
        weights = 4 * parameter_count(create(recipe.teacher.network, data.spec, generator(0, "count")))
        notes.append(
            f"the set, rows named -labelled and label-only (images of noise) have the labels of a teacher, {recipe.teacher}: {weights:,} "
            "bytes of weights that a learner needs in addition to the images; other rows have hard labels"
        )
    if condensed.lr is not None:
        sgd = recipe.optimiser == "sgd"
        used = f"is used for the set in place of {recipe.lr:g}" if sgd else "is not used by AdamW"
        notes.append(f"the set's learned lr {condensed.lr:.3g} {used}")
    return notes
