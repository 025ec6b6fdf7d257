#!/usr/bin/env bash
# Label Studio itself imports what `tl predict --to labelstudio` writes, and `tl convert` reads back what it exports.
# Needs the package index only. Makes .venv-labelstudio (1 GB); data and photos are in a temporary folder.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
venv=${LABEL_STUDIO_VENV:-.venv-labelstudio}
port=${PORT:-8931}
if [ ! -x "$venv/bin/label-studio" ]; then
  "$python" -m venv "$venv"
  nice -n 19 "$venv/bin/python" -m pip install --disable-pip-version-check --quiet label-studio==1.23.2
fi
work=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT
mkdir "$work/data" "$work/files"
# No telemetry and no look for updates; a token of its own; files below one folder only; SQLite in the temporary folder.
export COLLECT_ANALYTICS=False SENTRY_DSN= FRONTEND_SENTRY_DSN= LATEST_VERSION_CHECK=False DJANGO_DB=sqlite
export LABEL_STUDIO_BASE_DATA_DIR="$work/data" LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN=true
export LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT="$work/files"
token=$("$python" -c 'import secrets; print(secrets.token_hex(20))')
nice -n 19 "$venv/bin/label-studio" start --no-browser --internal-host 127.0.0.1 --port "$port" \
  --username check@example.com --password "$token" --user-token "$token" >"$work/server.log" 2>&1 &
server=$!
"$python" -m benchmarks.labelstudio "$work/files" "http://127.0.0.1:$port" "$token" || { tail -20 "$work/server.log"; exit 1; }
