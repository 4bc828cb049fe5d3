"""Ranking network architectures on condensed data, with the statistics that say whether the ranking can be trusted.

space.py (what is ranked), training.py and workers.py (many small networks at once), ledger.py (their results), proxies.py, zero_cost.py and
regression.py (cheap scores), ranking.py and compare.py (statistics), pictures.py, search.py (spaces too large to enumerate; Optuna).
"""
