"""A privacy study whose sets have labels of a teacher that is trained within their budget."""

from pathlib import Path
from typing import Any

import pytest
import torch

from apps.privacy import private_experts
from distill import teachers
from distill.condensed import CondensedSet
from scenarios.catalogue import run_study, study
from scenarios.engine.study import Options

pytest.importorskip("opacus")

TABLES: dict[str, Any] = {
    "kind": "privacy",
    "privacy": {"epsilon": [8.0], "networks": 2, "clip": 1.0, "teacher_share": 0.5},
    "method": {"name": "dm", "ipc": 1, "iterations": 4, "network": "ConvNetW32D2"},
    "evaluation": {"networks": ["MLP"], "seeds": 1, "baselines": ["random"]},
}
RECIPE = {
    "max_steps": 2,
    "loss": "kl",
    "temperature": 2.0,
    "teacher": {"network": "MLP", "epochs": 1, "batch_size": 900, "labels": "images"},
}


def test_the_labels_are_released_with_the_set_and_counted_in_its_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {**TABLES, "evaluation": {**TABLES["evaluation"], "recipe": RECIPE}}
    made = study("labels", tables, "s.toml")
    options = Options(out=tmp_path, quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(teachers.ExactStatistics, "trajectories", lambda *given, **named: pytest.fail("a teacher without noise was trained"))
        folder, record = run_study(made, options)
    part, public = record["results"]["epsilon8"], record["results"]["public"]
    assert list(part["accuracy"]) == ["private dm", "dm without noise", "random", "random-labelled", "label-only"]
    taught, plain = (CondensedSet.load(folder / "public" / f"{kind}-epsilon8.safetensors") for kind in ("labelled", "condensed"))
    assert torch.equal(taught.images, plain.images)
    assert (taught.label_kind, taught.labels.shape, plain.labels.dtype) == ("logits", (10, 10), torch.int64)
    # Releases of features, and two steps of DP-SGD on 1,797 images in batches of 900: everything in public/ is in one total.
    stated = taught.provenance.dp or {}
    features, steps = (step[2] for step in stated["history"])
    assert features in (1, 2)
    assert (steps, stated["releases"], stated["teacher"]) == (2, features + 2, 2)
    assert (plain.provenance.dp or {})["releases"] == features
    assert (plain.provenance.dp or {})["epsilon"] < stated["epsilon"] <= 8.0
    assert part["privacy"]["releases"] == features + 2
    assert public["statement"]["epsilon"] == stated["epsilon"]
    assert "2 of them steps of DP-SGD that trained the teacher of its labels" in part["guarantee"]
    assert (folder / "public" / "epsilon8-releases" / "expert-teacher-0000.safetensors").exists()
    weights = (folder / "public" / "labelled-epsilon8.safetensors").read_bytes()
    # Evaluated again: nothing is trained or released again, every file stays.
    (folder / "metrics.jsonl").unlink()
    (folder / "record.json").unlink()
    monkeypatch.setattr(private_experts, "_train", lambda *given, **named: pytest.fail("trained again"))
    again, record = run_study(made, Options(out=tmp_path, quiet=True, resume=True))
    assert again == folder
    assert record["results"]["epsilon8"]["accuracy"] == part["accuracy"]
    assert (folder / "public" / "labelled-epsilon8.safetensors").read_bytes() == weights


def test_a_study_without_a_teacher_keeps_its_hash() -> None:
    plain = study("labels", TABLES, "s.toml")
    unused = {key: value for key, value in TABLES["privacy"].items() if key != "teacher_share"}
    assert study("labels", {**TABLES, "privacy": unused}, "s.toml").merged["privacy"].keys() == plain.merged["privacy"].keys() - {
        "teacher_share"
    }
