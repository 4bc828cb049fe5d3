"""A privacy study and its tables, each with its own limits."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from apps.privacy.inversion import Inversion
from distill.configure import config_class
from distill.errors import InputError
from distill.recipe import Recipe
from scenarios.engine.record import Config
from scenarios.engine.schema import DataTable, EvaluationTable, config_hash

EXPERTS_SHARE = 0.3  # that of `apps.privacy.budget`
ARMS = ("method", "private", "random", "whole")
ATTACKED = ("lira", "nearest")  # beside the loss attack, where a study names no others
Poison = Literal["naive", "optimised", "invisible", "doorping", "doorping-clamped"]
NAIVE_OPTIMISED: tuple[Poison, ...] = ("naive", "optimised")
MEASURES = ("pixels", "structure", "features")  # those of `apps.privacy.visual`, which takes seconds to load


@config_class
class PrivacyTable:
    """``[privacy]``: the budget, and what it is spent on.

    ``start`` "kmeans" spends ``start_share`` of the budget on a private start in ``start_releases`` releases. ``networks`` is how many
    networks there are, random ones or draws from the method's ``pool``: with 0 every step has its own network and release.
    ``experts_share`` of the budget trains the networks of a pool of trained ones, with gradients clipped at ``experts_clip``;
    ``public_experts``, a public data set's name, is what they are trained on instead, at no cost. A teacher in ``[evaluation.recipe]``
    labels the sets: it is trained with ``teacher_share`` of the budget, or on the ``public_experts``. ``centred`` releases features as
    differences from the private start's, which a smaller ``clip`` can hold. ``twin`` makes a second set without noise or clipping from the
    same start with the same networks, so that one sees what the noise costs.
    """

    DIFFERENT = ("epsilon",)

    epsilon: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (1.0,)
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    sample_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    clip: Annotated[float, Field(gt=0)] | None = None
    population: Annotated[int, Field(ge=1)] | None = None
    start: Literal["noise", "kmeans"] = "noise"
    start_releases: Annotated[int, Field(ge=2)] = 7
    start_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    networks: Annotated[int, Field(ge=0)] = 0
    experts_share: Annotated[float, Field(gt=0, lt=1)] = EXPERTS_SHARE
    experts_clip: Annotated[float, Field(gt=0)] = 1.0
    public_experts: str = ""
    teacher_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    centred: bool = False
    twin: bool = True


@config_class
class AuditTable:
    """``[audit]``: see `apps.privacy.canaries.audit`."""

    epsilon: Annotated[float, Field(gt=0, le=10_000)] = 4.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    runs: Annotated[int, Field(ge=200, le=2304)] = 2000
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.999


@config_class
class AttackTable:
    """``[attack]``: in each of ``runs``, a fair coin puts every image of ``pool`` (None: all) in or out; each arm learns from those in.

    ``networks`` networks are trained on each arm's set, their losses averaged; all points of the pool are attacked. An arm is "method" (the
    study's), "private", "random" (as many real images), "whole", or a method's name, whose settings are in ``[attack.methods.NAME]``.
    ``ratios`` are sizes of sets as parts of a class, in place of the study's ipc; ``subsets`` lists sizes (images a class)
    of random real subsets: the one whose accuracy is closest to a condensed set's is compared with it.
    ``[attack.whole_recipe]`` trains the arm "whole", which needs more steps than a handful of images.
    ``attacks`` are names in `apps.privacy.attacks.ATTACKS`, made beside "loss"; "lira", "lira-offline", "calibrated" and "rmia" need an
    even number of ``runs`` from 6.
    """

    DIFFERENT = ("arms", "attacks", "ratios", "subsets")

    runs: Annotated[int, Field(ge=2)] = 4
    arms: tuple[str, ...] = ("method", "random", "whole")
    networks: Annotated[int, Field(ge=1)] = 1
    pool: Annotated[int, Field(ge=100)] | None = None
    methods: dict[str, Config] = dataclasses.field(default_factory=dict)
    ratios: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    subsets: tuple[Annotated[int, Field(ge=1)], ...] = ()
    whole_recipe: Recipe | None = None
    attacks: tuple[str, ...] = ATTACKED


@config_class
class VisualTable:
    """``[visual]``: see `apps.privacy.visual.visual_privacy`."""

    DIFFERENT = ("measures",)

    measures: Annotated[tuple[str, ...], Field(min_length=1)] = MEASURES
    holdout: Literal["test", "validation"] = "test"
    network: str = "ConvNet"
    limit: Annotated[int, Field(ge=1)] | None = None


@config_class
class PoisoningTable:
    """``[poisoning]``: see `apps.privacy.poisoning.PoisonedStatistics`; ``steps`` of Adam on the optimised trigger a matching step.

    Each of ``triggers`` has a set and is tried on all of them. "doorping" is `apps.privacy.doorping.Doorping`, with ``doorping_steps`` of
    Adam at most a matching step, whose pixels may leave [0, 1]; those of "doorping-clamped" may not. "invisible" changes every
    pixel by at most 8 of 255 levels.
    """

    DIFFERENT = ("triggers",)

    target: Annotated[int, Field(ge=0)] = 0
    portion: Annotated[float, Field(gt=0, lt=1)] = 0.01
    size: Annotated[int, Field(ge=1)] = 2
    steps: Annotated[int, Field(ge=1)] = 5
    triggers: Annotated[tuple[Poison, ...], Field(min_length=1)] = NAIVE_OPTIMISED
    doorping_steps: Annotated[int, Field(ge=1)] = 1000


@config_class
class InversionTable:
    """``[inversion]``: what a client of ``client_images`` random training images reveals of ``victims`` of them.

    A gradient of one image at fresh weights of each of ``networks`` ("dlg" is `apps.privacy.inversion.dlg_network`) is inverted as
    ``[inversion.search]`` says; the study's method makes the client's upload, and ``[inversion.privacy]``, with the keys of [privacy], a
    private one for each epsilon.
    """

    DIFFERENT = ("networks",)

    victims: Annotated[int, Field(ge=2)] = 100
    client_images: Annotated[int, Field(ge=2)] = 6000
    networks: Annotated[tuple[str, ...], Field(min_length=1)] = ("dlg",)
    search: Inversion = Inversion()
    privacy: PrivacyTable | None = None

    def __post_init__(self) -> None:
        if self.victims > self.client_images:
            raise InputError(f"inversion.victims is {self.victims}; allowed: at most client_images, {self.client_images}.")


@config_class
class ArmTable:
    """``[arms.NAME]``: a further private set of a study with [privacy], under the same epsilon from a separate account.

    ``[arms.NAME.method]`` is its method, with the study's images a class; ``[arms.NAME.privacy]`` are keys that replace those of [privacy].
    """

    method: Config
    privacy: Config = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class PrivacyStudy:
    """``kind = "privacy"``: each part is there when its table is."""

    name: str
    title: str
    data: DataTable
    method: str
    ipc: int
    settings: Config  # of the method, as they were given
    privacy: PrivacyTable | None
    evaluation: EvaluationTable
    audit: AuditTable | None
    attack: AttackTable | None
    visual: VisualTable | None
    poisoning: PoisoningTable | None
    inversion: InversionTable | None
    merged: Config
    arms: dict[str, "PrivacyStudy"] = dataclasses.field(default_factory=dict)  # by name, each with the rest of this study
    arm: str = ""  # the name of this arm; empty: the study itself
    kind: str = "privacy"

    @property
    def made(self) -> tuple["PrivacyStudy", ...]:
        """The study and its arms."""
        return (self, *self.arms.values())

    @property
    def label(self) -> str:
        """What rows of a table call it: the method, or the arm's name."""
        return self.arm or self.method

    @property
    def hash(self) -> str:
        """Eight letters that change with any setting."""
        return config_hash(self.merged)
