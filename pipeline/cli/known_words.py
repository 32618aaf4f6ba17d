"""Options and commands of other tools and earlier releases, and their counterparts here."""

from __future__ import annotations

from collections.abc import Mapping

_PLAN = "`pipeline plan JOB.py` shows the requests, without sending any"
_CONVERT = "the output is a folder of Parquet files; `pipeline export OUTPUT --to FILE.csv` makes one file of it"
_FIELDS = "settings are fields of the job file; --set FIELD=VALUE changes one of them"

RENAMED_OPTIONS: Mapping[str, str] = {
    "--common": "--common-rows",
    "--grace": "--drain-timeout",
    "--hedge": "--hedge-share",
    "--nonce": "--unique-ids",
    "--token-life": "--token-lifetime",
}
"""Earlier names of options, accepted for one more release and not shown by --help, and the names that replace them."""

OPTIONS: Mapping[str, str] = {
    "--dry-run --dryrun --preview --plan --estimate --validate --check": _PLAN,
    "--where --filter --query --offset --skip --start --select --shuffle": (
        "filter the input first, as with duckdb -c \"COPY (SELECT ... WHERE ...) TO 'rows.parquet'\"; --limit N "
        "takes the first N rows"
    ),
    "--sample --head --first --max-rows --num-rows --nrows --samples": (
        "--limit N takes the first N rows; the same command without it continues with the others"
    ),
    "--max-failures --max-errors --error-threshold --allow-failures": (
        "`max_failed` is a field of the job: --set max_failed=0.05 allows 5 % of the rows to fail, --set "
        "max_failed=20 allows 20 rows"
    ),
    "--stop-on-error --exit-on-error --exitfirst --strict": "--set max_failed=0 stops the run at the first failed row",
    "--continue-on-error --ignore-errors --keep-going --skip-errors": (
        "--no-fail-fast asks every row, however many fail"
    ),
    "--rerun-failed --only-failed --failed-only --retry-errors --failed": "--retry-failed asks the failed rows again",
    "--max-time --time-limit --max-runtime --max-duration --timelimit": (
        "--deadline 2h stops a run after two hours; the same command resumes it"
    ),
    "--timeout --request-timeout --read-timeout --call-timeout": (
        "--set timeout_s=60 limits one try, --set row_timeout_s=300 a row with all of its tries"
    ),
    "--retries --max-retries --retry --max-attempts --num-retries --tries --backoff": (
        "--set attempts=N limits the tries of a row; --retry-failed asks failed rows again later"
    ),
    "--verbose -v -vv --debug --loglevel --log-file --log --logs --trace": (
        "--log-level debug logs every try on stderr (--quiet hides progress); `pipeline status OUTPUT` shows more "
        "about a run, `pipeline show OUTPUT` about its rows"
    ),
    "--no-progress --silent -s --no-bar --disable-progress": "--quiet (-q) hides the progress",
    "--config --config-file --conf --options": (
        "options are read from [tool.pipeline] of pyproject.toml and from PIPELINE_* variables: `pipeline config` "
        "shows them"
    ),
    "--settings --params --param --override": _FIELDS,
    "--env-file --env --dotenv": "read the file into the environment first: set -a; . ./.env; set +a",
    "--format --output-format --csv --parquet --jsonl --to-csv --compression": _CONVERT,
    "--partition-by --partitions --shards": (
        "files are taken in the order of the input; write partitions from the output afterwards"
    ),
    "--incremental --only-new --new-only --since": "--append asks the rows that the input has gained since the run",
    "--only-changed --update --upsert": (
        "--append asks the rows that the input has gained; with --cache, only changed rows are paid for"
    ),
    "--output-file --out --outdir --out-dir --output-dir --output-path --dest --output-folder": (
        "--output FOLDER (-o) names the output folder"
    ),
    "--input-file --in --data --file --files --source --dataset --inputs": (
        "--input FILE (-i) names the input; patterns in quotes"
    ),
    (
        "--workers -j --jobs --threads --parallel --parallelism --max-workers --num-workers --max-concurrency "
        "-w --async"
    ): "--concurrency N (-c) limits the calls in flight, --processes N shares the work among processes",
    "--batch-size --chunk-size --chunks": (
        "every row is one request; --concurrency N (-c) sets how many are in flight"
    ),
    "--resume --continue --restart --checkpoint --resume-from --checkpoint-dir --no-resume": (
        "the same command again resumes by itself; --fresh starts over"
    ),
    "--force -f --overwrite --clean --clobber --replace --reset --yes -y --exist-ok --rerun": (
        "--fresh starts over, and removes what the run wrote to its output folder"
    ),
    "--api-key --apikey --key --token --api-token --access-token --openai-api-key --secret": (
        "keys belong in the environment: OPENAI_API_KEY for a server of --base-url; Vertex AI takes Google "
        "credentials (--credentials FILE)"
    ),
    "--service-account --key-file --credentials-file --sa --adc": (
        "--credentials FILE takes Google credentials of any kind"
    ),
    "--rate --rps --qps --rate-limit --max-rps --throttle --max-rpm --delay": (
        "--rpm N limits requests per minute, --tpm N tokens per minute"
    ),
    "--budget --max-cost --cost-limit --max-usd --max-spend --max-price": (
        "--budget-usd 5 stops the run before it has spent 5 dollars, over all resumes"
    ),
    "--region --zone --regions --locations": "--location REGION names a location of Vertex AI; it may be repeated",
    "--endpoint --url --api-base --host --server --api-url --openai-base-url": "--base-url URL names another server",
    "--project-id --gcp-project --billing-project": "--project ID names the Google Cloud project",
    "--mock --fake --simulate --offline --test --local --emulator": (
        "--emulate uses the built-in emulator: no account, no cost"
    ),
    "--prompt --system-prompt --template --instructions -p": (
        "the prompt is in the job file: `user` and `system` (--set user='...' changes it)"
    ),
    "--model-name --llm --deployment --provider": ("`model` is --model (-m), as in google/gemini-3.5-flash-lite"),
    "--notify --webhook --slack --email --on-complete": (
        "the exit code and the line of --json report how a run ended, for the next command"
    ),
    "--watch --follow --progress --status": "`pipeline status OUTPUT` shows a run while it works",
    "--html --dashboard": "--report writes the report of the run",
}
"""What to type instead of an option, by words that are options elsewhere."""

COMMANDS: Mapping[str, str] = {
    "init new create generate scaffold setup": (
        "a job is a Python file with `job = Job(name=..., model=..., input=..., user=...)`; then `pipeline run "
        "FILE.py` (docs/jobs.md)"
    ),
    "start exec execute launch submit go process resume continue restart batch": (
        "`pipeline run JOB.py` runs a job; the same command again resumes it"
    ),
    "retry rerun retry-failed fix": "`pipeline run JOB.py --retry-failed` asks the failed rows again",
    "dry-run preview validate check estimate cost lint count schema": (
        "`pipeline plan JOB.py` shows the requests, without sending any, with an estimate of tokens and money"
    ),
    "logs log tail ps top watch progress monitor info stats jobs describe state": (
        "`pipeline status OUTPUT` shows the progress of a run, also while it works"
    ),
    "ls list runs history": "runs are folders below out/: `pipeline status out/NAME` shows one",
    "stop kill pause abort": (
        "Ctrl-C or `kill PID` ends a run after its calls in flight; `pipeline status OUTPUT` names the process"
    ),
    "view head cat inspect rows errors failures query sample failed debug print open": (
        "`pipeline show OUTPUT` shows rows with request and reply, `pipeline show OUTPUT --failed` only failed ones"
    ),
    "test evaluate evals score bench benchmark": "`pipeline eval FILE.py` runs an evaluation",
    "diff delta": "`pipeline compare BEFORE AFTER` compares two evaluated runs",
    "convert download results merge output": _CONVERT,
    "serve mock fake server emulator simulate": "`pipeline emulate` runs a local Vertex AI",
    "clean rm delete remove reset clear purge": (
        "--fresh starts a run over; to delete both run and output, remove the folder"
    ),
    "limit throttle set scale": "`pipeline tune OUTPUT rpm=300` changes the limits of a running job",
    "html dashboard ui page web": "`pipeline report OUTPUT` writes the report of a run",
    "login auth authenticate logout": "gcloud auth application-default login, or --credentials FILE",
    "configure settings env options profile": "`pipeline config` shows the value of every option, and where it is from",
    "help man docs commands": "`pipeline --help`, and `pipeline COMMAND --help`",
    "version": "`pipeline --version`",
}
"""Commands of other tools, and what to type instead."""
