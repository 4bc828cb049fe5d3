"""The README.md of an exported set: what it is, what to undo before training on it, and Hugging Face's front matter."""

import json
from collections.abc import Sequence

from distill.condensed import CondensedSet
from distill.errors import clipped

# As https://huggingface.co/docs/hub/datasets-cards lists them, up to a million.
_SIZES = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def to_undo(condensed: CondensedSet, *, pixels: bool, stored: bool) -> list[str]:
    """Sentences on what a program that trains on the exported images has to know.

    Args:
        condensed: the set.
        pixels: whether pixels are exported, not the values that networks are trained on.
        stored: whether stored rows are exported, not the images that they decode to.
    """
    spec, lines = condensed.spec, []
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (spec.mean, spec.std))
    if condensed.whitening is None:
        normal = f"(pixel - mean) / std with mean {mean} and std {std}, pixels in 0 to 1"
        lines.append(
            f"Images are pixels; networks are trained on {normal}. Normalise test images in the same way."
            if pixels
            else f"Images are normalised: {normal}. Normalise test images in the same way; undo it to see pixels: image * std + mean."
        )
    else:
        white = "(pixels - whitening_mean) @ whitening_matrix, of flat pixels (C * H * W) in 0 to 1"
        lines.append(
            f"Images are pixels; the set was made for whitened ones (ZCA): {white}; both are in whitening.npz. Whiten test images, too."
            if pixels
            else f"Images are whitened (ZCA): {white}. Whiten test images with the same two tensors; mean and std are not used. To see "
            "pixels, multiply by the matrix's inverse and add whitening_mean."
        )
    if condensed.decode is not None:
        copies, name = condensed.decode.copies, condensed.decode.kind
        parameters = ", ".join(f"{key} {value}" for key, value in condensed.decode.parameters.items())
        lines.append(
            f"Each image is a grid of {copies} small ones ({parameters}): cut it from left to right, then downwards, and enlarge each part "
            f"to {spec.height} x {spec.width} (bilinear, align_corners=False); all have the image's label. Do not train on the grids."
            if stored
            else f"The images are decoded from {len(condensed)} stored rows ({name}, {parameters}; {condensed.nbytes:,} bytes); nothing is "
            "left to decode."
        )
    if condensed.labels.is_floating_point():
        losses = {"logits": "cross-entropy against their softmax", "scores": "mean squared error"}
        lines.append(
            f"Labels are {condensed.label_kind} over the classes: {losses.get(condensed.label_kind, 'cross-entropy against them')}."
        )
    if condensed.views is not None:
        lines.append(f"The set's own file also has {condensed.views}, which this format does not hold: other programs augment otherwise.")
    if condensed.lr is not None:
        lines.append(f"The step size {condensed.lr:.6g} (SGD) was learned with the images.")
    if condensed.step_sizes is not None or condensed.start_weights is not None:
        lines.append("The set's own file also has step sizes or start weights, which this format does not hold.")
    lines.append(f"Augmentation in training: {condensed.augmentation or 'as the data ask for'}.")
    return lines


def card(condensed: CondensedSet, content: str, notes: Sequence[str], front: str = "") -> str:
    """The text of README.md.

    Args:
        condensed: the set.
        content: what the files are, a sentence.
        notes: what a consumer has to know.
        front: YAML front matter, or nothing.
    """
    origin, spec = condensed.provenance, condensed.spec
    privacy = json.dumps(origin.dp, sort_keys=True) if origin.dp else "none; treat the images as the training data"
    names = ", ".join(_plain(name) for name in spec.classes[:100]) + (", ..." if spec.num_classes > 100 else "")
    classes = f"{spec.num_classes} ({names})"
    facts = {
        "data": f"{_plain(spec.name)}, {spec.channels} x {spec.height} x {spec.width}",
        "classes": classes,
        "images": f"{len(condensed.decoded())}, counts by class {_counts(condensed)}",
        "method": f"{_plain(origin.method)}, seed {origin.seed}",
        "settings": _plain(", ".join(f"{key}={value}" for key, value in sorted(origin.config.items())), 2000) or "none",
        "privacy guarantee": privacy,
        "licence": "that of the data; state it here before publishing",
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    listed = "\n".join(f"- {note}" for note in notes)
    heading = f"# Condensed set of {_plain(spec.name)}"
    return f"{front}{heading}\n\n{content}\n\n{listed}\n\n| | |\n| --- | --- |\n{rows}\n"


def front_matter(condensed: CondensedSet, images: int) -> str:
    """YAML for Hugging Face's hub and ``datasets``: the split, and the features of its metadata.jsonl."""
    size = next((name for most, name in _SIZES if images < most), "n>1M")
    names = "".join(
        f"\n          '{label}': {json.dumps(name, ensure_ascii=not name.isprintable())}"
        for label, name in enumerate(condensed.spec.classes)
    )
    soft = "" if not condensed.labels.is_floating_point() else "\n  - name: soft_label\n    sequence: float32"
    return (
        "---\nlicense: unknown\ntask_categories:\n- image-classification\ntags:\n- dataset-distillation\n"
        f"size_categories:\n- {size}\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train/**\n"
        "  features:\n  - name: image\n    dtype: image\n  - name: label\n    dtype:\n      class_label:\n        names:"
        f"{names}{soft}\n---\n\n"
    )


def _counts(condensed: CondensedSet) -> str:
    counts = condensed.decoded().counts
    return f"{counts[0]} each" if len(set(counts)) == 1 else ", ".join(map(str, counts[:100]))


def _plain(text: object, length: int = 200) -> str:
    """Text from a set, which may be another party's, for one cell of a Markdown table."""
    return clipped(text, length).translate(str.maketrans("|<>`[]", "/()'()"))
