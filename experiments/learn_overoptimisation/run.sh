#!/usr/bin/env bash
# One seed pushed past every bound, and once more with the guard: bash experiments/learn_overoptimisation/run.sh PARENTS SEED OUT
set -euo pipefail
parents=$1 seed=$2 out=$3
for window in 0 4; do
    python -m llm.main --config=configs/ppo.py --workdir="$out/window$window" --config.init_from="$(echo "$parents"/sft-*)" \
        --config.reward_from="$(echo "$parents"/reward-*)" --config.seed="$seed" --config.stop_step=60 \
        --config.kl_coef=0.0 --config.kl_budget=inf --config.gold_window="$window"
done
