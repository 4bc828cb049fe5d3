"""What a private client says where it refuses or fails: always the same, on every engine."""

import contextlib
import io
import logging
import os
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from apps.federated.messages import Error, Message
from distill.records import CannotWrite

SILENT = "a private client failed; its own log says why."
LOG = "PRIVATE-log.txt"
MAX_LOG = 1 << 20  # bytes
FAILED = 2  # Flower's code for a ClientApp that raised


def silent_answer(message: Message, work: Callable[[], Message], log: Path, *, shared: bool) -> Message:
    """What ``work`` answers; where it fails, an error that says nothing: its text may name files, classes and counts of private data.

    Args:
        log: the folder whose `LOG` gets the reason, and what was printed.
        shared: all clients live in this process. Else nothing is printed here, because Ray hands it on to the server's terminal. Where
            they do, a full disk is the run's own and ends it.
    """
    printed, reason = io.StringIO(), ""
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if not shared:
            stack.enter_context(contextlib.redirect_stdout(printed))
            stack.enter_context(contextlib.redirect_stderr(printed))
            stack.callback(logging.disable, logging.root.manager.disable)
            logging.disable(logging.CRITICAL)
        try:
            return work()
        except Exception as error:
            if shared and isinstance(error, CannotWrite):
                raise
            reason = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):
        log.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(log / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as file:
            if file.tell() < MAX_LOG:  # a server that asks for ever does not fill the disk
                file.write(f"{printed.getvalue()}{reason}\n")
    return silence(message)


def silence(message: Message) -> Message:
    """What a private client says where it refuses or fails, always the same."""
    return Message(Error(FAILED, f"InputError: {SILENT}"), reply_to=message)
