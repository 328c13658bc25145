#!/usr/bin/env bash
# MergeBench: merges of five specialists against these, forgetting, cost. --models tiny: its shape on the tiny models.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" mergebench "$@"
