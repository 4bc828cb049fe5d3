"""Pipelines: the sets that go from stage to stage, files that cannot work, stages that are done, and runs that are stopped anywhere."""

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import scenarios.pipeline.run
from apps.continual.memory_file import load as load_memory
from apps.nas.ledger import read_table
from distill.comparison import formed
from distill.condensed import CondensedSet, Provenance
from distill.coresets import select
from distill.data import ImageData
from distill.data_sources import load
from distill.decode import Formation
from distill.errors import InputError
from distill.randomness import generator
from distill.records import read_json
from kept.pipeline import kept_rows
from scenarios.catalogue import KINDS, run_study, study
from scenarios.cli import main
from scenarios.engine import folder as engine
from scenarios.engine.given import Given
from scenarios.engine.scenario import override, parse, read_scenario, shipped
from scenarios.engine.study import Options, Run
from scenarios.pipeline.show import accuracy_table, answer
from scenarios.privacy import released

RECIPE = {"max_steps": 15, "batch_size": 16, "optimiser": "adamw", "lr": 0.002, "augmentation": "none", "compile": "off"}
FIRST = [0, 1, 2, 3]
PRIVACY = {"epsilon": 50.0, "population": 200, "start": "apps.privacy.private_start:private_kmeans", "start_releases": 2}
TABLES: dict[str, Any] = {
    "kind": "pipeline",
    "title": "test",
    "data": {"name": "digits", "validation": 0.2},
    "stages": {
        # The file's order is not that of the work.
        "rank": {
            "kind": "nas",
            "from": "clients",
            "data": {"classes": FIRST},
            "space": {"width": [4], "depth": [1], "norm": ["none", "batch", "instance"], "activation": ["relu"], "pooling": ["avg"]},
            "truth": {"seeds": 1, "recipe": RECIPE},
            "proxy": {"seeds": 1, "recipe": RECIPE, "regression": 0, "zero_cost": ["parameters"], "resamples": 100, "early": False},
            "sets": {"ipc": 2, "coresets": ["random"]},
            "run": {"workers": 0},
        },
        "clients": {
            "kind": "federated",
            "federation": {"rounds": 1, "network": "ConvNetD1W32"},
            "partition": {"partitioner": "iid", "num_partitions": 2},
            "upload": {"ipc": 1, "classes": FIRST, "iterations": 3, "batch_real": 8, "networks": "fresh"},
            "server": {"recipe": RECIPE},
        },
        "learner": {
            "kind": "continual",
            "from": ["clients"],
            "stream": {"experiences": 3, "orders": 1},
            "memory": {"methods": ["random"], "per_class": [2]},
            "learner": {"strategies": ["replay", "none"], "network": "ConvNetD1W32"},
            "training": {"epochs": 2},
        },
        "attack": {
            "kind": "privacy",
            "from": "clients.feddm-0",
            "data": {"classes": FIRST},
            "attack": {"networks": 2, "network": "ConvNetD1W32", "recipe": RECIPE},
        },
    },
}


def tables(*settings: str) -> dict[str, Any]:
    return override(copy.deepcopy(TABLES), list(settings))


def private() -> dict[str, Any]:
    found = tables()
    found["stages"]["clients"]["privacy"] = dict(PRIVACY)
    found["stages"]["clients"]["upload"] |= {"initial": "noise"}
    found["stages"]["attack"]["audit"] = {"runs": 400}
    return found


def run(given: dict[str, Any], out: Path, resume: bool = False) -> tuple[Path, dict[str, Any]]:
    return run_study(study("test", given, "test.toml"), Options(out, quiet=True, resume=resume))


def timeless(results: Any) -> Any:
    """Results without what a clock wrote."""
    if isinstance(results, dict):
        clocks = ("seconds", "truth_seconds", "break_even", "condense_seconds", "stage_seconds")
        return {key: timeless(value) for key, value in results.items() if key not in clocks}
    return [timeless(value) for value in results] if isinstance(results, list) else results


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    return run(private(), tmp_path_factory.mktemp("runs"))


# What a finished pipeline holds


def test_shipped_pipelines_are_valid() -> None:
    names = [name for name in shipped() if parse(shipped()[name]).get("kind") == "pipeline"]
    assert {"hospital", "hospital-mnist"} <= set(names)
    for name in names:
        made: Any = study(*read_scenario(name), f"{name}.toml")
        assert next(stage.name for stage in made.stages) == "clients"
        assert shipped()[name].read_text().startswith(f"# distill run {name} ")


def test_the_record_holds_one_entry_a_stage_and_the_headline_figures(done: tuple[Path, dict[str, Any]]) -> None:
    folder, record = done
    assert record["status"] == "done"
    results = json.loads((folder / "record.json").read_text())["results"]
    assert list(results["stages"]) == ["clients", "rank", "learner", "attack"], "each after what it takes, otherwise in the file's order"
    for name, entry in results["stages"].items():
        own = read_json(folder / entry["folder"] / "record.json")
        assert entry["folder"].startswith(f"stages/{name}-")
        assert own["status"] == entry["status"] == "done"
        assert entry["results"] == own["results"]
        assert (folder / entry["folder"] / "report.html").exists()
    stages = {name: entry["results"] for name, entry in results["stages"].items()}
    assert results["accuracy"]["clients"]["feddm"]["value"] == stages["clients"]["strategies"]["feddm"]["accuracy"]["mean"]
    cells = {cell["strategy"]: cell for cell in stages["learner"]["cells"]}
    assert results["forgetting"]["learner"]["replay random float32 items2"]["value"] == cells["replay"]["forgetting"]["mean"]
    assert results["forgetting"]["learner"]["none"]["value"] == cells["none"]["forgetting"]["mean"]
    assert results["rank_correlation"]["rank"]["clients"]["value"] == stages["rank"]["proxies"]["clients"]["spearman"]["value"]
    assert results["attack_rate"]["attack"]["released"]["value"] == stages["attack"]["attack"]["released"]["advantage_percent"]["value"]
    assert set(results["attack_rate"]["attack"]) == {"released", "random", "whole", "nearest image"}
    assert results["audit"]["attack"]["claimed_epsilon"] == pytest.approx(results["epsilon"]["clients"]["feddm-0"]["value"], rel=1e-3)


def test_the_released_set_carries_the_worst_clients_guarantee(done: tuple[Path, dict[str, Any]]) -> None:
    folder, record = done
    union = CondensedSet.load(folder / "public" / "clients.feddm-0.safetensors")
    row = record["results"]["epsilon"]["clients"]["feddm-0"]
    clients = [client["epsilon"] for client in row["clients"].values()]
    assert len(clients) == 2
    assert row["value"] == max(clients) == union.provenance.dp["epsilon"] <= PRIVACY["epsilon"]
    assert "parallel composition over 2 disjoint shards" in record["results"]["stages"]["clients"]["sets"]["feddm-0"]["guarantee"]
    (uploaded,) = folder.glob("stages/clients-*/runs/feddm-s0/union.safetensors")
    assert torch.equal(union.images, CondensedSet.load(uploaded).images)
    assert union.counts == (2, 2, 2, 2, 0, 0, 0, 0, 0, 0)


def test_the_learners_memory_is_the_set_and_its_later_classes_are_new(done: tuple[Path, dict[str, Any]]) -> None:
    folder, record = done
    union = CondensedSet.load(folder / "public" / "clients.feddm-0.safetensors")
    (first,) = folder.glob("stages/learner-*/memories/*/memory-0.safetensors")
    memory = load_memory(first)
    assert memory.labels.tolist() == sorted(union.labels.tolist())
    for label in FIRST:
        torch.testing.assert_close(memory.images[memory.labels == label], union.images[union.labels == label])
    experiences = record["results"]["stages"]["learner"]["results"]["experiences"]
    assert experiences[0] == {"classes": FIRST, "train": 8, "test": experiences[0]["test"]}
    assert sorted(label for one in experiences[1:] for label in one["classes"]) == [4, 5, 6, 7, 8, 9]
    digits = load("digits", validation=0.2)
    assert experiences[0]["test"] == sum(int((digits.test.labels == label).sum()) for label in FIRST)
    assert experiences[1]["train"] == sum(digits.counts[label] for label in experiences[1]["classes"])


def test_networks_are_ranked_on_the_set(done: tuple[Path, dict[str, Any]]) -> None:
    folder, record = done
    results = record["results"]["stages"]["rank"]["results"]
    assert list(results["proxies"])[:2] == ["clients", "random"]
    assert results["proxies"]["clients"]["kind"] == "condensed"
    union = CondensedSet.load(folder / "public" / "clients.feddm-0.safetensors")
    assert results["proxies"]["clients"]["bytes"] == union.nbytes
    (truth,) = folder.glob("stages/rank-*/truth.csv")
    assert len(read_table(truth)) == results["networks"] == 3


def test_table_sentence_rows_figures_and_report(done: tuple[Path, dict[str, Any]]) -> None:
    folder, record = done
    rows = accuracy_table(record)
    assert rows[0] == ["stage", "figure", "of", "value", "unit"]
    assert {row[1] for row in rows[1:]} == {"epsilon", "accuracy", "forgetting", "rank correlation", "attack's advantage"}
    assert "the worst of 2 clients" in answer(record)
    assert "canaries find at least epsilon" in answer(record)
    kept = kept_rows(folder)
    assert len(kept) == len(rows) - 1
    assert len({tuple(row) for row in kept}) == 1
    assert all(isinstance(value, str) for row in kept for value in row.values())
    assert {path.name for path in (folder / "figures").iterdir()} == {"1-overview.png", "2-clients.feddm-0.png"}
    page = (folder / "report.html").read_text()
    assert page.count("<img") == 2
    assert "attack&#x27;s advantage" in page


# Stages that are done


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the stages that are run from here on."""
    names: list[str] = []

    def counting(kind: Any, made: Any, options: Options) -> Any:
        names.append(made.name)
        return engine.run_study(kind, made, options)

    monkeypatch.setattr(scenarios.pipeline.run, "run_study", counting)
    return names


def test_a_done_stage_is_not_run_again(done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, record = done
    text = (folder / "record.json").read_text()
    (folder / "record.json").write_text(json.dumps({**json.loads(text), "status": "running", "results": {}}))
    ran = counted(monkeypatch)
    with pytest.raises(InputError, match="add --resume"):
        run(private(), folder.parent)
    _, again = run(private(), folder.parent, resume=True)
    assert ran == []
    assert again["results"] == record["results"]


def test_another_setting_runs_its_own_stage_only(done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, record = done
    ran, changed = counted(monkeypatch), private()
    changed["stages"]["rank"]["space"]["width"] = [8]
    other, again = run(changed, folder.parent)
    assert other != folder
    assert ran == ["rank"]
    assert again["results"]["stages"]["clients"] == record["results"]["stages"]["clients"], "the privacy budget is not spent twice"
    assert again["results"]["stages"]["rank"]["folder"] != record["results"]["stages"]["rank"]["folder"]


def test_another_input_runs_the_stages_that_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = {
        "kind": "pipeline",
        "data": {"name": "digits", "validation": 0.1},
        "stages": {
            "tiny": {"kind": "condense", "method": {"iterations": 2, "network": "ConvNetD1W32", "batch_real": 8}},
            "other": {"kind": "condense", "method": {"name": "gm", "iterations": 1, "network": "ConvNetD1W32", "batch_real": 8}},
            "rank": {**copy.deepcopy(TABLES["stages"]["rank"]), "from": "tiny", "data": {}},
        },
    }
    ran = counted(monkeypatch)
    _, first = run(chain, tmp_path)
    chain["stages"]["tiny"]["method"]["iterations"] = 3
    _, second = run(chain, tmp_path)
    assert ran == ["tiny", "other", "rank", "tiny", "rank"]
    given = [record["results"]["stages"]["rank"]["given"] for record in (first, second)]
    assert given[0] != given[1]
    assert first["results"]["epsilon"] == {
        name: {"ipc1": {"value": None, "low": None, "high": None, "delta": None, "insecure": None, "clients": None}}
        for name in ("tiny", "other")
    }
    assert "tiny: hands on ipc1 without a guarantee" in answer(first)
    # The union of two stages' sets.
    chain["stages"]["rank"]["from"] = ["tiny", "other.ipc1"]
    folder, third = run(chain, tmp_path)
    assert ran[5:] == ["rank"]
    assert next(iter(third["results"]["rank_correlation"]["rank"])) == "tiny, other"
    parts = [CondensedSet.load(folder / "sets" / f"{name}.ipc1.safetensors") for name in ("tiny", "other")]
    assert third["results"]["stages"]["rank"]["given"] == Given("both", tuple(range(10)), CondensedSet.concat(parts)).fingerprint


@pytest.mark.parametrize("error", [InputError("no room for it"), ZeroDivisionError("planted")])
def test_a_failed_stage_names_itself_and_can_be_resumed(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("scenarios.nas.run.rank", broken)
        kind = InputError if isinstance(error, InputError) else scenarios.pipeline.run.StageFailed
        with pytest.raises(kind, match=r"stage 'rank' failed: .*(no room for it|planted); fix it and continue with --resume"):
            run(tables(), tmp_path)
    (folder,) = tmp_path.iterdir()
    record = read_json(folder / "record.json")
    assert record["status"] == "failed"
    assert {name: entry["status"] for name, entry in record["results"]["stages"].items()} == {"clients": "done", "rank": "failed"}
    assert answer(record) == "The pipeline is not done: rank is failed."
    assert accuracy_table(record) == []
    if not isinstance(error, InputError):
        return
    ran = counted(monkeypatch)
    _, again = run(tables(), tmp_path, resume=True)
    assert ran == ["rank", "learner", "attack"]
    assert again["status"] == "done"


def toml(given: dict[str, Any], where: str = "") -> str:
    """Tables as TOML text, which the standard library only reads."""
    plain = [f"{key} = {json.dumps(value)}" for key, value in given.items() if not isinstance(value, dict)]
    inner = [toml(value, f"{where}.{key}" if where else key) for key, value in given.items() if isinstance(value, dict)]
    return "\n".join([*([f"[{where}]"] if where else []), *plain, *inner])


# Files that cannot work


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["stages.rank.from=client"], r"test.toml: \[stages.rank\]: key 'from': stage 'client' is not known; did you mean 'clients'\?"),
        (["stages.rank.from=clients.feddm-1"], "set of stage 'clients' 'feddm-1' is not known"),
        (["stages.rank.from=rank"], "takes a condensed set from 'rank', a nas stage that hands on none"),
        (["stages.clients.from=rank"], "a federated stage takes nothing from others"),
        (["stages.rank.from=learner"], "takes a condensed set from 'learner', a continual stage that hands on none"),
        (["stages.rank.from=attack"], "takes a condensed set from 'attack', a released stage that hands on none"),
        (["stages.clients.federation.seeds=2"], r"hands on 2 sets; say which, .*\"clients.feddm-0\", \"clients.feddm-1\""),
        (['stages.clients.federation.strategies=["fedavg"]'], "a federated stage that hands on none"),
        (["stages.rank.from=3"], "key 'from' is 3; allowed: a stage's name"),
        (["stages.rank.kind=pipeline"], "kind 'pipeline' is not known"),
        (["stages.rank.kind=nass"], "did you mean 'nas'"),
        (["stages.rank.proxy.seds=1"], r"test.toml: \[stages.rank\]: \[proxy\]: key 'seds' is not known; did you mean 'seeds'"),
        (["stages.rank.data.name=mnist"], "classes only"),
        (["stages.attack.attck.networks=2"], "did you mean 'attack'"),
        (["stages.attack.attack.arms=[]"], "arms"),
        (["stages.attack.attack.network=ConvNett"], "ConvNett"),
        (["data.zca=true"], "not for a whole pipeline"),
        (["stage.a.kind=nas"], "did you mean 'stages'"),
        (["stages.Rank.kind=nas"], "a small letter"),
    ],
)
def test_mistakes_in_the_file_are_one_line(settings: list[str], text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        study("test", tables(*settings), "test.toml")
    assert str(caught.value).startswith("test.toml: ")
    assert "\n" not in str(caught.value)


def test_a_circle_of_stages_is_found() -> None:
    found = tables('stages.rank.methods.dm.network="ConvNetD1W32"', "stages.rank.sets.copies=1")
    found["stages"]["other"] = copy.deepcopy(found["stages"]["rank"]) | {"from": "rank"}
    found["stages"]["rank"]["from"] = ["clients", "other"]
    with pytest.raises(InputError, match="the stages rank, other go round in a circle"):
        study("test", found, "test.toml")
    for empty in ({"kind": "pipeline"}, {"kind": "pipeline", "data": {"name": "digits"}, "stages": {}}):
        with pytest.raises(InputError, match="missing or empty"):
            study("test", empty, "test.toml")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["stages.rank.data.classes=[0, 1]"], r"stages.rank.data.classes = \[0, 1, 2, 3\]"),
        (["stages.clients.upload.classes=[7, 8, 90]"], "the data have"),
        (["stages.learner.stream.experiences=5"], "6 new classes in 4 equal parts; allowed: 2, 3, 4, 7"),
        (["stages.learner.stream.experiences=1"], "experiences is 1"),
        (["data.validation=0.0"], "stage 'rank'.*validation"),
        (["stages.attack.attack.others=validation", "data.validation=0.005"], "20 or more"),
        (['stages.learner.stream.setting="domain"', 'stages.learner.stream.domains=["digits"]'], "first experience"),
        (["stages.rank.proxy.regression=50"], "stage 'rank'.*proxy.regression"),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(
    settings: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = counted(monkeypatch)
    with pytest.raises(InputError, match=text) as caught:
        run(tables(*settings), tmp_path)
    assert "\n" not in str(caught.value)
    assert ran == []
    assert list(tmp_path.iterdir()) == []


def test_a_set_of_other_classes_than_planned_is_refused(tmp_path: Path) -> None:
    """Half of the clients take part, each with one class: which classes they have shows when they have sent them."""
    parts = ("partitioner=pathological", "num_classes_per_partition=1", "num_partitions=10")
    found = tables(*(f"stages.clients.partition.{part}" for part in parts), "stages.clients.federation.fraction=0.5")
    with pytest.raises(
        InputError, match=r"stage 'rank' failed: what 'clients' hands on holds the classes \[.*\]; expected: \[0, 1, 2, 3\]"
    ):
        run(found, tmp_path)


def test_the_command_line_names_the_stage_and_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = tmp_path / "mine.toml"
    scenario.write_text(toml(tables("stages.rank.from=clint")))
    with pytest.raises(SystemExit) as caught:
        main(["run", str(scenario), "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert "[stages.rank]: key 'from': stage 'clint' is not known" in capsys.readouterr().err


def handed_on(made: Any, seed: int = 0) -> Mapping[str, Path]:
    return KINDS[made.kind].sets(made, seed)


def test_every_kind_says_what_it_hands_on(tmp_path: Path) -> None:
    several = {"kind": "condense", "data": {"name": "digits"}, "method": {"ipc": [1, 2]}}
    assert {name: str(path) for name, path in handed_on(study("a", several, "a")).items()} == {
        "ipc1": "condensed-ipc1.safetensors",
        "ipc2": "condensed-ipc2.safetensors",
    }
    smoke: Any = study(*read_scenario("privacy-smoke"), "privacy-smoke.toml")
    assert {name: str(path) for name, path in handed_on(smoke).items()} == {"epsilon10": "public/condensed-epsilon10.safetensors"}
    assert handed_on(study(*read_scenario("privacy-audit"), "privacy-audit.toml")) == {}
    assert list(handed_on(study(*read_scenario("nas-smoke"), "nas-smoke.toml"))) == ["dm-0"]
    seeds: Any = study(*read_scenario("federated-oneshot"), "federated-oneshot.toml")
    assert str(handed_on(seeds, 2)["herding-1"]) == "runs/herding-s2001/union.safetensors"
    assert handed_on(study(*read_scenario("continual-smoke"), "continual-smoke.toml")) == {}


# The attack on a released set


def attacked(data: ImageData, made: CondensedSet, out: Path) -> dict[str, Any]:
    table = {
        "data": {"name": "digits", "validation": 0.2},
        "attack": {"networks": 2, "network": "ConvNetD1W32", "recipe": {**RECIPE, "max_steps": 80}},
    }
    stage = released.study("attack", "test", table, "test.toml")
    given = Given("planted", tuple(range(10)), made)
    results: dict[str, Any] = {}
    released.fill(dataclasses.replace(stage, given=given), Run(Options(out, quiet=True), data, out, results, Console(quiet=True)))
    return results["attack"]


def test_copies_of_members_are_found_and_a_set_of_others_is_not(tmp_path: Path) -> None:
    """A planted leak: the "released" set is the members' own images."""
    data = load("digits", validation=0.2)
    some = torch.randperm(len(data.train), generator=generator(0, "some"))[:130]
    small = dataclasses.replace(data, train=data.train.at(some))
    leaked = CondensedSet(small.normalised("train", torch.arange(130)), small.train.labels, small.spec, provenance=Provenance("planted"))
    found = attacked(small, leaked, tmp_path / "leak")
    assert found["nearest image"]["advantage_percent"]["low"] > 80
    assert found["released"]["auc"]["low"] > 0.5
    apart = select(dataclasses.replace(data, train=data.test, test=data.train), "random", 10, generator(0, "others"))
    clean = attacked(data, apart, tmp_path / "clean")
    assert clean["nearest image"]["advantage_percent"]["low"] < 10
    assert abs(clean["released"]["auc"]["value"] - 0.5) < 0.06
    with np.load(tmp_path / "clean" / "attack" / "released-0.npz") as saved:
        assert (len(saved["in_scores"]), len(saved["out_scores"])) == (len(data.train), len(data.validation))


def test_beside_a_decoded_set_random_images_have_its_form(tmp_path: Path) -> None:
    data = load("digits", validation=0.2)
    made = formed(data, "herding", 2, Formation(2), generator(0, "made"))
    found = attacked(data, made, tmp_path)
    assert list(found) == ["released", "random", "whole", "random-decoded", "nearest image"]
    assert found["random-decoded"]["accuracy"]["value"] != found["random"]["accuracy"]["value"]


def test_an_audit_needs_an_epsilon(tmp_path: Path) -> None:
    found = tables("stages.attack.audit.runs=200")
    found["stages"] = {name: found["stages"][name] for name in ("clients", "attack")}
    with pytest.raises(InputError, match=r"stage 'attack' failed: \[audit\]: the set of 'clients' states no epsilon; set audit.epsilon"):
        run(found, tmp_path)
