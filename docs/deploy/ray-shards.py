"""Runs one job on a Ray cluster: every shard is a task of Ray. Usage: ray-shards.py N ARGUMENT-OF-PIPELINE-RUN ..."""

import subprocess
import sys

import ray

AGAIN = (1, 7, 8, 143)
"""Exit codes after which another try may help: a fault of the machine or the endpoint, a lost try's lease, a stop."""


@ray.remote(num_cpus=1, max_retries=3, retry_exceptions=True)
def shard(index: int, count: int, arguments: list[str]) -> int:
    """The exit code of a shard; raises if another try is worth it."""
    command = ["pipeline", "run", *arguments, "--shard", f"{index}/{count}"]
    code = subprocess.run(command, check=False).returncode
    if code in AGAIN:
        raise RuntimeError(f"shard {index}/{count} ended with {code}")
    return code


def main() -> int:
    """The highest exit code of all shards."""
    count, arguments = int(sys.argv[1]), sys.argv[2:]
    ray.init()
    return max(ray.get([shard.remote(index, count, arguments) for index in range(count)]))


if __name__ == "__main__":
    sys.exit(main())
