#!/usr/bin/env bash
# Pairs and the three, merged by each method, without M3 and with it: AlpacaEval, GSM8K, MATH, HumanEval, MBPP.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/shared.sh"
table=performance

for models in "${PAIRS[@]}" "$THREE"; do
    for method in "${METHODS[@]}"; do
        cell merge_llms_instruct_math_code.py $models --merging_method_name $method
        for seed in $SEEDS; do
            cell merge_llms_instruct_math_code.py $models --merging_method_name $method $M3 --seed $seed
        done
    done
done
run_cells "$@"
