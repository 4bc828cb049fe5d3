"""A study of kind "condense": condense a data set at each IPC, and evaluate the sets."""

from dataclasses import dataclass

from distill import sizes
from distill.configure import configure, quoted
from distill.distiller import Config as MethodConfig
from distill.errors import InputError
from scenarios.engine.record import Config, Tables
from scenarios.engine.schema import MAX_IPC, DataTable, EvaluationTable, check_tables, config_hash, evaluation_of, method_of, plain_values

MAX_SETS = 100


@dataclass(frozen=True)
class CondenseStudy:
    """``kind = "condense"``: condense a data set at each IPC and evaluate the sets."""

    name: str
    title: str
    data: DataTable
    method: str
    ipc: tuple[int | dict[str, int] | str, ...]  # several numbers, or one entry of another form (`distill.sizes`)
    settings: MethodConfig  # the method's config dataclass
    evaluation: EvaluationTable | None
    merged: Config
    sets: int = 1  # of other seeds, at each ipc
    kind: str = "condense"

    @property
    def made_with(self) -> Config:
        """The settings that `distill.condense` takes."""
        return {key: value for key, value in self.merged["method"].items() if key not in ("name", "ipc", "sets")}

    @property
    def hash(self) -> str:
        """Eight letters that change with any setting."""
        return config_hash(self.merged)


def condense_study(name: str, title: str, tables: Tables, source: str) -> CondenseStudy:
    """Check the tables of a scenario of kind "condense".

    Args:
        name: the study's name.
        title: one line for people.
        tables: those of the scenario file, without kind and title.
        source: the file's name, which opens every message.

    Returns:
        The study, with defaults filled in.

    Raises:
        InputError: names file, table, key, what was given and what is allowed.
    """
    check_tables(tables, ("data", "method", "evaluation"), source, "condense", ["data", "method"])
    data = configure(DataTable, tables["data"], f"{source}: [data]")
    table, where = dict(tables["method"]), f"{source}: [method]"
    more = table.pop("more_images_than_data", False)
    if not isinstance(more, bool):
        raise InputError(f"{where}: key 'more_images_than_data' is {quoted(more)}; allowed: true or false.")
    confirmed: Config = {"more_images_than_data": True} if more else {}
    sets = table.pop("sets", 1)
    if type(sets) is not int or not 1 <= sets <= MAX_SETS:
        raise InputError(f"{where}: key 'sets' is {quoted(sets)}; allowed: a whole number from 1 to {MAX_SETS}.")
    confirmed |= {"sets": sets} if sets > 1 else {}
    ipc = table.get("ipc")
    other = isinstance(ipc, dict) or (isinstance(ipc, str) and ipc.startswith("proportional"))
    unequal = table.pop("ipc") if other else None
    method, numbers, settings = method_of(table, where)
    try:
        ipc = numbers if unequal is None else (sizes.checked(unequal),)
    except InputError:
        raise InputError(
            f"{where}: key 'ipc' is {quoted(unequal)}; allowed: a whole number from 1 to {MAX_IPC}, a list of different ones, counts by"
            ' class such as {"3" = 5, rest = 1}, or "proportional:10".'
        ) from None
    evaluation = evaluation_of(tables["evaluation"], f"{source}: [evaluation]") if "evaluation" in tables else None
    merged = {
        "kind": "condense",
        "data": plain_values(data),
        "method": {"name": method, "ipc": list(ipc) if unequal is None else ipc[0], **plain_values(settings), **confirmed},
        "evaluation": plain_values(evaluation) if evaluation else None,
    }
    return CondenseStudy(name, title, data, method, ipc, settings, evaluation, merged, sets)
