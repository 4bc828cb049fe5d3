"""Membership inference attacks: each arm learns from the images that a coin put in, and every image of the pool is attacked.

Runs come in pairs with opposite coins over one pool, so that every image is in half of the runs and the other pairs are LiRA's shadows.
What a run's networks say about the pool is kept in attack/ARM-RUN.npz, which `python -m apps.privacy.audit` reads, too.
"""

import dataclasses
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from apps.privacy.attacks import ATTACKS, Runs, alignment_scores, losses_and_margins, nearest_scores, threshold_scores
from apps.privacy.metrics import Interval, auc, by_run, membership, worst_decile
from distill.comparison import formed
from distill.condensed import CondensedSet
from distill.coresets import select
from distill.data import ImageData
from distill.evaluation import accuracy
from distill.networks import create
from distill.randomness import derived_seed, generator
from distill.records import write_whole
from distill.run import condense
from distill.train import protocol, train_network
from scenarios.engine.record import Results
from scenarios.engine.study import Run
from scenarios.privacy.schema import ATTACKED, AttackTable, PrivacyStudy
from scenarios.privacy.sets import condensed_by, form_of, private_set

REAL = ("random", "random-decoded", "whole", "subset")  # arms of real images: the naive baselines


@dataclass(frozen=True)
class Arm:
    """One way to learn from the images that are in: ``kind`` is one of `REAL`, "method", "private" or a method's name."""

    label: str
    kind: str
    ipc: int

    @property
    def stem(self) -> str:
        """The arm's part of file names."""
        return self.label.replace(" ", "-").replace(":", ".")


def arms_of(study: PrivacyStudy, table: AttackTable, data: ImageData) -> list[Arm]:
    """With ``ratios``, each arm that has an ipc comes once for each: ratio times the images of a class that are expected to be in.

    Where the study's method decodes its images, random real images come in the same form, too ("random-decoded").
    """
    per_class = (table.pool or len(data.train)) / 2 / len(data.classes)
    sizes = [(f" r{ratio:g}", max(1, round(ratio * per_class))) for ratio in table.ratios] or [("", study.ipc)]
    arms = []
    more = {"random": ["random", "random-decoded"]} if form_of(study) is not None else {}
    for kind in (one for named in table.arms for one in more.get(named, [named])):
        if kind == "whole":
            arms.append(Arm("whole", "whole", 0))
        else:
            arms += [Arm(f"{kind}{suffix}", kind, ipc) for suffix, ipc in sizes]
    return arms + [Arm(f"random {ipc} a class", "subset", ipc) for ipc in table.subsets]


def fill_attack(study: PrivacyStudy, table: AttackTable, run: Run) -> None:
    """Train each arm's networks in every run, attack all points of the pool, and put the figures into the results.

    What a run's networks say is a file each, so that a stopped study continues with the next one.
    """
    options, data, folder = run.options, run.data, run.folder
    draws = np.random.default_rng(derived_seed(options.seed, "pool"))
    pool = np.sort(draws.permutation(len(data.train))[: table.pool])
    coins: list[np.ndarray] = []
    for number in range(table.runs):
        pair = np.random.default_rng(derived_seed(options.seed, "coins", number // 2)).random(len(pool)) < 0.5
        coins.append(~pair if number % 2 else pair)
    labels = data.train.labels[torch.from_numpy(pool).to(data.device)].cpu().numpy()
    arms, rows = arms_of(study, table, data), {}
    for arm in arms:
        runs = []
        for number, inside in enumerate(coins):
            file = folder / "attack" / f"{arm.stem}-{number}.npz"
            if not file.exists():
                seed = derived_seed(options.seed, "attack", number) % 1_000_000
                save_arrays(file, _attacked(study, table, run, pool, inside, arm, seed))
            with np.load(file) as saved:
                runs.append({name: saved[name] for name in saved.files})
        rows[arm.label] = _figures(arm, runs, coins, labels, table.attacks)
        row = rows[arm.label]
        text = f"accuracy {cell(row['accuracy'], 1)} %, AUC {cell(row['auc'], 3)}, advantage {cell(row['advantage_percent'], 2)} %"
        text += "".join(f", {name} AUC {cell(row[name]['auc'], 3)}" for name in table.attacks if name in row and name not in ATTACKED)
        run.say(f"attack on {arm.label}: {text}")
    run.results["attack"] = rows
    run.results["same_accuracy"] = _same_accuracy(arms, rows)
    for row in rows.values():
        del row["by_run"]


def _attacked(
    study: PrivacyStudy, table: AttackTable, run: Run, pool: np.ndarray, inside: np.ndarray, arm: Arm, seed: int
) -> dict[str, np.ndarray]:
    """What one arm's networks say about all points of the pool, and where its set is nearest to them."""
    options, data = run.options, run.data
    chosen = torch.from_numpy(pool[inside]).to(data.device)
    members = dataclasses.replace(data, train=data.train.at(chosen))
    source: ImageData | CondensedSet = members
    if arm.kind in ("random", "subset"):
        source = select(members, "random", arm.ipc, generator(seed, "random arm", arm.ipc))
    elif arm.kind == "random-decoded":
        form = form_of(study)
        assert form is not None
        source = formed(members, "random", arm.ipc, form, generator(seed, "random arm", arm.ipc))
    elif arm.kind == "method":
        source = condensed_by(dataclasses.replace(study, ipc=arm.ipc), members, seed, "noise", options, None)
    elif arm.kind == "private":
        assert study.privacy is not None
        # Half of the pool is in, which is public; divided by the number of all images, features would be half as long.
        table_of_half = dataclasses.replace(study.privacy, population=len(pool) // 2)
        part = dataclasses.replace(study, ipc=arm.ipc, privacy=table_of_half)
        source, _ = private_set(part, members, study.privacy.epsilon[0], seed, options, None)
    elif arm.kind != "whole":
        settings = {"initial": "noise", **table.methods.get(arm.kind, {})}
        source = condense(members, arm.kind, ipc=arm.ipc, seed=seed, progress=False, **settings)
    recipe = study.evaluation.recipe or protocol(study.evaluation.protocol, data.spec, study.evaluation.networks[0])
    if arm.kind == "whole":
        recipe = table.whole_recipe or recipe
    networks = [train_network(source, study.evaluation.networks[0], recipe, seed * 100 + k, data.device) for k in range(table.networks)]
    aligned = [
        create(study.evaluation.networks[0], data.spec, generator(seed, "alignment", k), data.device)
        for k in range(table.networks if "alignment" in table.attacks else 0)
    ]
    losses, margins, near, alignment = [], [], [], []
    for part in torch.from_numpy(pool).split(4096):
        part = part.to(data.device)
        images = data.normalised("train", part)
        loss, margin = losses_and_margins(networks, images, data.train.labels[part])
        losses.append(loss)
        margins.append(margin)
        if isinstance(source, CondensedSet):
            shown = source.decoded()
            near.append(nearest_scores(images, shown.images))
            if "alignment" in table.attacks:
                points, whole = (images, data.train.labels[part]), (shown.images, shown.labels)
                alignment.append(alignment_scores(aligned, points, whole))
    scores = threshold_scores(np.concatenate(losses))
    accurate = float(np.mean([accuracy(network, data) for network in networks]))
    arrays = {"in_scores": scores[inside], "out_scores": scores[~inside], "margins": np.concatenate(margins), "scores": scores}
    return {
        **arrays,
        "accuracy": np.array(accurate),
        **{name: np.concatenate(parts) for name, parts in (("nearest", near), ("alignment", alignment)) if parts},
    }


def _figures(arm: Arm, runs: list[dict[str, np.ndarray]], coins: list[np.ndarray], labels: np.ndarray, attacks: tuple[str, ...]) -> Results:
    """One arm's row: the loss attack with what it finds by class and in the worst tenth, and the other ``attacks``."""
    loss = [saved["scores"] for saved in runs]
    row: Results = {"images_a_class": arm.ipc or None, "accuracy": _by_run([float(saved["accuracy"]) for saved in runs])}
    row |= _attack(loss, coins)
    row["worst_decile"] = _by_run([worst_decile(s[c], s[~c]) for s, c in zip(loss, coins, strict=True)])
    row["auc_by_class"] = [
        float(np.mean([auc(s[c & (labels == label)], s[~c & (labels == label)]) for s, c in zip(loss, coins, strict=True)]))
        for label in np.unique(labels)
    ]
    saved = {
        name: np.stack([saved_run[name] for saved_run in runs])
        for name in ("margins", "nearest", "alignment")
        if all(name in saved_run for saved_run in runs)
    }
    known = Runs(-np.stack(loss), saved["margins"], np.stack(coins), saved.get("nearest"), saved.get("alignment"))
    for name in attacks:
        scores = None if name == "loss" else ATTACKS[name](known)
        if scores is not None:
            row[name] = {key: value for key, value in _attack(scores, coins).items() if key != "by_run"}
    return {**row, "runs": len(runs)}


def _attack(scores: list[np.ndarray], coins: list[np.ndarray]) -> Results:
    figures = [membership(s[c], s[~c], seed=run) for run, (s, c) in enumerate(zip(scores, coins, strict=True))]
    advantages = [100 * m.advantage.value for m in figures]
    rates = {name: [m.rates[floor] for m in figures] for name, floor in (("tpr_at_1_percent", 0.01), ("tpr_at_01_percent", 0.001))}
    values = {name: None if any(r is None for r in part) else [r.value for r in part if r is not None] for name, part in rates.items()}
    return {
        "advantage_percent": _by_run(advantages),
        "auc": _by_run([m.auc for m in figures]),
        **{name: None if part is None else _by_run(part) for name, part in values.items()},
        "by_run": {"advantage_percent": advantages, "tpr_at_1_percent": values["tpr_at_1_percent"]},
    }


def _same_accuracy(arms: list[Arm], arm_rows: Results) -> Results:
    """Beside each made set, the arm of real images whose networks are as accurate: what both give away, run by run on the same coins."""
    rivals = [arm.label for arm in arms if arm.kind in REAL]
    rows: Results = {}
    for arm in arms:
        if arm.kind not in REAL and rivals:
            ours = arm_rows[arm.label]
            rival = min(rivals, key=lambda label: abs(arm_rows[label]["accuracy"]["value"] - ours["accuracy"]["value"]))
            row: Results = {"rival": rival, "accuracy_difference": ours["accuracy"]["value"] - arm_rows[rival]["accuracy"]["value"]}
            for figure in ("advantage_percent", "tpr_at_1_percent"):
                pair = ours["by_run"][figure], arm_rows[rival]["by_run"][figure]
                row[f"{figure}_difference"] = None if None in pair else _by_run(list(np.subtract(*pair)))
            rows[arm.label] = row
    return rows


def _by_run(values: list[float]) -> dict[str, float]:
    interval: Interval = by_run(values)
    return dataclasses.asdict(interval)


def cell(interval: dict[str, float] | None, digits: int) -> str:
    """An interval of a record for a table."""
    if interval is None:
        return "n/a"
    ends = interval["low"], interval["high"]
    known = all(end is not None and math.isfinite(end) for end in ends)  # one run has none
    return f"{interval['value']:.{digits}f}" + (f" ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})" if known else "")


def save_arrays(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an npz file in one piece."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's types take any of the names for allow_pickle
    write_whole(file, buffer.getvalue())
