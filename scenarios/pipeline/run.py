"""The study of kind "pipeline": studies that hand their sets on to each other, by name, each in its own run folder.

Every stage runs through `scenarios.engine.folder.run_study`, the code of ``distill run``. A stage whose settings and input (the content
of the set that it takes) are those of a finished folder is not run again: not after a stop, and not when another stage's settings were
changed.
"""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.drawing import Drawing
from distill.errors import InputError
from distill.figures import image_grid
from distill.records import read_json
from scenarios.engine.composition import one_after_another
from scenarios.engine.folder import run_study
from scenarios.engine.given import Given, joined
from scenarios.engine.public_part import FOLDER, hand_over, has_guarantee, is_private, mark, place
from scenarios.engine.record import Record, Results, parsed, run_name
from scenarios.engine.study import AnyKind, Kinds, Run, Study
from scenarios.pipeline.schema import PipelineStudy, Stage, planned
from scenarios.pipeline.show import headline, overview


class StageFailed(RuntimeError):
    """A stage ended in an error that is not the user's."""


def check(kinds: Kinds, study: PipelineStudy, data: ImageData) -> None:
    """Every stage's own check, before the first one starts."""
    for stage in study.stages:
        given = planned(study, stage, data)
        stage_study = stage.study if given is None else stage.given(given)
        classes = stage.study.data.classes
        try:
            stage.kind.check(stage_study, data if classes is None else data.subset(classes))
        except InputError as error:
            raise InputError(f"stage {stage.name!r}: {error}") from None


def fill(kinds: Kinds, study: PipelineStudy, run: Run) -> None:
    """Stage by stage; results hold an entry for each, and the headline figures of those that are done."""
    options, data, folder, results = run.options, run.data, run.folder, run.results
    results["data"] = {"name": data.spec.name, "train": len(data.train), "test": len(data.test), "fingerprint": data.fingerprint}
    results["stages"] = {}
    if is_private(folder, study.merged):
        mark(folder)
    sets: dict[tuple[str, str], CondensedSet] = {}
    for number, stage in enumerate(study.stages, 1):
        entry: Results = {"kind": stage.study.kind, "from": [".".join(pair) for pair in stage.sources], "status": "running"}
        results["stages"][stage.name] = entry
        try:
            stage_study = stage.study
            if stage.sources:
                given = _given(study, stage, data, sets)
                stage_study, entry["given"] = stage.given(given), given.fingerprint
            own, record = _run(stage.kind, stage_study, run, f"stage {number} of {len(study.stages)}, {stage.name}")
            for name, path in stage.kind.sets(stage.study, options.seed).items():
                if place(own, path).exists():
                    sets[stage.name, name] = stage.kind.load(stage.study, own, path)
        except InputError as error:
            entry |= {"status": "failed", "error": str(error)}
            raise InputError(f"stage {stage.name!r} failed: {error}; fix it and continue with --resume") from None
        except KeyboardInterrupt:
            entry["status"] = "interrupted"
            raise
        except Exception as error:
            entry |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            raise StageFailed(f"stage {stage.name!r} failed: {type(error).__name__}: {error}; fix it and continue with --resume") from error
        entry |= {
            "folder": str(own.relative_to(folder)),
            "seconds": record["seconds"],
            "status": "done",
            "answer": stage.kind.view.answer(record),
        }
        entry["results"] = record["results"]
        handed = {name: condensed for (owner, name), condensed in sets.items() if owner == stage.name}
        entry["sets"] = {name: _described(condensed) for name, condensed in handed.items()}
        for name, condensed in handed.items():
            file = folder / "sets" / f"{stage.name}.{name}.safetensors"
            if has_guarantee(condensed):  # in public/
                file.unlink(missing_ok=True)
            elif any(pair == (stage.name, name) for later in study.stages for pair in later.sources):
                condensed.save(file)
        if is_private(folder, study.merged):
            results["public"] = public_part(results["stages"], sets, folder)
    results |= headline(results["stages"])


def public_part(stages: Results, sets: Mapping[tuple[str, str], CondensedSet], folder: Path) -> Results:
    """Put the sets with a guarantee into public/. Several stages may use the same examples, so their totals add up."""
    private = {f"{stage}.{name}": condensed for (stage, name), condensed in sets.items() if condensed.provenance.dp is not None}
    makers = dict.fromkeys(name.partition(".")[0] for name in private)
    totals = []
    for maker in makers:
        own = [condensed.provenance.dp for name, condensed in private.items() if name.partition(".")[0] == maker]
        totals.append(stages[maker]["results"].get("public", {}).get("statement") or (own[0] if len(own) == 1 else one_after_another(own)))
    return hand_over(folder, private, totals[0] if len(totals) == 1 else one_after_another(totals))


def _given(study: PipelineStudy, stage: Stage, data: ImageData, sets: dict[tuple[str, str], CondensedSet]) -> Given:
    for other, name in stage.sources:
        if (other, name) not in sets:
            raise InputError(f"stage {other!r} left no set {name!r}; its report says why")
    plan = planned(study, stage, data)
    assert plan is not None
    return joined(plan.name, [sets[pair] for pair in stage.sources], plan.classes)


def _run(kind: AnyKind, study: Study, run: Run, what: str) -> tuple[Path, Record]:
    """The stage's run.folder and record: from here, from a sister run of this pipeline, or newly run."""
    name = run_name(study.name, study.hash, run.options.seed)
    own = run.folder / "stages" / name
    if not own.exists() and (sister := _finished_elsewhere(name, run.folder)) is not None:
        # Copied to a name that is no stage's, then renamed: a kill leaves no half run.folder.
        part = own.with_name(f"copy-{own.name}")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(sister, part)
        part.rename(own)
        run.say(f"{what}: taken from {sister}")
    if _status(own) == "done" and (own / "report.html").exists():
        run.say(f"{what}: done already, in {own}")
    else:
        run.say(f"{what} ({study.kind})")
        run_study(kind, study, dataclasses.replace(run.options, out=run.folder / "stages", resume=True))
    return own, read_json(own / "record.json")  # from the disk, where not-a-number is null, whoever ran the stage


def _finished_elsewhere(name: Path, folder: Path) -> Path | None:
    """The same stage, with the same settings and input, done in a run of this pipeline with other settings."""
    own = parsed(folder.name)
    for other in sorted(folder.parent.glob(f"*/stages/{name}")):
        pipeline = other.parents[1]
        if own is not None and pipeline != folder and own.same_study(pipeline.name) and _status(other) == "done":
            return other
    return None


def _status(folder: Path) -> str | None:
    try:
        record = read_json(folder / "record.json")
    except InputError:
        return None
    return record.get("status") if isinstance(record, dict) else None


def _described(condensed: CondensedSet) -> Results:
    from apps.privacy.statement import guarantee

    statement = condensed.provenance.dp
    return {
        "images": len(condensed),
        "counts": list(condensed.counts),
        "bytes": condensed.nbytes,
        "privacy": statement,
        "guarantee": guarantee(statement),
    }


def draw(folder: Path, record: Record) -> Iterator[tuple[str, Drawing]]:
    """The figures of all stages beside each other, and the sets that were handed on."""
    figure = overview(record["results"], record["title"])
    if figure is not None:
        yield "1-overview", figure
    for path in sorted(path for part in ("sets", FOLDER) for path in (folder / part).glob("*.safetensors")):
        stage, _, name = path.stem.partition(".")
        yield f"2-{path.stem}", image_grid(CondensedSet.load(path), f"Images of the set {name} that stage {stage} handed on")
