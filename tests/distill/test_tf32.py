"""TF32 is used where a setting asks for it and nowhere else, in forward and backward passes, and torch's settings are restored."""

from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from benchmarks.counting import Counting, made_data, moved
from distill import condense, run
from distill.coresets import select
from distill.evaluation import accuracy
from distill.randomness import generator
from distill.tf32 import products
from distill.train import Recipe, train_network
from tests.conftest import toy

META, CPU = torch.device("meta"), torch.device("cpu")
Settings = tuple[str, bool]


def settings() -> Settings:
    """Of matrix products and of convolutions."""
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = settings()
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize("matrices", ["highest", "high", "medium"])
@pytest.mark.parametrize("convolutions", [True, False])
@pytest.mark.parametrize(("precision", "inside"), [("float32", ("highest", False)), ("bf16", ("highest", False)), ("tf32", ("high", True))])
def test_the_settings_hold_inside_and_are_restored(matrices: str, convolutions: bool, precision: str, inside: Settings) -> None:
    torch.set_float32_matmul_precision(matrices)
    torch.backends.cudnn.allow_tf32 = convolutions
    with pytest.raises(KeyError), products(precision, META):  # noqa: PT012
        assert settings() == inside
        assert torch.backends.cuda.matmul.allow_tf32 == inside[1]
        with products("float32", META):
            assert settings() == ("highest", False)
        assert settings() == inside
        raise KeyError
    assert settings() == (matrices, convolutions)
    with products(precision, CPU):
        assert settings() == (matrices, convolutions), "a CPU has none"


def test_a_program_that_uses_the_newer_names_keeps_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> str:
        raise RuntimeError("you have used mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refused)
    before = torch.backends.cudnn.allow_tf32
    with products("tf32", META):
        assert torch.backends.cudnn.allow_tf32 == before


class Seen(torch.autograd.Function):
    """The identity, which notes the settings in both passes."""

    notes: ClassVar[list[tuple[str, Settings]]] = []

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        Seen.notes.append(("forward", settings()))
        return x.clone()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        Seen.notes.append(("backward", settings()))
        return gradients[0]


class Watched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 8, 3)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = Seen.apply(self.layer(images.flatten(1)))  # type: ignore[no-untyped-call]
        return outputs


@pytest.mark.parametrize(("precision", "inside"), [("float32", ("highest", False)), ("tf32", ("high", True))])
def test_a_training_and_a_test_pass_run_in_the_recipes_precision(precision: str, inside: Settings) -> None:
    data = made_data(3, 4, (3, 8, 8))
    torch.set_float32_matmul_precision("medium")
    Seen.notes.clear()
    recipe = Recipe(max_steps=2, augmentation="none", precision=precision)  # type: ignore[arg-type]
    network = train_network(moved(select(data, "random", 2, generator(0, "set"))), lambda spec: Watched(), recipe, 0)
    assert Seen.notes[1:] == [("forward", inside), ("backward", inside)] * 2, "after one pass that counts its operations"
    Seen.notes.clear()
    with Counting():  # which answers where values are read
        accuracy(network, moved(data), precision=precision)  # type: ignore[arg-type]
    assert Seen.notes[1:] == [("forward", inside)]
    assert settings()[0] == "medium"


@pytest.mark.parametrize(
    ("method", "given", "precision"), [("dm", {"precision": "tf32"}, "tf32"), ("dm", {}, "float32"), ("mtt", {}, "float32")]
)
def test_every_step_runs_in_the_methods_precision(
    method: str, given: dict[str, str], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, torch.device]] = []
    real: Callable[..., object] = products
    monkeypatch.setattr(run, "products", lambda *arguments: asked.append(arguments) or real(*arguments))
    small = {"experts": 1, "max_start_epoch": 0, "syn_steps": 1} if method == "mtt" else {"batch_real": 4}
    condense(toy(), method, iterations=3, network="ConvNetD1W8", progress=False, **small, **given)
    assert asked == [(precision, CPU)] * 3


def test_on_a_cpu_tf32_is_float32() -> None:
    sets = [
        condense(toy(), "dm", iterations=2, network="ConvNetD1W8", batch_real=4, progress=False, precision=p) for p in ("float32", "tf32")
    ]
    assert torch.equal(sets[0].images, sets[1].images)
