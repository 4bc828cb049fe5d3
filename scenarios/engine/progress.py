"""Progress of work that is counted from outside: a bar with the time left on a terminal, a plain line now and then elsewhere."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

LINE_SECONDS = 60.0  # between two lines where there is no terminal


def time_left(done: int, total: int, seconds: float) -> str:
    """``about 3 min left``, from the mean time of what is done; nothing before anything is done."""
    if not 0 < done < total:
        return ""
    rest = seconds / done * (total - done)
    if rest < 100:
        return f"about {rest:.0f} s left"
    return f"about {rest / 60:.0f} min left" if rest < 6000 else f"about {rest / 3600:.1f} h left"


@contextlib.contextmanager
def watched(
    console: Console,
    what: str,
    total: int,
    count: Callable[[], int],
    look: float = 1.0,
    now: Callable[[], str] = lambda: "",
    news: Callable[[], Sequence[str]] = tuple,
) -> Iterator[Callable[[], None]]:
    """While the block runs, show how much is done; gives a function that prints the ``news`` at once, so that a line can follow them.

    Args:
        console: where it is shown; a quiet one shows nothing.
        what: the name of what is counted.
        total: number of all of them.
        count: the number of those that are done, asked every ``look`` seconds.
        look: see ``count``.
        now: what is being done: under the bar on a terminal, else in the line of each `LINE_SECONDS`.
        news: lines on what has finished since the last call, printed where there is no terminal.
    """
    if console.quiet or total < 1:
        yield lambda: None
        return
    printing = threading.Lock()
    stop, start, before = threading.Event(), time.monotonic(), count()
    bar = Progress(TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), console=console)
    task = bar.add_task(what, total=total, completed=before)
    below = Text(now(), overflow="ellipsis", no_wrap=True)
    shown = Live(Group(bar, below), console=console, refresh_per_second=4) if console.is_terminal else None

    def say(lines: Sequence[str]) -> None:
        for line in lines:
            console.print(line, soft_wrap=True, markup=False)

    def say_news() -> None:
        if shown is None:
            with printing:  # lines that one thread has read are printed before another one reads on
                say(news())

    def watch() -> None:
        last = start
        while not stop.wait(look):
            done, clock = count(), time.monotonic()
            if shown is not None:
                bar.update(task, completed=done)
                below.plain = now()
                continue
            say_news()
            if clock - last >= LINE_SECONDS:
                parts = [f"{done} of {total} done", time_left(done - before, total - before, clock - start), now()]
                say([f"{what}: {', '.join(part for part in parts if part)}"])
                last = clock

    thread = threading.Thread(target=watch, daemon=True)
    with shown or contextlib.nullcontext():
        thread.start()
        try:
            yield say_news
        finally:
            stop.set()
            thread.join()
            bar.update(task, completed=count())
            below.plain = ""
            say_news()
