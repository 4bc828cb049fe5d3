"""One template instead of a file for every method, data set and number of images: ``paper-<method>-<data>-ipc<N>`` and more.

`distill run paper-dm-cifar10-ipc10` is the papers' setting (for a GPU), `released-datadam-cifar10-ipc10` that of DataDAM's released code,
which differs from its paper; `distill run short-dm-cifar10-ipc10` is a form for two CPU cores,
and `cross-...` the short form judged by networks of six architectures; of the built-in digits too (`cross-dm-digits-ipc1`).
`small-dance-cifar10-ipc10` is the short form at width 64, in bfloat16, with three evaluation networks, in which methods are compared;
`seams-calibration-...` is that of DM with one or more settings of `SEAMS`, `labels-...` that whose networks learn from a teacher's labels.
The settings stand in each method's file: its defaults are its paper's, and `distill.methods.presets.Presets` has the rest.
"""

import re
from collections.abc import Sequence

import distill.methods
from distill.data_sets import DATA_SETS
from distill.methods.presets import Paper, Settings, presets_of
from scenarios.engine.record import Tables

_PRESETS = {name: presets_of(made) for name, (_, made) in distill.methods.METHODS.items() if presets_of(made).paper is not None}
METHODS = tuple(_PRESETS)
RELEASED = tuple(name for name in METHODS if _PRESETS[name].released is not None)
CHEAP_FIRST = sorted(METHODS, key=lambda name: _PRESETS[name].cost)
DATA = ("mnist", "fashion-mnist", "svhn", "cifar10", "cifar100")
IPC = (1, 10, 50)
ARCHITECTURES = ("ConvNet", "MLP", "LeNet", "AlexNet", "VGG11", "ResNet18")
_QUICK: Settings = {"precision": "bf16", "compile": "on"}  # half the time where the processor has bfloat16
SMALL: Settings = {"network": "ConvNetW64", "batch_real": 64, **_QUICK}  # MTT keeps the network of its short form
COMPARED = ("cifar10", 10)  # the data and images a class at which all methods and seams are compared, after about as many steps
_DECODE, _CALIBRATION = {"decode": "formation:2", "clamp": True, "augmentation": "color_crop_cutout"}, {"calibration": 1.0}
_TRAINED = {"pool_networks": 2, "pool_epochs": 8}
# Settings that DM shares with later methods, each alone and together: what does which one bring?
SEAMS: dict[str, Settings] = {
    "decode": _DECODE,
    "calibration": {**_CALIBRATION, **_TRAINED},
    "blend": {"pool": "blend", **_TRAINED},
    "flipped": {"flipped": True},
    "decode-blend": {**_DECODE, "pool": "blend", **_TRAINED},
    "decode-flipped": {**_DECODE, "flipped": True},
    "decode-calibration": {**_DECODE, **_CALIBRATION, **_TRAINED},
    "blend-calibration": {"pool": "blend", **_CALIBRATION, **_TRAINED},
    "decode-frequency": {"decode": "frequency:16"},
}
FORMS: dict[str, Sequence[str]] = {
    "paper": METHODS,
    "released": RELEASED,
    "short": METHODS,
    "small": METHODS,
    "seams": tuple(SEAMS),
    "labels": METHODS,
    "cross": METHODS,
}
# Colour images want longer judging: 1,200 steps gave DM's set 1.7 points on CIFAR-10's validation images, on MNIST at one a class nothing.
# DANCE's 400 decoded images of FashionMNIST gain 1.2 points there, so that decoded sets and all forms at width 64 have as many.
LONG_STEPS = 1200
TAUGHT: Settings = {"loss": "kl", "temperature": 4.0, "teacher": {"network": "ConvNetW64", "epochs": 10}}
SHORT_RECIPE = {"optimiser": "adamw", "lr": 0.001, "batch_size": 32, "max_steps": 400, "schedule": "cosine"}


def from_template(name: str) -> Tables | None:
    """The tables of a scenario by its name, or None when the name is not of this form."""
    parts = _parts(name)
    if parts is None:
        return None
    form, which, data, ipc = parts
    method = "dm" if form == "seams" else which
    presets = _PRESETS[method]
    published = (presets.released if form == "released" else presets.paper) if form in ("paper", "released") else None
    if published is not None:
        paper = published(data, ipc)
        settings, tables = f"settings of {paper.source}", _paper(method, data, ipc, paper)
    else:
        settings = {"cross": "a short form across architectures", "short": "a short form"}.get(form, "a short form at width 64")
        settings += ", labels of a teacher" if form == "labels" else ""
        more = SEAMS[which] if form == "seams" else {}
        tables = _short(
            method, data, ipc, {**(presets.digits if data == "digits" else presets.short_form(ipc, _channels(data), data)), **more}, form
        )
    shown = f"dm with {which}" if form == "seams" else method
    return {"kind": "condense", "title": f"{data}, {shown}, {ipc} image{'s' if ipc > 1 else ''} a class, {settings}", **tables}


def _parts(name: str) -> tuple[str, str, str, int] | None:
    """(form, method or seam, data, images a class) of a name, or None."""
    form, _, rest = name.partition("-")
    stem, _, ipc = rest.rpartition("-ipc")
    for data in (*DATA, "digits") if form == "cross" else DATA:
        which = stem.removesuffix(f"-{data}")
        if which != stem and which in FORMS.get(form, ()) and re.fullmatch("[0-9]{1,4}", ipc):
            return form, which, data, int(ipc)
    return None


def _paper(method: str, data: str, ipc: int, paper: Paper) -> Tables:
    return {
        "data": {"name": data, **({"zca": True} if paper.zca else {})},
        "method": {"name": method, "ipc": ipc, **paper.settings},
        "evaluation": {"protocol": paper.protocol, "networks": [paper.network], "seeds": 5, "baselines": ["random"]},
    }


def _short(method: str, data: str, ipc: int, preset: Settings, form: str) -> Tables:
    presets = _PRESETS[method]
    settings = {"name": method, "ipc": ipc, **preset}
    # 32 x 32 for the digits because the deeper networks need it.
    table = {"name": data, "size": 32} if data == "digits" else {"name": data}
    network = settings.get("network", "ConvNet")
    decoded = preset.get("decode", getattr(distill.methods.METHODS[method][0](), "decode", "none")) != "none"
    long = _channels(data) == 3 or decoded or form in ("small", "seams", "labels")
    recipe = {**SHORT_RECIPE, **({"max_steps": LONG_STEPS} if long else {})}
    evaluation: Tables = {"networks": [network], "seeds": 5, "baselines": ["random"], "recipe": recipe}
    first = method == CHEAP_FIRST[0]
    if form == "cross":
        # Real images are evaluated with one method only: their figures are the same for all.
        evaluation |= {
            "networks": list(ARCHITECTURES),
            "baselines": ["random"] if first else [],
            "recipe": {**SHORT_RECIPE, "max_steps": 150},
        }
    if form in ("small", "seams", "labels"):
        few = presets.small if (data, ipc) == COMPARED else {}
        settings |= {**SMALL, **few} if hasattr(distill.methods.METHODS[method][0](), "pool") else {}
        plain, only_decoded = form == "small" and first, preset == {**presets.short, **_DECODE}
        real = ["random", "herding"] if plain else ["random-decoded", "herding-decoded"] if only_decoded else []
        evaluation |= {"networks": ["ConvNetW64"], "seeds": 3, "baselines": real, "recipe": {**recipe, **_QUICK}}
    if form == "labels":  # with class labels and with the teacher's, the same images for the same networks
        evaluation |= {"baselines": ["random"], "recipe": {**recipe, **_QUICK, **TAUGHT}}
    return {"data": table, "method": settings, "evaluation": evaluation}


def _channels(data: str) -> int:
    return len(DATA_SETS[data].mean or ())


def names(form: str) -> list[str]:
    """All names of one form, cheap methods first."""
    order = [which for which in CHEAP_FIRST if which in FORMS[form]] if form != "seams" else FORMS[form]
    small = [f"cross-{method}-digits-ipc1" for method in order] if form == "cross" else []
    return small + [f"{form}-{which}-{data}-ipc{ipc}" for which in order for data in DATA for ipc in IPC]
