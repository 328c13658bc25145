"""External evaluators, one file each; generated programs run in guard.py, away from everything else."""
