#!/usr/bin/env bash
# Lint, then test, in .venv, which is made if needed: bash scripts/test.sh [--vllm] [pytest's arguments]
# With --vllm the environment gets vLLM, and its tests must run instead of being left out where it is missing.
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
exec .venv/bin/python -m pytest ${for_pytest[@]+"${for_pytest[@]}"}
