"""Block arithmetic: compiled for the CPU, torch for GPUs."""
