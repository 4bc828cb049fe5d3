"""Progress of work that is counted from outside: a bar with the time left on a terminal, a plain line now and then elsewhere."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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
def watched(console: Console, what: str, total: int, count: Callable[[], int], look: float = 1.0) -> Iterator[None]:
    """While the block runs, show how many of ``total`` are done: ``count()`` is asked every ``look`` seconds."""
    if console.quiet or total < 1:
        yield
        return
    stop, start, before = threading.Event(), time.monotonic(), count()
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console) if console.is_terminal else None
    task = None if bar is None else bar.add_task(what, total=total, completed=before)

    def watch() -> None:
        last = start
        while not stop.wait(look):
            done, now = count(), time.monotonic()
            if bar is not None and task is not None:
                bar.update(task, completed=done)
            elif now - last >= LINE_SECONDS:
                left = time_left(done - before, total - before, now - start)
                console.print(f"{what}: {done} of {total} done{', ' if left else ''}{left}", soft_wrap=True, markup=False)
                last = now

    thread = threading.Thread(target=watch, daemon=True)
    with bar or contextlib.nullcontext():
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            if bar is not None and task is not None:
                bar.update(task, completed=count())
