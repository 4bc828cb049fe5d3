"""Labels for private sets: a teacher that is trained by DP-SGD within a share of the account, or on public data at no cost.

A label is a function of a released network and a released image, so nothing more is released by it. A teacher that was trained on the
private images without noise would end the guarantee: soft labels reveal what their teacher has seen (Behrens, ICLR 2026).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apps.privacy.accounting import Steps
from apps.privacy.public import is_part
from apps.privacy.public_experts import train_public_experts
from apps.privacy.release import Plan
from distill.data import ImageData
from distill.errors import InputError
from distill.experts import Trajectories
from distill.teachers import Teacher

if TYPE_CHECKING:
    from apps.privacy.private_experts import Account


@dataclass(frozen=True)
class PrivateTeacher:
    """A teacher that an account has a share for, stated before its first release.

    Attributes:
        teacher: what is trained; without augmentation, and on Poisson samples of ``batch_size`` images in the mean.
        share: of the budget (of mu squared), 0 to 1.
        clip: norm of one example's gradient.
    """

    teacher: Teacher
    share: float = 0.3
    clip: float = 1.0

    def steps(self, population: int) -> int:
        """Steps of DP-SGD on this number of examples."""
        return self.teacher.epochs * -(-population // self.teacher.batch_size)

    def asked(self, population: int) -> tuple[int, float, float]:
        """What a `Budget` is asked for: number of steps, sampling rate and share."""
        return self.steps(population), min(1.0, self.teacher.batch_size / population), self.share

    @property
    def facts(self) -> list[object]:
        """For the account's settings; when it stops and how it labels are post-processing."""
        return [dataclasses.asdict(dataclasses.replace(self.teacher, stop=None, labels="views")), self.share, self.clip]


def check_account(stated: Mapping[str, object] | None, account: str, history: list[Steps]) -> None:
    """`InputError` unless a set's statement is of this account."""
    if stated is not None and not (stated.get("account") == account and is_part(stated.get("history"), history)):
        raise InputError(
            "this set has a privacy guarantee from another account, and labels add the releases of their teacher to it; give the "
            "PrivateStatistics that the set was made from (the same ledger=)."
        )


def train_teacher(
    statistics: "Account", data: ImageData, public: ImageData | None, declared: PrivateTeacher | None, teacher: Teacher, plan: Plan | None
) -> Trajectories:
    """The weights of a teacher by epoch: of ``public`` data where an account has them, else of the account's ``declared`` teacher.

    Raises:
        InputError: the account has no share for this teacher.
    """
    from apps.privacy.private_experts import train_private_experts  # here, because it needs Opacus' optimiser

    if public is not None:
        return train_public_experts(public, teacher.training, teacher.network)
    if declared is None or plan is None or declared.facts != PrivateTeacher(teacher, declared.share, declared.clip).facts:
        passes = f"{teacher.epochs} epoch{'s' if teacher.epochs > 1 else ''}"
        raise InputError(
            f"this account has no share for the teacher {teacher.network!r} of {passes}, and one without noise would end its guarantee; "
            "give PrivateStatistics(..., teacher=PrivateTeacher(Teacher(...), share=0.3)), or public_experts."
        )
    steps = declared.steps(statistics.population)
    return train_private_experts(statistics, data, teacher.training, teacher.network, plan, steps, declared.clip, prefix="expert-teacher")
