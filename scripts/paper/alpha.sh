#!/usr/bin/env bash
# M3 at several α: LM & Math, averaged. The table has every draw beside mean and spread: α changes how far λ strays.
# A search for the best λ is another thing; it needs examples that no table is made of.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/shared.sh"
table=alpha

merge="--merge_instruct --merge_math --merging_method_name average_merging"
cell merge_llms_instruct_math_code.py $merge
for alpha in 0.2 0.5 1 2 5; do
    for seed in $SEEDS; do
        cell merge_llms_instruct_math_code.py $merge --mixup --alpha $alpha --seed $seed
    done
done
run_cells "$@"
