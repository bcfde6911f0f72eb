#!/usr/bin/env bash
# The whole suite, from a fresh clone: bash tools/test.sh [flags of pytest]
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

# By file: the tests of a file share what they compile.
exec $PYTHON -m pytest tests -n 2 --dist loadfile "$@"
