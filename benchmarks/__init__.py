"""Speed only: nothing here is a test."""
