#!/usr/bin/env bash
# Lint the contract, and compare the generated code with what is committed. Run from the repository root.
set -euo pipefail
python="${PYTHON:-.venv/bin/python}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# buf can't fetch googleapis offline, so it lints a descriptor set that protoc made with them beside it.
"$python" scripts/gen_protos.py --descriptor-set "$work/contract.binpb"
buf="$(dirname "$python")/buf"
"$buf" lint "$work/contract.binpb" --config '{"version":"v2","lint":{"use":["STANDARD","COMMENTS"],"ignore":["google"]}}'
"$buf" format protos --diff --exit-code

"$python" scripts/gen_protos.py
if ! git diff --quiet -- chatmill/*/v1 || [ -n "$(git ls-files --others --exclude-standard -- 'chatmill/*/v1')" ]; then
  git --no-pager diff --stat -- chatmill/*/v1
  echo "The generated code differs from protos/. Run scripts/gen_protos.py and commit what it writes." >&2
  exit 1
fi
echo "contract: lint clean, format clean, generated code up to date"
