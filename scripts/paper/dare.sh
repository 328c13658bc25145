#!/usr/bin/env bash
# M3 and DARE on LM & Code: neither, DARE, M3, both.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" dare "$@"
