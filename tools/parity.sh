#!/usr/bin/env bash
# Models and tokenizers against transformers, both ways, from a fresh clone: bash tools/parity.sh [flags of pytest]
# torch and transformers have an environment of their own, .venv-parity, and never share a process with jax.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

export PARITY_PYTHON="$PWD/.venv-parity/bin/python"
requirements=tests/parity/reference/requirements.txt
parity_stamp="$(cat "$requirements" tools/parity.sh | cksum)"
if [ "$(cat .venv-parity/stamp 2>/dev/null)" != "$parity_stamp" ]; then
    echo "Installing the packages of $requirements into .venv-parity; the first time takes a few minutes."
    "$(find_python)" -m venv --clear .venv-parity
    "$PARITY_PYTHON" -m pip install --disable-pip-version-check --quiet --requirement "$requirements"
    echo "$parity_stamp" > .venv-parity/stamp
fi

PARITY_REFERENCES="$(mktemp -d)"
export PARITY_REFERENCES
trap 'rm -rf "$PARITY_REFERENCES"' EXIT
echo 'Writing the references.'
$PYTHON -m tests.parity.packages "$PARITY_REFERENCES/real"
OMP_NUM_THREADS=1 "$PARITY_PYTHON" -m tests.parity.reference.write "$PARITY_REFERENCES" &
OMP_NUM_THREADS=1 "$PARITY_PYTHON" -m tests.parity.reference.real "$PARITY_REFERENCES/real"
wait $!

# By file: the tests of a file share what they compile.
$PYTHON -m pytest tests/parity -n 2 --dist loadfile "$@"
