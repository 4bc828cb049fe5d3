"""The state of a run between two steps, in memory or in a file from which the run continues to the same bits."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from distill.distiller import Stateful, load_state
from distill.errors import Diverged, InputError
from distill.records import Json, write_whole

# Settings that may change during a run: those of the step size.
CHANGEABLE = ("lr_", "momentum", "max_norm")


class State(NamedTuple):
    """Copies of a method's tensors and of the random state, ``step`` steps after the start."""

    step: int
    tensors: dict[str, Tensor]
    generator: Tensor


class Loaded(NamedTuple):
    """Facts in a checkpoint.

    Attributes:
        step: number of steps done.
        seconds: time spent.
        continued: where other settings were continued with, oldest first.
        account: of private statistics, when the checkpoint was written.
    """

    step: int
    seconds: float
    continued: list[dict[str, Json]]
    account: dict[str, Json] | None


def state_of(state: Mapping[str, Tensor], draws: torch.Generator, step: int) -> State:
    """Copies of a method's ``state()`` and of the random state."""
    return State(step, {name: value.detach().clone() for name, value in state.items()}, draws.get_state().clone())


def key_of(run: Mapping[str, object]) -> str:
    """A digest of method, settings, data and seed."""
    return hashlib.sha256(json.dumps(run, sort_keys=True, default=str).encode()).hexdigest()


def save_checkpoint(
    path: Path,
    run: Mapping[str, object],
    state: State,
    seconds: float,
    diverged: str | None = None,
    account: Mapping[str, object] | None = None,
) -> None:
    """Write a checkpoint, completely or not at all.

    Args:
        path: the file.
        run: the run's method, settings, data and seed.
        state: the state to save.
        seconds: time spent so far.
        diverged: how the run diverged after this state, if it did.
        account: of private statistics; it must agree with their ledger before the run may continue.
    """
    tensors = {f"state.{name}": value.cpu().contiguous() for name, value in state.tensors.items()}
    tensors["generator"] = state.generator.cpu()
    facts = {"key": key_of(run), "run": run, "step": state.step, "seconds": seconds, "diverged": diverged, "account": account}
    write_whole(path, safetensors.torch.save(tensors, {"checkpoint": json.dumps(facts, default=str)}))


def load_checkpoint(path: Path, run: Mapping[str, object], distiller: Stateful, draws: torch.Generator) -> Loaded:
    """Restore the saved state.

    Raises `InputError` if the file is damaged or belongs to another run, `Diverged` if this run is known to diverge after it.
    """
    facts, tensors = _read(path)
    if facts["key"] != key_of(run):
        raise InputError(f"{path}: belongs to a run with other settings, data or seed; delete it to start again.")
    if facts.get("diverged"):
        raise Diverged(f"{facts['diverged']} With the same settings it would diverge again; change one and continue from {path}.")
    return _put_back(path, facts, tensors, distiller, draws)


def load_changed(path: Path, run: Mapping[str, object], distiller: Stateful, draws: torch.Generator) -> Loaded:
    """Restore the state of a run with other step sizes; the last entry of ``continued`` has the changes.

    Raises `InputError` if nothing was changed, or more than step sizes.
    """
    facts, tensors = _read(path)
    earlier = facts.get("run")
    known = {"method", "ipc", "seed", "fingerprint", "config"}
    if not isinstance(earlier, dict) or not known <= set(earlier) or not isinstance(earlier["config"], dict):
        raise InputError(f"{path}: is no checkpoint of a run of this version; only such a one can be continued with other settings.")
    for name in ("method", "ipc", "seed", "fingerprint"):
        if earlier[name] != run[name]:
            raise InputError(
                f"{path}: its run had {name} {earlier[name]}, this one has {run[name]}; they must be the same to continue from it."
            )
    now = json.loads(json.dumps(run["config"], default=str))
    names = [name for name in (*now, *earlier["config"]) if now.get(name) != earlier["config"].get(name)]
    changed = {name: [earlier["config"].get(name), now.get(name)] for name in dict.fromkeys(names)}
    if not changed:
        raise InputError(f"{path}: its run had the same settings; change one (lr_img, for example), or continue with resume.")
    # lr_init is the initial value of a learned step size, whose current value is in the checkpoint.
    if other := [name for name in changed if name == "lr_init" or not name.startswith(CHANGEABLE)]:
        before, after = changed[other[0]]
        raise InputError(
            f"{path}: its run had {other[0]} {before}, this one has {after}; only step sizes, momentum and max_norm may change."
        )
    loaded = _put_back(path, facts, tensors, distiller, draws)
    note: dict[str, Json] = {"step": loaded.step, "changed": dict(changed)}
    return loaded._replace(continued=[*loaded.continued, note])


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["checkpoint"])
            str(facts["key"])
            return facts, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from None


def _put_back(path: Path, facts: dict[str, Any], tensors: dict[str, Tensor], distiller: Stateful, draws: torch.Generator) -> Loaded:
    try:
        state = {name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")}
        load_state(distiller, state, path)
        draws.set_state(tensors["generator"])
        return Loaded(int(facts["step"]), float(facts["seconds"]), list(facts["run"].get("continued", [])), facts.get("account"))
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: is damaged ({str(error)[:100]}); delete it to start again.")
