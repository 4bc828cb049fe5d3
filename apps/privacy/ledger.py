"""What was released, in memory or in a folder: an answer that is kept is never paid for twice, and no release is missing from the account.

The folder holds noised releases (and experts trained with noise), which are as public as the set that is made from them, and one file that
is not: ``PRIVATE-data.json``, a fingerprint of the private images, so that no other data are answered from their releases.

Objects of one process or of several may share a folder. Every change is made under a lock and starts from what is on the disk.
"""

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from apps.privacy import accounting
from apps.privacy.accounting import Steps
from apps.privacy.release import Plan
from distill.errors import InputError
from distill.locks import Held, locked
from distill.records import read_json, write_json, write_whole, writing
from distill.stopping import held_back

# Older releases are dropped beyond this; their cost stays in the account.
KEEP_BYTES = 2 << 30
# Another process holds the lock while it makes one release, or one expert.
LOCK_SECONDS = 60.0
PRIVATE_FILE, ACCOUNT = "PRIVATE-data.json", "account.json"
SLACK = 1e-9  # of rounding, relative


class Ledger:
    """Releases by the key of their question, and the accountant's history.

    Args:
        folder: where they are kept; None keeps them in memory.
        facts: the public settings of the account. A folder with other facts is refused.
        fingerprint: of the private data; it is written to `PRIVATE_FILE` only.

    Raises `InputError` for a folder of other facts or data, a damaged one, and one that another process has locked.
    """

    def __init__(self, folder: Path | None, facts: Mapping[str, object] | None = None, fingerprint: str | None = None) -> None:
        self.folder = folder
        self.facts = dict(facts or {})
        self.account = os.urandom(16).hex()
        self.plan: Plan | None = None  # of the releases of a method's steps
        self.experts: Plan | None = None  # of the DP-SGD that trains the networks in which a method compares
        self.granted: dict[str, tuple[float, float]] = {}  # (epsilon, delta) by what they were granted to
        self._history: list[Steps] = []
        self._bytes = 0
        self._kept: dict[str, Tensor] = {}
        self._named: dict[str, tuple[str, Tensor]] = {}  # without a folder: what `record` kept under a name, with its question
        self._files: set[str] = set()  # of releases that were read or written
        self._written: tuple[int, int] | None = None  # the account's file as this object knows it
        self._lock, self._inside = threading.RLock(), False
        if folder is not None:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            with self.locked():
                if self._written is None and (folder / PRIVATE_FILE).exists():  # it is written after the account
                    raise InputError(f"{folder}: its {ACCOUNT} is missing, so what was spent is not known; start in another folder.")
                if self._written is None:
                    self._write()
                self._check_data(folder, fingerprint)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the folder, with its contents read; may be nested."""
        with self._lock:
            if self.folder is None or self._inside:
                yield
                return
            with contextlib.ExitStack() as stack:
                try:
                    with writing(self.folder):  # a file system without locks is no place for an account
                        stack.enter_context(locked(self.folder / ".lock", LOCK_SECONDS))
                except Held:
                    raise InputError(
                        f"{self.folder}: another process is making a release there; wait for it, or use another folder."
                    ) from None
                # What a killed process was writing: a whole release perhaps, which nobody has counted. Nobody else writes now.
                for part in self.folder.glob(".*.part"):
                    part.unlink(missing_ok=True)
                try:
                    self._inside = True
                    with held_back():  # half of what others released must not be taken in
                        self._refresh(self.folder)
                    yield
                finally:
                    self._inside = False

    @property
    def history(self) -> list[Steps]:
        """The counted releases, including those of other processes with this folder."""
        if self.folder is not None and _state(self.folder) != self._written:
            with self.locked():
                pass
        return self._history

    def has(self, account: Mapping[str, object] | None) -> bool:
        """Whether what a checkpoint remembers of its account ("id" and "releases") is here, perhaps with later releases."""
        releases = None if account is None or account["id"] != self.account else account["releases"]
        return isinstance(releases, int) and releases <= sum(step.times for step in self.history)

    def check_has(self, account: Mapping[str, object] | None, checkpoint: Path | None, done: int) -> None:
        """`InputError` where a checkpoint that is ``done`` steps in was made with releases that are not here."""
        if done and not self.has(account):
            raise InputError(
                f"{checkpoint}: is {done} steps in, and its releases are not in {self.folder}; without them what was spent is not "
                "known. Put the folder back, or delete the checkpoint and start again."
            )

    def count(self, noise: float, rate: float, times: int) -> None:
        """Count releases whose results are kept elsewhere. Call it before the results are used."""
        with self.locked():
            self._history = accounting.add(self._history, noise, rate, times)
            self._write()

    def grant(self, name: str, epsilon: float, delta: float) -> None:
        """Count (``epsilon``, ``delta``) once for ``name``, which has a separate account, before it releases anything."""
        with self.locked():
            if name not in self.granted:
                self.granted[name] = (epsilon, delta)
                self._write()

    def check_grant(self, name: str, epsilon: float, delta: float, total: tuple[float, float]) -> None:
        """`InputError` where (``epsilon``, ``delta``) of a new ``name`` would take the sums over all names beyond ``total``."""
        with self.locked():
            if name in self.granted:
                return
            spent = [sum(values) for values in zip((0.0, 0.0), *self.granted.values(), strict=True)]
            if any(was + new > most * (1 + SLACK) for was, new, most in zip(spent, (epsilon, delta), total, strict=True)):
                raise InputError(
                    f"the privacy budget is spent: epsilon {spent[0]:g} of {total[0]:g} and delta {spent[1]:g} of {total[1]:g} "
                    f"are granted, and {epsilon:g} and {delta:g} more were asked for."
                )

    def find(self, key: str) -> Tensor | None:
        """The release with the key of this question, or None. Call it inside `locked`."""
        return self._kept.get(key)

    def set_plan(self, plan: Plan, experts: Plan | None = None) -> Plan:
        """Keep ``plan``, what may be released, and that of ``experts``, unless there is a plan already; returns the plan that applies."""
        with self.locked():
            if self.plan is None:
                self.plan, self.experts = plan, experts
                self._write()
            return self.plan

    def record(
        self, key: str, released: Tensor, noise: float, rate: float, times: int = 1, name: str | None = None, *, norm: float | None = None
    ) -> None:
        """Keep a release and count it. It is on the disk before it is returned, and a file on the disk is counted.

        Args:
            key: of the question.
            released: the result.
            noise: noise multiplier.
            rate: sampling rate.
            times: number of steps of the accountant.
            name: of a separate file for `read` (an expert's weights); None: a release for `find`.
            norm: that the rows of a release were clipped to, which is public: with it everyone can examine the noise.
        """
        with self.locked(), held_back():  # a Ctrl-C between the two files would leave this object without what the folder has
            if self.folder is not None:
                file = self.folder / self._name(name)
                if file.exists():
                    raise InputError(f"{file}: is there already; start in another folder.")
                steps, place = [noise, rate, times], sum(step.times for step in self._history)
                facts = {"key": key, "steps": json.dumps(steps), "before": str(place), "account": self.account}
                facts |= {} if norm is None else {"norm": repr(float(norm))}
                write_whole(file, safetensors.torch.save({"released": released.cpu().contiguous()}, facts))
                self._files.add(file.name)
            self._history = accounting.add(self._history, noise, rate, times)
            self._write()
            if name is None:
                self._keep(key, released, made=True)
            elif self.folder is None:
                self._named[name] = (key, released)

    def read(self, name: str, key: str) -> Tensor | None:
        """The tensor that `record` kept under ``name``, or None; `InputError` if it answers another question."""
        if self.folder is None:
            known, tensor = self._named.get(name, (key, None))
            if known != key:
                raise InputError(f"{name}: was made with other settings; use other PrivateStatistics.")
            return tensor
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            return None
        facts, tensor = _opened(path)
        if facts.get("key") != key:
            raise InputError(f"{path}: was made with other settings; use another folder.")
        return tensor

    def _name(self, name: str | None) -> str:
        return f"{name or f'release-{sum(step.times for step in self._history):08d}'}.safetensors"

    def _keep(self, key: str, released: Tensor, *, made: bool = False) -> None:
        """Keep a release in memory and drop older ones beyond `KEEP_BYTES`; the process that ``made`` it also drops them from the disk."""
        self._kept[key] = released.cpu()
        self._bytes += 4 * released.numel()
        while len(self._kept) > 1 and self._bytes > KEEP_BYTES:
            self._bytes -= 4 * self._kept.pop(next(iter(self._kept))).numel()
            if made and self.folder is not None and (old := sorted(self.folder.glob("release-*.safetensors"))):
                old[0].unlink()

    # The account's file

    def _write(self) -> None:
        if self.folder is not None:
            plan = None if self.plan is None else list(self.plan)
            history = [list(step) for step in self._history]
            account = {"account": self.account, "facts": self.facts, "plan": plan, "history": history}
            account |= {"experts": list(self.experts)} if self.experts else {}
            write_json(self.folder / ACCOUNT, account | ({"granted": self.granted} if self.granted else {}))
            self._written = _state(self.folder)

    def _refresh(self, folder: Path) -> None:
        """Read what other processes have added to the folder, including one that was killed between its file and its account."""
        state, there = _state(folder), {path.name for path in folder.glob("*.safetensors")}
        if state == self._written and state is not None and there <= self._files:
            return
        if state is None:
            if self._written is not None or there:
                raise InputError(f"{folder}: its account.json is missing, so what was spent is not known; start in another folder.")
            return
        try:
            saved = read_json(folder / ACCOUNT)
            if saved["facts"] != self.facts:
                differing = [name for name in saved["facts"] if saved["facts"][name] != self.facts.get(name)] or sorted(self.facts)
                differences = ", ".join(f"{name} {saved['facts'].get(name)}" for name in differing)[:120]
                raise InputError(f"{folder}: its releases were made under other settings ({differences}); use another folder.")
            history = [Steps(float(noise), float(rate), int(times)) for noise, rate, times in saved["history"]]
            account = str(saved["account"])
            plan, experts = (None if part is None else Plan(*part) for part in (saved["plan"], saved.get("experts")))
            granted = {str(name): (float(epsilon), float(delta)) for name, (epsilon, delta) in saved.get("granted", {}).items()}
            if self._written is not None and (
                account != self.account
                or sum(step.times for step in history) < sum(step.times for step in self._history)
                or not granted.keys() >= self.granted.keys()
            ):
                raise InputError(f"{folder}: its account was replaced by another one, so what was spent is not known; use another folder.")
            counted = sum(step.times for step in history)
            for path in sorted(folder / name for name in there - self._files):
                facts, tensor = _opened(path)
                if facts["account"] != account:
                    raise InputError(f"{path}: belongs to another account; use another folder.")
                # Killed between the release and its account: it counts.
                if int(facts["before"]) >= counted:
                    history = accounting.add(history, *json.loads(facts["steps"]))
                self._files.add(path.name)
                if path.name.startswith("release-"):
                    self._keep(facts["key"], tensor)
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            text = str(error)[:100]
            raise InputError(f"{folder}: is damaged ({text}), so what was spent is not known; start in another folder.") from None
        self.account, self.plan, self.experts, self._history, self.granted = account, plan, experts, history, granted
        self._written = state
        if sum(step.times for step in history) != counted:
            self._write()

    def _check_data(self, folder: Path, fingerprint: str | None) -> None:
        path = folder / PRIVATE_FILE
        if path.exists():
            known = read_json(path)
            if not isinstance(known, dict) or known.get("fingerprint") != fingerprint:
                raise InputError(f"{folder}: its releases were made from other private data; use another folder.")
        elif fingerprint is not None:
            if self._history or self.granted:
                raise InputError(f"{path}: is missing, so whose data were released is not known; use another folder.")
            write_json(path, {"private": "do not share this file: it allows testing a guess of the data", "fingerprint": fingerprint})
            path.chmod(0o600)


def _state(folder: Path) -> tuple[int, int] | None:
    """What changes whenever the account is written: each time it is a new file."""
    try:
        facts = (folder / ACCOUNT).stat()
    except FileNotFoundError:
        return None
    return facts.st_ino, facts.st_mtime_ns


def _opened(path: Path) -> tuple[dict[str, str], Tensor]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}, file.get_tensor("released")
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: is damaged ({str(error)[:100]}), so what was spent is not known; start in another folder.") from None
