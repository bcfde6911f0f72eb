#!/usr/bin/env bash
# What pods need and allow, compiled ahead of time: bash experiments/plan_pods/run.sh FOLDER [NAME ...]
# FOLDER gets a JSON file a row, and table.md. NAMEs are rows to make (all, without); those that are there stay.
set -euo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd); shift
cd "$(dirname "$0")/../.."
wanted=" $* "

row() {  # name, then what tools.plan is given
  local name=$1; shift
  if [[ "$wanted" != "  " && "$wanted" != *" $name "* ]] || [[ -e "$folder/$name.json" ]]; then return; fi
  echo "== $name"
  # What does not fit is an answer, too, and has its JSON; without one, set -e ends here.
  "${PYTHON:-python}" -m tools.plan --json="$folder/$name.json" "$@" > "$folder/$name.txt" ||
    [[ -e "$folder/$name.json" ]]
}

pretrain=--config=configs/pretrain.py
row pretrain_8b_v5p-128 $pretrain:8b --pod=v5p-128
row pretrain_8b_v5e-256 $pretrain:8b --pod=v5e-256 --config.batch_size=1024 --config.seq_len=2048 --config.exec.mesh.data=16
row ppo_8b_v5p-128 --config=configs/ppo.py:8b --pod=v5p-128
row pretrain_70b_v5p-1024 $pretrain:70b --pod=v5p-1024
row pretrain_70b_2x_v5e-256 $pretrain:70b '--pod=2x v5e-256' --config.exec.mesh.data=2
row ppo_8b_v5e-256 --config=configs/ppo.py:8b --pod=v5e-256 --config.stages.pretrain.batch_size=1024 \
  --config.stages.pretrain.seq_len=2048 --config.stages.pretrain.exec.mesh.data=16
# Weak scaling: one row of 4,096 tokens a chip at 70B, four at 8B. From 512 chips on, each 256 hold all weights; of 8,960
# each 16 do, because jax lays no other mesh over 16 x 20 x 28 chips whose shards divide a model's width.
row weak_8b_64 $pretrain:8b --pod=v5p-128 --config.batch_size=256
row weak_70b_64 $pretrain:70b --pod=v5p-128 --config.batch_size=64
for sizes in 8960:16 512:256 2048:256; do
  chips=${sizes%:*} shards=${sizes#*:}
  mesh=(--config.exec.mesh.data=$((chips / shards)) --config.exec.mesh.fsdp=$shards
        "--config.exec.rules.embed=('fsdp', 'context')")
  row weak_8b_$chips $pretrain:8b --pod=v5p-$((chips * 2)) --config.batch_size=$((chips * 4)) "${mesh[@]}"
  row weak_70b_$chips $pretrain:70b --pod=v5p-$((chips * 2)) --config.batch_size=$chips "${mesh[@]}"
done
"${PYTHON:-python}" -m experiments.plan_pods.table "$folder" | tee "$folder/table.md"
