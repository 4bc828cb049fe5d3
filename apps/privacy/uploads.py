"""Private statistics for a party that answers several requests from the same data: every answer is counted before it is made.

Each answer has a separate account in a separate folder. The folder above holds what was granted to all of them: their epsilons and
deltas add up (basic composition, which holds for requests that somebody chooses after seeing earlier answers), and the sums never pass
what the party gives in all.
"""

from pathlib import Path
from typing import Any

from apps.privacy.ledger import ACCOUNT, Ledger
from apps.privacy.private_statistics import PrivateStatistics
from distill.data import ImageData
from distill.errors import InputError


def granted_statistics(
    data: ImageData, epsilon: float, delta: float, folder: Path, name: str, total: tuple[float, float], **options: Any
) -> PrivateStatistics:
    """The statistics of the answer ``name``, which costs (``epsilon``, ``delta``) once, however often it is asked for.

    Args:
        folder: of all answers from these data; it survives restarts.
        total: the largest sums of epsilon and of delta.
        options: further keywords of `PrivateStatistics`.

    Raises `InputError` where the sums would pass ``total``, for other data than before, and where a granted answer's account is gone.
    """
    if not (folder / ACCOUNT).exists() and any(folder.glob(f"*/{ACCOUNT}")):
        raise InputError(f"{folder}: its {ACCOUNT} is missing, so what was granted is not known; start in another folder.")
    answers = Ledger(folder, {"holds": "answers"}, data.fingerprint)
    place = folder / name
    with answers.locked():
        if name in answers.granted and not (place / ACCOUNT).exists():
            raise InputError(f"{place}: its account is missing, so what was released is not known; this answer cannot be repeated.")
        answers.check_grant(name, epsilon, delta, total)
        statistics = PrivateStatistics(data, epsilon, delta, ledger=place, **options)  # releases nothing yet
        answers.grant(name, epsilon, delta)
    return statistics
