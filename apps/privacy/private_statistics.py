"""`PrivateStatistics`: what a matching method may see of private data, as noised releases under one budget.

One release = one Poisson mask over the whole private set, one clipped row per example, the classes' sums stacked (one example moves the
stack by at most the clipping norm), Gaussian noise once, one step of the accountant. What was released is kept, on disk where there is a
ledger, and the same question gets the same answer for ever; clean sums are never kept.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from apps.privacy.accounting import Steps
from apps.privacy.budget import EXPERTS_SHARE, Budget, check_left, planned
from apps.privacy.contributions import check_separable, feature_rows, gradient_rows, middles, plain, through
from apps.privacy.entropy import Entropy, SeededEntropy, SystemEntropy
from apps.privacy.ledger import Ledger
from apps.privacy.private_teacher import PrivateTeacher, check_account, train_teacher
from apps.privacy.public import check_class_list, check_normalisation, check_start, probe_images, public_size
from apps.privacy.public_experts import check_public, train_public_experts
from apps.privacy.release import Plan, Rows, Shape, check_clip, check_independent, clip_of, noised_sums, poisson_mask, question, refused
from apps.privacy.statement import statement
from distill.batches import Augment, Embed
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError
from distill.experts import ExpertConfig, Trajectories
from distill.networks import Factory
from distill.records import Json
from distill.spec import DataSpec
from distill.teachers import Teacher


class PrivateStatistics:
    """Noised statistics of ``data``, at most (``epsilon``, ``delta``) in all.

    Public settings, none of them read from the private data: ``releases`` (None: one for each step of the first run, or what the experts
    of MTT need), ``sample_rate`` of each release (None: the method's batch times the classes over ``population``), ``population`` the size
    that is publicly known (known for the named data sets), ``classes`` that exist (None: all), ``clip`` the norm of one example's row
    (None: the length that the method knows, else features as long as those of public probe images, gradients 1). ``start_releases`` of all
    the data, with ``start_share`` of the budget, are for a private start (`apps.privacy.private_start`). ``experts_share`` of the budget
    trains the networks of a method's `pool`, if it has trained ones, with gradients clipped at ``experts_clip``, and ``teacher`` names the
    network that labels the sets (`distill.teachers.labelled`) with its share; ``public_experts``, public data, are what both are trained on
    instead, at no cost. ``centred`` releases features as differences from that start, or from what `centre_on` gets: half the clip and half
    the noise are enough for them. ``ledger`` is a folder for releases that survives a kill; `condense` with a checkpoint sets it.
    ``public_start`` names the public origin of an initial set. ``insecure_seed`` makes all repeatable, for tests, without a guarantee.

    Raises `InputError` for what would break the guarantee: normalisation or whitening fitted on the data, real initial images,
    BatchNorm, a budget that is spent.
    """

    def __init__(
        self,
        data: ImageData,
        epsilon: float,
        delta: float = 1e-5,
        *,
        releases: int | None = None,
        sample_rate: float | None = None,
        start_releases: int = 0,
        start_share: float = 0.3,
        experts_share: float = EXPERTS_SHARE,
        experts_clip: float = 1.0,
        public_experts: ImageData | None = None,
        teacher: PrivateTeacher | None = None,
        clip: float | None = None,
        centred: bool = False,
        population: int | None = None,
        classes: Sequence[int] | None = None,
        ledger: str | Path | None = None,
        public_start: str | None = None,
        insecure_seed: int | None = None,
    ) -> None:
        check_normalisation(data)
        self._data = data if population is None else data.with_origins(population="given")
        population = public_size(data.spec, population)
        asked, start = (releases, sample_rate), (start_releases, start_share)
        paid = teacher.asked(population) if teacher and public_experts is None else None
        self._budget = Budget((epsilon, delta), population, asked=asked, start=start, experts_share=experts_share, teacher=paid)
        check_clip(clip, experts_clip, centred=centred)
        if public_experts is not None:
            check_public(public_experts, data)
        self._public, self._experts_clip, self._teacher = public_experts, experts_clip, teacher
        self._entropy: Entropy = SystemEntropy() if insecure_seed is None else SeededEntropy(insecure_seed)
        self._public_start, self.centred = public_start, centred
        self.epsilon, self.delta, self.population, self.clip = float(epsilon), delta, population, clip
        self._classes = check_class_list(classes, data.spec)
        self._settings: dict[str, object] = {"asked": list(asked), "centred": centred, "public_start": public_start}
        # Later settings, only where they are used: folders from before them stay readable.
        self._settings |= {"experts": [experts_share, experts_clip]} if (experts_share, experts_clip) != (EXPERTS_SHARE, 1.0) else {}
        self._settings |= {} if public_experts is None else {"public_experts": public_experts.fingerprint}
        self._settings |= {} if teacher is None else {"teacher": teacher.facts}
        self._suggested: int | None = None
        self.start_plan = self._budget.start
        self._plan: Plan | None = None
        self._start = "not stated"
        self._separable: set[str] = set()
        self._centre: CondensedSet | None = None
        self._ledger = Ledger(None)
        if ledger is not None:
            self._open(Path(ledger))

    @property
    def spec(self) -> DataSpec:
        return self._data.spec

    @property
    def classes(self) -> tuple[int, ...]:
        return self._classes

    @property
    def device(self) -> torch.device:
        return self._data.device

    @property
    def fingerprint(self) -> None:
        """None: a hash of the private images would let anybody test a guess of them."""
        return None

    @property
    def whitening(self) -> None:
        return None

    @property
    def history(self) -> list[Steps]:
        return self._ledger.history

    @property
    def privacy(self) -> dict[str, object]:
        """The statement for the provenance: plain numbers and text, no seed, nothing computed from private data without noise."""
        facts = {"epsilon_budget": self.epsilon, "clip": self.clip, "population": self.population, "initial": self._start}
        facts |= {"public_experts": self._public.spec.name} if self._public else {}
        experts, teacher = self._ledger.experts, self._budget.teacher
        made = statement(self.history, self.delta, secure=self._entropy.secure, experts=experts, teacher=teacher)
        return {**made, **facts, "account": self._ledger.account}

    @property
    def account(self) -> dict[str, Json]:
        """What a checkpoint remembers, so that an account that was lost or put back is noticed."""
        return {"id": self._ledger.account, "releases": sum(step.times for step in self.history)}

    def begin(
        self, start: CondensedSet, steps: int, done: int, checkpoint: Path | None, account: Mapping[str, object] | None = None
    ) -> None:
        """Check that the first images are public, plan a release for each step, and keep releases beside the checkpoint."""
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise InputError("private statistics cannot be shared out between processes: each would make its own releases.")
        if checkpoint is not None and self._ledger.folder is None:
            self._open(checkpoint.with_name(f"{checkpoint.stem}-releases"))
        self._start = check_start(start, self._data, self._public_start, self._ledger.account, self.history)
        self._suggested = self._suggested or steps
        self._ledger.check_has(account, checkpoint, done)

    def _open(self, folder: Path) -> None:
        if self.history:
            raise InputError(f"releases were made before the ledger {folder} was given; give ledger= when making PrivateStatistics.")
        facts = {"epsilon": self.epsilon, "delta": self.delta, "population": self.population, "clip": self.clip, **self._settings}
        facts |= {"start": list(self.start_plan) if self.start_plan else None, "classes": list(self._classes)}
        facts |= {"mean": list(self.spec.mean), "std": list(self.spec.std), "secure": self._entropy.secure}
        self._ledger = Ledger(folder, facts, self._data.fingerprint)

    def _planned(self, batch_size: int, releases: int | None = None, rate: float | None = None, experts: Plan | None = None) -> Plan:
        """The plan of this run or of the run that is continued; made at the first question, with that of its ``experts``."""
        if self._plan is None and self._ledger.plan is not None:
            self._plan = self._ledger.plan
        if self._plan is None:
            rate = rate or self._budget.rate(batch_size * len(self._classes))
            plan = self._budget.steps(rate, releases or self._suggested, *([experts] if experts else []))
            self._plan = self._ledger.set_plan(plan, experts)
        return self._plan

    def _planned_experts(self, steps: int, batch_size: int, batch_real: int) -> Plan:
        """The plan of ``steps`` of DP-SGD next to the releases of a method, made before either is begun."""
        with self._ledger.locked():
            if self._plan is None and self._ledger.plan is None:
                self._planned(batch_real, experts=self._budget.experts(self._budget.rate(batch_size), steps))
            return planned(self._ledger.experts)

    def centre_on(self, centre: CondensedSet) -> None:
        """Release features as differences from the mean feature of ``centre``'s images of the same class (statistics with ``centred``).

        Where a class is smaller than the public size says, its difference is then too short and not its whole mean. ``centre`` is public
        or made of earlier releases of this account (`private_kmeans` gives its own); `InputError` for another, or one without some class.
        """
        if not self.centred:
            raise InputError("centre_on is for statistics made with centred=True and a clip; these release features without centring.")
        check_start(centre, self._data, self._public_start, self._ledger.account, self.history)
        missing = sorted(set(self._classes) - set(centre.labels.tolist()))
        if missing:
            raise InputError(f"the centre has no image of the classes {missing[:10]}; give a set with images of each.")
        self._centre = centre.to(self.device)

    def class_means(
        self,
        embed: Embed,
        batch_size: int,
        augment: Augment | None,
        generator: torch.Generator,
        *,
        joint: bool = False,
        norm: float | None = None,
    ) -> Tensor:
        """(K, D): noised sums of features, clipped at `clip_of`, over the publicly expected number of examples of a class."""
        if joint:
            raise refused("features that need all classes in one batch (BatchNorm)", "use a network with instance or group norm")
        plan = self._planned(batch_size)
        probe = probe_images(self.spec).to(self.device)
        views = [through(embed, augment, position) for position in range(len(self._classes))]
        seen = torch.cat([row for view in views for row in feature_rows(view, probe)])
        check_independent(views[0], probe)
        norm = clip_of(self.clip, norm, seen, centred=self.centred)
        middle = torch.zeros(len(self._classes), seen.shape[1], device=self.device)
        if self.centred:
            if self._centre is None:
                raise InputError("centred features need something to be centred on: a private start, or centre_on(a public set).")
            middle = middles(views, [self._centre.images[self._centre.labels == label] for label in self._classes])
        key = question("features", [seen, torch.tensor(norm), *([middle] if self.centred else [])])

        def rows(images: Tensor, position: int) -> Iterator[tuple[Tensor, None]]:
            return ((part - middle[position], None) for part in feature_rows(views[position], images))

        return self.release(key, plan, norm, rows, seen.shape[1])[:, 0] / self._expected(plan) + middle

    def class_gradients(
        self, network: nn.Module, batch_size: int, augment: Augment | None, generator: torch.Generator, *, together: bool = False
    ) -> list[list[Tensor]]:
        """Per class (or ``together``), noised sums of clipped per-example gradients over the publicly expected number of examples."""
        self._check_uncentred("gradients")
        plan, inner = self._planned(batch_size), plain(network)
        check_separable(inner, self._separable)
        parameters = [p for p in inner.parameters() if p.requires_grad]
        probe, norm = probe_images(self.spec).to(self.device), self.clip or 1.0
        seen = [augment(probe, position) if augment else probe for position in range(len(self._classes))]
        key = question("gradient of all" if together else "gradients", [*(p.detach() for p in parameters), *seen, torch.tensor(norm)])

        def rows(images: Tensor, position: int) -> Iterator[tuple[Tensor, None]]:
            images = augment(images, position) if augment and len(images) else images
            labels = torch.full((len(images),), self._classes[position], device=images.device)
            return ((part, None) for part in gradient_rows(inner, images, labels))

        sizes = [p.numel() for p in parameters]
        released = self.release(key, plan, norm, rows, sum(sizes), together=together)[:, 0]
        stacked = released / (self._expected(plan) * (len(self._classes) if together else 1))
        return [[part.view_as(p) for part, p in zip(row.split(sizes), parameters, strict=True)] for row in stacked]

    def _check_uncentred(self, what: str) -> None:
        if self.centred:
            raise InputError(f"{what} cannot be centred; leave centred=True out, or use a method that matches features (dm, datadam).")

    def _expected(self, plan: Plan) -> float:
        return plan.sample_rate * self.population / len(self._classes)

    def release(self, key: str, plan: Plan, norm: float, rows: Rows, length: int, slots: int = 1, *, together: bool = False) -> Tensor:
        """(K, slots, D) float32 (see `noised_sums`): what was released for this question, or a new release. The only door out."""
        with self._ledger.locked():
            if (known := self._ledger.find(key)) is not None:
                return known.to(self.device)
            self.check_budget(plan)
            mask, noise = self.sample(plan.sample_rate), plan.noise_multiplier
            shape: Shape = {"length": length, "slots": slots, "together": together}
            released = noised_sums(self._data, self._classes, mask, noise, norm, rows, entropy=self._entropy, **shape)
            self._ledger.record(key, released, noise, plan.sample_rate, norm=norm)
            return released

    def sample(self, rate: float) -> Tensor:
        """(N,) bool: a Poisson mask over the whole private set."""
        return poisson_mask(self._data.train.labels, rate, self._entropy)

    def check_budget(self, plan: Plan, more: int = 1) -> None:
        """`InputError` where ``more`` releases of this kind are not planned any more."""
        plans = [each for each in (self.start_plan, self._budget.teacher, self._ledger.plan, self._ledger.experts) if each]
        check_left(plan, more, plans, self.history)

    def trained(self, name: str, key: str, plan: Plan, steps: int, train: Callable[[], Tensor]) -> Tensor:
        """Weights that ``train`` makes in ``steps`` counted steps of DP-SGD, or those that were kept under this name and question."""
        with self._ledger.locked():
            if (known := self._ledger.read(name, key)) is not None:
                return known
            self.check_budget(plan, steps)
            weights = train()
            self._ledger.record(key, weights, plan.noise_multiplier, plan.sample_rate, steps, name)
            return weights

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal float64 of this shape, from where all noise of this object comes."""
        return torch.from_numpy(self._entropy.normal(shape))

    def trajectories(
        self, config: ExpertConfig, network: Factory, *, progress: bool | None = None, batch_real: int | None = None
    ) -> Trajectories:
        """Experts trained by DP-SGD, or on public data; matching them, and in networks made of them, is post-processing."""
        from apps.privacy.private_experts import train_private_experts  # here, because it needs Opacus' optimiser

        if self._public is not None:
            if batch_real is None:
                raise InputError("public experts say nothing of the private data, and mtt matches nothing else; leave public_experts out.")
            return train_public_experts(self._public, config, network, progress=progress)
        size = config.batch_size
        steps, clip = config.epochs * -(-self.population // size), self._experts_clip if batch_real else self.clip
        if batch_real is not None:
            plan = self._planned_experts(config.experts * steps, size, batch_real)
        else:
            self._check_uncentred("experts")
            plan = self._planned(size, config.experts * steps, self._budget.rate(size))
        return train_private_experts(self, self._data, config, network, plan, steps, clip)

    def teacher_trajectories(self, teacher: Teacher, stated: Mapping[str, object] | None) -> Trajectories:
        """Weights of the teacher by epoch, for labels of a set with the statement ``stated``; see `apps.privacy.private_teacher`."""
        check_account(stated, self._ledger.account, self.history)
        return train_teacher(self, self._data, self._public, self._teacher, teacher, self._budget.teacher)

    def warm_batchnorm(self, network: nn.Module, per_class: int, generator: torch.Generator) -> None:
        raise refused("BatchNorm statistics of real images", "use a network with instance or group norm, for example ConvNet")

    def choose(self, embed: Embed, batch_size: int, generator: torch.Generator, chosen: list[Tensor] | None = None) -> list[Tensor]:
        raise refused("batches chosen by looking at all images", 'use real_batches="random"')

    def initial_images(self, kind: str, ipc: int | Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        raise refused(f"initial images of kind {kind!r}, made of private images", 'use initial="noise" or a public set')
