#!/usr/bin/env bash
# Lint, then test, in .venv, which is made if needed: bash scripts/test.sh [--vllm] [pytest's arguments]
# --vllm installs vLLM too; then its tests are never skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

set_up=()
for_pytest=()
for argument in "$@"; do
    if [ "$argument" = --vllm ]; then
        set_up=(--vllm)
        export REQUIRE_VLLM=1
    else
        for_pytest+=("$argument")
    fi
done

bash scripts/setup_env.sh ${set_up[@]+"${set_up[@]}"}
.venv/bin/ruff check .
.venv/bin/ruff format --check .

failed=no
tested=no
run_tests() {
    local status=0
    .venv/bin/python -m pytest "$@" ${for_pytest[@]+"${for_pytest[@]}"} || status=$?
    case $status in
        0) tested=yes ;;
        1) tested=yes failed=yes ;;
        5) ;; # no selected test is of this kind
        *) exit $status ;;
    esac
}

# One single-threaded process per core: with more threads, torch's threads mostly wait for each other.
# vLLM's and Ray's tests run afterwards, one by one, because their workers use all cores.
OMP_NUM_THREADS=1 run_tests -m "not vllm and not alone" -n logical --maxprocesses 8 --dist loadfile
run_tests -m "vllm or alone"
if [ "$tested" = no ]; then
    echo "error: no test ran; check the names you gave" >&2
    exit 5
fi
[ "$failed" = no ]
