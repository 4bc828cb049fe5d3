"""``distill attack`` and ``distill audit``: what a model, a set or a mechanism reveals."""
