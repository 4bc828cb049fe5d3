"""Two checks of a privacy study: whether sets look like their training images, and whether planted triggers survive condensation."""

import safetensors.torch

from apps.privacy.doorping import Doorping
from apps.privacy.figures import closest_pairs
from apps.privacy.poisoning import PoisonedStatistics, attack_success
from apps.privacy.triggers import Planted, Trigger, invisible, white_square
from apps.privacy.visual import visual_privacy
from distill.comparison import compared, formed
from distill.condensed import CondensedSet
from distill.coresets import select
from distill.data import ImageData
from distill.evaluation import Accuracy, accuracy
from distill.randomness import generator
from distill.records import append_line, write_whole
from distill.train import train_network
from scenarios.engine.ledger import matching
from scenarios.engine.study import Options, Run
from scenarios.privacy.schema import PoisoningTable, PrivacyStudy, VisualTable
from scenarios.privacy.sets import condensed_by, plain_set
from scenarios.reporting.text import shown


def fill_visual(study: PrivacyStudy, table: VisualTable, run: Run, sets: dict[str, CondensedSet]) -> None:
    """The study's sets, and as many random training images: copies, which the check must see. Beside decoded sets also in their form."""
    if not sets:
        sets = {study.method: plain_set(study, run)}
    form = next((one.decode for one in sets.values() if one.decode is not None), None)
    sets = {**sets, "random": select(run.data, "random", study.ipc, generator(run.options.seed, "visual", "control"))}
    if form is not None:
        sets["random-decoded"] = formed(run.data, "random", study.ipc, form, generator(run.options.seed, "visual", "control"))
    run.results["visual"] = {}
    for label, condensed in sets.items():
        rows = visual_privacy(
            condensed,
            run.data,
            measures=table.measures,
            holdout=table.holdout,
            network=table.network,
            limit=table.limit,
            seed=run.options.seed,
        )
        run.results["visual"][label] = {name: row.as_dict() for name, row in rows.items()}
        pairs = closest_pairs(condensed, run.data, {name: row.found for name, row in rows.items()}, label)
        pairs.save(run.folder / f"figures/pairs-{_stem(label)}.png")
        for name, row in rows.items():
            run.say(f"visual, {label}, {name}: {row}")


def fill_poisoning(study: PrivacyStudy, table: PoisoningTable, run: Run) -> None:
    """Sets from clean and from poisoned data, beside networks that learn from all the poisoned data; every trigger tried on all of them."""
    options, data, folder = run.options, run.data, run.folder
    clean = plain_set(study, run)
    sources: dict[str, CondensedSet | ImageData] = {"clean": clean}
    triggers: dict[str, Planted] = {}
    plain = white_square(data.spec, table.size)
    for kind in table.triggers:
        path, pixels = folder / f"poisoning/{kind}.safetensors", folder / f"poisoning/trigger-{kind}.safetensors"
        poisoned = _poisoned(table, options, data, plain, kind)
        if not (path.exists() and pixels.exists()):
            condensed = condensed_by(study, poisoned, options.seed, None, options, None)
            write_whole(pixels, safetensors.torch.save({"pixels": poisoned.trigger.pixels.cpu().contiguous()}))
            condensed.save(path)
        sources[kind] = CondensedSet.load(path).to(options.device)
        triggers[kind] = _first(kind, plain, options, data).moved(safetensors.torch.load_file(pixels)["pixels"].to(data.device))
    sources["whole data, naive"] = _poisoned(table, options, data, plain, "naive").data
    metrics, network = folder / "metrics.jsonl", study.evaluation.networks[0]
    recipe = compared(study.evaluation.recipe or study.evaluation.protocol, clean, data, network)
    run.results["poisoning"] = {}
    for label, source in sources.items():
        key = {"stage": "poisoning", "set": label}
        done = {line["seed"]: line for line in matching(metrics, key)}
        seeds = [options.seed * 1000 + k for k in range(study.evaluation.seeds)]
        for seed in (seed for seed in seeds if seed not in done):
            trained = train_network(source, network, recipe, seed, data.device)
            hits = {kind: attack_success(trained, data, trigger, table.target) for kind, trigger in triggers.items()}
            done[seed] = {**key, "seed": seed, "accuracy": accuracy(trained, data), **hits}
            append_line(metrics, done[seed])
        row = {name: Accuracy(tuple(done[seed][name] for seed in seeds)).as_dict() for name in ("accuracy", *table.triggers)}
        run.results["poisoning"][label] = row
        success = ", ".join(f"{kind} trigger {shown(row[kind])} %" for kind in table.triggers)
        run.say(f"poisoning, {label}: clean accuracy {shown(row['accuracy'])} %, {success}")


def _first(kind: str, plain: Trigger, options: Options, data: ImageData) -> Planted:
    """The trigger of this kind before it is learned."""
    return invisible(data.spec, generator(options.seed, "poisoning", "invisible")) if kind == "invisible" else plain


def _poisoned(table: PoisoningTable, options: Options, data: ImageData, plain: Trigger, kind: str) -> PoisonedStatistics:
    draws = generator(options.seed, "poisoning")
    if kind.startswith("doorping"):
        clamp = kind == "doorping-clamped"
        return Doorping(data, plain, table.target, table.portion, draws, table.doorping_steps, clamp=clamp)
    first, steps = _first(kind, plain, options, data), 0 if kind == "naive" else table.steps
    return PoisonedStatistics(data, first, table.target, table.portion, draws, steps)


def _stem(label: str) -> str:
    return "".join(char if char.isalnum() else "-" for char in label)
