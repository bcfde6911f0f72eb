#!/usr/bin/env bash
# Every ablation of one seed: bash experiments/learn_ablations/run.sh PARENTS SEED OUT
# PARENTS: the workdir of that seed's quickstart, whose own ppo and reward stages are the rows to compare with: PPO
# at the same step on the same validation prompts (its own figures, on test prompts, are left out), pairs on test pairs.
set -euo pipefail
parents=$1 seed=$2 out=$3
sft=$(echo "$parents"/sft-*) reward=$(echo "$parents"/reward-*)

ppo() {
    python -m llm.main --config="configs/ppo.py${variant:-}" --workdir="$out/$1" --config.init_from="$sft" \
        --config.reward_from="$reward" --config.seed="$seed" --config.stop_step=9 --config.figures.rows=0 "${@:2}"
}

ppo value_from_sft --config.value_from=sft
ppo no_whitening --config.whiten_advantages=False
ppo fixed_kl --config.kl_horizon=inf
ppo no_eos_penalty --config.missing_eos_penalty=0.0
variant=:ptx ppo ptx
python -m llm.main --config=configs/reward.py --workdir="$out/pairs" --config.init_from="$sft" --config.seed="$seed" \
    --config.ranked_answers=2 --config.batch_size=16
