#!/usr/bin/env bash
# All four stages on real text, from a fresh clone: bash tools/quickstart.sh [flags of llm.main]
# Safe to run again: finished stages are found, and only the table is printed.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

flags=("$@")
# A default is given only where there is no such flag: absl refuses overrides (--config.KEY) under two --config.
case " $* " in *' --config='* | *' --config '*) ;; *) flags=(--config=configs/quickstart.py "${flags[@]}") ;; esac
case " $* " in *' --workdir='* | *' --workdir '*) ;; *) flags=(--workdir=runs/quickstart "${flags[@]}") ;; esac
exec $PYTHON -m llm.main "${flags[@]}"
