"""The pages say what the kept records say."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from distill.augment import DSA
from distill.errors import InputError
from distill.shared_config import learner_strategy
from kept import pages as tables
from kept.condense import COLUMNS, methods_tables, readme_table
from kept.continual import equal_bytes
from kept.headlines import HEADLINES, headlines
from kept.pages import BEGIN, EXPECTED, ROOT, Keeper, kept, page_of, page_text, pages, rows_of
from kept.published import PUBLISHED, judging, published, reproduced
from scenarios.catalogue import KINDS, study
from scenarios.engine.scenario import read_scenario, shipped
from scenarios.engine.template import from_template


def test_the_tables_of_the_pages_are_those_that_the_csv_files_make() -> None:
    found = pages()
    for page, text in found.items():
        assert page.read_text() == text, f"{page}: run python -m kept.pages"
    marked = {path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("apps/*/*.md")] if BEGIN in path.read_text()}
    assert marked == set(found), "a table between these marks is made by nobody"
    for kind in KINDS:
        assert kind == "condense" or not kept(kind) or page_of(kind) in found


def test_every_kept_file_belongs_to_a_shipped_scenario() -> None:
    for path in EXPECTED.glob("condense/*.csv"):
        assert path.stem in shipped() or from_template(path.stem)
    for rows in kept().values():
        for row in rows:
            assert tuple(row) == COLUMNS
            assert 0 <= float(row["low"]) <= float(row["mean"]) <= float(row["high"]) <= 100
            assert int(row["seeds"]) >= (3 if row["scenario"].startswith(("small-", "seams-", "labels-")) else 5)
    for kind in KINDS:
        for name, rows in kept(kind).items():
            assert {row["scenario"] for row in rows} == {name}
            assert kind == "condense" or name in shipped()


def test_headlines_show_the_kept_rows_and_a_missing_row_is_named() -> None:
    every = {kind: kept(kind) for kind in KINDS if kind != "condense"}
    rows = [dict(row) for row in every["privacy"]["privacy-dm-mnist"]]
    lines = headlines(every).splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == [h.scenario for h in HEADLINES if h.scenario in every[h.kind]]
    next(row for row in rows if row["set"] == "private dm" and row["budget"] == "1").update(accuracy_mean="12.34")
    (changed,) = headlines({"privacy": {"privacy-dm-mnist": rows}}).splitlines()[2:]
    assert "private DM 12.3 (95.9 to 96.2); without noise 96.3" in changed
    with pytest.raises(InputError, match=r"privacy-dm-mnist have no row .*private dm"):
        headlines({"privacy": {"privacy-dm-mnist": rows[4:]}})


def test_the_row_of_all_data_says_how_long_its_networks_were_trained() -> None:
    # 1,297 training images in batches of 32 are 41 steps an epoch, and the quickstart's recipe ends after 150.
    (row,) = [row for row in kept()["quickstart"] if row["set"] == "whole"]
    assert f"| whole (150 steps, {150 / 41:.3g} epochs) |" in readme_table([row])
    for other in ({"dataset": "mnist"}, {"scenario": "mine"}):
        assert "| whole |" in readme_table([row | other])


def test_folders_of_kept_figures_are_kinds() -> None:
    assert {path.name for path in EXPECTED.iterdir() if path.is_dir()} <= set(KINDS)


def written(folder: Path, record: dict[str, Any], config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def condensed(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    found = {"mean": 89.123, "low": 88.0, "high": 90.25, "values": [1, 2, 3]}
    record = {
        "status": "done",
        "scenario": "x",
        "seconds": 12.3,
        "peak_memory_bytes": 5,
        "environment": {"gpu": None, "cores": 2, "processor": "p"},
        "results": {"data": {}, "ipc1": {"accuracy": {"dm": found, "whole": found}}, "ipc10": {"accuracy": {"dm": found, "whole": found}}},
        **changes,
    }
    config = {
        "data": {"name": "mnist"},
        "method": {"name": "dm", "iterations": 7},
        "evaluation": {"networks": ["ConvNet"], "recipe": None, "protocol": "laptop"},
    }
    return record, config


def test_rows_of_a_record(tmp_path: Path) -> None:
    rows = rows_of(written(tmp_path, *condensed()))
    assert [(r["ipc"], r["set"], r["published"], r["iterations"]) for r in rows] == [
        ("1", "dm", "89.7", "7"),
        ("", "whole", "99.6", ""),
        ("10", "dm", "97.5", "7"),
    ]
    assert rows[0]["mean"] == "89.12"
    assert "| **dm** | ConvNet | laptop | DSA | class | - | 1 x 3 | 89.1 (88.0 to 90.2) | 89.7 (DSA) | yes |" in readme_table(rows)


def test_rows_say_labels_bytes_and_sets(tmp_path: Path) -> None:
    """The interval of a method's row is over its sets, where there are several; a coreset is drawn for each network."""
    found = {"mean": 60.0, "low": 59.0, "high": 61.0, "values": [60.0, 59.5, 60.5], "bytes": 1229600, "labels": "class"}
    several = {"mean": 61.0, "low": 58.0, "high": 64.0, "values": [[60.0, 60.0, 60.0], [62.0, 62.0, 62.0]]}
    part = {
        "accuracy": {"dm": found, "random": found, "whole": {**found, "bytes": None}},
        "sets": {"ConvNet": several},
        "distil_seconds": 1755.6,
    }
    record, config = condensed(results={"data": {}, "ipc10": part})
    config["evaluation"]["recipe"] = {"augmentation": "auto", "optimiser": "adamw", "batch_size": 32, "max_steps": 1200, "epochs": 1001}
    rows = rows_of(written(tmp_path, record, config))
    assert [row["distil_seconds"] for row in rows] == ["1756", "", ""], "random images are not distilled"
    assert [(r["set"], r["mean"], r["sets"], r["seeds"]) for r in rows] == [
        ("dm", "61.00", "2", "6"),
        ("random", "60.00", "3", "3"),
        ("whole", "60.00", "1", "3"),
    ]
    text = readme_table(rows)
    assert "| **dm** | ConvNet | 1,200 steps of 32, AdamW | DSA | class | 1,229,600 | 2 x 3 | 61.0 (58.0 to 64.0) |" in text
    assert "| random | ConvNet | 1,200 steps of 32, AdamW | DSA | class | 1,229,600 | 3 x 1 |" in text


def test_a_run_is_compared_with_the_figure_that_was_evaluated_alike(tmp_path: Path) -> None:
    """Random CIFAR-10 images: 31.0 stands in tables evaluated with DSA, 26.0 in older ones, presumably without augmentation."""
    found = {"mean": 31.4, "low": 29.8, "high": 33.0, "values": [1, 2, 3]}
    for name, augmentation, zca, expected in (
        ("random", "auto", False, ("DSA", "31.0", "presumably DSA", "yes")),
        ("random", "none", False, ("none", "26.0", "presumably none", "no")),  # far above is not reproduced either
        ("random", "color_crop", False, ("color_crop", "26.0", "presumably none", "no, other evaluation")),
        ("mtt", "auto", True, ("DSA, ZCA", "65.3", "DSA, ZCA", "no")),
        ("mtt", "auto", False, ("DSA", "65.3", "DSA, ZCA", "no, other evaluation")),
        ("kmeans", "auto", False, ("DSA", "", "", "")),
    ):
        record, config = condensed(results={"data": {}, "ipc10": {"accuracy": {name: found}}})
        config["data"] = {"name": "cifar10", "zca": zca}
        config["evaluation"]["recipe"] = {"augmentation": augmentation, "optimiser": "sgd", "batch_size": 9, "max_steps": None, "epochs": 5}
        (row,) = rows_of(written(tmp_path, record, config))
        assert (row["judging"], row["published"], row["published_judging"], row["reproduced"]) == expected


def test_auto_is_what_the_record_says_it_was(tmp_path: Path) -> None:
    """A set may name the augmentation of its comparison; the figures with DSA are then not of the same evaluation."""
    found = {"mean": 48.9, "low": 48.8, "high": 49.0, "values": [1, 2, 3]}
    for said, expected in (("none", "no, other evaluation"), (DSA, "yes")):
        record, config = condensed(results={"data": {}, "ipc10": {"accuracy": {"dm": found}, "augmentation": said}})
        config["data"] = {"name": "cifar10"}
        (row,) = rows_of(written(tmp_path, record, config))
        assert row["reproduced"] == expected


@pytest.mark.parametrize(
    ("protocol", "data", "expected"),
    [("dc", "mnist", "DC"), ("dc", "svhn", "none"), ("dsa", "svhn", "DSA"), ("dm", "cifar10", "DSA"), ("datadam", "cifar10", "DSA")],
)
def test_a_protocol_names_its_augmentation(protocol: str, data: str, expected: str) -> None:
    config = {"data": {"name": data}, "evaluation": {"recipe": None, "protocol": protocol}}
    assert judging(config, "ConvNet") == expected


def test_released_datadam_is_compared_through_its_own_network(tmp_path: Path) -> None:
    found = {"mean": 54.0, "low": 53.8, "high": 54.5, "values": [1, 2, 3]}
    record, config = condensed(results={"data": {}, "ipc10": {"accuracy": {"datadam": found, "random": found}}})
    config |= {"data": {"name": "cifar10"}, "method": {"name": "datadam", "form": "released", "iterations": 7}}
    config["evaluation"] = {"networks": ["ConvNetBN"], "recipe": None, "protocol": "datadam"}
    rows = {row["set"]: row for row in rows_of(written(tmp_path, record, config))}
    assert rows["datadam"]["published"] == "54.2"
    assert rows["random"]["published"] == ""


def test_kept_rows_say_what_published_csv_says_today() -> None:
    for scenario, rows in kept().items():
        made: Any = study(scenario, read_scenario(scenario)[1], scenario)
        for row in rows:
            named = getattr(made.settings, "augmentation", "auto")
            own = "auto" if named == "auto" else learner_strategy(made.settings, named) or "auto"  # the set names it for its learners
            how = judging(made.merged, row["network"], own)
            said = published(PUBLISHED, row["dataset"], row["ipc"], row["set"], how) if row["network"] == "ConvNet" else {}
            expected = (how, said.get("accuracy", ""), said.get("judging", ""), said.get("source", ""))
            assert (row["judging"], row["published"], row["published_judging"], row["source"]) == expected
            assert row["reproduced"] == reproduced(float(row["low"]), float(row["high"]), said, how)


def test_only_finished_runs_of_a_known_kind_are_kept(tmp_path: Path) -> None:
    for changes, words in (
        ({"status": "interrupted"}, "only a finished run"),
        ({"kind": "magic"}, "kind 'magic' are kept; allowed: condense,"),
    ):
        with pytest.raises(InputError, match=words):
            rows_of(written(tmp_path, *condensed(**changes)))


# A federated record of two rounds and two seeds, as scenarios/federated/run.py makes them.
ROUND = {"images": 1, "dropped": 0, "cumulative_bytes": 0}
FEDERATED: dict[str, Any] = {
    "strategies": {
        "feddm": {
            "rounds": [
                {
                    "round": 1,
                    "accuracy": {"mean": 80.0, "low": 70.0, "high": 90.0, "values": [79.0, 81.0]},
                    "up": 1e6,
                    "down": 5e5,
                    **ROUND,
                },
                {
                    "round": 2,
                    "accuracy": {"mean": 85.0, "low": 84.0, "high": 86.0, "values": [84.9, 85.1]},
                    "up": 2e6,
                    "down": 5e5,
                    **ROUND,
                },
            ],
            "accuracy": {"mean": 85.0, "low": 84.0, "high": 86.0, "values": [84.9, 85.1]},
            "dropped": [{"run": 0, "round": 1, "client": 3, "status": "refused", "why": "x"}],
        },
        "local": {
            "rounds": [{"round": 2, "accuracy": {"mean": 60.0, "low": None, "high": None, "values": [60.0]}, "up": 0, "down": 0, **ROUND}],
            "accuracy": {"mean": 60.0, "low": None, "high": None, "values": [60.0]},
            "dropped": [],
        },
    }
}


def test_a_federated_run_keeps_every_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "data": {"name": "digits"},
        "network": "ConvNetW32",
        "rounds": 2,
        "federation": {"engine": "inline"},
        "partition": {"partitioner": "dirichlet", "alpha": 0.5, "num_partitions": 4},
    }
    folder = written(tmp_path / "run", condensed(scenario="federated-smoke", kind="federated", results=FEDERATED)[0], config)
    monkeypatch.setattr(tables, "EXPECTED", tmp_path / "expected")
    (path,) = tables.keep(folder)
    assert path == tmp_path / "expected/federated/federated-smoke.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["strategy"], r["round"], r["accuracy_mean"], r["accuracy_low"], r["failures"]) for r in rows] == [
        ("feddm", "1", "80.00", "70.00", "1"),
        ("feddm", "2", "85.00", "84.00", "0"),
        ("local", "2", "60.00", "", "0"),
    ]
    assert [(r["megabytes_up"], r["megabytes_down"]) for r in rows[:2]] == [("1.0000", "0.5000"), ("3.0000", "1.0000")], "cumulative"
    assert rows[0]["partition"] == "dirichlet 0.5, 4 clients"
    assert kept("federated") == {"federated-smoke": rows}
    assert "| feddm | 2 | 85.0 (84.0 to 86.0) | 3.000 | 1.000 | 1 |\n| local | 2 | 60.0 | 0.000 | 0.000 | 0 |" in page_text("federated")

    # With tuned settings and measured seconds there are two columns more.
    timed = [{**line, "client_seconds": 1.5} for line in FEDERATED["strategies"]["feddm"]["rounds"]]
    tuned = {"strategies": {"fedavg": {**FEDERATED["strategies"]["feddm"], "rounds": timed}, "local": FEDERATED["strategies"]["local"]}}
    tuned["tuning"] = {"chosen": {"fedavg": {"lr": 0.1, "momentum": 0.0}}}
    folder = written(tmp_path / "run2", condensed(scenario="federated-smoke", kind="federated", results=tuned)[0], config)
    tables.keep(folder)
    row = "| fedavg | 2 | 85.0 (84.0 to 86.0) | 3.000 | 1.000 | 1 | 3.0 | lr 0.1, momentum 0 |"
    assert f"{row}\n| local | 2 | 60.0 |" in page_text("federated")


def test_a_headline_says_what_its_rows_lack() -> None:
    rows = [
        {"strategy": name, "round": "5", "accuracy_mean": "1", "accuracy_low": "1", "accuracy_high": "1", "tuned": ""}
        for name in ("feddm", "random", "fedavg", "scaffold")
    ]
    kept_rows = {"federated": {"federated-mnist-dirichlet": rows}}
    assert "accuracy after 5 rounds, averaging not tuned, %" in headlines(kept_rows)
    rows[2]["tuned"] = "lr 0.1, momentum 0"
    assert "accuracy after 5 rounds, %" in headlines(kept_rows)


def test_a_kind_without_a_page_of_its_own_shows_every_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "EXPECTED", tmp_path)
    monkeypatch.setitem(tables.KEEPERS, "federated", Keeper(lambda folder: []))
    (tmp_path / "federated").mkdir()
    (tmp_path / "federated/a.csv").write_text("scenario,strategy,run_seconds\na,fed|dm,5\n")
    (tmp_path / "federated/a-truth.csv").write_text("id,seed\n1,2\n")  # the kind's own file
    assert page_text("federated") == "`a`\n\n| strategy |\n| --- |\n| fed\\|dm |"


def test_published_figures_have_a_source() -> None:
    with PUBLISHED.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert row["source"]
        assert 0 < float(row["accuracy"]) < 100
        words = row["judging"].removeprefix("presumably ").removesuffix(", best on the test set")
        assert words in {"none", "DC", "DSA", "DSA, ZCA", "IDC", "NCFM", "labels of an early-stopped expert", "not stated"}
        assert (row["judging"].removeprefix("presumably ") == "DC") <= (row["dataset"] == "mnist")
    keys = [(row["dataset"], row["ipc"], row["set"], row["judging"]) for row in rows]
    assert len(keys) == len(set(keys)), "two figures of one set that were evaluated alike"


def test_a_record_read_back_still_has_its_method_first(tmp_path: Path) -> None:
    """The report takes the first row of an accuracy table for its subject."""
    from distill.records import read_json, write_json
    from scenarios.condense.show import answer

    row = {"mean": 90.0, "low": None, "high": None, "values": [90.0]}
    record = {"status": "done", "results": {"ipc1": {"accuracy": {"dm": row, "class_mean": row}}}}
    write_json(tmp_path / "record.json", record)
    assert answer(read_json(tmp_path / "record.json")).startswith("1 image a class by dm trains a network to ")


def test_runs_at_width_64_are_one_table_the_best_first() -> None:
    some = kept()["short-dm-cifar10-ipc10"]
    method, real = (next(row for row in some if bool(row["iterations"]) == learned) for learned in (True, False))
    rows = [
        {**real, "scenario": "small-dm-cifar10-ipc10", "network": "ConvNetW64", "mean": "31.00"},
        {**method, "scenario": "seams-decode-calibration-cifar10-ipc10", "network": "ConvNetW64", "mean": "56.00"},
        {**method, "scenario": "small-dance-cifar10-ipc10", "set": "dance", "network": "ConvNetW64", "mean": "58.00"},
    ]
    first, small = methods_tables([*some, *rows]).split("\n\n")
    assert first == readme_table(some)
    head, _, *lines = small.splitlines()
    assert "cifar10, IPC 10, ConvNetW64" in head
    assert [line.split("|")[1].strip() for line in lines] == ["**dance**", "dm + decode + calibration", "random"]


def test_equal_bytes_has_the_best_memory_of_each_kind() -> None:
    def row(method: str, storage: str, mean: float) -> dict[str, str]:
        spread = {f"accuracy_{field}": f"{mean + add}" for field, add in (("mean", 0), ("low", -1), ("high", 1))}
        return {"strategy": "scratch", "method": method, "storage": storage, **spread}

    cells = [row("dm", "uint8", 60), row("dm-decoded", "uint8", 70), row("random", "uint8", 40), row("kmeans", "uint8", 50)]
    assert equal_bytes("a", cells) == []
    cells += [row("random-zlib", "compressed", 55), row("random-webp50", "compressed", 65)]
    best = ["70.0 (69.0 to 71.0) dm-decoded", "65.0 (64.0 to 66.0) random-webp50", "50.0 (49.0 to 51.0) kmeans", "-"]
    assert equal_bytes("a", cells) == [["`a`", "scratch", *best]]
