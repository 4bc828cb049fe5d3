"""``distill audit``: the installed mechanism, a released set's own evidence, or lower bounds of epsilon from scores."""

from pathlib import Path
from typing import Annotated

import typer

from scenarios.commands.options import refuse_unused


def audit(
    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="[SET_OR_SCORES]",
            help="SET.safetensors: what the set says about its own guarantee; scores.npz or scores.csv: lower bounds of epsilon. Without: "
            "the installed mechanism.",
        ),
    ] = None,
    releases: Annotated[Path | None, typer.Option(help="For a set: the folder of releases that was published with it.")] = None,
    epsilon: Annotated[
        float | None, typer.Option(min=1e-6, help="For the mechanism: the budget of the audited releases.", show_default="1.0")
    ] = None,
    canaries: Annotated[
        int | None, typer.Option(min=200, max=2304, help="For the mechanism: canaries in its release.", show_default="2000")
    ] = None,
    claimed: Annotated[float | None, typer.Option(help="For scores: the epsilon that is claimed.")] = None,
    one_run: Annotated[
        bool, typer.Option("--one-run", help="Scores are of points of one model, each in or out by a fair coin; else of separate runs.")
    ] = False,
    delta: Annotated[float | None, typer.Option(help="Of the guarantee; a set states its own.", show_default="1e-05")] = None,
    confidence: Annotated[
        float | None, typer.Option(help="Of all checks together (0.999 unless set), or of each bound from scores (0.95).")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="For the mechanism: of the canaries' coins; the noise is the system's.", show_default="0")
    ] = None,
) -> None:
    """Look for contradictions of a privacy guarantee; exit code 1 where there is one, or where a set states no guarantee."""
    from distill.errors import InputError, clipped

    sure = 0.999 if confidence is None else confidence
    of_delta = 1e-5 if delta is None else delta
    if not (0 < sure < 1 and 0 < of_delta < 1):
        raise InputError(f"--delta {of_delta}, --confidence {sure}; allowed: numbers between 0 and 1.")
    suffix = "" if target is None else target.suffix.lower()
    of_mechanism = {"--epsilon": epsilon, "--canaries": canaries, "--seed": seed}
    of_scores: dict[str, object] = {"--claimed": claimed, "--one-run": one_run}
    if target is None:
        refuse_unused({"--releases": releases, **of_scores}, "on the audit of the mechanism", "name a set or a file of scores")
        from apps.privacy.canaries import audit as audit_mechanism

        found = audit_mechanism(
            epsilon=1.0 if epsilon is None else epsilon,
            delta=of_delta,
            runs=2000 if canaries is None else canaries,
            confidence=sure,
            seed=seed or 0,
        )
        typer.echo("\n".join(f"  {check}" for check in found.checks))
        typer.echo(str(found))
        typer.echo("This is the code that is installed here; it says nothing about a set from another party.")
        holds = found.holds
    elif suffix == ".safetensors":
        refuse_unused({**of_mechanism, **of_scores, "--delta": delta}, "on the audit of a set")
        from apps.privacy.auditing.evidence import evidence
        from distill.condensed import CondensedSet

        seen = evidence(CondensedSet.load(target), releases, sure)
        typer.echo("\n".join(clipped(line, 2000) for line in str(seen).splitlines()))
        holds = seen.holds
    elif suffix in (".npz", ".csv", ".tsv"):
        refuse_unused({"--releases": releases, **of_mechanism}, "on the audit of scores")
        from apps.privacy.audit import report

        lines, holds = report(target, of_delta, 0.95 if confidence is None else confidence, claimed, one_run=one_run)
        typer.echo("\n".join(lines))
    else:
        raise InputError(f"{clipped(target)!r}; allowed: a condensed set (.safetensors), scores (.npz, .csv), or nothing: the mechanism.")
    if not holds:
        raise typer.Exit(1)
