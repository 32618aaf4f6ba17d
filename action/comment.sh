#!/usr/bin/env bash
# Writes the result of EVALUATION as one comment on the pull request: the first run makes it, later ones replace its text.
# A pull request from a fork has a token that may not write: that is a warning, and no failure of the evaluation.
set -euo pipefail

number=$(python -c '
import json, os
event = json.load(open(os.environ["GITHUB_EVENT_PATH"], encoding="utf-8"))
print((event.get("pull_request") or {}).get("number", ""))
')
if [[ -z $number ]]; then
    echo "no comment: this is no run of a pull request"
    exit 0
fi

export MARKER="<!-- pipeline eval: ${EVALUATION//--/- -} -->"
body=$RUNNER_TEMP/pipeline-comment.md
{
    echo "$MARKER"
    if [[ -n $OUTPUT && -f $OUTPUT/_eval/summary.md ]]; then
        # A comment holds 65,536 characters.
        python -c 'import sys; print(open(sys.argv[1], encoding="utf-8").read()[:60000])' "$OUTPUT/_eval/summary.md"
    else
        echo "\`pipeline eval $EVALUATION\` did not finish: exit code $EXIT_CODE."
    fi
    echo
    echo "[Log]($GITHUB_SERVER_URL/$GITHUB_REPOSITORY/actions/runs/$GITHUB_RUN_ID)"
} >"$body"

comments=repos/$GITHUB_REPOSITORY/issues/$number/comments
# shellcheck disable=SC2016 # env.MARKER is read by the filter of gh
if ! found=$(gh api --paginate "$comments" --jq '.[] | select(.body | startswith(env.MARKER)) | .id'); then
    echo "::warning::the comments of the pull request cannot be read; the result is in the summary of the step"
    exit 0
fi
first=${found%%$'\n'*}
if [[ -n $first ]]; then
    sent=$(gh api --method PATCH "repos/$GITHUB_REPOSITORY/issues/comments/$first" --field "body=@$body" --jq .html_url) || sent=
else
    sent=$(gh api --method POST "$comments" --field "body=@$body" --jq .html_url) || sent=
fi
if [[ -n $sent ]]; then
    echo "comment: $sent"
else
    echo "::warning::the comment cannot be written (the job needs the permission pull-requests: write); the result is in the summary of the step"
fi
