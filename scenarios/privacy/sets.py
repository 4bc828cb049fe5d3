"""Private sets of a privacy study: made under each budget, beside their noise-free twins, and judged by what networks learn from them."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from apps.privacy.networks import UnitNetwork, drawn_once
from apps.privacy.private_start import private_kmeans
from apps.privacy.private_statistics import PrivateStatistics
from apps.privacy.private_teacher import PrivateTeacher
from apps.privacy.public_experts import PublicExperts, load_public
from apps.privacy.statement import guarantee
from distill.comparison import DECODED, LABELLED, compared, rows_of, training_of
from distill.condensed import CondensedSet
from distill.configure import configure
from distill.data import ImageData
from distill.decode import Decode, from_text
from distill.evaluation import Measured, accuracies, summed_up
from distill.experts import cache_root
from distill.methods import METHODS
from distill.methods.presets import matched_by
from distill.networks import Factory
from distill.protocols import PROTOCOLS
from distill.records import append_line, read_lines
from distill.run import condense
from distill.shared_config import SharedConfig, trains_networks
from distill.statistics import RealStatistics
from distill.synthetic import Initial
from distill.teachers import Teacher, labelled, teacher_network
from scenarios.engine.composition import in_sequence
from scenarios.engine.ledger import matching
from scenarios.engine.public_part import FOLDER, hand_over, taken_over
from scenarios.engine.record import Config, Results
from scenarios.engine.study import Options, Run, say
from scenarios.privacy.schema import PrivacyStudy
from scenarios.reporting.text import shown


def statistics_of(
    study: PrivacyStudy, data: ImageData, epsilon: float, ledger: Path | None, public: ImageData | None = None
) -> PrivateStatistics:
    """The study's private statistics at a budget; ``ledger`` is the folder of its account and releases, None for a check. ``public`` data
    are those of its experts."""
    table, teacher = study.privacy, teacher_of(study)
    assert table is not None
    return PrivateStatistics(
        data,
        epsilon,
        table.delta,
        releases=table.networks or None,
        sample_rate=table.sample_rate,
        start_releases=table.start_releases if table.start == "kmeans" else 0,
        start_share=table.start_share,
        experts_share=table.experts_share,
        experts_clip=table.experts_clip,
        public_experts=public,
        teacher=None if teacher is None else PrivateTeacher(teacher, table.teacher_share, table.experts_clip),
        clip=table.clip,
        centred=table.centred,
        population=table.population,
        classes=study.data.classes,
        ledger=ledger,
    )


def teacher_of(study: PrivacyStudy) -> Teacher | None:
    """The teacher that labels the study's sets, or None."""
    return (study.evaluation.recipe or PROTOCOLS[study.evaluation.protocol]).teacher


def reopened(study: PrivacyStudy, run: Run, epsilon: float) -> PrivateStatistics:
    """The statistics of a set that was made, with its account."""
    ledger = run.folder / f"{name_of(study, epsilon)}-releases"
    return statistics_of(study, run.data, epsilon, ledger, public_of(study, run.data, run.options))


def condensed_by(
    study: PrivacyStudy,
    source: ImageData | RealStatistics,
    seed: int,
    start: CondensedSet | Initial | None,
    options: Options,
    checkpoint: Path | None,
) -> CondensedSet:
    """The study's method on private or exact statistics: the same networks, the same start."""
    table, settings = study.privacy, dict(study.settings)
    named = "augmentation" in settings or table is None or not table.networks
    network: Factory | None = settings.pop("network", None)
    if table is not None and table.networks:
        network, settings = _that_come_back(study, network, table.networks, settings)
    chosen = settings.pop("initial", None)
    condensed = condense(
        source,
        study.method,
        ipc=study.ipc,
        seed=seed,
        network=network,
        initial=chosen if start is None else start,
        checkpoint=checkpoint,
        resume=checkpoint is not None,
        progress=False if options.quiet or checkpoint is None else None,
        more_images_than_data=True,  # how many a private class has is private; its twin is as large
        **settings,
    )
    # Matching without augmentation saves releases; it is no advice to learners.
    return condensed if named else dataclasses.replace(condensed, augmentation=None)


def _that_come_back(study: PrivacyStudy, network: Factory | None, count: int, settings: Config) -> tuple[Factory, Config]:
    """``count`` networks whose features have length 1, and the settings with which each is one release."""
    name, config = str(network or "ConvNet"), METHODS[study.method][0]
    settings = {"augmentation": "none", **settings}  # a new augmentation would be a new release
    if not issubclass(config, SharedConfig) or not (trains_networks(config()) or trains_networks(config(**study.settings))):
        return drawn_once(name, count), settings
    # A draw from the method's own pool, and what it draws with a network. Compiled ones may differ in their last digits, a new question.
    return UnitNetwork(name), {"compile": "off", **settings, "pool_draws": count}


def public_of(study: PrivacyStudy, data: ImageData, options: Options) -> ImageData | None:
    """The public data that experts are trained on, in the size of the private ones."""
    return load_public(None if study.privacy is None else study.privacy.public_experts, data, options.data_root)


def form_of(study: PrivacyStudy) -> Decode | None:
    """The form in which the study's method stores images; None: plainly."""
    return from_text(getattr(METHODS[study.method][0](**study.settings), "decode", "none"))


def started(study: PrivacyStudy, statistics: PrivateStatistics, seed: int) -> CondensedSet | None:
    """The private start in the form in which the method stores images; None where the study has none."""
    if study.privacy is None or study.privacy.start != "kmeans":
        return None
    form = form_of(study)
    if form is None:
        return private_kmeans(statistics, study.ipc, seed)
    made = private_kmeans(statistics, study.ipc * form.copies, seed)  # a small image for each centre; what is released is made from these
    return dataclasses.replace(made, images=form.encoded(made.images, made.spec), labels=made.labels[:: form.copies], decode=form)


def private_set(
    study: PrivacyStudy, data: ImageData, epsilon: float, seed: int, options: Options, folder: Path | None, name: str = ""
) -> tuple[CondensedSet, CondensedSet | None]:
    """A set under differential privacy.

    Args:
        study: the study; its ``privacy`` table is set.
        data: the private images.
        epsilon: the budget.
        seed: of public randomness.
        options: where and how the study is run.
        folder: keeps the releases and a checkpoint; None keeps nothing.
        name: the set's part of file names.

    Returns:
        The set, and the private start where there is one.
    """
    statistics = statistics_of(study, data, epsilon, folder / f"{name}-releases" if folder else None, public_of(study, data, options))
    start = started(study, statistics, seed)
    return condensed_by(study, statistics, seed, start, options, folder / f"checkpoint-{name}.safetensors" if folder else None), start


def plain_set(study: PrivacyStudy, run: Run) -> CondensedSet:
    """The study's method without privacy, for checks of a study that has no [privacy]; made once."""
    path, checkpoint = run.folder / "condensed.safetensors", run.folder / "checkpoint.safetensors"
    if not path.exists():
        condensed_by(study, run.data, run.options.seed, None, run.options, checkpoint).save(path)
        checkpoint.unlink(missing_ok=True)
    return CondensedSet.load(path).to(run.options.device)


def fill_private(study: PrivacyStudy, run: Run, epsilon: float, before: Sequence[str] = ()) -> tuple[dict[str, CondensedSet], list[str]]:
    """Make and evaluate the sets of one budget: the study's, and those of its arms.

    Args:
        study: the study.
        run: the study at work; the budget's part is added to its results.
        epsilon: the budget.
        before: names of the sets that were made before, whose releases count in public/.

    Returns:
        The sets that were evaluated by name, the private one first, and the names of all that were made until now.
    """
    name, sets, names = f"epsilon{epsilon:g}", dict[str, CondensedSet](), list(before)
    part: Results = run.results.setdefault(name, {})
    for arm in study.made:
        names.append(name_of(arm, epsilon))
        own = part if arm is study else part.setdefault("arms", {}).setdefault(arm.arm, {})
        sets |= _made(arm, run, epsilon, own, names)
    part["accuracy"] = judge(study, run, sets, epsilon)
    return sets, names


def name_of(study: PrivacyStudy, epsilon: float) -> str:
    """The part of file names of a study's or an arm's set of one budget."""
    return f"epsilon{epsilon:g}{study.arm and '-'}{study.arm}"


def _made(study: PrivacyStudy, run: Run, epsilon: float, part: Results, names: Sequence[str]) -> dict[str, CondensedSet]:
    """The private set of a study or an arm, its noise-free twin and its start; ``part`` gets what is stated."""
    table, options, data, folder, name = study.privacy, run.options, run.data, run.folder, names[-1]
    assert table is not None
    path, first, taught = (folder / FOLDER / f"{kind}-{name}.safetensors" for kind in ("condensed", "start", "labelled"))
    twin = folder / f"exact-{name}.safetensors"
    new: dict[str, CondensedSet] = {}
    for file in (first, path):
        taken_over(folder, file.relative_to(folder))
    if not path.exists():
        began = time.monotonic()
        try:
            condensed, start = private_set(study, data, epsilon, options.seed, options, folder, name)
        finally:  # not in the set's file: the time tells how many images there are
            append_line(folder / "metrics.jsonl", {"stage": "distil", "part": name, "seconds": time.monotonic() - began})
        # A start that is there already, because the run was stopped between the two files, has these images; it is not written again.
        new = ({} if start is None or first.exists() else {first.stem: start}) | {path.stem: condensed}
    if (teacher := teacher_of(study)) is not None and not taught.exists():
        made = new[path.stem] if path.stem in new else CondensedSet.load(path)
        new[taught.stem] = labelled(made, reopened(study, run, epsilon), teacher, progress=False)
    run.results["public"] = public_part(names, folder, new)  # minutes before they are judged
    (folder / f"checkpoint-{name}.safetensors").unlink(missing_ok=True)
    private = CondensedSet.load(path).to(options.device)
    lines = read_lines(folder / "metrics.jsonl")
    seconds = sum(line["seconds"] for line in lines if (line.get("stage"), line.get("part")) == ("distil", name))
    # The account's random id stays in the set's file: a record has no number that a repeated run would not have.
    whole = (CondensedSet.load(taught) if taught.exists() else private).provenance.dp
    stated = {name: value for name, value in (whole or {}).items() if name != "account"}
    part |= {"privacy": stated, "distil_seconds": seconds, "guarantee": guarantee(whole)}
    run.say(f"{study.label} at ipc {study.ipc}, epsilon {epsilon:g}: {seconds:.0f} s")
    sets = {f"private {study.label}": private}
    if table.twin:
        if not twin.exists():
            begin: CondensedSet | Initial = CondensedSet.load(first).to(options.device) if first.exists() else "noise"
            public = public_of(study, data, options)
            exact = data if public is None else PublicExperts(data, public)
            condensed_by(study, exact, options.seed, begin, options, folder / f"checkpoint-exact-{name}.safetensors").save(twin)
            (folder / f"checkpoint-exact-{name}.safetensors").unlink(missing_ok=True)
        sets[f"{study.label} without noise"] = CondensedSet.load(twin).to(options.device)
    if first.exists() and not study.arm:  # the arms' starts are other draws of the same noise
        sets["private start"] = CondensedSet.load(first).to(options.device)
    return sets


def public_part(parts: Sequence[str], folder: Path, new: Mapping[str, CondensedSet]) -> Results:
    """Put what the guarantees of these sets cover, and their total, into public/: they are of the same images. ``parts`` are names of
    `name_of`, and ``new`` sets by file name that are not there yet."""
    names = [f"{kind}-{part}" for part in parts for kind in ("start", "condensed", "labelled")]
    files = {name: folder / FOLDER / f"{name}.safetensors" for name in names}
    sets = {name: new[name] if name in new else CondensedSet.load(file) for name, file in files.items() if name in new or file.exists()}
    stated = [sets.get(f"labelled-{part}", sets[f"condensed-{part}"]).provenance.dp for part in parts]
    total = stated[0] if len(stated) == 1 else in_sequence(stated)
    return hand_over(folder, sets, total, [folder / f"{part}-releases" for part in parts])


def kept_elsewhere(study: PrivacyStudy) -> list[str]:
    """What a run leaves outside its folder, in words."""
    if not any(map(_caches_experts, study.made)):
        return []
    return [f"Private, too, and not in this folder: experts of the set without noise, trained on the private images, in {cache_root()}."]


def _caches_experts(study: PrivacyStudy) -> bool:
    """Whether the noise-free twin has experts that are trained on the private images."""
    config, method = METHODS[study.method]
    settings = configure(config, study.settings, f"method {study.method!r}")
    trains = hasattr(method, "prepare")  # and a method that compares images in networks only with a pool of trained ones
    if isinstance(settings, SharedConfig) and matched_by(method) != "trajectories":
        trains = trains_networks(settings)
    table = study.privacy
    return trains and table is not None and table.twin and not (table.networks or table.public_experts)


def judge(study: PrivacyStudy, run: Run, sets: dict[str, CondensedSet], epsilon: float) -> Results:
    """Accuracies by set; metrics.jsonl is the ledger: a stopped study loses at most one network.

    A teacher is that of each set's own account; baselines have the labels of the first.
    """
    name, teacher = f"epsilon{epsilon:g}", teacher_of(study)
    of = {label: arm for arm in study.made for label in (f"private {arm.label}", f"{arm.label} without noise")}
    networks: dict[str, nn.Module] = {}
    if teacher is not None:
        for arm in study.made:
            stated = sets[f"private {arm.label}"].provenance.dp
            networks[arm.label] = teacher_network(reopened(arm, run, epsilon), teacher, progress=False, stated=stated)
    options, data, console = run.options, run.data, run.console
    table, metrics, rows = study.evaluation, run.folder / "metrics.jsonl", {}
    some = next(iter(sets.values()))
    form = next((one for one in sets.values() if one.decode), some)  # of which random images in the same form are
    recipe = compared(table.recipe or table.protocol, some, data, table.networks[0])  # the first set's is everybody's
    seeds = [options.seed * 1000 + k for k in range(table.seeds)]
    for label in (*sets, *(table.baselines if teacher is None else rows_of(table.baselines, form, recipe))):
        key = {"stage": "evaluate", "set": label, "network": table.networks[0], "part": name}
        lines = matching(metrics, key)
        done = {line["seed"]: Measured.read(label, line) for line in lines}
        missing = [seed for seed in seeds if seed not in done]
        kind = "condensed" if label in sets else label
        learned = sets.get(label, form if LABELLED.get(label, label) in DECODED else some)
        for measured in accuracies(
            learned,
            data,
            [kind],
            table.networks[0],
            recipe,
            missing,
            split=table.split,
            whole_epochs=table.whole_epochs,
            teacher=networks.get(of.get(label, study).label),
        ):
            done[measured.seed] = measured
            append_line(metrics, {**key, **measured.line()})
        trained = training_of(kind, learned, data, recipe, table.whole_epochs)
        rows[label] = summed_up([done[seed] for seed in seeds]).as_dict() | trained.as_dict()
        say(console, f"  {name}, {table.networks[0]} on {label}: {shown(rows[label])} %")
    return rows
