"""What a real llama.cpp computes: the likeliest next tokens, and texts that it writes.

    python benchmarks/llama_cpp_runner.py JOBS

Run by a Python that has ``xllamacpp``, which is a build of llama.cpp; nothing of idiolect
is imported. JOBS is a JSON file with a list of jobs: ``model``, ``adapter`` (a path, or
null), ``rows`` (token ids, and the place from which on the next token is asked for),
``prompts`` (token ids) and ``tokens`` (most new ones). Prints a JSON list with, for each
job, ``likeliest`` (tokens for each row) and ``written`` (a text for each prompt), all
greedy. `benchmarks/llama_cpp.py` uses it.
"""

import json
import sys
import urllib.request
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import xllamacpp  # type: ignore[reportMissingImports]

CONTEXT = 1024


def opened(model: str, adapter: str | None) -> Any:
    """Return a server on this machine of a model with an adapter on it."""
    params = xllamacpp.CommonParams()
    params.model.path, params.warmup, params.n_parallel = model, False, 1
    params.n_ctx = params.n_batch = params.n_ubatch = CONTEXT
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    if adapter:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    return xllamacpp.Server(params)


def completed(server: Any, ids: Sequence[int], tokens: int) -> dict[str, Any]:
    """Return what follows the ids: the likeliest token each time."""
    asked = {
        "prompt": list(ids),
        "n_predict": tokens,
        "temperature": 0.0,
        "top_k": 1,
        "repeat_penalty": 1.0,
        "return_tokens": True,
        "cache_prompt": True,
    }
    request = urllib.request.Request(
        f"{server.listening_address}/completion",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def likeliest(server: Any, ids: Sequence[int], start: int) -> list[int | None]:
    """Return the likeliest token behind each place from `start` on, but the last.

    None stands for one that the server does not tell.
    """
    found = (
        completed(server, ids[:end], 1)["tokens"] for end in range(start, len(ids))
    )
    return [tokens[0] if tokens else None for tokens in found]


def main() -> None:
    """Carry out the jobs of a file."""
    with open(sys.argv[1], encoding="utf-8") as file:
        jobs = json.load(file)
    done = []
    for job in jobs:
        server = opened(job["model"], job["adapter"])
        done.append(
            {
                "likeliest": [likeliest(server, *row) for row in job["rows"]],
                "written": [
                    completed(server, prompt, job["tokens"])["content"]
                    for prompt in job["prompts"]
                ],
            }
        )
        del server
    print(json.dumps({"build": f"xllamacpp {version('xllamacpp')}", "jobs": done}))


if __name__ == "__main__":
    main()
