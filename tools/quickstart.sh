#!/usr/bin/env bash
# All four stages on real text, from a fresh clone: bash tools/quickstart.sh [flags of llm.main]
# Safe to run again: finished stages are found, and only the table is printed.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

# A default is given only where there is no such flag: absl refuses --config.KEY under two --config.
case " $* " in *' --config='* | *' --config '*) ;; *) set -- --config=configs/quickstart.py "$@" ;; esac
case " $* " in *' --workdir='* | *' --workdir '*) ;; *) set -- --workdir=runs/quickstart "$@" ;; esac
exec $PYTHON -m llm.main "$@"
