"""Labels of teachers in a memory: each is of one experience, and a learner from scratch takes them."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from apps.continual.benchmark import Budget, Unit
from apps.continual.labels import LABELLED, label_bytes, labelled_memories
from apps.continual.memory import Memory, MemoryConfig
from apps.continual.streams import class_incremental, experience_tensors
from distill.data import ImageData
from distill.errors import InputError
from distill.teachers import Teacher, teacher_network
from distill.train import Recipe, train_network
from scenarios.catalogue import run_study, study
from scenarios.engine.study import Options
from tests.conftest import toy_arrays

TEACHER = Teacher(network="MLP", epochs=2, lr=0.05, batch_size=8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))


def four_classes() -> ImageData:
    return ImageData.from_arrays("toy", *toy_arrays(0, classes=4), *toy_arrays(1000, classes=4))


def test_a_memory_of_noise_holds_no_real_image_however_large_its_share() -> None:
    stream = [experience_tensors(data) for data in class_incremental(four_classes(), 2, 0)]
    memory = Memory(MemoryConfig("noise", per_class=50))
    for images, labels in [*stream, stream[0]]:  # the last one comes back, and is merged
        memory.observe(images, labels)
    real = torch.cat([images for images, _ in stream])
    assert len(memory.images) > 0
    assert torch.cdist(memory.images.flatten(1), real.flatten(1)).min() > 0.1


@pytest.mark.parametrize(("method", "decode"), [("random", "none"), ("random", "formation:2"), ("noise", "none")])
def test_an_image_has_the_probabilities_of_its_experiences_teacher(method: str, decode: str) -> None:
    stream = class_incremental(four_classes(), 2, 0)
    config = MemoryConfig(method, per_class=2, settings={} if decode == "none" else {"decode": decode})
    memory, memories = Memory(config), []
    for data in stream:
        images, labels = experience_tensors(data)
        memory.observe(images, labels)
        memories.append(copied(memory))
    sets = labelled_memories(memories, stream, TEACHER)
    copies = 1 if decode == "none" else 4
    assert [len(made) for made in sets] == [4 * copies, 8 * copies]
    for made, held in zip(sets, memories, strict=True):
        assert made.label_kind == "probabilities"
        assert torch.equal(made.images, held.images)
        for image, label, row in zip(made.images, held.labels.tolist(), made.labels, strict=True):
            (number,) = (number for number, data in enumerate(stream) if label in data.classes)
            classes = list(stream[number].classes)
            outputs = teacher_network(stream[number], TEACHER, progress=False)(image[None])[0]
            powers = [float(outputs[k].exp()) for k in classes]
            expected = torch.zeros(4)
            for k, power in zip(classes, powers, strict=True):
                expected[k] = power / sum(powers)
            assert torch.allclose(row, expected, atol=1e-5)
        assert label_bytes(held, stream) == 4 * 2 * len(made)
    # What was stored before stays as it is: the second experience changes no label of the first.
    assert torch.equal(sets[1].labels[: len(sets[0])], sets[0].labels)
    assert sets[0].classes == stream[0].classes
    train_network(sets[1], "MLP", Recipe(epochs=1, max_steps=2, batch_size=4, loss="kl", temperature=2.0, compile="off"), 0)


def copied(memory: Memory) -> Memory:
    made = Memory(memory.config)
    made.groups, made.experiences = list(memory.groups), memory.experiences
    return made


def test_a_labelled_memory_holds_the_images_of_the_plain_one() -> None:
    unit = Unit(Budget("items", 3), f"dm{LABELLED}", "float32", 0, shrinking=False, settings={}, seed=5)
    plain = dataclasses.replace(unit, method="dm")
    assert unit.plain == plain == plain.plain
    assert unit.config(four_classes().spec, 4) == plain.config(four_classes().spec, 4)
    assert unit.name != plain.name


TABLES: dict[str, Any] = {
    "kind": "continual",
    "data": {"name": "digits", "classes": [0, 1, 2, 3]},
    "stream": {"experiences": 2, "orders": 1},
    "memory": {
        "methods": ["random", "random-labelled"],
        "per_class": [2],
        "teacher": {"network": "MLP", "epochs": 1},
    },
    "learner": {"strategies": ["scratch"], "network": "MLP", "recipe": {"max_steps": 3, "batch_size": 8}},
}


def changed(**tables: Any) -> dict[str, Any]:
    return TABLES | {key: {**TABLES.get(key, {}), **table} for key, table in tables.items()}


def test_a_study_compares_a_memory_with_and_without_labels(tmp_path: Path) -> None:
    folder, record = run_study(study("s", TABLES, "s.toml"), Options(out=tmp_path, quiet=True))
    plain, taught = record["results"]["cells"]
    assert (plain["method"], taught["method"]) == ("random", "random-labelled")
    assert plain["items"] == taught["items"] == 8
    assert taught["bytes"] == plain["bytes"] + 8 * 2 * 4
    assert [path.name for path in sorted((folder / "memories").iterdir())] == ["items2-random-float32-order0"]
    older = {key: value for key, value in TABLES["memory"].items() if key != "teacher"} | {"methods": ["random"]}
    assert "teacher" not in study("s", {**TABLES, "memory": older}, "s.toml").merged["memory"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"memory": {"methods": ["random"]}}, "go together; give both"),
        ({"memory": {"methods": ["reservoir-labelled"]}}, "reservoir-labelled"),
        ({"memory": {"share": "shrinking"}}, "an image keeps its first label"),
        ({"stream": {"setting": "online"}}, "an image keeps its first label"),
        ({"memory": {"bytes_of": [1]}}, "its labels take bytes too; use per_class"),
        ({"learner": {"strategies": ["replay"]}}, "whose items carry class numbers; use 'scratch', or 'der' without a teacher"),
        ({"learner": {"recipe": {"teacher": {"epochs": 1}}}}, "has a teacher that is trained on all real images"),
        ({"learner": {"joint": {"teacher": {"epochs": 1}}}}, "joint.teacher is not offered"),
        ({"memory": {"teacher": {"network": "MPL"}}}, "MLP"),
    ],
)
def test_what_makes_no_sense_is_one_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        study("s", changed(**change), "s.toml")
    assert "\n" not in str(caught.value)
