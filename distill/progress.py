"""Progress bars, and whether one is shown."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

OnStep = Callable[[int, Mapping[str, float]], None]  # (number of steps done, losses by name)


def shows_progress(progress: bool | None, console: Console) -> bool:
    """Whether to show a bar: ``progress``; where it is None, on a terminal and in Jupyter if rich can draw there (it needs ipywidgets)."""
    if progress is not None:
        return progress
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        text = "" if not speed else f"{speed:.1f} steps/s" if speed >= 1 else f"{1 / speed:.1f} s/step"
        return Text(text, style="progress.data.speed")


@contextlib.contextmanager
def step_bar(progress: bool | None, title: str, total: int, done: int) -> Iterator[OnStep]:
    """A bar over the steps of a run, on standard error.

    Args:
        progress: see `shows_progress`.
        title: text before the bar.
        total: number of steps of the run.
        done: number of steps made before.

    Yields:
        A function to call after each step. Losses are shown until it is called with others; an empty mapping leaves them unchanged.
    """
    console = Console(stderr=True)
    if not shows_progress(progress, console):
        yield lambda step, losses: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        def advance(step: int, losses: Mapping[str, float]) -> None:
            bar.update(task, completed=step)
            if losses:
                bar.update(task, note="  ".join(f"{name} {value:.4g}" for name, value in losses.items()))

        yield advance
