# What the scripts of the tables share: the merges of the paper, and how a cell is listed. Sourced by each of them.

# M3's draws, and DARE's masks. One draw is no result: tables show mean, spread and best of these.
SEEDS=${SEEDS:-"0 1 2"}
M3="--mixup --alpha 0.5"
DARE="--merging_method_name mask_merging --use_weight_rescale --weight_mask_rate 0.2"

PAIRS=("--merge_instruct --merge_math" "--merge_instruct --merge_code" "--merge_math --merge_code")
THREE="--merge_instruct --merge_math --merge_code"
METHODS=("average_merging" "task_arithmetic" "ties_merging")

scripts_paper=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -n "${PAPER_CELLS:-}" ]; then
    cells_file=$PAPER_CELLS
else
    cells_file=$(mktemp)
    trap 'rm -f "$cells_file"' EXIT
fi

# cell SCRIPT OPTIONS...: a call of an entry script. Same call, same cell: tables share it.
cell() {
    cell_of_merge "" "$@"
}

# cell_of_merge "OPTIONS OF THE MERGE" SCRIPT OPTIONS...: a call on a merged model; MERGED stands for its folder.
cell_of_merge() {
    printf '%s\t%s\t' "$table" "$1" >>"$cells_file"
    printf '%q ' "${@:2}" >>"$cells_file"
    printf '\n' >>"$cells_file"
}

# Run what was listed, then make the tables and figures: --help tells the options.
run_cells() {
    if [ -n "${PAPER_CELLS:-}" ]; then
        return # all.sh runs the cells of all tables together
    fi
    local typed_in=$PWD python=.venv/bin/python
    if [ -n "${PYTHON:-}" ]; then
        python=$(type -P "$PYTHON") || { echo "error: PYTHON=$PYTHON: no such program" >&2 && exit 2; }
        [[ $python = /* ]] || python=$typed_in/$python
    fi
    cd "$scripts_paper/../.."
    if [ ! -x "$python" ]; then
        python=$(type -P python3)
    fi
    "$python" -m scripts.paper_tables.run_cells --cells "$cells_file" --typed_in "$typed_in" "$@"
}
