"""What docs/privacy.md shows works as printed, and the commands and files that it names are there."""

import re
from pathlib import Path

import pytest

from scenarios.engine.scenario import shipped

pytest.importorskip("opacus")
ROOT = Path(__file__).parents[3]
PAGES = [(ROOT / "docs" / "privacy.md").read_text(), (ROOT / "apps" / "privacy" / "README.md").read_text()]


def test_the_blocks_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGES[0], flags=re.DOTALL)
    assert len(blocks) == 9
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "docs/privacy.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "The maker states (8.00, 1.0e-05)-differential privacy" in printed
    assert "9 releases, 4 of them steps of DP-SGD that trained the matching networks" in printed
    assert "of them steps of DP-SGD that trained the teacher of its labels" in printed
    assert "No privacy guarantee: the set states epsilon 0.10 and its own history of releases gives 8.00." in printed
    assert "epsilon is at least" in printed
    assert "features" in printed


@pytest.mark.parametrize("page", PAGES, ids=["docs", "room"])
def test_scenarios_modules_and_files_are_there(page: str) -> None:
    assert set(re.findall(r"distill run (privacy-[\w-]+)", page)) <= set(shipped())
    for module in re.findall(r"python -m (apps[\w.]+)", page):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    for name in re.findall(r"`(\w+\.py)`", page):
        assert (ROOT / "apps" / "privacy" / name).is_file(), name
