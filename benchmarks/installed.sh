#!/usr/bin/env bash
# What a tool's author gets: builds a wheel, installs it with [cpu] alone in an empty venv, says how large that is, and
# runs the code of docs/how-to/embedding.md there. Needs .venv (make test), pip's index, and nothing else.
# Usage: benchmarks/installed.sh [EXTRA...]     (default: cpu; "cpu cli" adds the command line)
set -euo pipefail
cd "$(dirname "$0")/.."
bar=200  # MB, promised for [cpu]
extras=$(IFS=,; echo "${*:-cpu}")
python=$PWD/.venv/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

pip() { "$work/venv/bin/python" -m pip --disable-pip-version-check "$@"; }

# A copy, because building leaves folders behind.
mkdir "$work/source"
cp -r pyproject.toml README.md LICENSE tl "$work/source"
"$python" -m venv "$work/venv"
pip wheel --quiet --no-deps --wheel-dir "$work" "$work/source"
wheel=$(ls "$work"/tl_toolkit-*.whl)
pip install --quiet "$wheel[$extras]"

site=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
size=$(du -sm --exclude='pip' --exclude='pip-*' --exclude='setuptools*' --exclude='_distutils_hack' --exclude='pkg_resources' "$site" | cut -f1)
pip list --format=freeze | grep -v '^pip=\|^setuptools=' | paste -sd' '
(cd "$site" && du -sm -- */ | sort -rn | head -8)
echo "installed [$extras]: $size MB (bar $bar), the wheel itself $(du -k "$wheel" | cut -f1) kB"

"$python" -m tests.docs.stage docs/how-to/embedding.md "$work/examples"
cd "$work/examples"
for example in *.py; do
  "$work/venv/bin/python" -W error "$example" > "$example.out" || { echo "FAILED: $example"; exit 1; }
  echo "runs: $example"
done
# Its types are found only if py.typed came with the wheel.
"$python" -m mypy --strict --python-executable "$work/venv/bin/python" --cache-dir "$work/mypy" ./*.py
[ "$extras" != cpu ] || [ "$size" -lt "$bar" ] || { echo "larger than $bar MB"; exit 1; }
