#!/usr/bin/env bash
# bash scripts/paper/run.sh TABLE... [OPTIONS]: run the cells of these tables (scripts/paper_tables/cells.py).
set -euo pipefail
working_folder=$PWD
MERGING_TYPED_COMMAND="bash $(printf '%q ' "${BASH_SOURCE[0]}" "$@")" # printed by a command that is interrupted
export MERGING_TYPED_COMMAND
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=.venv/bin/python
if [ -n "${PYTHON:-}" ]; then
    python=$(cd "$working_folder" && type -P "$PYTHON") || { echo "error: PYTHON=$PYTHON: no such program" >&2 && exit 2; }
    [[ $python = /* ]] || python=$working_folder/$python
elif [ ! -x "$python" ]; then
    python=$(type -P python3)
fi
exec "$python" -m "${PAPER_MODULE:-scripts.paper_tables.run_cells}" --working_folder "$working_folder" "$@"
