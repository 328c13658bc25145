#!/usr/bin/env bash
# How far attacks on the prompts of sst2 and cola lower each pair's accuracy, without M3 and with it.
# The published figure does not say which method, attack or set its bars are of: here it is averaging, each attack, each set.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/shared.sh"
table=adversarial

method=average_merging
for models in "${PAIRS[@]}"; do
    for drawn in "" $SEEDS; do
        merge="$models --merging_method_name $method${drawn:+ $M3 --seed $drawn}"
        for set in sst2 cola; do
            cell_of_merge "$merge" promptbench/$set.py --model_path MERGED --attack_method deepwordbug stresstest
            cell_of_merge "$merge" promptbench/$set.py --model_path MERGED --attack_method bertattack
        done
    done
done
run_cells "$@"
