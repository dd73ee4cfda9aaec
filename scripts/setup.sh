#!/usr/bin/env bash
# Make .venv with the tested versions, once; again when pyproject.toml or constraints.txt changed.
set -euo pipefail
cd "$(dirname "$0")/.."
stamp=.venv/.installed
if [ ! -f "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ constraints.txt -nt "$stamp" ]; then
    python=${PYTHON:-python3.11}
    command -v "$python" >/dev/null || { echo "error: Python 3.11 is needed, '$python' is not here: set PYTHON to one" >&2; exit 2; }
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --upgrade pip
    # torch first and by its exact version: resolved together with the others, pip may take a CUDA build of several GB.
    .venv/bin/python -m pip install --quiet -c constraints.txt torch
    .venv/bin/python -m pip install --quiet -c constraints.txt -e ".[dev]"
    touch "$stamp"
fi
