#!/bin/bash
# sbatch docs/deploy/slurm-array.sh
#SBATCH --job-name=extract-events
#SBATCH --array=0-3
#SBATCH --cpus-per-task=1
#SBATCH --mem=2G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@60
#SBATCH --output=logs/%x-%A-%a.log
set -u

# The batch shell gets SIGTERM 60 s before the time limit, and hands it on: the run drains, and ends with 143.
pipeline run jobs/extract_events.py \
    --input "s3://my-bucket/in/*.jsonl" \
    --output s3://my-bucket/out/events \
    --shard auto \
    --drain-timeout 40 \
    --quiet --json &
task=$!
trap 'kill -TERM "$task"' TERM
code=0
wait "$task" || code=$?
if kill -0 "$task" 2>/dev/null; then # the wait was ended by the signal, and the run is still draining
    code=0
    wait "$task" || code=$?
fi

# 143: stopped by the time limit. 7: the endpoint was down. Both are worth another start; it goes on where this one ended.
if ((code == 143 || code == 7)) && ((${SLURM_RESTART_COUNT:-0} < 5)); then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$code"
