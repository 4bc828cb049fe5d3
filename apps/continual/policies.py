"""Which of Avalanche's strategies and plugins replay from a condensed buffer, how the others say no, and `attach`."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from apps.continual.engine import avalanche
from distill.errors import InputError, a_kind

_training = avalanche("avalanche.training")

# Strategies and plugins of avalanche-lib 0.6, by the names of their classes. Those with a storage policy of their own making:
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
    "FeatureReplay": "stores features of its network, and a condensed buffer holds images",
}
INSTEAD = "use Naive with ReplayPlugin, ER_ACE, DER or GDumb"


def attach(strategy: Any, buffer: Any) -> Any:
    """Make a strategy (or plugin) use this buffer, where it has a storage policy of its own making; returns what was given.

    For the strategies of docs/continual.md's table, or one that has a single replay plugin. `InputError` where there is nothing to
    replace, and for those that would not replay what the buffer holds.
    """
    if not isinstance(buffer, _training.storage_policy.ExemplarsBuffer):
        raise InputError(f"attach was given {a_kind(buffer)} as the buffer; allowed: a CondensedBuffer or OnlineCondensedBuffer.")
    refuse_unfit(strategy)
    parts = [part for part in (strategy, getattr(strategy, "buffer", None), *getattr(strategy, "plugins", ())) if part is not None]
    holders = [part for part in parts if hasattr(part, "storage_policy")]
    if len(holders) != 1:
        raise InputError(
            f"{type(strategy).__name__} has {len(holders)} storage policies; attach works with ER_ACE, DER, GDumbPlugin, ReplayPlugin or a "
            "strategy with one of these plugins (iCaRL, generative replay, GEM and A-GEM keep memories of another kind)."
        )
    holders[0].storage_policy = buffer
    if hasattr(holders[0], "mem_size"):
        holders[0].mem_size = buffer.max_size
    buffer.learner = strategy if isinstance(strategy, _training.DER) else None
    return strategy


def refuse_unfit(agent: Any) -> None:
    """`InputError` for what cannot work with any condensed buffer, or only seems to."""
    for part in (agent, *getattr(agent, "plugins", ())):
        for kind in type(part).__mro__:
            if kind.__name__ in REFUSED and kind.__module__.startswith("avalanche."):
                raise InputError(f"{kind.__name__} {REFUSED[kind.__name__]}; {INSTEAD}.")
    if isinstance(agent, _training.DER):
        heads = avalanche("avalanche.models.dynamic_modules")
        if any(isinstance(m, heads.IncrementalClassifier | heads.MultiHeadClassifier) for m in agent.model.modules()):
            raise InputError("DER compares stored outputs with later ones, and this model's head grows; use a head for all classes.")


def refuse_no_replay(agent: Any, items: int, exp: Any) -> None:
    """ER_ACE and DER make their replay loader only for a buffer of at least a batch, and otherwise train on without a word."""
    name = type(agent).__name__
    starts = isinstance(agent, _training.DER) or (isinstance(agent, _training.ER_ACE) and exp.current_experience > 0)
    if starts and items < agent.batch_size_mem:
        raise InputError(
            f"{name} would replay nothing: the buffer holds {items} items and batch_size_mem is {agent.batch_size_mem}, and it makes "
            f"full batches only; give {name} batch_size_mem={items} or less, or the buffer more items."
        )


def trains_on_the_buffer(agent: Any) -> bool:
    """GDumb learns from the buffer alone, so that it must never be empty."""
    gdumb = avalanche("avalanche.training.plugins").GDumbPlugin
    return any(isinstance(plugin, gdumb) for plugin in getattr(agent, "plugins", ()))


def is_der(agent: Any) -> bool:
    """DER and DER++ replay a network's outputs beside images and labels."""
    return isinstance(agent, _training.DER)


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor, device: torch.device | str, size: int = 256) -> Tensor:
    """A model's outputs (n, K) in evaluation mode, on the CPU; the model stays in the mode it was in."""
    training = model.training
    model.eval()
    found = torch.cat([model(part.to(device)).cpu().float() for part in images.split(size)])
    model.train(training)
    return found


def table(beside: Iterable[str]) -> str:
    """The rows of docs/continual.md: which classes have a policy to replace, which (``beside``) take a ReplayPlugin, which are refused."""

    def names(given: Iterable[str]) -> str:
        return ", ".join(f"`{name}`" for name in sorted(given))

    rows = [
        f"| {names(OWN_POLICY)} | `attach(strategy, buffer)` |",
        f"| {names(beside)} | with `ReplayPlugin(mem_size=buffer.max_size, storage_policy=buffer)` among the plugins |",
    ]
    reasons: dict[str, list[str]] = {}
    for name, why in REFUSED.items():
        reasons.setdefault(why, []).append(name)
    return "\n".join([*rows, *(f"| {names(given)} | refused: {why} |" for why, given in reasons.items())])
