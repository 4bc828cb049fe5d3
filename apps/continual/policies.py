"""Which of Avalanche's strategies and plugins replay from a condensed buffer, how the others say no, and `attach`."""

from collections.abc import Iterable
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from apps.continual.engine import avalanche
from apps.continual.protocols import Agent, Experience, Holder, Limited, ReplayBuffer
from distill.errors import InputError, a_kind, clipped

_training = avalanche("avalanche.training")
T = TypeVar("T")

# Strategies and plugins of avalanche-lib 0.6, by the names of their classes. Those that create their storage policy:
OWN_POLICY = (
    *("Replay", "GDumb", "ER_ACE", "DER", "MIR", "SCR", "CoPE", "MER", "LaMAML"),
    *("ReplayPlugin", "GDumbPlugin", "MIRPlugin", "CoPEPlugin", "RARPlugin", "MemoryNCMUpdate", "MemoryFeCAMUpdate"),
)
# Those that cannot replay from a condensed buffer, or only seem to; all others take a ReplayPlugin beside them.
REFUSED: dict[str, str] = {
    "ICaRL": "keeps its own exemplars and never reads a storage policy",
    "ER_AML": "makes a loader of full batches for each class, and waits forever if a class has fewer items than a batch",
    "BiC": "fails in Avalanche 0.6 itself: torch's MultiStepLR no longer has the argument verbose",
    "BiCPlugin": "fails in Avalanche 0.6 itself: torch's MultiStepLR no longer has the argument verbose",
    "PackNet": "takes no plugins in Avalanche 0.6 (their list is put into a list), and replays nothing itself",
    "JointTraining": "sees all experiences at once, so there is nothing to replay",
    "AETraining": "learns to reconstruct images, and has no labels to replay",
    "VAETraining": "learns to reconstruct images, and has no labels to replay",
    "ExpertGateStrategy": "has a separate network for each task, and replays nothing",
    "LearningToPrompt": "was not tested with a condensed buffer (it needs timm and a trained transformer)",
    "GSS_greedy": "keeps its own real images, selected by their gradients, and reads no storage policy",
    "GSS_greedyPlugin": "keeps its own real images, selected by their gradients, and reads no storage policy",
    "AR1": "replays inner activations of a trained MobileNet from its own memory",
    "FeatureReplay": "keeps features in a buffer that it makes itself, and takes no other",
}
INSTEAD = "use Naive with ReplayPlugin, ER_ACE, DER or GDumb"


def attach(strategy: T, buffer: ReplayBuffer) -> T:
    """Replace the storage policy that a strategy or plugin of Avalanche has created.

    Args:
        strategy: one of the table in docs/continual.md, or a strategy with a single replay plugin.
        buffer: a `CondensedBuffer` or `OnlineCondensedBuffer`.

    Returns:
        The same strategy.

    Raises:
        InputError: there is no storage policy to replace, or the strategy would not replay from the buffer.
    """
    if not isinstance(buffer, _training.storage_policy.ExemplarsBuffer):
        raise InputError(f"attach was given {a_kind(buffer)} as the buffer; allowed: a CondensedBuffer or OnlineCondensedBuffer.")
    refuse_unfit(strategy)
    parts = [part for part in (strategy, getattr(strategy, "buffer", None), *getattr(strategy, "plugins", ())) if part is not None]
    holders = [part for part in parts if isinstance(part, Holder)]
    if len(holders) != 1:
        raise InputError(
            f"{type(strategy).__name__} has {len(holders)} storage policies; attach works with ER_ACE, DER, GDumbPlugin, ReplayPlugin or a "
            "strategy with one of these plugins (iCaRL, generative replay, GEM and A-GEM keep memories of another kind)."
        )
    holders[0].storage_policy = buffer
    if isinstance(holders[0], Limited):
        holders[0].mem_size = buffer.max_size
    buffer.learner = strategy if isinstance(strategy, _training.DER) else None
    return strategy


def refuse_unfit(agent: object) -> None:
    """`InputError` for a strategy that cannot replay from a condensed buffer, or only seems to."""
    for part in (agent, *getattr(agent, "plugins", ())):
        for kind in type(part).__mro__:
            if kind.__name__ in REFUSED and kind.__module__.startswith("avalanche."):
                raise InputError(f"{kind.__name__} {REFUSED[kind.__name__]}; {INSTEAD}.")
    if is_der(agent):
        heads = avalanche("avalanche.models.dynamic_modules")
        if any(isinstance(m, heads.IncrementalClassifier | heads.MultiHeadClassifier) for m in agent.model.modules()):
            raise InputError("DER compares stored outputs with later ones, and this model's head grows; use a head for all classes.")


def refuse_no_replay(agent: object, items: int, exp: Experience) -> None:
    """`InputError` if ER_ACE or DER would silently replay nothing, because ``items`` are fewer than a batch of their replay loader."""
    name, batch = type(agent).__name__, getattr(agent, "batch_size_mem", 0)
    starts = isinstance(agent, _training.DER) or (isinstance(agent, _training.ER_ACE) and exp.current_experience > 0)
    if starts and items < batch:
        raise InputError(
            f"{name} would replay nothing: the buffer holds {items} items and batch_size_mem is {batch}, and it makes "
            f"full batches only; give {name} batch_size_mem={items} or less, or the buffer more items."
        )


def needs_items(agent: object) -> bool:
    """GDumb learns from the buffer alone and SCR classifies by its class means, so that it must never be empty."""
    gdumb, scr = avalanche("avalanche.training.plugins").GDumbPlugin, avalanche("avalanche.training.supervised").SCR
    return isinstance(agent, scr) or any(isinstance(plugin, gdumb) for plugin in getattr(agent, "plugins", ()))


def is_der(agent: object) -> TypeGuard[Agent]:
    """Whether this is DER or DER++, which replay a network's outputs with images and labels."""
    return isinstance(agent, _training.DER)


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor, device: torch.device | str, size: int = 256) -> Tensor:
    """A model's outputs (n, K) in evaluation mode, on the CPU, for ``images`` (n, C, H, W); the model's mode is restored."""
    training = model.training
    model.eval()
    logits = torch.cat([model(part.to(device)).cpu().float() for part in images.split(size)])
    model.train(training)
    return logits


def checked_device(name: torch.device | str) -> torch.device | str:
    """The device, or "auto"; `InputError` if torch cannot compute on it here."""
    if name == "auto":
        return "auto"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise InputError(f'device is {clipped(name)!r}; allowed: "auto", "cpu", "cuda" or a torch.device.') from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device is {clipped(name)!r}, and torch finds no GPU here; allowed: cpu, auto.")
    try:
        torch.zeros(1, device=device).item()  # "meta" has no values, and others are not in every build of torch
    except (RuntimeError, NotImplementedError, AssertionError):
        raise InputError(f"device is {clipped(name)!r}, on which torch cannot compute here; allowed: cpu, auto.") from None
    return device


def table(beside: Iterable[str]) -> str:
    """The rows of docs/continual.md: which classes have a policy to replace, which (``beside``) take a ReplayPlugin, which are refused."""

    def names(classes: Iterable[str]) -> str:
        return ", ".join(f"`{name}`" for name in sorted(classes))

    rows = [
        f"| {names(OWN_POLICY)} | `attach(strategy, buffer)` |",
        f"| {names(beside)} | with `ReplayPlugin(mem_size=buffer.max_size, storage_policy=buffer)` among the plugins |",
    ]
    reasons: dict[str, list[str]] = {}
    for name, why in REFUSED.items():
        reasons.setdefault(why, []).append(name)
    return "\n".join([*rows, *(f"| {names(classes)} | refused: {why} |" for why, classes in reasons.items())])
