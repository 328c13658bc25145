#!/usr/bin/env bash
# Every method with one option tuned, against task arithmetic with a tuned coefficient. See docs/paper_tables.md.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" methods "$@"
