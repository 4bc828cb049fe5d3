"""Without the modules that only POSIX systems have, sets are made, evaluated and shown."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
sys.modules["fcntl"] = sys.modules["resource"] = None  # not importable, as on Windows
import psutil_stand_in
sys.modules["psutil"] = psutil_stand_in
import distill

data = distill.load("digits")
small = {"iterations": 1, "network": "ConvNetD1W32", "batch_real": 4}
tiny = distill.condense(data, "dm", ipc=1, progress=False, **small)
recipe = distill.Recipe(epochs=1, max_steps=1)
assert distill.evaluate(tiny, data, recipe=recipe, network="ConvNetD1W32", seeds=1, baselines=[], progress=False)

from scenarios.cli import main

def call(*words):
    sys.argv = ["distill", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code

tiny.save(sys.argv[1] + "/tiny.safetensors")
folder = sys.argv[1]
call("show", folder + "/tiny.safetensors")
call("condense", "--data", "digits", "--quiet", "--out", folder, *(w for k, v in small.items() for w in ("--set", f"{k}={v}")))
print("done")
"""
# psutil itself imports `resource` on Linux.
STAND_IN = """
from types import SimpleNamespace

def virtual_memory():
    return SimpleNamespace(available=8 << 30)

class Process:
    def memory_info(self):
        return SimpleNamespace(rss=1 << 20, peak_wset=2 << 20)
"""


def test_sets_are_made_evaluated_and_shown_without_posix_modules(tmp_path: Path) -> None:
    (tmp_path / "psutil_stand_in.py").write_text(STAND_IN)
    program = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n{PROGRAM}"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["done"]), done.stderr[-2000:]
    (record,) = tmp_path.glob("condense-*/record.json")
    assert '"peak_memory_bytes": 2097152' in record.read_text()
