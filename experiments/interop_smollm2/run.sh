#!/usr/bin/env bash
# An import's cost, and speed beside transformers: bash experiments/interop_smollm2/run.sh WORKDIR
# WORKDIR must be new; after tools/parity.sh, whose environment is used.
set -euo pipefail
mkdir -p "$1"
python -m tests.parity.packages "$1/real"
gguf=("$1"/real/smollm2/*.gguf)
python -m experiments.interop_smollm2.import_cost "${gguf[0]}" "$1"
python -m llm.interop.export_hf "$1"/imported-* --to="$1/exported"
python -m experiments.interop_smollm2.speed "$1"/imported-* "$1/exported" "${PARITY_PYTHON:-.venv-parity/bin/python}"
python -m experiments.interop_smollm2.import_cost "$1/exported" "$1"
python -m experiments.interop_smollm2.import_cost llama3_2_1b "$1"
