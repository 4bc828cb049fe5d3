"""A released set's own evidence: silent on what the mechanism made, and on sets with less noise, reused noise or another account."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from apps.privacy.auditing.evidence import Evidence, evidence, noise_length
from apps.privacy.entropy import SystemEntropy
from apps.privacy.private_start import private_kmeans
from apps.privacy.private_statistics import PrivateStatistics
from distill.condensed import CondensedSet
from distill.errors import InputError
from tests.apps.privacy.test_planted import data

pytest.importorskip("opacus")

SURE = 1 - 1e-7


def released(folder: Path, factor: float = 1.0, reuse: bool = False) -> CondensedSet:
    """A k-means start from seven releases of toy images, with its folder; perhaps with too little noise, or always the same."""
    once: dict[tuple[int, ...], np.ndarray] = {}

    class Noise(SystemEntropy):
        def normal(self, shape: tuple[int, ...]) -> np.ndarray:
            drawn = super().normal(shape)
            return factor * (once.setdefault(shape, drawn) if reuse else drawn)

    statistics = PrivateStatistics(data(16), 0.5, 1e-3, population=36, releases=1, start_releases=7, start_share=0.9, ledger=folder)
    statistics._entropy = Noise()
    return private_kmeans(statistics, 2)


def test_a_right_set_is_not_contradicted(tmp_path: Path) -> None:
    made = released(tmp_path)
    found = evidence(made, tmp_path, SURE)
    assert found.holds, str(found)
    assert [check.name for check in found.checks] == ["releases", "size of noise", "independence of noise"]
    assert all(check.p > 1e-6 for check in found.checks)
    assert "no contradiction, which proves nothing" in str(found)
    assert "Not examined: the code that made the set" in str(found)


@pytest.mark.parametrize(
    ("factor", "reuse", "name"), [(0.5, False, "size of noise"), (0.9, False, "size of noise"), (1.0, True, "independence")]
)
def test_too_little_noise_is_found(tmp_path: Path, factor: float, reuse: bool, name: str) -> None:
    found = evidence(released(tmp_path, factor, reuse), tmp_path, 0.999)
    assert not found.holds
    assert any(check.name.startswith(name) for check in found.failed), str(found)


def test_lengths_are_those_of_noise_and_more() -> None:
    """By the definition: p is the chance that noise alone is as short; a signal only makes sums longer."""
    draws = np.random.default_rng(0)
    alone, pairs = noise_length({str(k): draws.normal(size=500) for k in range(20)})
    assert min(alone.p, pairs.p) > 1e-6
    signal = {str(k): 3 + draws.normal(size=500) for k in range(20)}
    assert noise_length(signal)[0].p == 1.0
    twice = draws.normal(size=500)
    (_, found) = noise_length({"a": twice + 0.1, "b": twice, "c": draws.normal(size=500)})
    assert found.p < 1e-12
    assert "a and b" in found.words
    assert noise_length({"a": twice, "b": -twice})[1].p < 1e-12
    assert noise_length({}) == []


def swapped(folder: Path) -> None:
    account = json.loads((folder / "account.json").read_text())
    (folder / "account.json").write_text(json.dumps({**account, "account": "another"}))


def shortened(folder: Path) -> None:
    account = json.loads((folder / "account.json").read_text())
    (noise, rate, times), *rest = account["history"]
    (folder / "account.json").write_text(json.dumps({**account, "history": [[noise, rate, times - 2], *rest]}))


def more(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    with safetensors.safe_open(path, "pt") as opened:
        facts, tensor = opened.metadata(), opened.get_tensor("released")
    safetensors.torch.save_file({"released": tensor, "clean": torch.zeros(3)}, path, facts)


@pytest.mark.parametrize(
    ("change", "words"), [(swapped, "another account"), (shortened, "in the account"), (more, "holds more than a release")]
)
def test_a_folder_that_is_not_the_sets_is_found(tmp_path: Path, change: Callable[[Path], None], words: str) -> None:
    made = released(tmp_path)
    change(tmp_path)
    found = evidence(made, tmp_path)
    assert not found.holds
    assert words in str(found)


def test_without_releases_only_the_statement_is_examined(tmp_path: Path) -> None:
    made = released(tmp_path / "releases")
    found = evidence(made)
    assert found.holds
    assert "the noise, because no releases were given" in str(found)
    assert made.provenance.dp is not None
    forged = dataclasses.replace(made, provenance=dataclasses.replace(made.provenance, dp={**made.provenance.dp, "epsilon": 0.1}))
    assert not evidence(forged).holds
    plain = dataclasses.replace(made, provenance=dataclasses.replace(made.provenance, dp=None))
    assert not evidence(plain).holds
    assert str(evidence(plain)).endswith("Result: the set states no guarantee.")
    assert "CONTRADICTION" in str(evidence(forged))
    assert isinstance(found, Evidence)


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"\x08\0\0\0\0\0\0\0nonsense"])
def test_damaged_folders_are_one_line(tmp_path: Path, content: bytes) -> None:
    made = released(tmp_path)
    with pytest.raises(InputError, match=r"has no account\.json"):
        evidence(made, tmp_path / "elsewhere")
    (tmp_path / "release-99999999.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="is no file of a release"):
        evidence(made, tmp_path)
    (tmp_path / "account.json").write_text("[]")
    with pytest.raises(InputError, match="holds no history"):
        evidence(made, tmp_path)
