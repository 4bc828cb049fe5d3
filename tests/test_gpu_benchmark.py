"""`benchmarks.gpu` without a GPU: its tiny form on the CPU, a ledger that continues, rows of failures, and the count of operations."""

from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.core import PAGE
from benchmarks.counting import Counting, counted, made_data, step_of
from benchmarks.gpu_step import FULL, PLAIN, TINY, Cell, flops_of, plain_step, random_data, settings_of
from benchmarks.page import GPU, with_gpu
from distill.errors import InputError
from distill.methods import METHODS
from distill.networks import create, flops
from distill.randomness import generator
from distill.records import read_json

CELLS = [Cell("dm", 2, 1, "float32"), Cell("gm", 2, 1, "float32"), Cell("idc", 2, 1, "float32")]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_figures_in_the_tiny_form(method: str) -> None:
    row = gpu.row(Cell(method, 2, 1, "float32"), TINY, "cpu", matmul=2.0)
    assert "reason" not in row, row
    assert row["seconds"] == row["times"][0] > 0
    assert row["gflops"] == pytest.approx(row["flops"] / row["seconds"] / 1e9)
    assert row["of_matmul"] == row["gflops"] / 2
    assert row["peak_bytes"] is None
    if method in PLAIN:
        assert row["ratio"] == row["plain_seconds"] / row["seconds"] > 0
    else:
        assert row["plain_reason"] == gpu.NO_PLAIN


def test_learners_as_one_and_one_by_one() -> None:
    row = gpu.row(Cell("learners", 2, 1, "float32"), TINY, "cpu", matmul=2.0)
    assert row["ratio"] == row["plain_seconds"] / row["seconds"] > 0
    assert row["images_per_second"] == pytest.approx(5 * 2 / row["seconds"])
    assert row["gflops"] == 2 * row["of_matmul"]
    assert "seconds" not in gpu.row(Cell("learners", 2, 1, "bf16"), TINY, "cpu", matmul=2.0)


def test_the_command_measures_once_and_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--json", str(path), "--methods", "dm,mtt", "--precision", "float32,bf16"]
    gpu.main(arguments)
    first = read_json(path)
    assert set(first["results"]) == {f"{m}, 2 classes, IPC 1, {p}" for m in ("dm", "mtt") for p in ("float32", "bf16")}
    assert first["results"]["mtt, 2 classes, IPC 1, bf16"] == {"reason": "mtt has no option precision"}
    assert first["results"]["dm, 2 classes, IPC 1, bf16"]["plain_reason"] == "the plain loops are float32"
    assert set(first["matmul_gflops"]) == {"float32", "bf16"}
    assert first["started"] == {}
    assert first["environment"]["cuda"] == torch.version.cuda
    assert first["environment"]["packages"]["torch"]
    capsys.readouterr()
    gpu.main(arguments)
    assert capsys.readouterr().out == "nothing is left to measure.\n"
    assert read_json(path) == first
    gpu.main(["--device", "cpu", "--json", str(path), "--methods", "dm,cafe", "--minutes", "0"])
    assert capsys.readouterr().out == "1 cells are left; the same command continues with: cafe, 2 classes, IPC 1, float32.\n"


def test_a_killed_slice_loses_the_cell_in_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, measured = tmp_path / "gpu.json", list[str]()

    def row(cell: Cell, *given: object) -> gpu.Row:
        measured.append(cell.method)
        if cell.method == "gm" and measured.count("gm") < 3:
            raise KeyboardInterrupt
        return {"seconds": 1.0}

    monkeypatch.setattr(gpu, "row", row)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            gpu.measure(CELLS, TINY, "cpu", path, 9)
    assert list(read_json(path)["results"]) == [str(CELLS[0])]
    assert read_json(path)["started"] == {str(CELLS[1]): 2}
    assert gpu.measure(CELLS, TINY, "cpu", path, 9) == []
    assert measured == ["dm", "gm", "gm", "gm", "idc"]
    assert read_json(path)["started"] == {}


def test_a_cell_that_ends_the_process_each_time_gets_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*given: object) -> gpu.Row:
        raise SystemExit(137)

    monkeypatch.setattr(gpu, "row", dies)
    path = tmp_path / "gpu.json"
    for _ in range(gpu.ATTEMPTS):
        with pytest.raises(SystemExit):
            gpu.measure(CELLS[:1], TINY, "cpu", path, 9)
    assert gpu.measure(CELLS[:1], TINY, "cpu", path, 9) == []
    assert read_json(path)["results"][str(CELLS[0])] == {"reason": "the process ended in each of 3 attempts"}


def test_failures_are_rows_and_mistakes_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(error: Exception):
        def raises(*given: object, **named: object) -> None:
            raise error

        return raises

    cell = CELLS[0]
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "plain_step", fails(torch.OutOfMemoryError("CUDA out of memory. Tried ...")))
        row = gpu.row(cell, TINY, "cpu", 1.0)
        assert row["plain_reason"] == "out of memory"
        assert row["seconds"] > 0
    for error, reason in ((torch.OutOfMemoryError("x"), "out of memory"), (RuntimeError("no kernel\nlong text"), "no kernel")):
        monkeypatch.setattr(gpu, "step_of", fails(error))
        assert gpu.row(cell, TINY, "cpu", 1.0) == {"reason": reason}
    monkeypatch.setattr(gpu, "step_of", fails(TypeError("a mistake in the code")))
    with pytest.raises(TypeError):
        gpu.row(cell, TINY, "cpu", 1.0)


def test_after_an_error_of_the_device_the_next_cell_is_for_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every later cell of this process would fail, too."""
    for name, made in (("where", lambda device: {"device": "cuda"}), ("matmul_gflops", lambda *given: 1.0), ("usable", lambda: False)):
        monkeypatch.setattr(gpu, name, made)
    monkeypatch.setattr(gpu, "row", lambda *given: {"reason": "illegal memory access"})
    assert gpu.measure(CELLS, FULL, "cuda", tmp_path / "gpu.json", 9) == CELLS[1:]


def test_a_ledger_is_of_one_machine_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gpu.json"
    gpu.measure([], TINY, "cpu", path, 9)
    monkeypatch.setattr(gpu, "row", lambda *given: {"seconds": 1.0})
    gpu.measure(CELLS[:1], TINY, "cpu", path, 9)
    with pytest.raises(InputError, match="is of network 'ConvNetW8'"):
        gpu.measure(CELLS, FULL, "cpu", path, 9)
    monkeypatch.setattr(gpu, "where", lambda device: {**gpu.environment("cpu"), "gpu": "another", "cuda": torch.version.cuda})
    with pytest.raises(InputError, match=r"measured with gpu None, here it is another"):
        gpu.measure(CELLS, TINY, "cpu", path, 9)


def test_wrong_names_are_one_line() -> None:
    for arguments, text in ((["--methods", "dmm"], "method 'dmm'"), (["--precision", "fp8"], "precision 'fp8'")):
        with pytest.raises(SystemExit, match=text):
            gpu.main(["--device", "cpu", *arguments])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_device_nothing_is_measured() -> None:
    for arguments in ([], ["--papers"]):
        with pytest.raises(SystemExit, match="no CUDA device here"):
            gpu.main(arguments)


def test_the_papers_settings_are_scenarios(monkeypatch: pytest.MonkeyPatch) -> None:
    from scenarios.engine.template import from_template

    asked: list[list[str]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu.reproduce, "main", asked.append)
    gpu.main(["--papers", "--minutes", "3"])
    (arguments,) = asked
    assert arguments[:2] == ["--minutes", "3.0"]
    assert len(arguments) == 2 + len(gpu.CHEAP_FIRST) > 12
    assert all(from_template(name) is not None for name in arguments[2:])


# Operations


def test_dms_operations_by_hand() -> None:
    """A forward pass of the real images, and forward and backward of the synthetic ones, without the last layer."""
    cell = Cell("dm", 3, 4, "float32")
    size = TINY._replace(settings={**TINY.settings, "augmentation": "none"})
    spec = made_data(3, 1, (3, 8, 8)).spec
    features = flops(create("ConvNetW8", spec, generator(0, "weights")), spec) - 2 * 8 * 3  # 8 features, 3 classes
    assert flops_of(cell, size) == 3 * (5 + 2 * 4) * features


@pytest.mark.parametrize("method", ["gm", "dsa", "idc"])
def test_convolutions_with_groups_are_counted_as_those_without(method: str) -> None:
    """Classes together, by vmap, and class by class, as on a CPU: the same arithmetic."""
    settings = {**settings_of(Cell(method, 3, 2, "float32"), TINY), "compile": "off", "augmentation": "none"}
    data = made_data(3, 5, (3, 8, 8))
    together, alone = (counted(step_of(method, data, 2, device, **settings), device) for device in ("meta", "cpu"))
    assert together.flops == pytest.approx(alone.flops, rel=1e-4), "but for the mean of the losses, a product under vmap"
    assert alone.flops > 1e6


def test_the_plain_loops_arithmetic_is_that_of_the_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted on the CPU: what is compared are two forms of the same step."""
    for method in ("dm", "gm", "datadam"):
        cell = Cell(method, 2, 3, "float32")
        settings = {**settings_of(cell, TINY), "augmentation": "none"}
        step = plain_step(cell, random_data(2, 5, 8), settings)
        with Counting("cpu") as counts:
            step()
        size = TINY._replace(settings={**TINY.settings, "augmentation": "none"})
        assert counts.flops == pytest.approx(flops_of(cell, size), rel=0.02), method


# The page


def test_the_page_is_made_from_the_record_or_says_that_there_is_none() -> None:
    record = read_json(gpu.KEPT) if gpu.KEPT.exists() else None
    assert PAGE.read_text() == with_gpu(PAGE.read_text(), record)
    if record is not None:
        assert record["size"]["network"] == FULL.network
        assert {str(Cell(m, c, i, "float32")) for m in METHODS for c in FULL.classes for i in FULL.ipcs} <= set(record["results"])


def test_a_row_of_the_page() -> None:
    record = {
        "environment": {"gpu": "A GPU", "cuda": "13.2", "packages": {"torch": "2.15.0"}},
        "matmul_gflops": {"float32": 50_000.0},
        "results": {
            "dm": {"seconds": 0.01, "ratio": 3.0, "images_per_second": 2e5, "gflops": 25_000.0, "of_matmul": 0.5, "peak_bytes": 2**31},
            "dcc": {"seconds": 0.02, "plain_reason": gpu.NO_PLAIN, "images_per_second": 1.0, "gflops": 1e3, "of_matmul": 0.1},
            "mtt": {"reason": "out of memory"},
        },
    }
    text = with_gpu(f"before\n{GPU}\nNot yet run.\n<!-- table: end -->\nafter", record)
    assert text.startswith("before") and text.endswith("after")  # noqa: PT018
    assert "A GPU, torch 2.15.0, CUDA 13.2. Limits in TFLOP/s: float32 matmul 50." in text
    assert "| dm | 10.00 | 3.00 | 200000 | 25.0 | 50 % | 2.0 |  |" in text
    assert "| dcc | 20.00 | no loop of this method | 1 | 1.0 | 10 % |  |  |" in text
    assert "| mtt | out of memory |  |  |  |  |  |  |" in text
    with pytest.raises(InputError, match="not of a GPU"):
        with_gpu(text, {**record, "environment": {"gpu": None}})
