"""Commands that train networks on a condensed set: ``evaluate`` and ``score``."""
