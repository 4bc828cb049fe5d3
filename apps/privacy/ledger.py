"""What was released, in memory or in a folder: an answer that is kept is never paid for twice, and none is ever forgotten in the account.

The folder holds noised releases only. It is as public as the set that is made from them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from apps.privacy import accounting
from apps.privacy.accounting import Steps
from distill.errors import InputError
from distill.records import read_json, write_json, write_whole
from distill.stopping import held_back

# Older releases are dropped beyond this; their cost stays in the account.
KEEP_BYTES = 2 << 30


class Ledger:
    """Releases by the key of their question, and the accountant's history. ``facts`` must be those of the run that is continued."""

    def __init__(self, folder: Path | None, facts: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self.facts = facts or {}
        self.history: list[Steps] = []
        self.plan: Sequence[Any] | None = None
        self._bytes = 0
        self._kept: dict[str, Tensor] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / "account.json").exists():
                self._read(folder)
            else:
                self._write()

    def find(self, key: str) -> Tensor | None:
        """A release that was made, by its question's key; None where there is none."""
        return self._kept.get(key)

    def set_plan(self, plan: Sequence[Any]) -> None:
        """Write down what may be released in all."""
        self.plan = plan
        self._write()

    def record(self, key: str, released: Tensor, noise: float, rate: float) -> None:
        """Keep a release and count it. It is on the disk before anybody has seen it, and a file that is there is always counted."""
        count = sum(step.times for step in self.history)
        with held_back():  # a Ctrl-C between the two files would leave this object without the release that the folder has
            if self.folder is not None:
                tensor = {"released": released.cpu().contiguous()}
                write_whole(self._file(count), safetensors.torch.save(tensor, {"key": key, "steps": json.dumps([noise, rate, 1])}))
            self.history = accounting.add(self.history, noise, rate)
            self._write()
            self._keep(key, released)

    def count(self, noise: float, rate: float, count: int) -> None:
        """Count steps whose results are kept elsewhere (experts)."""
        self.history = accounting.add(self.history, noise, rate, count)
        self._write()

    def _keep(self, key: str, released: Tensor) -> None:
        self._kept[key] = released.cpu()
        self._bytes += 4 * released.numel()
        while len(self._kept) > 1 and self._bytes > KEEP_BYTES:
            self._bytes -= 4 * self._kept.pop(next(iter(self._kept))).numel()
            if self.folder is not None and (old := sorted(self.folder.glob("release-*.safetensors"))):
                old[0].unlink()

    def _file(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"release-{number:08d}.safetensors"

    def _write(self) -> None:
        if self.folder is not None:
            plan = None if self.plan is None else list(self.plan)
            write_json(self.folder / "account.json", {"facts": self.facts, "plan": plan, "history": [list(s) for s in self.history]})

    def _read(self, folder: Path) -> None:
        try:
            saved = read_json(folder / "account.json")
            if saved["facts"] != self.facts:
                given = str(saved["facts"])[:120]
                raise InputError(f"{folder}: its releases were made under other settings ({given}); use another folder.")
            self.plan = saved["plan"]
            self.history = [Steps(float(noise), float(rate), int(count)) for noise, rate, count in saved["history"]]
            counted = sum(step.times for step in self.history)
            for path in sorted(folder.glob("release-*.safetensors")):
                with safetensors.safe_open(path, framework="pt") as file:
                    facts, tensor = file.metadata(), file.get_tensor("released")
                self._keep(facts["key"], tensor)
                # Killed between the release and its account: it counts.
                if int(path.stem.removeprefix("release-")) >= counted:
                    self.history = accounting.add(self.history, *json.loads(facts["steps"]))
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            text = str(error)[:100]
            raise InputError(f"{folder}: is damaged ({text}), so what was spent is not known; start in another folder.") from None
