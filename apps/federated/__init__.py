"""Federated learning by condensed data: Flower clients that upload images, not weights. See README.md in this folder.

Flower is imported by the modules that need it only: `partition`, `wire`, `settings`, `condense`, `union` and `averaging` work without it.
"""
