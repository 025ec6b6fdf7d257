#!/usr/bin/env bash
# Makes .venv-peers: the packages of .venv, and those that the benchmarks compare with.
set -euo pipefail
cd "$(dirname "$0")/.."
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
[ -d .venv-peers ] || .venv/bin/python -m venv .venv-peers
echo "import site; site.addsitedir('$site')" > "$(.venv-peers/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tl.pth"
.venv-peers/bin/python -m pip install --disable-pip-version-check --quiet --no-deps -r benchmarks/requirements-peers.txt
