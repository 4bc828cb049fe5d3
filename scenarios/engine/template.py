"""One template instead of a file for every method, data set and number of images: ``paper-<method>-<data>-ipc<N>`` and more.

`distill run paper-dm-cifar10-ipc10` is the papers' setting (for a GPU), `released-datadam-cifar10-ipc10` that of DataDAM's released code,
which differs from its paper; `distill run short-dm-cifar10-ipc10` is a form for two CPU cores,
and `cross-...` the short form judged by networks of six architectures; of the built-in digits too (`cross-dm-digits-ipc1`).
The settings stand in each method's file: its defaults are its paper's, and `distill.methods.presets.Presets` has the rest.
"""

import re

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
FORMS = ("paper", "released", "short", "cross")
_ANY, _DATA = "|".join(METHODS), "|".join(DATA)
_NAME = re.compile(
    rf"(?:(?:paper|short|cross)-(?:{_ANY})-(?:{_DATA})|released-(?:{'|'.join(RELEASED)})-(?:{_DATA})|cross-(?:{_ANY})-digits)-ipc[0-9]{{1,4}}"
)

# Colour images want longer judging: 1,200 steps gave DM's set 1.7 points on CIFAR-10's validation images, on MNIST at one a class nothing.
COLOUR_STEPS = 1200
SHORT_RECIPE = {"optimiser": "adamw", "lr": 0.001, "batch_size": 32, "max_steps": 400, "schedule": "cosine"}


def from_template(name: str) -> Tables | None:
    """The tables of a scenario by its name, or None when the name is not of this form."""
    if not _NAME.fullmatch(name):
        return None
    form, method, rest = name.split("-", 2)
    data, ipc = rest.rpartition("-ipc")[0], int(rest.rpartition("-ipc")[2])
    presets = _PRESETS[method]
    published = (presets.released if form == "released" else presets.paper) if form in ("paper", "released") else None
    if published is not None:
        paper = published(data, ipc)
        which, tables = f"settings of {paper.source}", _paper(method, data, ipc, paper)
    else:
        which = "a short form across architectures" if form == "cross" else "a short form"
        tables = _short(method, data, ipc, presets.digits if data == "digits" else presets.short, cross=form == "cross")
    return {"kind": "condense", "title": f"{data}, {method}, {ipc} image{'s' if ipc > 1 else ''} a class, {which}", **tables}


def _paper(method: str, data: str, ipc: int, paper: Paper) -> Tables:
    return {
        "data": {"name": data, **({"zca": True} if paper.zca else {})},
        "method": {"name": method, "ipc": ipc, **paper.settings},
        "evaluation": {"protocol": paper.protocol, "networks": [paper.network], "seeds": 5, "baselines": ["random"]},
    }


def _short(method: str, data: str, ipc: int, preset: Settings, *, cross: bool) -> Tables:
    settings = {"name": method, "ipc": ipc, **preset}
    # 32 x 32 for the digits because the deeper networks need it.
    table = {"name": data, "size": 32} if data == "digits" else {"name": data}
    network = settings.get("network", "ConvNet")
    recipe = {**SHORT_RECIPE, **({"max_steps": COLOUR_STEPS} if len(DATA_SETS[data].mean or ()) == 3 else {})}
    evaluation: Tables = {"networks": [network], "seeds": 5, "baselines": ["random"], "recipe": recipe}
    if cross:
        # Random images are judged beside one method only: their figures are the same for all.
        beside = ["random"] if method == CHEAP_FIRST[0] else []
        evaluation |= {"networks": list(ARCHITECTURES), "baselines": beside, "recipe": {**SHORT_RECIPE, "max_steps": 150}}
    return {"data": table, "method": settings, "evaluation": evaluation}


def names(form: str) -> list[str]:
    """All names of one form, cheap methods first."""
    order = [method for method in CHEAP_FIRST if form != "released" or method in RELEASED]
    small = [f"cross-{method}-digits-ipc1" for method in order] if form == "cross" else []
    return small + [f"{form}-{method}-{data}-ipc{ipc}" for method in order for data in DATA for ipc in IPC]
