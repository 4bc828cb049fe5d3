"""``distill show``: what a condensed set is, and a picture of its images."""

from pathlib import Path
from typing import Annotated

import typer

from scenarios.commands.options import Dpi


def show(
    condensed: Annotated[Path, typer.Argument(metavar="SET.safetensors", help="A condensed set's file.")],
    out: Annotated[Path | None, typer.Option(help="The picture, a .png, .pdf or .svg file; default: a .png next to the set.")] = None,
    dpi: Dpi = None,
) -> None:
    """Print what a set is and where it comes from, and draw its images."""
    from apps.privacy.statement import guarantee
    from distill.condensed import CondensedSet
    from distill.drawing import format_of
    from distill.errors import clipped
    from distill.figures import image_grid

    if out is not None:
        format_of(out)
    tiny = CondensedSet.load(condensed)
    origin, spec = tiny.provenance, tiny.spec
    picture = out or condensed.with_suffix(".png")
    drawing = image_grid(tiny)
    drawing.save(picture, dpi)
    counts = f"{tiny.ipc} a class" if len({c for c in tiny.counts if c}) == 1 else f"counts {tiny.counts}"
    legend = f" (class numbers: {'; '.join(drawing.legend)})" if drawing.legend else ""
    took = "time not stated" if origin.dp is not None and not origin.seconds else f"{origin.seconds:.0f} s"
    lines = [
        f"{len(tiny)} images of {spec.channels} x {spec.height} x {spec.width} ({counts}), {tiny.nbytes} bytes",
        f"data {spec.name}: {spec.num_classes} classes ({', '.join(spec.classes[:10])}{', ...' if spec.num_classes > 10 else ''})",
        f"method {origin.method}, seed {origin.seed}, {took}, augmentation {tiny.augmentation or 'none'}",
        f"settings {', '.join(f'{k}={v}' for k, v in origin.config.items()) or 'none'}",
        f"privacy guarantee: {guarantee(origin.dp) if origin.dp else 'none'}",
        f"picture: {picture}{legend}",
    ]
    typer.echo("\n".join(clipped(line, 2000) for line in lines))
