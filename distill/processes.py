"""Worker processes that do not outlive the one that started them."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """In a worker of `multiprocessing`: when the process that started it is gone, however it went, this one ends at once.

    A worker whose parent was killed would go on with its job, and might write beside the run that continues it.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
