#!/usr/bin/env bash
# The performance drop of each pair under attacks on the prompts of sst2 and cola, with M3 and without.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" adversarial "$@"
