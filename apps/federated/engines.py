"""The two engines that are processes: Flower's simulation on Ray, and a deployment of SuperLink and SuperNodes on this machine.

Each run has a new Flower home and free ports, is offline, and has telemetry switched off. Every process with this home in its environment
is ended by its id; if this process is killed, a watchdog ends them.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from apps.federated import watchdog
from apps.federated.settings import Settings, to_json
from apps.federated.watchdog import carrying as carrying
from apps.federated.watchdog import end_all as end_all
from distill import stopping
from distill.errors import InputError
from distill.records import Json, read_lines, write_whole

ROOT = Path(__file__).parents[2]
START_SECONDS = 90.0


@dataclass
class Flower:
    """A running SuperLink, and its SuperNodes if it is a deployment; ``app`` is the folder of the Flower app that is submitted."""

    app: Path
    home: Path
    port: int
    logs: Path
    environment: dict[str, str]
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    simulated: int | None = None

    def run(self, settings: Settings, folder: Path, data_root: str = "", node_keys: str = "") -> dict[str, Json]:
        """Submit the app and wait for its end.

        Args:
            settings: of the run.
            folder: where the ServerApp writes its rounds.
            data_root: where the data set is looked for.
            node_keys: the file with the public keys of the nodes; empty: none.

        Returns:
            Flower's entry of the run.

        Raises:
            InputError: the run did not complete.
        """
        config = {"settings": to_json(settings), "out": str(folder.resolve()), "data-root": data_root, "node-keys": node_keys}
        file = self.home / "run.toml"
        write_whole(file, "".join(f"{key} = {json.dumps(value)}\n" for key, value in config.items()))
        federation = ["--federation-config", f"num-supernodes={self.simulated} client-resources-num-cpus=1"] if self.simulated else []
        command = ["run", str(self.app), "here", "--stream", "--run-config", str(file), *federation]
        self._flwr(command, self.logs / "run.log")
        # The exit code says nothing: it is 0 also for a run that failed.
        listed = json.loads(self._flwr(["list", "here", "--format", "json"]))
        runs = listed["runs"] if isinstance(listed, dict) else listed
        last: dict[str, Json] = runs[0] if runs else {"status": "never started"}  # the newest is the first
        if last.get("status") != "finished:completed":
            tail = (
                " ".join((self.logs / "run.log").read_text(errors="replace").splitlines()[-3:])[:300]
                if (self.logs / "run.log").exists()
                else ""
            )
            raise InputError(f"Flower's run ended as {last.get('status')!r}; its log is {self.logs / 'run.log'}: {tail}")
        return last

    def _flwr(self, arguments: Sequence[str], log: Path | None = None) -> str:
        with contextlib.ExitStack() as stack:
            out = subprocess.PIPE if log is None else stack.enter_context(log.open("ab"))
            done = subprocess.run(
                [_tool("flwr"), *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                check=False,
            )
        return (done.stdout or b"").decode(errors="replace")


def run_simulation(settings: Settings, folder: Path, app: Path, data_root: str = "", privacy: Path | None = None) -> dict[str, Json]:
    """Run with Flower's simulation runtime, one core per client. For the arguments see `flower` and `Flower.run`."""
    if importlib.util.find_spec("ray") is None:
        raise InputError('engine "simulation" needs Ray; run: pip install "distill-apps[federated]", or set engine = "inline".')
    clients = settings.partition.num_partitions
    with flower(folder / "flower", settings, app, simulated=clients, privacy=privacy) as running:
        return running.run(settings, folder, data_root)


def run_deployment(settings: Settings, folder: Path, app: Path, data_root: str = "", privacy: Path | None = None) -> dict[str, Json]:
    """Run with a SuperLink and one SuperNode per client on this machine. For the arguments see `flower` and `Flower.run`."""
    with flower(folder / "flower", settings, app, privacy=privacy) as running:
        return running.run(settings, folder, data_root)


@contextlib.contextmanager
def flower(logs: Path, settings: Settings, app: Path, simulated: int | None = None, privacy: Path | None = None) -> Iterator[Flower]:
    """Run a SuperLink on a free port, with SuperNodes unless ``simulated``; all of them are ended when the block is left.

    Args:
        logs: folder for the logs.
        settings: of the run.
        app: folder of the Flower app (`scenarios.federated.cells.FLOWER_APP`: apps know no scenario).
        simulated: number of simulated clients; None: a deployment.
        privacy: the clients' file with the privacy that they give. SuperNodes have it in their config, simulated clients in their
            environment; the server does not see it.
    """
    logs.mkdir(parents=True, exist_ok=True)
    watchdog.sweep()
    home, lock = watchdog.new_home()
    guard = watchdog.watch(home)
    port = free_port()
    write_whole(home / "config.toml", f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    environment = offline(home, settings.threads) | ({"DISTILL_PRIVACY": str(privacy.resolve())} if simulated and privacy else {})
    running = Flower(app, home, port, logs, environment, simulated=simulated)
    children: list[subprocess.Popen[bytes]] = []
    link = ["--insecure", "--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"]
    before = _raise_on_terminate()
    try:
        arguments = [*link, *(["--simulation"] if simulated else [])]
        children.append(_start("flower-superlink", arguments, logs / "superlink.log", environment))
        _wait_for(port, children[0], logs / "superlink.log")
        count = settings.partition.num_partitions
        for client in range(0 if simulated else count):
            node = ["--insecure", "--superlink", f"127.0.0.1:{port}", "--host", "127.0.0.1", "--port", str(free_port())]
            own = "" if privacy is None else f" privacy={json.dumps(str(privacy.resolve()))}"
            node += ["--node-config", f"partition-id={client} num-partitions={count}{own}"]
            running.nodes.append(_start("flower-supernode", node, logs / f"supernode-{client}.log", environment))
        yield running
    finally:
        end_all(home, [*children, *running.nodes])
        shutil.rmtree(home, ignore_errors=True)
        lock.close()
        guard.communicate()  # closes its input, and waits
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _raise_on_terminate() -> Callable[[int, FrameType | None], object] | int | None:
    """Make SIGTERM raise an exception, as Ctrl-C does, so that the started processes are ended; returns the previous handler."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, stopping.at_once)


def offline(home: Path, threads: int) -> dict[str, str]:
    """The environment of the started processes: no downloads, no telemetry."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **{name: value for name, value in os.environ.items() if name != "DISTILL_PRIVACY"},  # the clients' file is the run's own
        "FLWR_HOME": str(home),
        "DISTILL_FOLDERS": "1",  # the run is this machine's own, and so are the folders that it names
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's own folder goes with the home; sockets lie below it, and the system cuts their names at 107 letters.
        **({"RAY_TMPDIR": str(home)} if len(str(home)) < 30 else {}),
        "RAY_ADDRESS": "local",  # a Ray of our own: without this one that runs here is joined, and one that died is waited for
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }


def free_port() -> int:
    """A free TCP port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def lines_of(folder: Path) -> list[dict[str, Json]]:
    """The rounds that the ServerApp wrote in ``folder``, one dict each."""
    return list(read_lines(folder / "rounds.jsonl"))


def _tool(name: str) -> str:
    path = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if path is None:
        raise InputError(f'{name} is not installed; run: pip install "distill-apps[federated]"')
    return path


def _start(name: str, arguments: Sequence[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen([_tool(name), *arguments], env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return
        time.sleep(0.3)
    raise InputError(f"Flower's SuperLink did not come up; its log is {log}.")
