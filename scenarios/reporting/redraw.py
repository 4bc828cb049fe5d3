"""Figures of a finished run, drawn again in another format from what is in its folder."""

from pathlib import Path

from distill.drawing import FORMATS, check_dpi
from distill.errors import InputError, clipped, unknown_name
from scenarios.engine.study import Kinds
from scenarios.reporting.report import kind_of
from scenarios.reporting.runs import read_run


def redraw(folder: Path, form: str, dpi: int | None, out: Path, kinds: Kinds) -> tuple[list[Path], list[Path]]:
    """Write every figure of the run to ``out``.

    Args:
        folder: a run folder; its own figures stay, unless ``out`` is its ``figures`` and ``form`` is "png".
        form: "png", "pdf" or "svg".
        dpi: dots per inch, see `distill.drawing.Drawing.encoded`.

    Returns:
        The files that were written, and the PNG files of the run that cannot be drawn without its data.
    """
    if form not in FORMATS:
        raise unknown_name("figure format", form, FORMATS)
    if dpi is not None:
        check_dpi(dpi)
    run = read_run(folder, kinds)
    if run.record.get("status") != "done":
        raise InputError(f"{folder}: status is {clipped(run.record.get('status'), 20)!r}; only a finished run has all its figures.")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder.")
    written = []
    try:
        for name, drawing in kind_of(run.record, kinds).draw(folder, run.record):
            path = out / f"{name}.{form}"
            drawing.save(path, dpi)
            written.append(path)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, OSError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder}: is not a whole run ({type(error).__name__}: {clipped(error)}).") from None
    stems = {path.stem for path in written}
    return written, [path for path in sorted((folder / "figures").glob("*.png")) if path.stem not in stems]
