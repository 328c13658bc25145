#!/usr/bin/env bash
# Every table and figure; a merge that several tables share is made once. --help tells the options.
#   bash scripts/paper/all.sh --models tiny            the whole of it on the tiny models, on a laptop
#   bash scripts/paper/all.sh --models DIR --dry_run   what it would take on this machine
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
PAPER_CELLS=$(mktemp)
export PAPER_CELLS
for table in performance dare ood adversarial alpha; do
    bash "$here/$table.sh"
done
listed=$PAPER_CELLS
unset PAPER_CELLS
source "$here/shared.sh"
cells_file=$listed
run_cells "$@"
