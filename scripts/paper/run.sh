#!/usr/bin/env bash
# bash scripts/paper/run.sh TABLE... [OPTIONS]: run the cells of these tables (scripts/paper_tables/cells.py).
# bash scripts/paper/run.sh mergebench [OPTIONS]: run MergeBench (scripts/mergebench/).
set -euo pipefail
working_folder=$PWD
variables=()
for name in PYTHON SEEDS SAFETY_EVAL_DIR; do
    [ -z "${!name:-}" ] || variables+=("$name=$(printf %q "${!name}")")
done
# Printed by a command that is interrupted.
MERGING_TYPED_COMMAND="${variables[*]:+${variables[*]} }bash $(printf '%q ' "${BASH_SOURCE[0]}" "$@")"
export MERGING_TYPED_COMMAND
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=.venv/bin/python
if [ -n "${PYTHON:-}" ]; then
    python=$(cd "$working_folder" && type -P "$PYTHON") || { echo "error: PYTHON=$PYTHON: no such program" >&2 && exit 2; }
    [[ $python = /* ]] || python=$working_folder/$python
elif [ ! -x "$python" ]; then
    python=$(type -P python3)
fi
module=scripts.paper_tables.run_cells
if [ "${1:-}" = mergebench ]; then
    module=scripts.mergebench.run
    shift
fi
exec "$python" -m "$module" --working_folder "$working_folder" "$@"
