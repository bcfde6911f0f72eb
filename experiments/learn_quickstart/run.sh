#!/usr/bin/env bash
# The quickstart's recipe from one seed: bash experiments/learn_quickstart/run.sh SEED WORKDIR [:long]
set -euo pipefail
seeds=()
for stage in pretrain sft reward ppo; do seeds+=("--config.stages.$stage.seed=$1"); done
python -m llm.main --config="configs/quickstart.py${3:-}" --workdir="$2" "${seeds[@]}"
