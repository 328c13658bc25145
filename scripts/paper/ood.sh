#!/usr/bin/env bash
# Each pair on the LiveBench questions that neither of its models was tuned for, with M3 and without.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" ood "$@"
