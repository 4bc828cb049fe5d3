"""The page's deployment from certificate authority to `flwr run`: each command as it stands there, with TLS and keys on."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from apps.federated import engines, watchdog
from distill.records import read_lines
from tests.pages import ROOT, blocks

from .secured import wait_for

PAGE = ROOT / "apps/federated/README.md"
STAYS = ("flower-superlink", "flower-supernode")  # each in a terminal of its own


def section() -> str:
    found = re.search(r"^## Several machines\n(.*?)^## ", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


def page_commands() -> list[str]:
    return [line for block in blocks(section(), str(PAGE)) if block.language == "sh" for line in block.text.splitlines()]


def ports(commands: list[str]) -> list[int]:
    return [int(port) for command in commands for port in re.findall(r"--port (\d+)", command)]


def test_the_page_has_every_step_and_security_on() -> None:
    commands = page_commands()
    order = [command.split()[0] for command in commands if not command.startswith("export")]
    assert list(dict.fromkeys(order)) == ["mkdir", "openssl", "flower-superlink", "ssh-keygen", "printf", "flwr", "sed", "flower-supernode"]
    text = "\n".join(commands)
    assert "--insecure" not in text
    assert len(set(ports(commands))) == 3
    for part in ("--enable-supernode-auth", "--ssl-certfile", "--root-certificates", "--auth-supernode-private-key", "node-keys="):
        assert part in text


@pytest.mark.slow
@pytest.mark.network_engine
def test_every_command_runs_as_it_stands(tmp_path: Path) -> None:
    for tool in ("openssl", "ssh-keygen"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    commands = page_commands()
    for port in ports(commands):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"port {port} is in use")
    (tmp_path / "scenarios").symlink_to(ROOT / "scenarios")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "COLUMNS": "200",
    }
    exports, printed, stay = "", "", []
    try:
        for place, command in enumerate(commands):
            if command.startswith("export "):
                exports += f"{command}; "
            elif command.startswith(STAYS):
                log = tmp_path / f"{place}.log"
                with log.open("wb") as out:
                    line = ["bash", "-c", f"{exports}exec {command}"]
                    stay.append(subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=out, stderr=subprocess.STDOUT))
                if command.startswith("flower-superlink"):
                    wait_for(ports([command])[0], tmp_path / "federation/ca.crt", stay[-1], log)
            else:
                line = ["bash", "-c", exports + command]
                done = subprocess.run(line, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
                printed = done.stdout + done.stderr
                assert done.returncode == 0, f"{command}\n{printed}"
    finally:
        watchdog.end_all(tmp_path / "federation/flwr", stay)
    assert "finished:completed" in printed
    lines = list(read_lines(tmp_path / "federation/run/rounds.jsonl"))
    assert [[client["status"] for client in line["clients"]] for line in lines[1:]] == [["accepted"] * 2] * 2
    assert lines[-1]["unknown"] == []
    assert engines.carrying(tmp_path / "federation/flwr") == []
