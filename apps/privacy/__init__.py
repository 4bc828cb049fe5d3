"""Condensed sets with a differential-privacy guarantee, attacks on sets and models, and an audit of the guarantee itself."""

from apps.privacy.private_statistics import PrivateStatistics

__all__ = ["PrivateStatistics"]
