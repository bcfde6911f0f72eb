#!/usr/bin/env bash
# What is done to runs on purpose, at full length: bash experiments/pod_faults/run.sh FOLDER [NAME ...]
# FOLDER gets a JSON file and a line of text for each NAME (all, without); those that are there stay.
set -euo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd); shift
cd "$(dirname "$0")/../.."
export JAX_PLATFORMS=cpu
missed=0
for name in ${*:-flips disk reshard kill anomalies preempt peers cost}; do
    if [[ -e "$folder/$name.json" ]]; then continue; fi
    echo "== $name"
    "${PYTHON:-python}" -m "tools.faults.$name" --workdir="$folder/work-$name" --json="$folder/$name.json" \
        2> "$folder/$name.log" | tee "$folder/$name.txt" || { echo "missed; see $folder/$name.log"; missed=1; }
done
exit $missed
