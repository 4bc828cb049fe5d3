"""Ranking network architectures on condensed data, with the statistics that say whether the ranking can be trusted.

space.py (what is ranked), training.py and workers.py (many small networks at once), ray_pool.py (the same on Ray),
ledger.py (their results), zero_cost.py and regression.py (cheap scores), study.py (a ranking from start to end), ranking.py and compare.py
(statistics), pictures.py, search.py (spaces too large to enumerate; Optuna).
"""
