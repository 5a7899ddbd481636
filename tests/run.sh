#!/usr/bin/env bash
# Everything a change must pass: style, types, all tests. Sets up what it needs, in .venv of this checkout.
# Usage: bash tests/run.sh [arguments for pytest]
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "tests/run.sh: Python 3.11 or newer is needed; set PYTHON to one" >&2
    exit 1
fi
if [ ! -x .venv/bin/python ] && ! "$python" -m venv .venv; then
    echo "tests/run.sh: cannot make a virtual environment; install your system's python3-venv package" >&2
    rm -rf .venv
    exit 1
fi
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'

.venv/bin/ruff check .
.venv/bin/mypy
if [ $# -gt 0 ]; then
    exec .venv/bin/python -m pytest "$@"
fi
# Most of the time tests wait for processes, so two run at a time; what measures a share of the processors runs alone.
.venv/bin/python -m pytest -q -n 2 --dist worksteal -m "not alone"
exec .venv/bin/python -m pytest -q -m alone
