"""The kind "continual"."""

from scenarios.continual import run, schema, show
from scenarios.engine.own import Places
from scenarios.engine.study import Kind, View

KIND = Kind(
    "continual",
    schema.study,
    run.check,
    run.fill,
    show.draw,
    View(show.answer, show.accuracy_table, show.question, show.missing, note=show.NOTE, main=r"cells\..*\.(accuracy|forgetting)"),
    takes="as the first experience and its memory",
    advice=run.advised,
    some_classes=True,
    own=Places(
        (("memory", "methods"),),
        (("learner", "network"), ("learner", "others"), ("learner", "last"), ("settings.*", "network")),
        suffix="-decoded",
    ),
)
