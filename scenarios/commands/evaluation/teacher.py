"""The options ``--teacher`` and ``--scorer``."""

import re
from collections.abc import Sequence

from scenarios.commands.options import refuse_unused


def teacher_table(text: str | None, option: str = "--teacher") -> dict[str, str | int] | None:
    """``NETWORK:EPOCHS`` as the table of a teacher or scorer; the epochs may be left out, and NETWORK may be an import path."""
    from distill.errors import InputError, clipped

    if text is None:
        return None
    parts = re.fullmatch(r"([^:]+)(:[^\W\d]\w*)?(?::([0-9]{1,6}))?", text)
    if parts is None or (parts[2] and _is_listed(parts[1])):
        raise InputError(
            f"{option} is {clipped(text, 60)!r}; allowed: NETWORK or NETWORK:EPOCHS with a whole number of epochs, for example ConvNet:20."
        )
    return {"network": f"{parts[1]}{parts[2] or ''}", **({"epochs": int(parts[3])} if parts[3] else {})}


def _is_listed(network: str) -> bool:
    """Whether it is a network of the toolkit, and no module of a user's."""
    from distill.errors import InputError
    from distill.networks import check_name

    try:
        check_name(network)
    except InputError:
        return False
    return True


def scorer_table(text: str | None, baselines: Sequence[str]) -> dict[str, str | int] | None:
    """``--scorer`` as a table. Raises `InputError` where none of the baselines chooses by it."""
    from distill.comparison import BASELINES, coreset_of
    from distill.coresets import TRAINED

    # An unknown baseline has its own message.
    if set(baselines) <= set(BASELINES) and not any(coreset_of(name) in TRAINED for name in baselines):
        named = f"on --baseline {', '.join(baselines)}" if baselines else "without baselines"
        refuse_unused({"--scorer": text}, named, f"give a --baseline that networks choose ({', '.join(TRAINED)})")
    return teacher_table(text, "--scorer")
