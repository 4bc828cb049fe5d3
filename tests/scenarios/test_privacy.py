"""Privacy studies: what is refused, a whole small run that resumes, and an audit that fails loudly."""

import json
from pathlib import Path
from typing import Any

import pytest

from distill.condensed import CondensedSet
from distill.errors import InputError
from scenarios import privacy
from scenarios.folder import Options, run_study
from scenarios.privacy_schema import study as make
from scenarios.schema import parse, shipped

pytest.importorskip("opacus")

TINY: dict[str, Any] = {
    "privacy": {"epsilon": [8.0], "networks": 2, "clip": 1.0, "start": "kmeans", "start_releases": 2},
    "method": {"name": "dm", "ipc": 1, "iterations": 10, "network": "ConvNetW32D2"},
    "evaluation": {"networks": ["MLP"], "seeds": 2, "baselines": [], "recipe": {"max_steps": 3}},
}


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
        ({"attack": {"arms": ["everything"]}}, "key 'arms'"),
        ({"method": {"name": "dm", "ipc": [1, 10]}}, "one whole number"),
        ({"surprise": {}}, "key 'surprise'"),
        ({"audit": {"runs": 1}}, "at least 200"),
    ],
)
def test_mistakes_are_one_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        make("s", "s", tables(**change), "s.toml")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="none of the tables"):
        make("s", "s", {}, "s.toml")


def test_a_study_leaves_sets_a_guarantee_and_figures_and_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = make("tiny", "Tiny", tables(attack={"runs": 2, "arms": ["private", "random"], "pool": 200}), "s.toml")

    def stops(*args: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(privacy, "_attack", stops)
        with pytest.raises(KeyboardInterrupt):
            run_study(given, Options(out=tmp_path, quiet=True))
    folder = next(tmp_path.iterdir())
    before = (folder / "condensed-epsilon8.safetensors").read_bytes()
    folder, record = run_study(given, Options(out=tmp_path, quiet=True, resume=True))
    assert (folder / "condensed-epsilon8.safetensors").read_bytes() == before
    stated = CondensedSet.load(folder / "condensed-epsilon8.safetensors").provenance.dp or {}
    assert stated["epsilon"] <= 8.0
    assert stated["releases"] == 4
    assert record["results"]["epsilon8"]["guarantee"].startswith("The maker states (8.00, 1.0e-05)-differential privacy")
    assert {"images-epsilon8.png", "accuracy-epsilon8.png", "roc.png"} == {path.name for path in (folder / "figures").iterdir()}
    assert set(record["results"]["attack"]) == {"private", "random"}
    assert json.loads((folder / "record.json").read_text())["status"] == "done"
    assert "not covered" in privacy.answer(record)
    assert privacy.accuracy_table(record)[0] == ["set", "epsilon 8"]
    assert "differential privacy" in (folder / "report.html").read_text()


def test_an_audit_that_finds_more_than_the_account_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from apps.privacy.entropy import SystemEntropy

    given = make("audit", "Audit", {"audit": {"runs": 800}}, "s.toml")
    _, record = run_study(given, Options(out=tmp_path / "right", quiet=True))
    assert record["results"]["audit"]["holds"]
    normal = SystemEntropy.normal
    monkeypatch.setattr(SystemEntropy, "normal", lambda self, shape: np.asarray(0.3 * normal(self, shape)))
    with pytest.raises(privacy.GuaranteeBroken, match="CONTRADICTION"):
        run_study(given, Options(out=tmp_path / "wrong", quiet=True))
