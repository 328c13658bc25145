"""External evaluators: running the programs that models write, away from everything else."""
