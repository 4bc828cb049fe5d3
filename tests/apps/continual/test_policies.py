"""Every strategy and plugin of Avalanche 0.6: served (two experiences run with the buffer) or refused by `attach` in one line."""

import contextlib
import inspect
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from apps.continual.engine import avalanche, quiet_and_seeded
from distill.errors import InputError
from tests.conftest import toy

pytest.importorskip("avalanche")
from apps.continual.buffer import CondensedBuffer, attach
from apps.continual.policies import OWN_POLICY, REFUSED, table

PAGE = Path(__file__).parents[3] / "docs" / "continual.md"
SIDE = 28  # of the images, because the generator of generative replay knows no other


class Net(torch.nn.Module):
    """Features and a head, under the names that Avalanche's plugins look for."""

    keeps = False  # the features of the last batch, which a copy of the network cannot take along

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIDE * SIDE, 8), torch.nn.ReLU())
        self.classifier = torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.backbone(x)
        if self.keeps:
            self.features = features
        return self.classifier(features)

    def get_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone(x)


class Tasks(avalanche("avalanche.models").MultiTaskModule):  # type: ignore[misc]
    """LaMAML gives its model task labels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: torch.Tensor, task_labels: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def classes() -> dict[str, type]:
    """The strategies and plugins that Avalanche exports, and those that lie beside them (LaMAML)."""
    with quiet_and_seeded(0):
        modules = [avalanche(f"avalanche.training.{name}") for name in ("supervised", "plugins", "supervised.lamaml_v2")]
        bases = avalanche("avalanche.training.templates").BaseSGDTemplate, avalanche("avalanche.core").BasePlugin
    public = {name: kind for module in modules for name, kind in vars(module).items() if inspect.isclass(kind) and name[0] != "_"}
    return {
        n: k
        for n, k in public.items()
        if issubclass(k, bases) and k.__module__.startswith(("avalanche.training.s", "avalanche.training.p"))
    }


ALL = classes()


def experiences() -> Any:
    data = toy(classes=4, side=SIDE)
    plain = TensorDataset(data.normalised("train", torch.arange(len(data.train))), data.train.labels)
    plain.targets = data.train.labels.tolist()  # type: ignore[attr-defined]
    with quiet_and_seeded(0):
        return avalanche("avalanche.benchmarks").nc_benchmark(plain, plain, n_experiences=2, task_labels=False, seed=0).train_stream


def strategy(name: str, plugins: list[Any]) -> Any:
    """A strategy (or Naive with the plugin of this name) that has what its constructor asks for."""
    models, tools = avalanche("avalanche.models"), avalanche("avalanche.training.plugins")
    kind = ALL["GenerativeReplay" if name == "GenerativeReplayPlugin" else name]  # that strategy is Naive with the plugin
    if issubclass(kind, avalanche("avalanche.core").BasePlugin):
        kind, plugins = ALL["Naive"], [*plugins, *plugin(name)]
    model: Any = Tasks() if name == "LaMAML" else Net()
    model.keeps = name == "FeatureDistillationPlugin"
    head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIDE * SIDE, 8))
    if name == "SCR":
        model = models.SCRModel(head, projection=torch.nn.Linear(8, 4))
    elif name in ("CurrentDataNCMUpdate", "MemoryNCMUpdate", "NCMOracle"):
        model = models.TrainEvalModel(head, torch.nn.Linear(8, 4), models.NCMClassifier())
    elif name in ("CurrentDataFeCAMUpdate", "MemoryFeCAMUpdate", "FeCAMOracle"):
        model = models.TrainEvalModel(head, torch.nn.Linear(8, 4), models.FeCAMClassifier())
    elif name == "PNNStrategy":
        model = models.PNN(num_layers=1, in_features=SIDE * SIDE, hidden_features_per_column=8)
    elif name.startswith("LFL"):
        model = models.SimpleMLP(num_classes=4, input_size=SIDE * SIDE, hidden_size=8)
    wanted = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.02),
        "criterion": torch.nn.CrossEntropyLoss(),
        "evaluator": tools.EvaluationPlugin(loggers=[]),
        "plugins": plugins,
        "feature_extractor": head,
        "slda_model": head,
        "classifier": torch.nn.Linear(8, 4),
        "buffer_transform": None,
        "input_size": 8 if name == "StreamingLDA" else [1, SIDE, SIDE],
        "max_buffer_size": 8,
        "buffer_mb_size": 2,
        "train_mb_size": 8,
        "eval_mb_size": 8,
        "train_epochs": 1,
        "device": "cpu",
        "mem_size": 8,
        "batch_size_mem": 2,
        "subsample": 4,
        "patterns_per_exp": 4,
        "sample_size": 4,
        "n_classes": 4,
        "num_classes": 4,
        "p_size": 4,
        "memory_size": 8,
        "alpha": 0.5,
        "ewc_lambda": 0.1,
        "si_lambda": 0.1,
        "lambda_e": 0.1,
        "temperature": 0.5,
        "memory_strength": 0.5,
        "fixed_memory": True,
        "cwr_layer_name": None,
        "post_prune_epochs": 1,
        "prune_proportion": 0.5,
    }
    return kind(**{name: value for name, value in wanted.items() if name in inspect.signature(kind.__init__).parameters})


def plugin(name: str) -> Iterator[Any]:
    wanted: dict[str, Any] = {
        "mem_size": 8,
        "batch_size_mem": 2,
        "patterns_per_experience": 4,
        "sample_size": 4,
        "ewc_lambda": 0.1,
        "si_lambda": 0.1,
        "memory_strength": 0.5,
        "lambda_e": 0.1,
        "n_classes": 4,
        "p_size": 4,
        "subsample": 4,
        "patience": 2,
        "val_stream_name": "train",
        "input_size": [1, SIDE, SIDE],
        "model": Net(),
        "cwr_layer_name": None,
        "freeze_remaining_model": False,
        "temperature": 2.0,
        "use_adversarial_replay": False,
        "reset_optimizer": False,
        "alpha": 0.5,
    }
    kind = ALL[name]
    if name == "EvaluationPlugin":
        return
    wanted["scheduler"] = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(Net().parameters(), lr=0.1), 1)
    yield kind(**{key: value for key, value in wanted.items() if key in inspect.signature(kind.__init__).parameters})


@pytest.mark.parametrize("name", sorted(set(ALL) - set(REFUSED)))
def test_it_is_served(name: str) -> None:
    """With its own policy, or with a ReplayPlugin beside it: two experiences run, and the memory holds both."""
    stream, buffer, own = experiences(), CondensedBuffer(8, "random", per_class=2), name in OWN_POLICY
    beside = [] if own else [avalanche("avalanche.training.plugins").ReplayPlugin(mem_size=8, batch_size_mem=2)]
    with quiet_and_seeded(0), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        made = attach(strategy(name, beside), buffer)
        for experience in stream:
            made.train(experience)
    assert sorted(int(y) for y in buffer.buffer.targets) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert all(len(item) == 3 + (name == "DER") for item in buffer.buffer)
    if not own:
        with quiet_and_seeded(0), pytest.raises(InputError, match="has 0 storage policies"):
            attach(strategy(name, []), CondensedBuffer(8, "random"))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_it_is_refused(name: str) -> None:
    """By `attach`, in one line, also with a ReplayPlugin beside it; no constructor is run, because some load weights."""
    made = object.__new__(ALL[name])
    made.plugins = [avalanche("avalanche.training.plugins").ReplayPlugin(mem_size=8)]
    with pytest.raises(InputError, match=f"^{name} ") as caught:
        attach(made, CondensedBuffer(8, "random"))
    assert len(str(caught.value)) < 250
    naive = object.__new__(ALL["Naive"])
    naive.plugins = [made]
    if not hasattr(ALL[name], "train"):
        with pytest.raises(InputError, match=f"^{name} "):
            attach(naive, CondensedBuffer(8, "random"))


def test_something_else_than_a_buffer() -> None:
    with pytest.raises(InputError, match="given a NoneType as the buffer"):
        attach(avalanche("avalanche.training.plugins").ReplayPlugin(mem_size=8), None)


def test_the_page_says_so() -> None:
    beside = [name for name in ALL if name not in OWN_POLICY and name not in REFUSED]
    assert table(beside) in PAGE.read_text()
