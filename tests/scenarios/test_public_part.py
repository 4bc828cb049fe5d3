"""public/ holds no more than its own words count, wherever a run is killed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from distill.condensed import CondensedSet, Provenance
from distill.spec import DataSpec
from scenarios.catalogue import run_study
from scenarios.engine import public_part
from scenarios.engine.composition import in_sequence
from scenarios.engine.study import Options
from scenarios.privacy import sets as privacy_sets
from tests.scenarios.test_composition import stated
from tests.scenarios.test_privacy import TINY, make, tables

SPEC = DataSpec("toy", 1, 4, 4, ("a", "b"), (0.0,), (1.0,))


class Killed(BaseException):
    pass


def made(statement: dict[str, Any]) -> CondensedSet:
    return CondensedSet(torch.zeros(2, 1, 4, 4), torch.arange(2), SPEC, provenance=Provenance("dm", seconds=3.0, dp=statement))


def ledger(folder: Path, releases: int) -> Path:
    """Where so many releases were made; the account is their number."""
    place = folder / "epsilon1-releases"
    place.mkdir(parents=True, exist_ok=True)
    for number in range(releases):
        (place / f"release-{number:08d}.safetensors").write_bytes(b"release")
    (place / "account.json").write_text(str(releases))
    return place


def test_every_file_is_counted_by_words_that_are_there_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before each write in turn, while a second set and more releases come to those that are handed over already."""
    first, second = stated(2.0), stated(1.0)
    replace = Path.replace
    for stop in range(1, 30):
        folder, written = tmp_path / str(stop), 0
        public = folder / "public"
        public_part.hand_over(folder, {"one": made(first)}, first, [ledger(folder, 1)])
        ledger(folder, 2)

        def counted(self: Path, target: Path, stop: int = stop) -> Path:
            nonlocal written
            written += 1
            if written == stop:
                raise Killed
            return replace(self, target)

        both = {"one": made(first), "two": made(second)}
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", counted)
            try:
                public_part.hand_over(folder, both, in_sequence([first, second]), [folder / "epsilon1-releases"])
            except Killed:
                pass
            else:
                assert stop > 5
                break
        words = (public / "GUARANTEE.txt").read_text()
        for path in public.glob("*.safetensors"):
            assert f"{path.name}: " in words
        assert len(list(public.glob("*/release-*"))) <= int((public / "epsilon1-releases/account.json").read_text())
    for path in [public, *public.rglob("*")]:
        assert path.stat().st_mtime == public_part.SAME_TIME, f"{path} tells when it was made"
    # A set that has no guarantee any more takes its picture along.
    public_part.hand_over(folder, {"one": made(first), "two": made({**second, "insecure": True})}, first)
    assert not list(public.glob("two.*"))
    assert (public / "one.png").exists()


def test_a_study_states_its_guarantee_before_the_minutes_of_judging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*arguments: Any) -> None:
        raise Killed

    monkeypatch.setattr(privacy_sets, "judge", killed)
    with pytest.raises(Killed):
        run_study(make("tiny", "Tiny", tables(privacy={**TINY["privacy"], "twin": False}), "s.toml"), Options(out=tmp_path, quiet=True))
    (public,) = tmp_path.glob("*/public")
    assert (public / "condensed-epsilon8.safetensors").exists()
    assert "(8.00, 1.0e-05)-differential privacy" in (public / "GUARANTEE.txt").read_text()
