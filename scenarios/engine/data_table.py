"""The table ``[data]`` of a scenario: which data set, which part of it, and what is given instead of what its files give."""

from typing import Annotated, Any

from pydantic import Field

from distill.configure import config_class


@config_class
class DataTable:
    """``[data]``: what `distill.load` takes; ``zca`` whitens the images (see `distill.whitening`).

    ``imbalance`` makes the training images long-tailed, with this ratio of the largest to the smallest class (`ImageData.long_tailed`).
    ``mean`` and ``std``, a number a channel, and ``class_names``, in the order of the labels, are given instead of what the files give: a
    private study of one's own images needs them (docs/privacy.md). ``classes`` are the numbers of the classes to use; a list of texts
    under that key is ``class_names`` (`with_names`).
    """

    DIFFERENT = ("classes", "class_names")

    name: str
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    size: Annotated[int, Field(ge=1)] | None = None
    classes: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    zca: bool = False
    imbalance: Annotated[float, Field(ge=1)] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    class_names: tuple[str, ...] | None = None

    @property
    def given(self) -> dict[str, Any]:
        """``mean``, ``std`` and ``classes`` as `distill.load` takes them."""
        return {"mean": self.mean, "std": self.std, "classes": self.class_names}


def with_names(table: object) -> object:
    """A raw [data] table whose ``classes``, where they are texts, are under ``class_names``."""
    if not isinstance(table, dict):
        return table
    listed = table.get("classes")
    if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed) or "class_names" in table:
        return table
    return {**{key: value for key, value in table.items() if key != "classes"}, "class_names": listed}
