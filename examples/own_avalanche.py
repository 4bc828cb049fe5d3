"""A strategy of your own in Avalanche: after each experience it condenses it and learns once more from everything condensed so far."""

import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch.utils.data import DataLoader, TensorDataset

import distill
from apps.continual import CondensedBuffer


class Review(Naive):
    def _after_training_exp(self, **options):
        super()._after_training_exp(**options)
        memory.post_adapt(self, self.experience)
        for images, labels, *_ in DataLoader(memory.buffer, batch_size=8, shuffle=True):
            self.optimizer.zero_grad()
            torch.nn.functional.cross_entropy(self.model(images), labels).backward()
            self.optimizer.step()


data, parts = distill.load("digits"), {}
for part in ("train", "test"):
    split = getattr(data, part)
    parts[part] = TensorDataset(data.normalised(part, torch.arange(len(split))), split.labels)
    parts[part].targets = split.labels.tolist()
memory = CondensedBuffer(50, method="dm", per_class=5, network="ConvNetD1W32", iterations=30)
model = distill.create("ConvNetD1W32", data.spec, distill.generator(0, "weights"))
learner = Review(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.02), train_mb_size=32, evaluator=EvaluationPlugin())
for experience in nc_benchmark(parts["train"], parts["test"], 5, task_labels=False, seed=0).train_stream:
    learner.train(experience)
print(len(memory.buffer), "items,", memory.nbytes, "bytes, test accuracy", round(distill.accuracy(model, data), 1))
