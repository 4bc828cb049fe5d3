"""The commands of ``distill``, one file each. Heavy imports stay inside the functions, so that ``--help`` is quick."""
