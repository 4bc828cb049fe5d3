"""`PROTOCOLS`: how the authors of methods train their evaluation networks, as recipes by name.

Every one is trained to its last step. Where authors report the best test accuracy of a training instead, `evaluate(..., best=True)` reports
it, too. What a recipe cannot express is stated next to its entry.
"""

import dataclasses
from collections.abc import Callable

from distill import augment_dc
from distill.augment import DSA, DSA_DIGITS, for_data
from distill.errors import InputError, unknown_name
from distill.networks import Factory
from distill.recipe import Recipe
from distill.spec import DataSpec
from distill.teachers import Teacher


def _published(epochs: int, batch_size: int = 256, augmentation: str = "auto") -> Recipe:
    """`evaluate_synset` of VICO-UoE/DatasetCondensation, utils.py, which the later authors copied.

    It counts epochs from 0 to E, so E + 1 of them, and looks at its schedule [E // 2 + 1] *after* the epoch of that number: the first
    E // 2 + 2 epochs have the full step size.
    """
    return Recipe(epochs=epochs + 1, batch_size=batch_size, augmentation=augmentation, drop_epochs=epochs // 2 + 2)


PROTOCOLS: dict[str, Recipe] = {
    # VICO-UoE/DatasetCondensation, main.py and utils.py (`get_daparam`): 300 epochs, or 1,000 where the augmentation is on.
    "dc": _published(300, augmentation="none"),
    "dc-augmented": _published(1000, augmentation="dc_crop_scale_rotate"),
    # The same repository, main.py with --method DSA and main_DM.py. MTT's evaluation is "dm" at the learned step size (mtt-distillation,
    # utils.py, `evaluate_synset`).
    "dsa": _published(1000),
    "dm": _published(1000),
    # DataDistillation/DataDAM, main_DataDAM.py: its defaults, for which "ConvNet" is batch norm (utils.py, `get_network`): ConvNetBN here.
    "datadam": _published(1800, batch_size=64),
    # Settings of the paper as a user quotes them (DataDAM issue 6, not contradicted there): batch 256, and ZCA, which is the data's.
    "datadam-paper": _published(1800, batch_size=256),
    # snu-mllab/Efficient-Dataset-Condensation, argument.py and train.py; the strategy is DSA's without cutout (`protocol`).
    "idc": Recipe(epochs=1000, batch_size=64, mix="cutmix", milestones=(2 / 3, 5 / 6), decay=0.2),
    # gszfwsb/NCFM, config/: the mean over networks of the last epoch, where the authors take each network's best one.
    "ncfm": Recipe(epochs=2000, batch_size=128, optimiser="adamw", lr=0.001, mix="cutmix", milestones=(0.2, 0.4, 0.6, 0.8), decay=0.5),
    # GeorgeCazenavette/mtt-distillation, utils.py: DSA's at the set's learned step size. NUS-HPC-AI-Lab/DATM, utils/utils_baseline.py: the
    # same in batches of 128; its sets' labels are logits, whose loss is cross-entropy with their softmax.
    "mtt": _published(1000),
    "datm": _published(1000, batch_size=128),
    # yongchaoz/FRePo, script/eval.py: Adam, 500 steps of warm-up, then a cosine down to a hundredth; steps by the number of images
    # (`protocol`; this is 100). One augmentation a batch as DSA's, here with DSA's ranges: the authors' are colour factors within 0.25,
    # zoom by 0.8 to 1.25, shifts of an eighth and holes of a quarter of the side. Their networks have no normalisation: ConvNetNN.
    "frepo": Recipe(
        epochs=40_000,
        max_steps=2000,
        batch_size=500,
        optimiser="adamw",
        lr=3e-4,
        weight_decay=0.0,
        schedule="cosine",
        warmup=500,
        lr_end=0.01,
        loss="mse",
    ),
    # LINs-lab/RDED, argument.py and validation/main.py, for images of one crop (factor 1); the batch is that of 10 images a class.
    # Biases and norms, which the authors do not decay, are decayed. The teacher is the toolkit's default: name your own.
    "rded": Recipe(
        epochs=300,
        batch_size=50,
        optimiser="adamw",
        lr=0.001,
        weight_decay=0.01,
        schedule="half-cosine",
        augmentation="flip",
        mix="cutmix",
        mix_probability=1.0,
        loss="kl",
        temperature=20.0,
        teacher=Teacher(),
    ),
    # VILA-Lab/SRe2L, small_dataset/relabel_cifar.py at the 400 epochs of its README. Cropped images are filled with the data's mean, the
    # authors' with black.
    "sre2l": Recipe(
        epochs=400,
        batch_size=128,
        optimiser="adamw",
        lr=0.001,
        weight_decay=0.01,
        schedule="epoch-cosine",
        augmentation="all_crop_flip",
        mix="mixup",
        mix_probability=1.0,
        mix_alpha=0.8,
        loss="kl",
        temperature=30.0,
        teacher=Teacher(),
    ),
    # shaoshitong/EDC, Branch_CIFAR_10/train (multisteplr, mse_gt), the batch of 10 images a class. The authors apply RandAugment first,
    # average eight teachers, and take the hard label of a mixed image's first one: here no RandAugment, one teacher, both labels.
    "edc": Recipe(
        epochs=1000,
        batch_size=50,
        optimiser="adamw",
        lr=0.001,
        weight_decay=0.01,
        milestones=(0.8, 0.9, 0.95),
        decay=0.5,
        augmentation="all_resized_flip",
        mix="cutmix",
        mix_probability=1.0,
        loss="mse",
        hard_weight=0.025,
        ema=0.99,
        teacher=Teacher(),
    ),
    "laptop": Recipe(epochs=1001, max_steps=200, batch_size=32, optimiser="adamw", lr=0.001, schedule="cosine"),
}


# FRePo's optimiser steps by the largest number of images that they are for (script/eval.py).
_FREPO_STEPS = {10: 1000, 100: 2000, 500: 5000, 1000: 10_000, 5000: 40_000}
# RDED's and EDC's images a step by the largest number of images a class that they are for; 100 above. Authors know 1, 10 and 50 alone.
_BATCHES = {1: 10, 10: 50}


def _dc(recipe: Recipe, spec: DataSpec, network: Factory, images: int) -> Recipe:
    """MNIST is augmented and a ConvNetBN gets crops and noise, both for 1,000 epochs; every other data set, SVHN and FashionMNIST included,
    is used without augmentation for 300 (`get_daparam` of the authors' utils.py)."""
    augmentation = augment_dc.BATCHNORM if network == "ConvNetBN" else augment_dc.for_data(spec)
    return recipe if augmentation == "none" else dataclasses.replace(PROTOCOLS["dc-augmented"], augmentation=augmentation)


def _idc(recipe: Recipe, spec: DataSpec, network: Factory, images: int) -> Recipe:
    """No cutout, and no CutMix on MNIST, whose formations the authors train without."""
    mix = None if spec.name.lower() == "mnist" else recipe.mix
    return dataclasses.replace(recipe, augmentation=for_data(spec).replace("_cutout", ""), mix=mix)


def _frepo(recipe: Recipe, spec: DataSpec, network: Factory, images: int) -> Recipe:
    steps = next((steps for most, steps in _FREPO_STEPS.items() if images <= most), 40_000)
    flips = spec.name.lower() != "fashion-mnist" and "flip" in for_data(spec)
    return dataclasses.replace(recipe, max_steps=steps, augmentation=DSA if flips else DSA_DIGITS)


def _unflipped(recipe: Recipe, spec: DataSpec, network: Factory, images: int) -> Recipe:
    """Digits are not flipped."""
    if "flip" in for_data(spec):
        return recipe
    return dataclasses.replace(recipe, augmentation=recipe.augmentation.removesuffix("flip").removesuffix("_") or "none")


def _batch(spec: DataSpec, images: int) -> int:
    return next((batch for most, batch in _BATCHES.items() if images <= most * spec.num_classes), 100)


def _rded(recipe: Recipe, spec: DataSpec, network: Factory, images: int) -> Recipe:
    batch, lr = _batch(spec, images) * (2 if spec.num_classes >= 100 else 1), recipe.lr
    if spec.name.lower() == "cifar100" and network == "ConvNet":  # "special experiment" of argument.py
        batch, lr = 25, 0.002
    return dataclasses.replace(_unflipped(recipe, spec, network, images), batch_size=batch, lr=lr)


def _edc(recipe: Recipe, spec: DataSpec, network: Factory, images: int) -> Recipe:
    """CIFAR-100 is trained by SGD with another schedule (Branch_CIFAR_100/train/train.sh, cos2)."""
    recipe = _unflipped(recipe, spec, network, images)
    if spec.name.lower() != "cifar100":
        return dataclasses.replace(recipe, batch_size=_batch(spec, images))
    sgd = dataclasses.replace(recipe, optimiser="sgd", lr=0.1, momentum=0.875, weight_decay=5e-4)
    return dataclasses.replace(sgd, milestones=None, decay=None, schedule="smooth-steep", batch_size=50)


# Protocols that depend on the data set, the evaluation network or the number of images.
_ADAPTED: dict[str, Callable[[Recipe, DataSpec, Factory, int], Recipe]] = {
    "dc": _dc,
    "idc": _idc,
    "frepo": _frepo,
    "rded": _rded,
    "sre2l": _unflipped,
    "edc": _edc,
}


def check_untaught(recipe: Recipe | None, name: str, where: str) -> None:
    """For places where no teacher is trained: `InputError`, which ``where`` opens, if the recipe, or else the protocol, has one."""
    if recipe is None and name not in PROTOCOLS:
        raise unknown_name(f"{where}: key 'protocol': value", name, PROTOCOLS)
    if (recipe or PROTOCOLS[name]).teacher is not None:
        what, other = (f"protocol {name!r}", "take another protocol") if recipe is None else ("the recipe", "leave it out")
        raise InputError(f"{where}: {what} has a teacher that is trained on all real images, and none is trained here; {other}.")


def protocol(name: str, spec: DataSpec, network: Factory = "ConvNet", *, images: int | None = None) -> Recipe:
    """A named recipe of `PROTOCOLS`, as its authors use it for this data set, evaluation network and number of images.

    Args:
        name: a name in `PROTOCOLS`.
        spec: of the data.
        network: evaluation network.
        images: stored images of the set; None: ten a class.

    Raises:
        InputError: for an unknown name.
    """
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS)
    adapted = _ADAPTED.get(name)
    return PROTOCOLS[name] if adapted is None else adapted(PROTOCOLS[name], spec, network, images or 10 * spec.num_classes)
