"""The applications: federated, continual, privacy, nas. Each uses the core and no other application."""
