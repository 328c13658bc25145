#!/usr/bin/env bash
# M3 at several α: LM & Math, averaged.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" alpha "$@"
