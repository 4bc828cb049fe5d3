"""What `make test-quick` leaves out is there, and every package keeps tests in it."""

from pathlib import Path

import pytest

from tests.conftest import LONG

TESTS = Path(__file__).parent
PACKAGES = ["apps/continual", "apps/federated", "apps/nas", "apps/privacy", "distill", "scenarios"]


def test_long_files_are_files() -> None:
    assert [name for name in sorted(LONG) if not (TESTS / name).is_file()] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_in_the_quick_tests(package: str) -> None:
    names = {path.relative_to(TESTS).as_posix() for path in (TESTS / package).glob("test_*.py")}
    assert len(names - LONG) >= 2
    assert sorted(PACKAGES) == sorted({path.parent.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")} - {"."})


def test_the_command_leaves_out_what_is_marked() -> None:
    lines = (TESTS.parent / "Makefile").read_text()
    assert '-m "not slow and not gpu and not long"' in lines.partition("test-quick: ")[2]
