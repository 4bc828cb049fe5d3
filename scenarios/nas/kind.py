"""The kind "nas"."""

from pathlib import Path

from scenarios.engine.own import Places
from scenarios.engine.study import Kind, View
from scenarios.nas import run, schema, show


def sets(study: schema.NasStudy, seed: int) -> dict[str, Path]:
    """The copies of each method's set."""
    return {f"{method}-{i}": run.file_of(method, i) for method in study.methods for i in range(study.sets.copies)}


KIND = Kind(
    "nas",
    schema.study,
    run.check,
    run.fill,
    run.draw,
    View(show.answer, show.accuracy_table, show.question, show.missing, note=show.NOTE, main=r"proxies\..*\.(spearman|regret@1)"),
    sets=sets,
    takes="as a set that ranks networks",
    own=Places(methods=(("methods", "*"),), networks=(("methods.*", "network"),)),
    advice=run.advised,
)
