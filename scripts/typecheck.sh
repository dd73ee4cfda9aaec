#!/usr/bin/env bash
# mypy needs one tree: build/typed/tasktok_edge links the package's files and the folders that are its subpackages.
set -euo pipefail
cd "$(dirname "$0")/.."
tree=build/typed/tasktok_edge
rm -rf build/typed && mkdir -p "$tree"
for part in tasktok_edge/* apps export quantize runtimes; do
    ln -s "$PWD/$part" "$tree/$(basename "$part")"
done
MYPYPATH=build/typed exec .venv/bin/mypy -p tasktok_edge
