#!/usr/bin/env bash
# Runs EVALUATION with ARGUMENTS, one a line, and writes the outputs of the step. Ends with 0: the last step of the action ends
# with the exit code, when the comment is written and the answers are kept. Summary and annotations are the command's own.
set -euo pipefail
: "${EVALUATION:?}" "${ARGUMENTS=}"

arguments=()
while IFS= read -r argument; do
    argument=${argument%$'\r'}
    [[ -z $argument ]] || arguments+=("$argument")
done <<<"$ARGUMENTS"

result=$RUNNER_TEMP/pipeline-eval.json
code=0
pipeline eval "$EVALUATION" --quiet --json ${arguments[@]+"${arguments[@]}"} >"$result" || code=$?
cat "$result"

# A line that a value could not have ended, so that no value of the file adds an output of its own.
python - "$code" "$result" >>"$GITHUB_OUTPUT" <<'PYTHON'
import json
import sys

code, path = sys.argv[1:]
try:
    found = json.loads(open(path, encoding="utf-8").read())
except ValueError:
    found = {}
finished = "gates" in found
values = {
    "exit-code": code,
    "passed": json.dumps(found["passed"]) if finished else "",
    "row-correct": found.get("measures", {}).get("row_correct", "") if finished else "",
    "cost-usd": found.get("cost_usd"),
    "output": found.get("output", "") if finished else "",
}
for name, value in values.items():
    print(f"{name}={' '.join(str('' if value is None else value).splitlines())}")
PYTHON
