"""200 wrong inputs: a name, arguments, files to create, and words that the message must contain.

They were written from ``--help`` and the documentation pages alone, and committed before the first run. None of them is valid.
A file is text, bytes, or None for a folder.
"""

import io
import json
import struct
from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    name: str
    arguments: list[str]
    files: dict[str, str | bytes | None]
    words: list[str]


CONDENSE = """kind = "condense"
title = "t"
[data]
name = "digits"
[method]
name = "dm"
ipc = 1
iterations = 1
network = "ConvNetD1W32"
[evaluation]
networks = ["ConvNetD1W32"]
seeds = 1
baselines = ["random"]
"""
FEDERATED = """kind = "federated"
title = "t"
[data]
name = "digits"
[federation]
strategies = ["random"]
engine = "inline"
rounds = 1
network = "ConvNetD1W32"
[partition]
partitioner = "pathological"
num_partitions = 3
num_classes_per_partition = 4
[upload]
ipc = 1
iterations = 1
[server.recipe]
max_steps = 2
lr = 0.02
"""
CONTINUAL = """kind = "continual"
title = "t"
[data]
name = "digits"
[stream]
experiences = 5
orders = 1
[memory]
methods = ["random", "dm"]
per_class = [1]
[learner]
strategies = ["none"]
network = "ConvNetD1W32"
[settings.dm]
iterations = 1
network = "ConvNetD1W32"
"""
NAS = """kind = "nas"
title = "t"
[data]
name = "digits"
validation = 0.2
[space]
width = [8]
depth = [1, 2]
norm = ["none"]
activation = ["relu"]
pooling = ["avg"]
[sets]
ipc = 1
coresets = ["random"]
[proxy]
regression = 0
[methods.dm]
iterations = 1
network = "ConvNetD1W32"
"""
PIPELINE = """kind = "pipeline"
title = "t"
[data]
name = "digits"
validation = 0.2
[stages.clients]
kind = "condense"
[stages.clients.method]
name = "dm"
iterations = 1
network = "ConvNetD1W32"
[stages.learner]
kind = "continual"
from = "clients"
[stages.learner.stream]
experiences = 5
"""
SWEEP = """kind = "sweep_lr"
[data]
name = "digits"
[method]
name = "dm"
ipc = 1
iterations = 1
[sweep]
values = [0.3, 1.0]
"""


def npz(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def tensors(metadata=None):
    entry = {"images": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    header = json.dumps(entry | ({"__metadata__": metadata} if metadata else {})).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


def run(name, old, new, *words, base=CONDENSE, **files):
    """A scenario file in which ``old`` was replaced by ``new``."""
    assert old in base, name
    return Case(name, ["run", "study.toml"], {"study.toml": base.replace(old, new, 1)} | files, list(words))


def text(name, content, *words):
    return Case(name, ["run", "study.toml"], {"study.toml": content}, list(words))


def options(name, options, *words, **files):
    """A right scenario file with wrong options."""
    return Case(name, ["run", "study.toml", *options], {"study.toml": CONDENSE} | files, list(words))


def setting(name, scenario, key, value, *words):
    return Case(name, ["run", scenario, "--set", f"{key}={value}"], {}, [*words])


def condense(name, extra, *words, data="digits", files=None):
    small = ["--set", "iterations=1", "--set", "network=ConvNetD1W32"]
    return Case(name, ["condense", "--data", data, *small, *extra], files or {}, list(words))


def evaluate(name, content, extra, *words):
    return Case(
        name, ["evaluate", "set.safetensors", "--data", "digits", "--seeds", "1", *extra], {"set.safetensors": content}, list(words)
    )


def arrays(name, words, **changed):
    good = {
        "x_train": np.zeros((20, 8, 8), np.uint8),
        "y_train": np.arange(20) % 2,
        "x_test": np.zeros((4, 8, 8), np.uint8),
        "y_test": np.arange(4) % 2,
    }
    kept = {key: value for key, value in (good | changed).items() if value is not None}
    return condense(name, ["--data-root", "."], *words, data="mine", files={"mine.npz": npz(**kept)})


def own(name, code, *words, path="mine:make"):
    return run(name, 'network = "ConvNetD1W32"', f'network = "{path}"', *words, **({"mine.py": code} if code is not None else {}))


RUBBISH = bytes(range(256)) * 8
NAN = float("nan")

CASES = [
    # the command line itself
    Case("no-such-command", ["destill"], {}, ["destill"]),
    Case("no-such-option", ["--verbos"], {}, ["--verbos"]),
    Case("run-nothing", ["run"], {}, ["SCENARIO"]),
    Case("run-two-files", ["run", "quickstart", "hospital"], {}, ["hospital"]),
    Case("condense-nothing", ["condense"], {}, ["--data"]),
    Case("evaluate-nothing", ["evaluate"], {}, ["SET"]),
    Case("evaluate-no-data", ["evaluate", "set.safetensors"], {"set.safetensors": tensors()}, ["--data"]),
    Case("show-nothing", ["show"], {}, ["SET"]),
    Case("report-nothing", ["report"], {}, ["RUN_DIR"]),
    Case("table-nothing", ["table"], {}, ["RUNS"]),
    Case("compare-one", ["compare", "a"], {}, ["RUN"]),
    Case("list-nothing", ["list"], {}, ["WHAT"]),
    Case("list-unknown", ["list", "método"], {}, ["método", "methods", "networks"]),
    Case("list-control", ["list", "me\x1b[31mthods\r\n"], {}, ["methods"]),
    Case("sweep-nothing", ["sweep-lr"], {}, ["--data"]),
    # run: the name of a scenario
    Case("run-unknown", ["run", "quickstrat"], {}, ["quickstrat", "list scenarios"]),
    Case("run-empty", ["run", ""], {}, []),
    Case("run-missing-file", ["run", "nowhere/study.toml"], {}, ["nowhere/study.toml"]),
    Case("run-folder", ["run", "study.toml"], {"study.toml": None}, ["study.toml"]),
    Case("run-long", ["run", "q" * 5000], {}, []),
    # run: options
    options("seed-negative", ["--seed", "-1"], "--seed", "-1"),
    options("seed-word", ["--seed", "x"], "--seed", "x"),
    options("seed-huge", ["--seed", "9" * 40], "seed"),
    options("seeds-backwards", ["--seeds", "4..0"], "4..0"),
    options("seeds-word", ["--seeds", "x"], "x"),
    options("seeds-negative", ["--seeds=-1"], "-1"),
    options("seeds-empty", ["--seeds", ""], "seeds"),
    options("seeds-open", ["--seeds", "0.."], "0.."),
    options("seeds-huge", ["--seeds", "0..999999999999"], "1000000000000 runs"),
    options("seed-and-seeds", ["--seed", "1", "--seeds", "0..2"], "--seed", "--seeds"),
    options("jobs-zero", ["--jobs", "0"], "--jobs"),
    options("jobs-negative", ["--jobs", "-2"], "--jobs"),
    options("jobs-word", ["--jobs", "all"], "--jobs", "all"),
    options("device-unknown", ["--device", "tpu"], "tpu", "cpu"),
    options("device-empty", ["--device", ""], "cpu"),
    options("device-number", ["--device", "cuda:99"], "cuda:99"),
    options("set-no-value", ["--set", "method.ipc"], "method.ipc", "key.path=value"),
    options("set-empty", ["--set", ""], "key.path=value"),
    options("set-no-key", ["--set", "=3"], "=3"),
    options("set-unknown-table", ["--set", "mehtod.ipc=3"], "mehtod"),
    options("set-unknown-key", ["--set", "method.icp=3"], "icp"),
    options("set-too-deep", ["--set", "method.ipc.deep.deeper=3"], "ipc"),
    options("set-empty-part", ["--set", "method..ipc=3"], "method..ipc"),
    options("set-text-for-number", ["--set", "method.ipc=many"], "ipc", "many"),
    options("set-grid-bracket", ["--set", "method.ipc=[1,2"], "ipc"),
    options("set-grid-all-wrong", ["--set", "method.ipc=0,x"], "ipc", "0"),
    options("set-grid-empty-entry", ["--set", "method.ipc=1,,2"], "method.ipc"),
    options("set-grid-negative", ["--set", "method.ipc=-1,-2"], "ipc", "-1"),
    options("set-control", ["--set", "method.na\x07me=dm"], "method"),
    options("out-is-file", ["--out", "taken"], "taken", taken="a file"),
    options("out-under-file", ["--out", "taken/runs"], "taken", taken="a file"),
    options("resume-from-nowhere", ["--resume-from", "nowhere"], "nowhere"),
    options("resume-from-empty-folder", ["--resume-from", "empty"], "empty", empty=None),
    options("resume-from-file", ["--resume-from", "file"], "file", file="x"),
    options("option-unknown", ["--seedz", "1"], "--seedz"),
    options("option-no-value", ["--seed"], "--seed"),
    # scenario files as files
    text("toml-empty", "", "kind"),
    text("toml-broken", 'kind = "condense', "study.toml"),
    text("toml-binary", RUBBISH, "study.toml"),
    text("toml-bom-rubbish", b"\xef\xbb\xbf\xff\xfe\x00rubbish", "study.toml"),
    text("toml-utf16", CONDENSE.encode("utf-16"), "study.toml"),
    text("toml-latin1", CONDENSE.replace('"t"', '"é"').encode("latin-1"), "study.toml"),
    text("toml-key-twice", CONDENSE + 'baselines = ["random"]\n', "study.toml"),
    text("toml-table-twice", CONDENSE + '[data]\nname = "digits"\n', "study.toml"),
    text("toml-is-json", '{"kind": "condense"}', "study.toml"),
    text("toml-nested-too-deep", CONDENSE + "x = " + "[" * 3000 + "]" * 3000, "study.toml"),
    # condense studies: tables and keys
    run("kind-unknown", '"condense"', '"condens"', "condens", "condense"),
    run("kind-missing", 'kind = "condense"\n', "", "kind"),
    run("kind-number", '"condense"', "3", "kind"),
    run("title-number", '"t"', "5", "title"),
    run("table-unknown", "[evaluation]", "[evaluaton]", "evaluaton"),
    run("table-array", "[data]", "[[data]]", "data"),
    run("table-is-text", '[data]\nname = "digits"', 'data = "digits"', "data"),
    run("data-missing", '[data]\nname = "digits"\n', "", "data"),
    run("data-name-number", '"digits"', "7", "name"),
    run("data-name-empty", '"digits"', '""', "data ''", "digits"),
    run("data-name-unknown", '"digits"', '"digitz"', "digitz"),
    run("data-key-unknown", 'name = "digits"', 'name = "digits"\nsise = 8', "sise"),
    run("data-validation-one", 'name = "digits"', 'name = "digits"\nvalidation = 1.0', "validation"),
    run("data-validation-negative", 'name = "digits"', 'name = "digits"\nvalidation = -0.1', "validation"),
    run("data-validation-nan", 'name = "digits"', 'name = "digits"\nvalidation = nan', "validation"),
    run("data-validation-date", 'name = "digits"', 'name = "digits"\nvalidation = 2020-01-01', "validation"),
    run("data-classes-twice", 'name = "digits"', 'name = "digits"\nclasses = [1, 1]', "classes"),
    run("data-classes-range", 'name = "digits"', 'name = "digits"\nclasses = [0, 10]', "classes", "10"),
    run("data-size-zero", 'name = "digits"', 'name = "digits"\nsize = 0', "size"),
    run("data-size-huge", 'name = "digits"', 'name = "digits"\nsize = 10000000', "size"),
    run("data-imbalance-small", 'name = "digits"', 'name = "digits"\nimbalance = 0.5', "imbalance"),
    run("data-imbalance-inf", 'name = "digits"', 'name = "digits"\nimbalance = inf', "imbalance"),
    run("method-missing", '"dm"', '"dmm"', "dmm", "dm"),
    run("method-name-list", '"dm"', '["dm"]', "name"),
    run("ipc-zero", "ipc = 1", "ipc = 0", "ipc"),
    run("ipc-float", "ipc = 1", "ipc = 1.5", "ipc"),
    run("ipc-true", "ipc = 1", "ipc = true", "ipc"),
    run("ipc-empty-list", "ipc = 1", "ipc = []", "ipc"),
    run("ipc-table-class", "ipc = 1", 'ipc = {"99" = 5, rest = 1}', "99"),
    run("ipc-table-negative", "ipc = 1", 'ipc = {"3" = -5, rest = 1}', "ipc"),
    run("ipc-proportional-word", "ipc = 1", 'ipc = "proportional:x"', "proportional"),
    run("iterations-negative", "iterations = 1", "iterations = -1", "iterations"),
    run("lr-nan", "iterations = 1", "iterations = 1\nlr_img = nan", "lr_img"),
    run("lr-inf", "iterations = 1", "iterations = 1\nlr_img = inf", "lr_img"),
    run("lr-negative", "iterations = 1", "iterations = 1\nlr_img = -1.0", "lr_img"),
    run("augmentation-unknown", "iterations = 1", 'iterations = 1\naugmentation = "colour_crop"', "colour"),
    run("initial-unknown", "iterations = 1", 'iterations = 1\ninitial = "reel"', "reel"),
    run("batch-zero", "iterations = 1", "iterations = 1\nbatch_real = 0", "batch_real"),
    run("other-methods-key", "iterations = 1", "iterations = 1\nsyn_steps = 3", "syn_steps"),
    run("network-unknown", 'network = "ConvNetD1W32"', 'network = "ConvNett"', "ConvNett"),
    run("evaluation-seeds-zero", "seeds = 1", "seeds = 0", "seeds"),
    run("evaluation-baseline", '["random"]', '["randm"]', "randm", "random"),
    run("evaluation-protocol", "seeds = 1", 'seeds = 1\nprotocol = "dcc"', "dcc"),
    run("evaluation-whole-epochs", "seeds = 1", "seeds = 1\nwhole_epochs = -5", "whole_epochs"),
    # federated
    run("fed-strategy", '["random"]', '["fedavgg"]', "fedavgg", "fedavg", base=FEDERATED),
    run("fed-engine", '"inline"', '"ray"', "ray", "inline", base=FEDERATED),
    run("fed-rounds-zero", "rounds = 1", "rounds = 0", "rounds", base=FEDERATED),
    run("fed-fraction-two", "rounds = 1", "rounds = 1\nfraction = 2.0", "fraction", base=FEDERATED),
    run("fed-timeout-negative", "rounds = 1", "rounds = 1\ntimeout = -1", "timeout", base=FEDERATED),
    run("fed-partitioner", '"pathological"', '"pathologic"', "pathologic", base=FEDERATED),
    run("fed-partitions-zero", "num_partitions = 3", "num_partitions = 0", "num_partitions", base=FEDERATED),
    run("fed-classes-many", "num_classes_per_partition = 4", "num_classes_per_partition = 40", "40", base=FEDERATED),
    run("fed-pixels", "ipc = 1", 'ipc = 1\npixels = "int3"', "pixels", base=FEDERATED),
    run("fed-radius-nan", "ipc = 1", "ipc = 1\nradius = nan", "radius", base=FEDERATED),
    run("fed-recipe-key", "max_steps = 2", "max_step = 2", "max_step", base=FEDERATED),
    run("fed-own-network", '"ConvNetD1W32"', '"mine:make"', "mine:make", base=FEDERATED),
    run("fed-local-momentum", "[upload]", '[local]\nmomentum = "high"\n[upload]', "momentum", base=FEDERATED),
    # continual
    run("cont-experiences", "experiences = 5", "experiences = 0", "experiences", base=CONTINUAL),
    run("cont-experiences-many", "experiences = 5", "experiences = 11", "experiences", base=CONTINUAL),
    run("cont-method", '"random"', '"randomm"', "randomm", base=CONTINUAL),
    run("cont-per-class-zero", "per_class = [1]", "per_class = [0]", "per_class", base=CONTINUAL),
    run("cont-strategy", '["none"]', '["icarl"]', "icarl", base=CONTINUAL),
    run("cont-network-number", '"ConvNetD1W32"', "32", "network", base=CONTINUAL),
    run("cont-settings-key", "iterations = 1", "iteration = 1", "iteration", base=CONTINUAL),
    run("cont-settings-method", "[settings.dm]", "[settings.dmm]", "dmm", base=CONTINUAL),
    # nas
    run("nas-width-negative", "width = [8]", "width = [-8]", "width", base=NAS),
    run("nas-norm", '["none"]', '["batchnorm"]', "batchnorm", base=NAS),
    run("nas-depth-empty", "depth = [1, 2]", "depth = []", "depth", base=NAS),
    run("nas-coreset", '["random"]', '["rnd"]', "rnd", base=NAS),
    run("nas-method", "[methods.dm]", "[methods.md]", "md", base=NAS),
    run("nas-space-key", "width = [8]", "widht = [8]", "widht", base=NAS),
    run("nas-own-network", '"ConvNetD1W32"', '"mine:make"', "mine:make", base=NAS),
    run("nas-activation-number", '["relu"]', "[3]", "activation", base=NAS),
    # privacy, by the shipped scenario
    setting("priv-epsilon-negative", "privacy-smoke", "privacy.epsilon", "-1.0", "epsilon"),
    setting("priv-epsilon-nan", "privacy-smoke", "privacy.epsilon", "nan", "epsilon"),
    setting("priv-delta-one", "privacy-smoke", "privacy.delta", "1.5", "delta"),
    setting("priv-clip-zero", "privacy-smoke", "privacy.clip", "0.0", "clip"),
    setting("priv-releases-text", "privacy-smoke", "privacy.releases", "few", "releases"),
    setting("priv-rate-two", "privacy-smoke", "privacy.sample_rate", "2.0", "sample_rate"),
    setting("priv-key", "privacy-smoke", "privacy.epsilonn", "1.0", "epsilonn"),
    # pipelines
    run("pipe-from-unknown", 'from = "clients"', 'from = "klients"', "klients", base=PIPELINE),
    run("pipe-from-itself", 'from = "clients"', 'from = "learner"', "learner", base=PIPELINE),
    run("pipe-from-set", 'from = "clients"', 'from = "clients.ipc7"', "ipc7", base=PIPELINE),
    run("pipe-from-number", 'from = "clients"', "from = 3", "from", base=PIPELINE),
    run("pipe-stage-kind", 'kind = "continual"', 'kind = "continuous"', "continuous", base=PIPELINE),
    run(
        "pipe-stage-data",
        "[stages.learner.stream]",
        '[stages.learner.data]\nname = "mnist"\n[stages.learner.stream]',
        "data",
        base=PIPELINE,
    ),
    run("pipe-condense-from", 'kind = "condense"', 'kind = "condense"\nfrom = "learner"', "clients", base=PIPELINE),
    run("pipe-stage-key", "experiences = 5", "experience = 5", "experience", base=PIPELINE),
    setting("pipe-set-stage", "hospital", "stages.clientz.privacy.epsilon", "2.0", "clientz"),
    # sweeps of step sizes
    run("sweep-values-empty", "[0.3, 1.0]", "[]", "values", base=SWEEP),
    run("sweep-values-nan", "[0.3, 1.0]", "[0.3, nan]", "values", base=SWEEP),
    Case("sweep-key", ["sweep-lr", "--data", "digits", "--key", "lr_image", "--steps", "1"], {}, ["lr_image"]),
    Case("sweep-points", ["sweep-lr", "--data", "digits", "--points", "1"], {}, ["--points"]),
    Case("sweep-range", ["sweep-lr", "--data", "digits", "--from", "10", "--to", "0.1", "--steps", "1"], {}, ["from 10 to 0.1"]),
    Case("sweep-validation", ["sweep-lr", "--data", "digits", "--validation", "0", "--steps", "1"], {}, ["validation"]),
    # condense, its options and data
    condense("con-method", ["--method", "mt"], "mt", "mtt"),
    condense("con-ipc-more-than-data", ["--ipc", "1000"], "--more-images-than-data"),
    condense("con-classes", ["--classes", "a..b"], "a..b"),
    condense("con-imbalance", ["--imbalance", "-3"], "imbalance"),
    condense("con-folder-missing", ["--size", "8"], "nowhere", data="folder:nowhere"),
    condense("con-folder-empty", ["--size", "8"], "pics", data="folder:pics", files={"pics": None}),
    condense("con-folder-not-images", [], "pics", data="folder:pics", files={"pics/a/1.png": "no", "pics/b/1.png": "no"}),
    condense("con-mhist-missing", [], "annotations.csv", data="mhist:pics", files={"pics": None}),
    condense("con-mhist-csv", [], "annotations.csv", data="mhist:pics", files={"pics/annotations.csv": "a,b\n1,2\n", "pics/images": None}),
    condense("con-data-root-nowhere", ["--data-root", "nowhere"], "mnist", "nowhere", data="mnist"),
    arrays("npz-key-missing", ["y_test"], y_test=None),
    arrays("npz-lengths", ["train"], y_train=np.arange(7) % 2),
    arrays("npz-dtype", ["x_train"], x_train=np.full((20, 8, 8), "a")),
    arrays("npz-nan", ["x_train"], x_train=np.full((20, 8, 8), NAN, np.float32)),
    arrays("npz-flat", ["x_train"], x_train=np.zeros((20, 64), np.uint8)),
    arrays("npz-labels-float", ["y_train"], y_train=np.linspace(0, 1, 20)),
    arrays("npz-labels-negative", ["-1"], y_train=np.arange(20) % 2 - 1),
    condense("npz-rubbish", ["--data-root", "."], "mine.npz", data="mine", files={"mine.npz": RUBBISH}),
    # networks and methods by import path
    own("own-no-file", None, "mine"),
    own("own-no-name", "x = 1\n", "make"),
    own("own-not-callable", "make = 3\n", "make"),
    own("own-raises", "raise ValueError('broken on purpose')\n", "broken on purpose"),
    own("own-rubbish", "def make(spec):\n    return 7\n", "make"),
    own("own-syntax", "def make(:\n", "mine"),
    # set files
    evaluate("set-cut", tensors()[:20], [], "set.safetensors"),
    evaluate("set-pickle", b"\x80\x04\x95\x10\x00\x00\x00.", [], "set.safetensors"),
    evaluate("set-zip", b"PK\x03\x04" + RUBBISH, [], "set.safetensors"),
    Case("show-json", ["show", "set.safetensors"], {"set.safetensors": "{}"}, ["set.safetensors"]),
    Case("show-not-a-set", ["show", "set.safetensors"], {"set.safetensors": tensors({"format": "pt"})}, ["set.safetensors"]),
    Case("show-folder", ["show", "set.safetensors"], {"set.safetensors": None}, ["set.safetensors"]),
    Case("show-missing", ["show", "sét.safetensors"], {}, ["sét.safetensors"]),
    # what reads runs
    Case("report-missing", ["report", "nowhere"], {}, ["nowhere"]),
    Case("report-empty", ["report", "empty"], {"empty": None}, ["empty"]),
    Case("report-bad-record", ["report", "r"], {"r/record.json": "[1, 2"}, ["record.json"]),
    Case("table-missing", ["table", "nowhere"], {}, ["nowhere"]),
    Case("table-format", ["table", ".", "--format", "xml"], {}, ["xml", "csv"]),
    Case("compare-missing", ["compare", "a", "b"], {}, ["a"]),
    Case("compare-record-list", ["compare", "a", "b"], {"a/record.json": "[]", "b/record.json": "[]"}, ["a"]),
    Case("compare-format", ["compare", "a", "b", "--format", "yaml"], {"a": None, "b": None}, ["yaml", "json"]),
]
