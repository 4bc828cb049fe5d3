"""The published data sets, one entry each: what is known of one beforehand stands here and nowhere else."""

from dataclasses import dataclass

DIGITS = tuple("0123456789")
_FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar
cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl
hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road
rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_IDX = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """What is published about a data set.

    Attributes:
        title: one line.
        classes: names in the order of the labels.
        size: number of training images. A number that is only roughly right costs a private run accuracy, never privacy.
        mean: published mean of each channel, of pixels in [0, 1]; None: nothing is published.
        std: published standard deviation of each channel.
        computed: whether the images are normalised by what is computed from the file, which is published where it is ``mean``, ``std``.
        flips: whether DSA's augmentation flips the images; not those of digits (ICML 2021, and the readme of VICO-UoE/DatasetCondensation).
        dc_augmentation: strategy of "Dataset Condensation"'s evaluation, `get_daparam` of the same repository.
        torchvision: class in ``torchvision.datasets``; "" for built-in images.
        files: where that class looks under its root.
        by_split: whether that class takes ``split`` in the place of ``train``, keeps channels first and has ``labels``.
    """

    title: str
    classes: tuple[str, ...]
    size: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    computed: bool = False
    flips: bool = True
    dc_augmentation: str = "none"
    torchvision: str = ""
    files: tuple[str, ...] = ()
    by_split: bool = False


DATA_SETS = {
    "digits": DataSet(
        title="1,797 handwritten digits, 16 x 16 grey, built in",
        classes=DIGITS,
        size=1297,
        computed=True,
        flips=False,
    ),
    "mnist": DataSet(
        title="70,000 handwritten digits",
        classes=DIGITS,
        size=60_000,
        mean=(0.1307,),
        std=(0.3081,),
        flips=False,
        dc_augmentation="dc_crop_scale_rotate",
        torchvision="MNIST",
        files=tuple(f"MNIST/raw/{file}" for file in _IDX),
    ),
    "fashion-mnist": DataSet(
        title="70,000 pieces of clothing",
        classes=_FASHION,
        size=60_000,
        mean=(0.2861,),
        std=(0.3530,),
        torchvision="FashionMNIST",
        files=tuple(f"FashionMNIST/raw/{file}" for file in _IDX),
    ),
    # The std of CIFAR-10 is the one that the condensation papers use (the mean over images of each image's std), not that of all pixels,
    # so that their step sizes mean the same here.
    "cifar10": DataSet(
        title="60,000 photographs, 10 classes",
        classes=_CIFAR10,
        size=50_000,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        torchvision="CIFAR10",
        files=("cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/test_batch"),
    ),
    "cifar100": DataSet(
        title="60,000 photographs, 100 classes",
        classes=tuple(_CIFAR100.split()),
        size=50_000,
        mean=(0.5071, 0.4866, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        torchvision="CIFAR100",
        files=("cifar-100-python/train", "cifar-100-python/test"),
    ),
    "svhn": DataSet(
        title="99,289 house-number digits",
        classes=DIGITS,
        size=73_257,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        flips=False,
        torchvision="SVHN",
        files=("train_32x32.mat", "test_32x32.mat"),
        by_split=True,
    ),
    "usps": DataSet(
        title="9,298 handwritten postcode digits",
        classes=DIGITS,
        size=7291,
        mean=(0.253875,),
        std=(0.384216,),
        computed=True,
        flips=False,
        torchvision="USPS",
        files=("usps.bz2", "usps.t.bz2"),
    ),
}
