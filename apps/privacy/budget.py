"""How the budget of one account is divided: plans made from public numbers only, before anything is released.

Shares are of mu^2, which adds up: releases with noise multipliers s that use all data are together mu-Gaussian, mu^2 the sum of 1 / s^2
(Dong, Roth and Su, 2022). A part of the budget is the epsilon of its mu at the same delta. Every noise multiplier is then searched with all
earlier parts in the same accountant, so that the composition of everything stays within epsilon, whatever the shares are.
"""

from collections.abc import Mapping, Sequence

from apps.privacy import accounting
from apps.privacy.accounting import Steps
from apps.privacy.public import check_target
from apps.privacy.release import Plan
from distill.errors import InputError

EXPERTS_SHARE = 0.3


class Budget:
    """(``epsilon``, ``delta``) for a private start, a teacher, experts that are trained with noise, and the releases of a method's steps.

    Args:
        target: epsilon and delta of everything together.
        population: the number of examples that is publicly known.
        asked: number of releases of a method's steps (None: as many as steps, or what MTT's experts need), and their sampling rate (None:
            from the method's batch).
        start: number of releases of all the data for a private start, and their share.
        experts_share: share of the experts, where a method asks for some.
        teacher: number of DP-SGD steps of a teacher, their sampling rate and share; None: no teacher.

    Raises:
        InputError: for a number out of range.
    """

    def __init__(
        self,
        target: tuple[float, float],
        population: int,
        *,
        asked: tuple[int | None, float | None],
        start: tuple[int, float],
        experts_share: float,
        teacher: tuple[int, float, float] | None = None,
    ) -> None:
        self.epsilon, self.delta = target
        self.population, (self.count, self.sample_rate), (start_releases, start_share) = population, asked, start
        accounting.check([Steps(1.0, self.sample_rate or 1.0, self.count or 1)], self.delta)
        check_target(self.epsilon, self.delta, population)
        if start_releases < 0 or not 0 < start_share < 1:
            raise InputError(f"start_releases {start_releases}, start_share {start_share}; allowed: 0 or more, a share between 0 and 1.")
        if not 0 < experts_share < 1:
            raise InputError(f"experts_share is {experts_share}; allowed: a share between 0 and 1 ({EXPERTS_SHARE} where it is not given).")
        self.experts_share, self.start_share = experts_share, start_share if start_releases else 0.0
        self.start: Plan | None = None
        if start_releases:
            self.start = Plan(start_releases, 1.0, self._alone() * (start_releases / start_share) ** 0.5)
        self.teacher: Plan | None = None
        self.teacher_share = 0.0 if teacher is None else teacher[2]
        if teacher is not None:
            if not 0 < teacher[2] < 1:
                raise InputError(f"the teacher's share is {teacher[2]}; allowed: a share between 0 and 1.")
            self.teacher = self._within({"start_share": self.start_share, "the teacher's share": teacher[2]}, teacher[1], teacher[0])

    def _alone(self) -> float:
        """Noise multiplier of a single release of all the data that spends the whole budget: 1 / mu."""
        return accounting.noise_multiplier(self.epsilon, self.delta, 1.0, 1)

    def rate(self, batch_size: int) -> float:
        """Sampling rate of a batch of the whole data."""
        return min(1.0, batch_size / self.population)

    def steps(self, rate: float, count: int | None, *earlier: Plan) -> Plan:
        """Releases with what the budget has left after start, teacher and ``earlier`` plans; their number and rate, unless given before."""
        count, rate = self.count or count, self.sample_rate or rate
        if count is None:
            raise InputError("how many releases there will be is not known; give releases= when making PrivateStatistics.")
        return Plan(count, rate, accounting.noise_multiplier(self.epsilon, self.delta, rate, count, self._before(*earlier)))

    def experts(self, rate: float, count: int) -> Plan:
        """``count`` steps of DP-SGD, with the start and the teacher within their common share of the budget."""
        shares = {"experts_share": self.experts_share, "start_share": self.start_share, "the teacher's share": self.teacher_share}
        return self._within({name: share for name, share in shares.items() if share}, rate, count)

    def _within(self, shares: Mapping[str, float], rate: float, count: int) -> Plan:
        """``count`` releases that stay, with the earlier ones, within the epsilon of the sum of these shares."""
        total, named = sum(shares.values()), " and ".join(f"{name} {share:g}" for name, share in shares.items() if share)
        if total >= 1:
            raise InputError(f"{named} leave nothing for the other releases; allowed: a sum below 1.")
        epsilon = accounting.gaussian_epsilon(total**0.5 / self._alone(), self.delta)
        if epsilon <= 0:
            raise InputError(f"{named} of epsilon {self.epsilon:g} is too little for any noise; give a larger one.")
        return Plan(count, rate, accounting.noise_multiplier(epsilon, self.delta, rate, count, self._before()))

    def _before(self, *earlier: Plan) -> tuple[Steps, ...]:
        plans = (*(plan for plan in (self.start, self.teacher) if plan), *earlier)
        return tuple(Steps(plan.noise_multiplier, plan.sample_rate, plan.releases) for plan in plans)


def planned(experts: Plan | None) -> Plan:
    """The plan of an account's experts; `InputError` where it has none."""
    if experts is None:
        raise InputError(
            "this account was planned without trained networks, and what it has is divided before its first release; use another "
            "folder, or pool 'random' and calibration 0."
        )
    return experts


def check_left(plan: Plan, more: int, plans: Sequence[Plan], history: Sequence[Steps]) -> None:
    """`InputError` where ``more`` releases like those of ``plan`` are not planned any more.

    ``plans`` are all that the account has. Two plans may have the same noise and rate: releases are then counted against both together.
    """
    kind = (plan.noise_multiplier, plan.sample_rate)
    done = sum(step.times for step in history if step[:2] == kind)
    planned = max(plan.releases, sum(each.releases for each in plans if (each.noise_multiplier, each.sample_rate) == kind))
    if done + more > planned:
        raise InputError(
            f"the privacy budget is spent: {done} of {planned} planned releases are made, and {more} more were asked for; give a "
            "larger releases=, or networks that come back (apps.privacy.networks.drawn_once, pool_draws), whose releases are used again."
        )
