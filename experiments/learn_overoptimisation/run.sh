#!/usr/bin/env bash
# One seed pushed past every bound (window 0), and once more with the guard (window 4):
# bash experiments/learn_overoptimisation/run.sh PARENTS SEED OUT
# PARENTS: the workdir of that seed's quickstart.
set -euo pipefail
parents=$1 seed=$2 out=$3
sft=$(echo "$parents"/sft-*) reward=$(echo "$parents"/reward-*)
for window in 0 4; do
    python -m llm.main --config=configs/ppo.py --workdir="$out/window$window" --config.init_from="$sft" \
        --config.reward_from="$reward" --config.seed="$seed" --config.gold_window="$window" \
        --config.stop_step=30 --config.eval_every_steps=2 --config.save_every_steps=10 --config.figures.rows=0 \
        --config.optim.learning_rate=3e-4 --config.kl_coef=0.0 --config.kl_budget=inf --config.min_distinct_share=0.0
done
