#!/usr/bin/env bash
# Each pair on the LiveBench questions that neither of its models was tuned for, without M3 and with it.
# The published figure does not say which method its merges are of: here it is averaging; add to the list for others.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/shared.sh"
table=ood

# ask MERGE TASK: the release of LiveBench that the paper used.
ask() {
    cell_of_merge "$1" ood_robust_inference.py --load_model_path MERGED --evaluate_task $2 --livebench_release 2024-11-25
}

for method in average_merging; do
    for drawn in "" $SEEDS; do
        merge="--merging_method_name $method${drawn:+ $M3 --seed $drawn}"
        ask "--merge_math --merge_code $merge" instruction_following
        ask "--merge_instruct --merge_math $merge" coding
        ask "--merge_instruct --merge_code $merge" typos
    done
done
run_cells "$@"
