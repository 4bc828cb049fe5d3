"""Privacy studies: what is refused, a whole small run that resumes, and an audit that fails loudly."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apps.privacy import accounting, public_experts
from apps.privacy.budget import EXPERTS_SHARE
from distill import experts
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.data_sources import load
from distill.decode import as_text
from distill.errors import InputError
from distill.evaluation import Accuracy
from distill.experts import cache_root
from kept import privacy as kept
from scenarios.catalogue import KINDS, run_study
from scenarios.cli import main
from scenarios.commands.study import run_and_print
from scenarios.engine.public_part import handing_on, mark
from scenarios.engine.scenario import parse, shipped
from scenarios.engine.study import Options
from scenarios.privacy import run, schema, sets, show
from scenarios.privacy.reading import study as make
from scenarios.privacy.sets import kept_elsewhere
from scenarios.reporting.report import write_report
from tests.scenarios.marks import unmarked

pytest.importorskip("opacus")

TINY: dict[str, Any] = {
    "privacy": {"epsilon": [8.0], "networks": 2, "clip": 1.0, "start": "kmeans", "start_releases": 2},
    "method": {"name": "dm", "ipc": 1, "iterations": 10, "network": "ConvNetW8D1"},
    "evaluation": {"networks": ["MLP"], "seeds": 2, "baselines": [], "recipe": {"max_steps": 3}},
}


SHORT: dict[str, Any] = {"networks": ["MLP"], "seeds": 1, "baselines": [], "recipe": {"max_steps": 1}}


def tables(**more: Any) -> dict[str, Any]:
    return {**{key: dict(value) for key, value in TINY.items()}, **more}


def test_shipped_privacy_studies_are_studies() -> None:
    found = [name for name in shipped() if name.startswith("privacy-")]
    assert "privacy-smoke" in found
    for name in found:
        given = parse(shipped()[name])
        assert given.pop("kind") == "privacy"
        assert make(name, given.pop("title"), given, name).merged["kind"] == "privacy"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"privacy": {"epsilom": [1.0]}}, "did you mean 'epsilon'"),
        ({"privacy": {"epsilon": [-1.0]}}, "above 0"),
        ({"privacy": {"epsilon": []}}, "epsilon"),
        ({"privacy": {"epsilon": [1.0, 1.0]}}, "allowed: different ones, each once"),
        ({"privacy": {"centred": True, "clip": 0.5}}, 'add start = "kmeans"'),
        ({"privacy": {"centred": True, "clip": 0.5, "start": "kmeans"}, "method": {"name": "gm"}}, "'gm' matches gradients"),
        ({"attack": {"arms": ["everything"]}}, "key 'arms'"),
        ({"attack": {"attacks": ["rmai"]}}, "key 'attacks': value 'rmai' is not known; did you mean 'rmia'"),
        ({"attack": {"attacks": ["rmia"], "runs": 4}}, "'rmia' with 4 runs; allowed: an even number of runs from 6"),
        ({"method": {"name": "dm", "ipc": [1, 10]}}, "one whole number"),
        ({"surprise": {}}, "key 'surprise'"),
        ({"audit": {"runs": 1}}, "at least 200"),
        ({"attack": {"arms": ["dm"], "methods": {"dsa": {}}}}, "an arm 'dsa' is not known"),
        ({"attack": {"arms": ["dm"], "methods": {"dm": {"iteration": 3}}}}, "did you mean 'iterations'"),
        ({"attack": {"arms": ["dm"], "methods": {"dm": {"ipc": 3}}}}, "key 'ipc' is not for here"),
        ({"visual": {"measures": ["lpips"]}}, "did you mean 'pixels'. Allowed: features, pixels, structure"),
        ({"visual": {"network": "ConvNot"}}, "did you mean 'ConvNet'"),
        ({"poisoning": {"portion": 1.0}}, "below 1"),
        ({"privacy": {"experts_share": 1.0}}, "below 1"),
        ({"privacy": {"expert_share": 0.5}}, "did you mean 'experts_share'"),
        ({"arms": {"two words": {"method": {"name": "dm"}}}}, r"\[arms.two words\]: allowed: names of small letters"),
        ({"arms": {"dm": {"method": {"name": "gm"}}}}, "is the name of the study's own method"),
        ({"arms": {"b": {"method": {"name": "dm", "ipc": 3}}}}, "key 'ipc' of method is not for here"),
        ({"arms": {"b": {"method": {"name": "dm"}, "privacy": {"epsilon": [2.0]}}}}, "key 'epsilon' of privacy is not for here"),
        ({"arms": {"b": {"method": {"name": "dm"}, "privacy": {"clap": 2.0}}}}, "did you mean 'clip'"),
        ({"arms": {"b": {"method": {"name": "dm", "iteration": 2}}}}, "did you mean 'iterations'"),
        ({"arms": {"b": {}}}, "method"),
    ],
)
def test_mistakes_are_one_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        make("s", "s", tables(**change), "s.toml")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="none of the tables"):
        make("s", "s", {}, "s.toml")


def test_a_study_leaves_sets_a_guarantee_and_figures_and_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = {"runs": 2, "arms": ["private", "random"], "pool": 200}
    given = make("tiny", "Tiny", tables(attack=attack, visual={"network": "MLP"}), "s.toml")

    def stops(*args: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "fill_attack", stops)
        with pytest.raises(KeyboardInterrupt):
            run_study(given, Options(out=tmp_path, quiet=True))
    folder = next(tmp_path.iterdir())
    before = (folder / "public" / "condensed-epsilon8.safetensors").read_bytes()
    folder, record = run_study(given, Options(out=tmp_path, quiet=True, resume=True))
    assert (folder / "public" / "condensed-epsilon8.safetensors").read_bytes() == before
    stated = CondensedSet.load(folder / "public" / "condensed-epsilon8.safetensors").provenance.dp or {}
    assert stated["epsilon"] <= 8.0
    assert stated["releases"] == 4
    assert record["results"]["epsilon8"]["guarantee"].startswith("The maker states (8.00, 1.0e-05)-differential privacy")
    pictures = {path.name for path in (folder / "figures").iterdir()}
    assert unmarked(folder) == []
    assert {"images-epsilon8.png", "accuracy-epsilon8.png", "roc.png", "pairs-random.png"} <= pictures
    assert len(pictures) == 7
    assert set(record["results"]["attack"]) == {"private", "random"}
    assert json.loads((folder / "record.json").read_text())["status"] == "done"
    assert "not covered" in show.answer(record)
    assert show.accuracy_table(record)[0] == ["set", "epsilon 8"]
    assert "differential privacy" in (folder / "report.html").read_text()
    assert record["results"]["visual"]["random"]["pixels"]["copied"]
    assert not record["results"]["visual"]["private start, epsilon 8"]["pixels"]["copied"]
    assert "random in pixels" in show.answer(record)
    rows = kept.kept_rows(folder)
    assert len({tuple(row) for row in rows}) == 1
    assert {row["part"] for row in rows} == {"sets", "attack", "visual"}
    first = rows[0]
    assert (first["set"], first["budget"], first["releases"], first["dataset"]) == ("private dm", "8", "4", "digits")
    assert float(first["epsilon"]) <= 8.0
    assert float(first["accuracy_low"]) <= float(first["accuracy_mean"]) <= float(first["accuracy_high"])
    assert all(isinstance(value, str) for row in rows for value in row.values())


def test_a_run_of_the_earlier_form_goes_on_and_the_terminal_says_what_may_be_handed_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sets at the folder's top, with the time that they took: they move, nothing is made again and nothing is lost."""
    given = make("tiny", "Tiny", tables(privacy={**TINY["privacy"], "twin": False}, evaluation=SHORT), "s.toml")
    folder, record = run_study(given, Options(out=tmp_path, quiet=True))
    names, images = ("condensed-epsilon8.safetensors", "start-epsilon8.safetensors"), []
    for name in names:
        made = CondensedSet.load(folder / "public" / name)
        images.append(made.images)
        dataclasses.replace(made, provenance=dataclasses.replace(made.provenance, seconds=12.5)).save(folder / name)
    shutil.rmtree(folder / "public")
    (folder / "PRIVATE.txt").unlink()
    assert any(name == "images-epsilon8" for name, _ in show.draw(folder, record)), "its figures can be drawn as it is"
    assert "none has been sorted out" in handing_on({**record, "results": {}}, "this page")
    (folder / "record.json").unlink()
    run_and_print(given, tmp_path, 0, "cpu", None, resume=True, quiet=False)
    last = " ".join(capsys.readouterr().out.split()).rpartition(" Private: ")[2]
    assert last.startswith("hand on the ")
    assert "(8.00, 1.0e-05)-differential privacy. Neither this output nor any other file" in last
    found = json.loads((folder / "record.json").read_text())
    assert found["results"]["public"] == record["results"]["public"]
    for name, before in zip(names, images, strict=True):
        moved = CondensedSet.load(folder / "public" / name)
        assert torch.equal(moved.images, before)
        assert moved.provenance.seconds == 0.0
        assert not (folder / name).exists()
    assert unmarked(folder) == []


def test_a_page_of_several_runs_and_figures_drawn_again_say_that_they_are_private(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = make("tiny", "Tiny", {"attack": {"runs": 2, "arms": ["random"], "pool": 100}, "evaluation": SHORT}, "s.toml")
    folder, _ = run_study(given, Options(out=tmp_path, quiet=True))
    write_report([folder], tmp_path / "page.html", KINDS)
    assert "Private:" not in (tmp_path / "page.html").read_text(), "nothing was said to be private"
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    mark(other)
    write_report([folder, other], tmp_path / "page.html", KINDS)
    assert (
        "<body><p class=reason>Private: do not hand on this page, which shows figures of other.</p>" in (tmp_path / "page.html").read_text()
    )
    with pytest.raises(SystemExit):
        main(["figures", str(other), "--out", str(tmp_path / "drawn")])
    assert "Private: hand on neither these figures nor any other file of this run" in capsys.readouterr().err


def test_experts_of_a_twin_in_the_users_cache_are_named() -> None:
    mtt = {"name": "mtt", "ipc": 1, "iterations": 1}
    (said,) = kept_elsewhere(make("s", "s", {"privacy": {}, "method": mtt}, "s.toml"))
    assert said.endswith(f"in {cache_root()}.")
    assert kept_elsewhere(make("s", "s", {"privacy": {"twin": False}, "method": mtt}, "s.toml")) == []
    assert kept_elsewhere(make("s", "s", {"privacy": {}}, "s.toml")) == []
    pooled = {"name": "dm", "ipc": 1, "iterations": 1, "pool": "blend"}
    assert len(kept_elsewhere(make("s", "s", {"privacy": {}, "method": pooled}, "s.toml"))) == 1


def test_keys_of_experts_change_the_hash_only_where_they_are_used() -> None:
    plain = make("s", "s", tables(), "s.toml")
    assert not {"experts_share", "experts_clip", "public_experts"} & plain.merged["privacy"].keys()
    for key, value in (("experts_share", 0.5), ("experts_clip", 2.0), ("public_experts", "mnist")):
        other = make("s", "s", tables(privacy={**TINY["privacy"], key: value}), "s.toml")
        assert other.merged["privacy"][key] == value
        assert other.hash != plain.hash
    assert (schema.EXPERTS_SHARE, schema.PrivacyTable().experts_share) == (EXPERTS_SHARE, EXPERTS_SHARE)


def test_a_study_with_public_experts_trains_nothing_on_private_images_and_starts_in_the_methods_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digits of another size stand for public data; the twin has their experts, too."""
    seen: list[str] = []
    trained = experts.train_experts

    def watched(data: ImageData, *rest: Any, **named: Any) -> Any:
        seen.append(data.spec.name)
        return trained(data, *rest, **named)

    def public(study: Any, data: ImageData, options: Options) -> ImageData:
        rows = dataclasses.replace(data.train, images=255 - data.train.images)  # no copies
        return dataclasses.replace(data, train=rows, spec=dataclasses.replace(data.spec, name="negatives"))

    monkeypatch.setattr(public_experts, "train_experts", watched)
    monkeypatch.setattr(sets, "public_of", public)
    pool = {"name": "ncfm", "frequencies": 16, "pool_networks": 1, "pool_epochs": 1, "pool_batch": 400, "calibration": 0.1}
    given = tables(method={**TINY["method"], "iterations": 4, **pool}, evaluation={**SHORT, "baselines": ["random-decoded"]})
    folder, record = run_study(make("tiny", "Tiny", given, "s.toml"), Options(out=tmp_path, quiet=True))
    assert seen == ["negatives", "negatives"]
    stated = record["results"]["epsilon8"]["privacy"]
    assert (stated["public_experts"], stated["releases"]) == ("negatives", 4)
    assert "experts" not in stated
    start, made = (CondensedSet.load(folder / "public" / f"{name}-epsilon8.safetensors") for name in ("start", "condensed"))
    assert (as_text(start.decode), len(start.images), len(start.decoded().images)) == ("formation:2", 10, 40)
    assert as_text(made.decode) == "formation:2"
    assert list(record["results"]["epsilon8"]["accuracy"]) == ["private ncfm", "ncfm without noise", "private start", "random-decoded"]


ARM: dict[str, Any] = {"name": "ncfm", "iterations": 4, "network": "ConvNetW32D2", "frequencies": 16}
ARM |= {"pool_networks": 1, "pool_epochs": 1, "pool_batch": 400, "calibration": 0.1}


def test_arms_are_sets_of_the_same_epsilon_and_the_total_counts_all_of_them(tmp_path: Path) -> None:
    """Each arm has an account of its own; random images have the form of the arm that has one."""
    privacy = {**TINY["privacy"], "twin": False}
    arms = {"ncfm": {"method": ARM, "privacy": {"experts_share": 0.5, "networks": 3}}}
    given = tables(privacy=privacy, arms=arms, evaluation={**SHORT, "baselines": ["random", "random-decoded"]})
    study = make("tiny", "Tiny", given, "s.toml")
    assert "arms" not in make("tiny", "Tiny", tables(), "s.toml").merged
    assert study.hash != make("tiny", "Tiny", {key: value for key, value in given.items() if key != "arms"}, "s.toml").hash
    folder, record = run_study(study, Options(out=tmp_path, quiet=True))
    part, public = record["results"]["epsilon8"], record["results"]["public"]
    assert list(part["accuracy"]) == ["private dm", "private start", "private ncfm", "random", "random-decoded"]
    assert [part["accuracy"][name]["images"] for name in ("private ncfm", "random", "random-decoded")] == [40, 10, 40]
    mine, other = part["privacy"], part["arms"]["ncfm"]["privacy"]
    assert (mine["releases"], other["releases"], other["experts"]) == (2 + 2, 2 + 3 + 4, 4)
    assert "experts" not in mine
    together = accounting.spent([accounting.Steps(*step) for step in [*mine["history"], *other["history"]]], 1e-5).epsilon
    assert public["statement"]["epsilon"] == pytest.approx(together)
    assert max(mine["epsilon"], other["epsilon"]) <= 8.0 < together
    assert (public["statement"]["releases"], public["statement"]["experts"]) == (13, 4)
    words = (folder / "public" / "GUARANTEE.txt").read_text()
    assert "condensed-epsilon8-ncfm.safetensors" in words
    assert "13 releases, 4 of them steps of DP-SGD" in words.split("All files of this folder together: ")[1]
    accounts = [json.loads((folder / f"epsilon8{name}-releases" / "account.json").read_text()) for name in ("", "-ncfm")]
    assert accounts[0]["account"] != accounts[1]["account"]
    assert accounts[1]["facts"]["experts"] == [0.5, 1.0]
    sets_left = KINDS["privacy"].sets(study, 0)
    assert [CondensedSet.load(folder / path).provenance.method for path in sets_left.values()] == ["dm", "ncfm"]
    assert f"private ncfm states ({other['epsilon']:.2f}, 1.0e-05) in 9 releases, 4 of them steps of DP-SGD." in show.answer(record)
    assert "All sets and releases of the arms together" in show.answer(record)
    assert {"images-epsilon8.png", "images-epsilon8-ncfm.png"} <= {path.name for path in (folder / "figures").iterdir()}
    rows = {row["set"]: row for row in kept.kept_rows(folder)}
    assert (rows["private dm"]["releases"], rows["private ncfm"]["releases"], rows["random"]["releases"]) == ("4", "9", "")
    with pytest.raises(InputError, match="random-decoded has the form of a decoded set, and the study makes none"):
        run.check(make("s", "s", tables(evaluation={**SHORT, "baselines": ["random-decoded"]}), "s.toml"), load("digits"))


def test_a_set_with_nothing_beside_it_is_told_without_brackets() -> None:
    row = Accuracy((90.0, 92.0)).as_dict()
    record = {"results": {"epsilon1": {"accuracy": {"private dm": row}, "guarantee": "Private."}}}
    assert show.answer(record) == "private dm at epsilon 1 trains a network to 91.0 ± 12.7 %. Private."
    record["results"]["epsilon1"]["accuracy"]["random"] = row
    assert "% (random 91.0 ± 12.7). Private." in show.answer(record)


def test_an_audit_that_finds_more_than_the_account_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from apps.privacy.entropy import SystemEntropy

    given = make("audit", "Audit", {"audit": {"runs": 800}}, "s.toml")
    _, record = run_study(given, Options(out=tmp_path / "right", quiet=True))
    assert record["results"]["audit"]["holds"]
    normal = SystemEntropy.normal
    monkeypatch.setattr(SystemEntropy, "normal", lambda self, shape: np.asarray(0.3 * normal(self, shape)))
    with pytest.raises(run.GuaranteeBroken, match="CONTRADICTION"):
        run_study(given, Options(out=tmp_path / "wrong", quiet=True))


def test_sizes_methods_and_subsets_are_arms_and_the_equally_accurate_one_is_named(tmp_path: Path) -> None:
    attack = {
        "runs": 6,
        "pool": 300,
        "arms": ["dm", "random", "whole"],
        "ratios": [0.07, 0.2],
        "subsets": [5],
        "attacks": ["lira", "nearest", "calibrated", "rmia", "alignment"],
        "methods": {"dm": {"iterations": 3, "network": "ConvNetW32D2"}},
        "whole_recipe": {"max_steps": 20, "optimiser": "adamw", "lr": 0.005, "augmentation": "none"},
    }
    given = make("arms", "Arms", {"attack": attack, "evaluation": {"networks": ["MLP"], "recipe": {"max_steps": 3}}}, "s.toml")
    folder, record = run_study(given, Options(out=tmp_path, quiet=True))
    rows = record["results"]["attack"]
    assert list(rows) == ["dm r0.07", "dm r0.2", "random r0.07", "random r0.2", "whole", "random 5 a class"]
    # 300 images, half of them in, ten classes: 15 a class.
    assert [row["images_a_class"] for row in rows.values()] == [1, 3, 1, 3, None, 5]
    assert rows["dm r0.07"]["lira"]["auc"]["value"] > 0
    assert "nearest" in rows["random r0.2"]
    assert "nearest" not in rows["whole"]
    assert rows["random r0.2"]["nearest"]["auc"]["value"] > 0.55  # its images are members themselves
    assert all("auc" in row["calibrated"] and "auc" in row["rmia"] and "by_run" not in row["rmia"] for row in rows.values())
    assert "alignment" not in rows["whole"]
    assert 0.4 < rows["random r0.2"]["alignment"]["auc"]["value"] <= 1
    assert show.accuracy_table(record)[0][-3:] == ["calibrated: AUC", "rmia: AUC", "alignment: AUC"]
    assert kept.kept_rows(folder)[0]["rmia_auc_mean"]
    assert len(rows["whole"]["auc_by_class"]) == 10
    assert rows["whole"]["tpr_at_1_percent"] is None  # 150 others are too few
    same = record["results"]["same_accuracy"]
    assert set(same) == {"dm r0.07", "dm r0.2"}
    for label, row in same.items():
        gaps = {name: abs(rows[name]["accuracy"]["value"] - rows[label]["accuracy"]["value"]) for name in rows if not name.startswith("dm")}
        assert gaps[row["rival"]] == min(gaps.values())
        difference = rows[label]["advantage_percent"]["value"] - rows[row["rival"]]["advantage_percent"]["value"]
        assert row["advantage_percent_difference"]["value"] == pytest.approx(difference)
    assert "the nearest in accuracy" in show.answer(record)
    assert show.accuracy_table(record)[0][:3] == ["attacked", "accuracy, %", "advantage, %"]
    assert {row["set"] for row in kept.kept_rows(folder)} == set(rows)


def scores(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as saved:
        return dict(saved)


def test_real_images_come_in_the_form_of_a_decoded_method(tmp_path: Path) -> None:
    """The same number of stored images, each of four small ones."""
    tables_ = {
        "method": {"name": "dm", "ipc": 2, "network": "ConvNetD1W32", "iterations": 1, "decode": "formation:2"},
        "attack": {"runs": 2, "arms": ["method", "random"], "pool": 100},
        "visual": {"measures": ["pixels"], "limit": 50},
        "evaluation": {"networks": ["MLP"], "recipe": {"max_steps": 1}},
    }
    folder, record = run_study(make("form", "Form", tables_, "s.toml"), Options(out=tmp_path, quiet=True))
    assert set(record["results"]["attack"]) == {"method", "random", "random-decoded"}
    whole, small = (scores(folder / "attack" / f"{arm}-0.npz")["nearest"] for arm in ("random", "random-decoded"))
    assert not np.array_equal(whole, small)  # of whole images, and of small ones that are enlarged
    assert {"random", "random-decoded"} < set(record["results"]["visual"])


def test_runs_come_in_pairs_of_opposite_coins(tmp_path: Path) -> None:
    attack = {"runs": 2, "arms": ["random"], "pool": 101}
    given = make("pairs", "Pairs", {"attack": attack, "evaluation": {"networks": ["MLP"], "recipe": {"max_steps": 1}}}, "s.toml")
    folder, _ = run_study(given, Options(out=tmp_path, quiet=True))
    sizes = [scores(folder / "attack" / f"random-{run}.npz") for run in (0, 1)]
    assert len(sizes[0]["in_scores"]) == len(sizes[1]["out_scores"])
    assert len(sizes[0]["in_scores"]) + len(sizes[1]["in_scores"]) == 101


def test_a_poisoning_study_tries_each_trigger_on_each_set(tmp_path: Path) -> None:
    given = make(
        "poison",
        "Poison",
        {
            "poisoning": {"portion": 0.05, "steps": 1},
            "method": {"name": "dm", "ipc": 1, "iterations": 2, "network": "ConvNetW32D2"},
            "evaluation": {"networks": ["MLP"], "seeds": 2, "recipe": {"max_steps": 5}},
        },
        "s.toml",
    )
    folder, record = run_study(given, Options(out=tmp_path, quiet=True))
    found = record["results"]["poisoning"]
    assert list(found) == ["clean", "naive", "optimised", "whole data, naive"]
    assert all(set(row) == {"accuracy", "naive", "optimised"} and len(row["naive"]["values"]) == 2 for row in found.values())
    assert (folder / "figures" / "poisoned-optimised.png").is_file()
    assert [row["set"] for row in kept.kept_rows(folder)] == list(found)
    assert "called the target" in show.answer(record)
    page = kept.page_text({"poison": kept.kept_rows(folder)}, tmp_path)
    assert page.count("| clean |") == 1
    assert "| set | accuracy | naive trigger percent | optimised trigger percent |" in page
    lines = (folder / "metrics.jsonl").read_text()
    (folder / "record.json").unlink()
    _, again = run_study(given, Options(out=tmp_path, quiet=True, resume=True))
    assert again["results"]["poisoning"] == found
    assert (folder / "metrics.jsonl").read_text() == lines  # nothing was trained again


def test_doorping_is_a_trigger_of_its_own_and_for_gradients_only(tmp_path: Path, digits: ImageData) -> None:
    poisoning = {"portion": 0.05, "triggers": ["invisible", "doorping", "doorping-clamped"], "doorping_steps": 2}
    method = {"name": "gm", "ipc": 1, "iterations": 1, "outer_steps": 1, "network": "ConvNetW32D2"}
    evaluation = {"networks": ["MLP"], "seeds": 2, "recipe": {"max_steps": 2}}
    given = make("door", "Door", {"poisoning": poisoning, "method": method, "evaluation": evaluation}, "s.toml")
    folder, record = run_study(given, Options(out=tmp_path, quiet=True))
    assert list(record["results"]["poisoning"]) == ["clean", "invisible", "doorping", "doorping-clamped", "whole data, naive"]
    page = kept.page_text({"door": kept.kept_rows(folder)}, tmp_path)
    assert "| set | accuracy | invisible trigger percent | doorping trigger percent | doorping clamped trigger percent |" in page
    assert "% doorping and" in show.answer(record)
    (folder / "record.json").unlink()
    _, again = run_study(given, Options(out=tmp_path, quiet=True, resume=True))
    assert again["results"]["poisoning"] == record["results"]["poisoning"], "triggers come back from their files"
    with pytest.raises(InputError, match="triggers has doorping, which learns in networks that are trained on the set, and 'dm' has none"):
        run.check(make("s", "s", {"poisoning": {"triggers": ["doorping"]}}, "s.toml"), digits)
    with pytest.raises(InputError, match="triggers"):
        make("s", "s", {"poisoning": {"triggers": ["doorpin"]}}, "s.toml")


def test_a_network_that_trains_between_updates_cannot_come_back(digits: ImageData) -> None:
    """Its releases would be used once each, and the account ends long before the run."""
    budget = {"epsilon": [2.0], "networks": 3, "sample_rate": 0.2}

    def study(outer_steps: int, **more: object) -> schema.PrivacyStudy:
        method = {"name": "gm", "ipc": 2, "iterations": 4, "outer_steps": outer_steps, "network": "ConvNetD1W8"}
        return make("s", "s", {"data": {"name": "digits"}, "privacy": {**budget, **more}, "method": method, "evaluation": SHORT}, "s.toml")

    with pytest.raises(InputError, match=r"'gm' has 3 image updates a network, which trains in between.*allowed: outer_steps = 1"):
        run.check(study(3), digits)
    run.check(study(1), digits)
    run.check(study(3, networks=0), digits)


def test_measures_are_those_of_the_room() -> None:
    from apps.privacy.visual import MEASURES

    assert schema.MEASURES == MEASURES


def test_impossible_sizes_fail_before_any_work(digits: ImageData) -> None:
    large = make("s", "s", {"attack": {"arms": ["random"], "subsets": [5000]}}, "s.toml")
    with pytest.raises(InputError, match="5000 images a class; allowed: at most"):
        run.check(large, digits)
    strange = make("s", "s", {"poisoning": {"target": 12}}, "s.toml")
    with pytest.raises(InputError, match="target 12; allowed: one of the classes"):
        run.check(strange, digits)


def test_a_forged_epsilon_is_told_on_the_command_line(tmp_path: Path, digits: ImageData, capsys: pytest.CaptureFixture[str]) -> None:
    from apps.privacy import PrivateStatistics
    from distill.run import condense

    made = condense(PrivateStatistics(digits, 4.0), "dm", ipc=1, network="ConvNetW32D2", iterations=1, progress=False)
    stated = made.provenance.dp or {}
    for name, epsilon, words in (
        ("true", stated["epsilon"], "The maker states (4.00"),
        ("forged", 0.1, "No privacy guarantee: the set states"),
    ):
        origin = dataclasses.replace(made.provenance, dp={**stated, "epsilon": epsilon})
        dataclasses.replace(made, provenance=origin).save(tmp_path / f"{name}.safetensors")
        with pytest.raises(SystemExit) as ended:
            main(["show", str(tmp_path / f"{name}.safetensors")])
        assert ended.value.code == 0
        assert words in capsys.readouterr().out
