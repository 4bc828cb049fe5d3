"""The evaluation networks of a command: names, or import paths of a user's own."""

from collections.abc import Sequence


def check_networks(names: Sequence[str], command: str) -> None:
    """Register a user's own networks, whose files are in the current folder. Raises `InputError` for an unknown name."""
    from distill.networks import check_name
    from scenarios.engine import own

    own.register(own.Places(networks=(("evaluation", "networks"),)), {"evaluation": {"networks": list(names)}}, command)
    for name in names:
        check_name(name)
