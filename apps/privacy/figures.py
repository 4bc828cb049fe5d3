"""Figures of attacks."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from apps.privacy.distances import Nearest
from apps.privacy.metrics import roc
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.drawing import Drawing, escaped, title_text


def roc_curves(scores: dict[str, tuple[np.ndarray, np.ndarray]]) -> Drawing:
    """True against false positive rate, both logarithmic (what counts is the left end), one line for each (members, others)."""
    figure = Figure(figsize=(4.6, 4.2))
    axis = figure.subplots()
    smallest = 1 / max(max(len(m), len(o)) for m, o in scores.values())
    for name, (members, others) in scores.items():
        false, true = roc(members, others)
        axis.plot(np.maximum(false, smallest), np.maximum(true, smallest), label=escaped(name), linewidth=1.2, drawstyle="steps-post")
    axis.plot([smallest, 1], [smallest, 1], color="#999999", linestyle=":", linewidth=1, label="guessing")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("false-positive rate")
    axis.set_ylabel("true-positive rate")
    axis.set_title("Membership inference by loss, first run", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    words = "True against false positive rate, both logarithmic: the left end counts. On the dotted line an attack only guesses."
    return Drawing(figure, "Membership inference by loss, first run", words)


def closest_pairs(condensed: CondensedSet, data: ImageData, found: dict[str, Nearest], name: str, count: int = 10) -> Drawing:
    """For each distance the ``count`` images of a set that are closest to a training image, above that image, with the distance.

    ``name`` says which set it is.
    """
    condensed = condensed.decoded()
    count = min(count, len(condensed))
    figure = Figure(figsize=(0.9 * count + 0.9, 2.1 * len(found) + 0.4))
    axes = np.asarray(figure.subplots(2 * len(found), count, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.35}))
    pixels, real = condensed.pixels().cpu(), data.train.images
    for axis in axes.flat:
        axis.set_axis_off()
    for place, (measure, near) in enumerate(found.items()):
        for column, image in enumerate(near.distance.argsort(stable=True)[:count].tolist()):
            theirs = real[near.position[image]].cpu().float() / (255 if real.dtype == torch.uint8 else 1)
            for row, shown in ((2 * place, pixels[image]), (2 * place + 1, theirs)):
                _show(axes[row, column], shown)
            axes[2 * place, column].set_title(f"{float(near.distance[image]):.3g}", fontsize=7)
        for row, words in ((2 * place, f"{measure}: set"), (2 * place + 1, "training")):
            axes[row, 0].text(-0.15, 0.5, words, transform=axes[row, 0].transAxes, ha="right", va="center", fontsize=8)
    heading, real_images = f"Set {name!r} and its closest training images", "Private: shows real images."
    figure.suptitle(title_text(f"{real_images} {heading}; nothing found is no proof of privacy", 90), fontsize=9)
    words = f"For each distance the {count} images of the set {name!r} that are closest to a training image, above that image."
    return Drawing(figure, heading, f"{real_images} {words} Nothing found is no proof of privacy.")


def reconstructions(pictures: dict[str, Tensor]) -> Drawing:
    """Pixels (N, C, H, W) of the same N images by name, one row each: the images themselves and what shows of them."""
    count = len(next(iter(pictures.values())))
    figure = Figure(figsize=(0.9 * count + 2.2, 0.95 * len(pictures) + 0.5))
    axes = np.asarray(figure.subplots(len(pictures), count, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05}))
    for row, (name, images) in enumerate(pictures.items()):
        for axis, image in zip(axes[row], images, strict=True):
            axis.set_axis_off()
            _show(axis, image)
        axes[row, 0].text(-0.15, 0.5, title_text(name, 24), transform=axes[row, 0].transAxes, ha="right", va="center", fontsize=8)
    figure.subplots_adjust(left=2.0 / (0.9 * count + 2.2), right=0.98, bottom=0.02, top=1 - 0.4 / (0.95 * len(pictures) + 0.5))
    heading = "Images of a client, and what its messages show of them"
    figure.suptitle(f"Private: shows real images. {heading}", fontsize=9)
    return Drawing(figure, heading, f"Private: shows real images. One row each: {', '.join(pictures)}.")


def _show(axis: Axes, image: Tensor) -> None:
    """Pixels (C, H, W) in [0, 1]: three channels as colours, else the first as grey."""
    values = image.permute(1, 2, 0).numpy()
    axis.imshow(values[..., :3] if values.shape[-1] >= 3 else values[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
