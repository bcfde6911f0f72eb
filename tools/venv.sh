# Makes or refreshes .venv beside the sources; sourced by the other scripts, which then call $PYTHON.
# Nothing is done where the stamp in .venv matches setup.py, constraints.txt and this script.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=.venv/bin/python
stamp="$(cat setup.py constraints.txt tools/venv.sh | cksum)"

find_python() {  # 3.11 first: the versions in constraints.txt were tested with it
    local candidate
    for candidate in python3.11 python3.12 python3.13 python3; do
        if "$candidate" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo 'No Python >= 3.11 with venv was found; install one, e.g. the packages python3 and python3-venv.' >&2
    return 2
}

if [ "$(cat .venv/stamp 2>/dev/null)" != "$stamp" ]; then
    if ! $PYTHON -m pip --version >/dev/null 2>&1; then
        base="$(find_python)"
        echo "Making .venv with $("$base" --version)."
        "$base" -m venv --clear .venv
    fi
    echo 'Installing the packages of constraints.txt into .venv; the first time takes about a minute.'
    # No build isolation, and these two first: what installs and builds is pinned, too.
    for wanted in "pip setuptools" "--no-build-isolation --editable .[test]"; do
        $PYTHON -m pip install --disable-pip-version-check --constraint constraints.txt $wanted |
            grep --line-buffered -E '^(Collecting|Installing|Successfully)' || test "${PIPESTATUS[0]}" = 0
    done
    echo "$stamp" > .venv/stamp
fi
