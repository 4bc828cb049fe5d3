"""The kind "pipeline": studies that hand their sets on to each other; `kind` is given the kinds that its stages may have."""

import functools

from scenarios.engine.study import Kind, Kinds, View
from scenarios.pipeline import run, schema, show


def kind(kinds: Kinds) -> Kind[schema.PipelineStudy]:
    """The kind, for stages of these kinds."""
    return Kind(
        "pipeline",
        functools.partial(schema.study, kinds),
        functools.partial(run.check, kinds),
        functools.partial(run.fill, kinds),
        run.draw,
        View(
            show.answer,
            show.accuracy_table,
            show.question,
            show.missing,
            note=show.NOTE,
            main=r"(accuracy|forgetting|rank_correlation|attack_rate)\..*",
        ),
        staged=False,
    )
