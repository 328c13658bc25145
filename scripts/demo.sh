#!/usr/bin/env bash
# From nothing to a table on any machine: bash scripts/demo.sh [--output_dir DIR]
# Makes .venv if needed, merges the tiny models with and without M3, runs the five tasks, scores, prints.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup_env.sh
exec .venv/bin/python scripts/run_demo.py "$@"
