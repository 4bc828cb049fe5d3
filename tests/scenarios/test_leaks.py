"""The standing leak test: nothing computed on private images without noise is in what others may see (tests/scenarios/leaks.py)."""

import dataclasses
import fnmatch
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from apps.federated import client_app
from apps.privacy import ledger, private_statistics, release
from apps.privacy.release import noised_sums
from distill.condensed import CondensedSet
from distill.evaluation import accuracies
from distill.figures import image_grid
from distill.records import append_line
from distill.run import condense
from scenarios.catalogue import KINDS
from scenarios.engine import public_part
from scenarios.privacy import sets as privacy_sets
from tests.scenarios.leaks import CLASSES, FILES, compared, public_files, small
from tests.scenarios.marks import unmarked

pytest.importorskip("opacus")
pytest.importorskip("flwr")

NETWORK = "ConvNetD1W32"
SHORT = {"max_steps": 1, "batch_size": 8, "optimiser": "adamw", "lr": 0.002, "augmentation": "none", "compile": "off"}
BUDGET = {"delta": 1e-3, "population": 60, "clip": 1.0, "twin": False}


def privacy(method: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "kind": "privacy",
        "data": {"name": "digits", "classes": CLASSES},
        "privacy": {"epsilon": [8.0], **BUDGET, **more},
        "method": {"ipc": 1, "network": NETWORK, **method},
        "evaluation": {"networks": ["MLP"], "seeds": 1, "baselines": [], "recipe": SHORT},
    }


# The first with two budgets, a private start and twins.
STUDIES = {
    "dm and k-means": privacy({"name": "dm", "iterations": 2}, epsilon=[8.0, 4.0], networks=2, start="kmeans", start_releases=2, twin=True),
    "gm": privacy({"name": "gm", "iterations": 1, "outer_steps": 1, "inner_epochs": 1}, networks=1),
    "dsa": privacy({"name": "dsa", "iterations": 2, "outer_steps": 1, "inner_epochs": 1}),
    "a trained pool": privacy(
        {"name": "dance", "iterations": 2, "lr_img": 5.0, "pool_networks": 1, "pool_epochs": 1, "pool_batch": 30},
        networks=2,
        start="kmeans",
        start_releases=2,
        experts_clip=0.5,
    ),
    "experts": privacy(
        {"name": "mtt", "iterations": 1, "experts": 1, "max_start_epoch": 0, "expert_epochs": 1, "syn_steps": 1, "batch_real": 30},
    ),
}
PIPELINE: dict[str, Any] = {
    "kind": "pipeline",
    "data": {"name": "digits"},
    "stages": {
        "clients": {
            "kind": "federated",
            "federation": {"rounds": 2, "network": NETWORK},
            "partition": {"partitioner": "iid", "num_partitions": 2},
            "upload": {"ipc": 1, "classes": CLASSES, "iterations": 2, "batch_real": 8, "networks": "fresh", "initial": "noise"},
            "server": {"recipe": SHORT},
            "privacy": {
                "epsilon": 50.0,
                "delta": 1e-3,
                "population": 30,
                "clip": 1.0,
                "releases": 2,
                "start_releases": 2,
                "networks": "apps.privacy.networks:drawn_once",
                "start": "apps.privacy.private_start:private_kmeans",
            },
        },
        "maker": {key: value for key, value in privacy({"name": "dm", "iterations": 1}, networks=1).items() if key != "data"}
        | {"data": {"classes": CLASSES}},
        "attack": {
            "kind": "privacy",
            "from": "clients",
            "data": {"classes": CLASSES},
            "attack": {"arms": ["released"], "networks": 1, "network": "MLP", "recipe": SHORT, "others": "test"},
        },
    },
}


def moves_by_its_sensitivity_and_nothing_else(tables: dict[str, Any], out: Path) -> Any:
    found = compared(tables, out)
    assert found.differences == []
    assert len(found.runs.moved) == len(found.runs.answers) > 0
    assert all(distance <= allowed * (1 + 1e-5) for _, distance, allowed in found.runs.moved), found.runs.moved
    assert max(distance / allowed for _, distance, allowed in found.runs.moved) > 0.1, "the planted image is not in the releases at all"
    for folder in found.folders:
        names = [str(path.relative_to(folder)).rpartition("public/")[2] for path in public_files(folder)]
        assert [name for name in names if not any(fnmatch.fnmatchcase(name, kind) for kind in FILES)] == []
        assert unmarked(folder) == []
    return found


ONE_ROUND = {
    "kind": "federated",
    "data": {"name": "digits"},
    **PIPELINE["stages"]["clients"],
    "federation": {"rounds": 1, "network": NETWORK},
}


def evaluated(found: Any, budget: str) -> list[str]:
    """Private sets whose accuracy depends on the private images: it is measured on others."""
    rows = [record["results"][budget]["accuracy"] for record in found.records]
    return [name for name in rows[0] if name.startswith("private") and rows[0][name]["values"] != rows[1][name]["values"]]


@pytest.mark.parametrize("kind", STUDIES)
def test_a_planted_image_is_in_no_file_that_others_may_see(kind: str, tmp_path: Path) -> None:
    found = moves_by_its_sensitivity_and_nothing_else(STUDIES[kind], tmp_path)
    folder, record = found.folders[0], found.records[0]
    assert [line for line in found.logs if "without noise" not in line] == [], "a line of a twin has no guarantee"
    assert evaluated(found, "epsilon8") == []
    listed = record["results"]["public"]["files"]
    assert listed == [str(path.relative_to(folder)) for path in public_files(folder)]
    for path in folder.glob("public/*.safetensors"):
        origin = CondensedSet.load(path).provenance
        assert (origin.seconds, origin.fingerprint) == (0.0, None)
        assert (origin.dp or {})["insecure"] is False
    if kind == "dm and k-means":
        assert len(list(folder.glob("exact-*.safetensors"))) == 2, "the twins, outside"
        kept = len(list(folder.glob("public/epsilon4-releases/release-*.safetensors")))
        assert kept == record["results"]["epsilon4"]["privacy"]["releases"] > 2
        total = record["results"]["public"]["statement"]
        parts = [record["results"][f"epsilon{epsilon}"]["privacy"]["epsilon"] for epsilon in (8, 4)]
        assert max(parts) < total["epsilon"] <= sum(parts)
        assert total["releases"] == 2 * kept
        words = KINDS["privacy"].view.answer(record)
        assert f"All sets and releases of the 2 budgets together: The maker states ({total['epsilon']:.2f}, " in words
        assert f"({total['epsilon']:.2f}, 1.0e-03)-differential privacy" in (folder / "public" / "GUARANTEE.txt").read_text()
        assert f"under ({total['epsilon']:.2f}, 1.0e-03)-differential privacy" in (folder / "report.html").read_text()


def test_a_pipeline_with_private_clients_and_every_message_of_a_client(tmp_path: Path) -> None:
    found = moves_by_its_sensitivity_and_nothing_else(PIPELINE, tmp_path)
    folder, record = found.folders[0], found.records[0]
    assert [line for line in found.logs if not line.startswith("attack on ")] == [], "an attack says what it finds of the members"
    assert len([message for message in found.runs.messages if any(key.startswith("upload/") for key in message)]) == 2 * 2 * 2
    public = record["results"]["public"]
    assert {"public/clients.feddm-0.safetensors", "public/maker.epsilon8.safetensors", "public/GUARANTEE.txt"} <= set(public["files"])
    stages = {name: entry["results"].get("public") for name, entry in record["results"]["stages"].items()}
    assert stages["attack"] is None
    totals = [stages[name]["statement"]["epsilon"] for name in ("clients", "maker")]
    assert public["statement"]["epsilon"] == pytest.approx(sum(totals))
    assert f"All sets with a guarantee together: epsilon {sum(totals):.2f} (delta " in KINDS["pipeline"].view.answer(record)
    assert f"All rounds and seeds together: The maker states ({totals[0]:.2f}, " in record["results"]["stages"]["clients"]["answer"]
    (first,) = folder.glob("stages/clients-*")
    line = json.loads((first / "runs" / "feddm-s0" / "rounds.jsonl").read_text().splitlines()[-1])
    assert all(client["privacy"]["epsilon"] < totals[0] for client in line["clients"]), "two rounds cost more than one"


# The test itself is tested: a leak of each kind of file


def leaky(patch: pytest.MonkeyPatch) -> None:
    """Each leak is in a field of its own, so that all can be looked for at once."""
    seen: dict[str, Any] = {"examples": 0}
    made_by, private_set, hand_over = private_statistics.noised_sums, privacy_sets.private_set, privacy_sets.hand_over
    write_whole, write_json, covered = ledger.write_whole, ledger.write_json, public_part.covered

    def remembered(data: Any, classes: Any, mask: Any, noise: float, norm: float, rows: Any, **sizes: Any) -> Any:
        silent: Any = SimpleNamespace(normal=np.zeros)
        seen["clean"] = noised_sums(data, classes, mask, noise, norm, rows, **{**sizes, "entropy": silent})
        seen["examples"], seen["image"] = len(data.train), data.normalised("train", torch.tensor([len(data.train) - 1]))
        return made_by(data, classes, mask, noise, norm, rows, **sizes)

    def with_clean_sums(path: Path, content: bytes) -> None:
        if path.name.startswith("release-"):
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
            content = safetensors.torch.save({**safetensors.torch.load(content), "sums": seen["clean"]}, header)
        write_whole(path, content)

    def with_count(path: Path, value: Any) -> None:
        write_json(path, {**value, "examples": seen["examples"]} if path.name == "account.json" else value)

    def twin_as_private_set(study: Any, data: Any, *rest: Any) -> Any:
        made, start = private_set(study, data, *rest)
        origin = dataclasses.replace(made.provenance, config={**made.provenance.config, "examples": len(data.train)})
        append_line(rest[3] / "metrics.jsonl", {"stage": "distil", "part": "loss", "loss": float(seen["clean"].norm())})
        twin = condense(data, "dm", ipc=1, network=NETWORK, initial="noise", iterations=1, lr_img=100.0, progress=False)
        return dataclasses.replace(twin, provenance=origin), start

    def with_log_and_words(folder: Path, sets: Any, total: Any, releases: Any = ()) -> Any:
        made = hand_over(folder, sets, {**total, "not_covered": [f"{seen['examples']} images"]}, releases)
        append_line(folder / "public" / "metrics.jsonl", {"step": 1, "loss": float(seen["clean"].norm())})
        return made

    def with_time(made: CondensedSet) -> CondensedSet:
        return dataclasses.replace(made, provenance=dataclasses.replace(covered(made).provenance, seconds=time.monotonic()))

    def with_real_image(made: CondensedSet, title: str) -> Any:
        return image_grid(dataclasses.replace(made, images=torch.cat([seen["image"], made.images[1:]])), title)

    patch.setattr(private_statistics, "noised_sums", remembered)
    patch.setattr(ledger, "write_whole", with_clean_sums)
    patch.setattr(ledger, "write_json", with_count)
    patch.setattr(privacy_sets, "private_set", twin_as_private_set)
    patch.setattr(privacy_sets, "hand_over", with_log_and_words)
    patch.setattr(public_part, "covered", with_time)
    patch.setattr(public_part, "image_grid", with_real_image)
    patch.setattr("scenarios.privacy.run.mark", lambda *arguments: None)
    patch.setattr(privacy_sets, "accuracies", lambda *arguments, split, **more: accuracies(*arguments, split="train", **more))


def test_one_planted_leak_of_each_kind_of_file_is_found(tmp_path: Path) -> None:
    found = compared(privacy({"name": "dm", "iterations": 1}, networks=1), tmp_path, leaky)
    for expected in (
        "condensed-epsilon8.safetensors: header provenance.config.examples",
        "condensed-epsilon8.safetensors: header provenance.seconds",
        "condensed-epsilon8.safetensors: tensor images",
        "condensed-epsilon8.png: pixels",
        "epsilon8-releases/release-00000000.safetensors: tensor sums",
        "epsilon8-releases/account.json: examples",
        "metrics.jsonl: line 0",
    ):
        assert f"public/{expected}" in found.differences
    assert any(name.startswith("public/GUARANTEE.txt: line ") for name in found.differences)
    assert any('"loss": ' in line for line in found.logs)
    assert any(line.startswith("  epsilon8, MLP on private dm: ") for line in found.logs)
    assert evaluated(found, "epsilon8") == ["private dm"]
    names = [path.name for path in public_files(found.folders[0])]
    assert not any(fnmatch.fnmatchcase("metrics.jsonl", kind) for kind in FILES)
    assert "metrics.jsonl" in names
    assert [Path(path).name for path in unmarked(found.folders[0])] == ["PRIVATE.txt"]


def test_a_leak_in_a_message_and_a_release_without_clipping_are_found(tmp_path: Path) -> None:
    def plant(patch: pytest.MonkeyPatch) -> None:
        real = client_app.MetricRecord
        patch.setattr(client_app, "MetricRecord", lambda facts: real({**facts, "seconds": time.monotonic() % 1}))
        patch.setattr(release, "clipped", lambda rows, norm: rows)

    found = compared(ONE_ROUND, tmp_path, plant)
    assert any(name.endswith(": facts/seconds") for name in found.differences)
    assert max(distance / allowed for _, distance, allowed in found.runs.moved) > 1.1


def test_a_client_that_sends_only_the_classes_that_it_holds_is_found(tmp_path: Path) -> None:
    private_upload = client_app.private_upload

    def held(privacy: Any, epsilon: float, data: Any, *rest: Any, **named: Any) -> Any:
        classes = tuple(sorted(set(privacy.classes) & set(data.classes)))
        return private_upload(dataclasses.replace(privacy, classes=classes), epsilon, data, *rest, **named)

    found = compared(ONE_ROUND, tmp_path, lambda patch: patch.setattr(client_app, "private_upload", held))
    assert any(name.endswith(": upload/labels") for name in found.differences)


def test_the_two_runs_differ_in_one_image() -> None:
    one, other = small(False), small(True)
    assert len(other.train) == len(one.train) + 1
    assert torch.equal(other.train.images[:-1], one.train.images)
    assert one.spec == other.spec
