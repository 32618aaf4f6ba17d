#!/usr/bin/env bash
# Installs the command: INSTALL is a requirement of pip, or `self` for the version that this action belongs to.
set -euo pipefail
if [[ $INSTALL == self ]]; then
    INSTALL="${GITHUB_ACTION_PATH}[eval]"
fi
python -m pip install --quiet --disable-pip-version-check "$INSTALL"
pipeline --version
