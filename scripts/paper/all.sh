#!/usr/bin/env bash
# Every table and figure; a merge that several tables share is made once. --help tells the options.
#   bash scripts/paper/all.sh --models tiny            the whole of it on the tiny models, on a laptop
#   bash scripts/paper/all.sh --models DIR --dry_run   what it would take on this machine
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/shared.sh"
for table in performance dare ood adversarial alpha; do
    PAPER_CELLS=$cells_file bash "$scripts_paper/$table.sh"
done
run_cells "$@"
