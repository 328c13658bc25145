#!/usr/bin/env bash
# Pairs and all three models, merged by each method, with M3 and without: AlpacaEval, GSM8K, MATH, HumanEval, MBPP.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" performance "$@"
