"""The kinds "privacy" and "released"."""

from pathlib import Path

from scenarios.engine.own import Places
from scenarios.engine.public_part import FOLDER, load
from scenarios.engine.study import Kind, View
from scenarios.privacy import reading, released, run, schema, show
from scenarios.privacy.sets import name_of


def sets(study: schema.PrivacyStudy, seed: int) -> dict[str, Path]:
    """The private sets of each budget: the study's, and those of its arms."""
    budgets = study.privacy.epsilon if study.privacy is not None else ()
    names = [name_of(arm, epsilon) for epsilon in budgets for arm in study.made]
    return {name: Path(FOLDER, f"condensed-{name}.safetensors") for name in names}


MAIN = r"epsilon.*\.accuracy\..*|attack\..*"

KIND = Kind(
    "privacy",
    reading.study,
    run.check,
    run.fill,
    show.draw,
    View(show.answer, show.accuracy_table, show.question, show.missing, main=MAIN),
    sets=sets,
    load=load,
    with_set="released",
    advice=run.advised,
    own=Places(
        methods=(("method", "name"), ("arms.*.method", "name"), ("attack", "arms")),
        networks=(
            *(("method", "network"), ("arms.*.method", "network"), ("attack.methods.*", "network")),
            *(("evaluation", "networks"), ("visual", "network")),
        ),
    ),
)

RELEASED = Kind(
    "released",
    released.study,
    released.check,
    released.fill,
    released.draw,
    View(show.answer, show.accuracy_table, released.question, released.missing, main=MAIN),
    takes="as what is attacked",
    own=Places(networks=(("attack", "network"),)),
    needs_set=True,
)
