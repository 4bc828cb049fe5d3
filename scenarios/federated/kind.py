"""The kind "federated"."""

from scenarios.engine.own import Places
from scenarios.engine.study import Kind, View
from scenarios.federated import run, schema, show, unions

KIND = Kind(
    "federated",
    schema.study,
    run.check,
    run.fill,
    show.draw,
    View(show.answer, show.accuracy_table, show.question, show.missing, show.remarks, show.NOTE, r"strategies\.[^.]+\.accuracy"),
    sets=unions.sets,
    classes=unions.classes,
    load=unions.load,
    own=Places(methods=(("upload", "method"),), networks=(("federation", "network"),)),
    advice=run.advised,
)
