"""Labels for private sets: from a teacher of the same account, which counts, or of public data; all others are refused."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from apps.privacy import PrivateStatistics, accounting, private_experts
from apps.privacy.accounting import Steps
from apps.privacy.private_teacher import PrivateTeacher, check_account
from apps.privacy.statement import guarantee
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError
from distill.evaluation import evaluate
from distill.run import condense
from distill.statistics import ExactStatistics
from distill.teachers import Teacher, labelled, labelled_views, teacher_network
from distill.train import Recipe
from tests.apps.privacy.loss_distribution import loss_distribution_epsilon
from tests.apps.privacy.test_private_pools import CONFIG, DELTA, NETWORK, gaussian
from tests.apps.privacy.test_private_statistics import public_toy

pytest.importorskip("opacus")

TEACHER = Teacher(network="MLP", epochs=2, lr=0.1, batch_size=12)  # of 36 examples: six steps
DECLARED = PrivateTeacher(TEACHER, share=0.4)


def private(data: ImageData | None = None, **options: Any) -> PrivateStatistics:
    settings = {"epsilon": 4.0, "delta": DELTA, "population": 36, "releases": 3, "sample_rate": 0.5, "teacher": DECLARED, **options}
    return PrivateStatistics(public_toy() if data is None else data, **settings)


def dm(statistics: PrivateStatistics) -> CondensedSet:
    return condense(statistics, "dm", ipc=1, iterations=3, network=NETWORK, augmentation="none", compile="off", progress=False)


@pytest.mark.parametrize("first", ["set", "teacher"])
def test_the_account_is_the_sum_of_the_set_and_its_teacher_in_any_order(first: str) -> None:
    statistics = private()
    if first == "teacher":
        teacher_network(statistics, TEACHER, progress=False)
    made = dm(statistics)
    spent_before = statistics.privacy["epsilon"]
    taught = labelled(made, statistics, TEACHER)
    stated = taught.provenance.dp or {}
    kinds = {(step.sample_rate, step.times) for step in statistics.history}
    assert kinds == {(0.5, 3), (12 / 36, 6)}
    assert stated["history"] == [list(step) for step in statistics.history]
    assert (stated["releases"], stated["teacher"], stated["account"]) == (9, 6, statistics.account["id"])
    assert stated["initial"] == "noise"
    # Against an independent accountant: all together is the budget, and the teacher alone is the epsilon of its share of mu^2.
    assert 0.95 * 4.0 < loss_distribution_epsilon(statistics.history, DELTA) < 4.0 * 1.01
    assert float(str(stated["epsilon"])) <= 4.0
    teacher = [step for step in statistics.history if step.sample_rate == 12 / 36]
    low, high = (accounting.gaussian_epsilon(0.4**0.5 * gaussian(4.0, DELTA), DELTA) * factor for factor in (0.95, 1.01))
    assert low < loss_distribution_epsilon(teacher, DELTA) < high
    if first == "set":
        assert float(str(spent_before)) < float(str(stated["epsilon"])), "the labels cost something"
    assert "9 releases, 6 of them steps of DP-SGD that trained the teacher of its labels, accounted by" in guarantee(stated)
    # Labels are the network's outputs on the released images: asked again they cost nothing.
    network = teacher_network(statistics, TEACHER, stated=made.provenance.dp)
    assert torch.equal(taught.labels, network(made.images))
    views = labelled_views(made, statistics, TEACHER, 2, augmentation="crop")
    assert (views.provenance.dp or {})["releases"] == 9
    assert [step.times for step in statistics.history] == [step.times for step in map(Steps._make, stated["history"])]


def test_a_start_a_teacher_experts_and_means_share_one_budget() -> None:
    from apps.privacy.private_start import private_kmeans

    statistics = private(start_releases=2, start_share=0.2, experts_share=0.2)
    private_kmeans(statistics, 1)
    teacher_network(statistics, TEACHER)
    statistics.trajectories(CONFIG, NETWORK, batch_real=4)
    for factor in (1.0, 2.0, 3.0):
        statistics.class_means(lambda images, factor=factor: factor * images.flatten(1), 4, None, torch.Generator())
    assert [step.times for step in statistics.history] == [2, 6, 6, 3]
    assert 0.95 * 4.0 < loss_distribution_epsilon(statistics.history, DELTA) < 4.0 * 1.01
    assert (statistics.privacy["teacher"], statistics.privacy["experts"]) == (6, 6)
    with pytest.raises(InputError, match="leave nothing for the other releases"):
        private(start_releases=2, start_share=0.7)
    with pytest.raises(InputError, match=r"the teacher's share is 1\.5"):
        private(teacher=PrivateTeacher(TEACHER, share=1.5))


def test_a_larger_share_gives_the_teacher_less_noise_and_the_means_more() -> None:
    plans = []
    for share in (0.1, 0.4, 0.8):
        statistics = private(teacher=PrivateTeacher(TEACHER, share=share))
        plans.append((statistics._budget.teacher.noise_multiplier, statistics._planned(4).noise_multiplier))  # type: ignore[union-attr]
    teachers, means = zip(*plans, strict=True)
    assert list(teachers) == sorted(teachers, reverse=True)
    assert list(means) == sorted(means)
    without = PrivateStatistics(public_toy(), 4.0, DELTA, population=36, releases=3, sample_rate=0.5)
    assert without._planned(4).noise_multiplier < min(means)


def test_only_the_declared_teacher_is_trained_and_how_it_stops_is_free() -> None:
    statistics = private()
    made = dm(statistics)
    for wrong in (
        dataclasses.replace(TEACHER, epochs=3),
        dataclasses.replace(TEACHER, seed=1),
        dataclasses.replace(TEACHER, network=NETWORK),
    ):
        with pytest.raises(InputError, match="this account has no share for the teacher"):
            labelled(made, statistics, wrong)
    early = labelled(made, statistics, dataclasses.replace(TEACHER, stop=1, labels="images"))
    late = labelled(made, statistics, TEACHER)
    assert not torch.equal(early.labels, late.labels)
    assert sum(step.times for step in statistics.history) == 9
    with pytest.raises(InputError, match=r"this account has no share for the teacher 'MLP' of 2 epochs.*PrivateTeacher") as caught:
        teacher_network(private(teacher=None), TEACHER)
    assert "\n" not in str(caught.value)


def test_every_other_teacher_of_a_private_set_is_refused(toy_data: ImageData) -> None:
    made = dm(private())
    for source in (public_toy(), ExactStatistics(public_toy())):
        for label in (labelled, lambda *given: labelled_views(*given, 2)):
            with pytest.raises(InputError, match="would end it: a network trained on such labels is not covered"):
                label(made, source, TEACHER)  # type: ignore[operator]
    alike = private()
    dm(alike)  # has the history that the set states, and another account
    for other in (private(), alike):
        with pytest.raises(InputError, match="privacy guarantee from another account"):
            labelled(made, other, TEACHER)
    recipe = Recipe(epochs=1, teacher=TEACHER)
    with pytest.raises(InputError, match="would end it"):
        evaluate(made, public_toy(), network="MLP", recipe=recipe, seeds=1, baselines=[], progress=False)


def test_a_set_is_of_an_account_by_its_id_and_its_history() -> None:
    history = [Steps(2.0, 0.5, 3), Steps(1.0, 1.0, 1)]
    check_account(None, "ours", history)
    check_account({"account": "ours", "history": [[2.0, 0.5, 3]]}, "ours", history)
    for stated in (
        {"account": "theirs", "history": [[2.0, 0.5, 3]]},
        {"account": "ours", "history": [[2.0, 0.5, 4]]},
        {"account": "ours", "history": [[1.0, 0.5, 3]]},
        {"account": "ours"},
        {"history": [[2.0, 0.5, 3]]},
    ):
        with pytest.raises(InputError, match="another account"):
            check_account(stated, "ours", history)


def test_a_teacher_of_public_data_costs_nothing_and_must_know_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    public = public_toy(7)
    statistics = private(public_experts=public)
    monkeypatch.setattr(private_experts, "_train", lambda *rest, **named: pytest.fail("the private images were trained on"))
    made = dm(statistics)
    taught = labelled(made, statistics, TEACHER)
    assert [step.times for step in statistics.history] == [3]
    assert statistics._planned(4) == PrivateStatistics(public_toy(), 4.0, DELTA, population=36, releases=3, sample_rate=0.5)._planned(4)
    network = teacher_network(ExactStatistics(public), TEACHER)
    assert torch.equal(taught.labels, network(made.images))
    stated = taught.provenance.dp or {}
    assert stated["public_experts"] == "toy"
    assert "teacher" not in stated
    assert "stated to be public (toy)" in guarantee(stated)
    spec = dataclasses.replace(public.spec, classes=("cat", "dog", "cow"))
    other = private(public_experts=dataclasses.replace(public, spec=spec))
    with pytest.raises(InputError, match="the teacher was trained on data of other classes"):
        labelled(dm(other), other, TEACHER)


def test_the_teacher_is_kept_with_the_account_and_other_settings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = dm(first := private(ledger=tmp_path / "account"))
    taught = labelled(made, first, TEACHER)
    assert (tmp_path / "account" / "expert-teacher-0000.safetensors").exists()
    monkeypatch.setattr(private_experts, "_train", lambda *rest, **named: pytest.fail("trained again"))
    again = private(ledger=tmp_path / "account")
    assert torch.equal(labelled(made, again, TEACHER).labels, taught.labels)
    assert again.history == first.history
    for changed in ({"teacher": None}, {"teacher": PrivateTeacher(TEACHER, share=0.1)}, {"teacher": PrivateTeacher(TEACHER, clip=9.0)}):
        with pytest.raises(InputError, match="its releases were made under other settings"):
            private(ledger=tmp_path / "account", **changed)


def test_a_statement_of_more_teacher_steps_than_releases_is_no_guarantee() -> None:
    stated = dict(labelled(dm(statistics := private(insecure_seed=None)), statistics, TEACHER).provenance.dp or {})
    assert guarantee(stated).startswith("The maker states")
    assert guarantee({**stated, "teacher": 10}).startswith("No privacy guarantee: the set states 9 releases, 10 of them")
