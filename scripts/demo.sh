#!/usr/bin/env bash
# Set everything up, then export the shipped model for every target, run what runs here, and show table and picture.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
exec .venv/bin/tasktok-edge demo "$@"
