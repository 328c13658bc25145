#!/usr/bin/env bash
# All tables and figures of the paper; a merge that several tables share is made once. See --help.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" performance dare ood adversarial alpha "$@"
