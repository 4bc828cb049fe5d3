"""The Flower app: entry points only."""
