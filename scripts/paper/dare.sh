#!/usr/bin/env bash
# LM & Code, the pair of the paper's figure: neither, DARE, M3, both. "Neither" and M3 are cells of performance.sh too.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/shared.sh"
table=dare

models="--merge_instruct --merge_code"
for method in "${METHODS[@]}"; do
    cell merge_llms_instruct_math_code.py $models --merging_method_name $method
    for seed in $SEEDS; do
        cell merge_llms_instruct_math_code.py $models $DARE --mask_apply_method $method --seed $seed
        cell merge_llms_instruct_math_code.py $models --merging_method_name $method $M3 --seed $seed
        cell merge_llms_instruct_math_code.py $models $DARE --mask_apply_method $method $M3 --seed $seed
    done
done
run_cells "$@"
