"""Whether a progress bar is shown."""

from importlib.util import find_spec

from rich.console import Console


def shows_progress(console: Console, wanted: bool | None) -> bool:
    """``wanted`` where it is given; else on a terminal, and in Jupyter where rich can draw there (it needs ipywidgets)."""
    if wanted is not None:
        return wanted
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)
