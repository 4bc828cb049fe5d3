"""Sentences about sets and their labels that are allowed, seldom intended, and known to spoil a comparison."""

from torch import nn

from distill.chance import working
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.spec import DataSpec
from distill.teachers import Teacher

# A tenth of 0.001, the smallest step size that the authors of MTT start from (`distill.methods.mtt_table`).
NEAR_ZERO = 1e-4


def set_notes(condensed: CondensedSet) -> list[str]:
    """One sentence for each trap: images that look unnormalised, and learned step sizes near zero."""
    notes = []
    if condensed.whitening is None:  # whitened values have no range of pixels
        images = condensed.decoded().images
        low, high = float(images.min()), float(images.max())
        if kind := unnormalised(low, high, condensed.spec):
            notes.append(
                f"the set's images lie in {low:.3g} to {high:.3g}, as {kind} do, and normalised ones of {condensed.spec.name!r} begin at "
                f"{condensed.spec.bounds[0]:.3g}: they look unnormalised, as test images are not; give spec.normalise(pixels), with "
                "pixels in 0 to 1."
            )
    steps = [] if condensed.lr is None else [condensed.lr]
    steps += [] if condensed.step_sizes is None else [float(condensed.step_sizes.values.max())]
    if steps and max(steps) < NEAR_ZERO:
        notes.append(
            f"the learned step size {max(steps):.3g} is near zero: a learner that uses it stays at its first weights. Condense again with "
            "a smaller lr_lr, or train learners with a step size of your own (AdamW does not use the learned one)."
        )
    return notes


def teacher_notes(teacher: Teacher | None, network: nn.Module | None, data: ImageData) -> list[str]:
    """A sentence on a teacher whose labels say nothing: its network is at chance on the images that it was trained on.

    Args:
        teacher: of the recipe, or None.
        network: the trained teacher (`distill.teachers.teacher_for`), or None.
        data: the data that it was trained on.
    """
    if teacher is None or network is None or not (found := working(network, data)).at_chance:
        return []
    return [
        f"the teacher ({teacher}) is at chance: it classifies {found}. Its labels say nothing about the classes; train it for more epochs, "
        "with another lr, or check the data's labels."
    ]


def unnormalised(low: float, high: float, spec: DataSpec) -> str:
    """What values from ``low`` to ``high`` look like where normalised ones are expected: "pixels" (0 to 1), "bytes" (0 to 255) or "".

    Nothing is said where zero is about the lowest normalised value: pixels then look like normalised images.
    """
    lowest, highest = spec.bounds
    if lowest >= -0.2:
        return ""
    if low >= -0.02 and 0.5 < high <= 1.02:
        return "pixels"
    return "bytes" if low >= 0 and 2 * highest < high <= 255 else ""
