"""vLLM's OpenAI-compatible server with the plugin: requests at once, streams, cancellations, metrics."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.integrations.vllm.conftest import CACHE_BYTES, MOST_AT_ONCE, NUM_DRAFTED, environment

pytestmark = pytest.mark.with_vllm

NUM_STREAMS, NUM_TOKENS, NUM_CANCELLED = 8, 48, 3
START_SECONDS, ANSWER_SECONDS, STOP_SECONDS = (
    600,
    300,
    40,
)  # a minute's work, also on a machine that does other things beside


@pytest.fixture(scope="module")
def server(pair, tmp_path_factory, terminated_in_order) -> Iterator[str]:
    """Its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    speculative = {"method": "eagle", "model": pair["draft"], "num_speculative_tokens": NUM_DRAFTED}
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", pair["target"],
        "--served-model-name", "pair", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
        "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", str(MOST_AT_ONCE),
        "--kv-cache-memory-bytes", str(CACHE_BYTES), "--speculative-config", json.dumps(speculative),
    ]  # fmt: skip
    log_path = tmp_path_factory.mktemp("server") / "log"
    with log_path.open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment(NANOSPEC_VOCAB="hybrid:1024"), start_new_session=True
        )
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}", process, log_path)
            yield f"http://127.0.0.1:{port}"
        finally:
            end(process)
    assert "nanospec: InContextEagleLlamaForCausalLM drafts from at most 3072 of 131072 ids" in log_path.read_text()


def end(process: subprocess.Popen) -> None:
    """It ends when it is told to; whatever of its group is left does not stay."""
    process.terminate()
    try:
        process.wait(timeout=STOP_SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_until_healthy(address: str, process: subprocess.Popen, log_path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log_path.read_text()[-4000:]
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise TimeoutError(log_path.read_text()[-4000:])


def counter(address: str, name: str) -> float:
    text = urllib.request.urlopen(f"{address}/metrics", timeout=60).read().decode()
    return sum(float(value) for value in re.findall(rf"^vllm:spec_decode_{name}_total{{[^}}]*}} (\S+)$", text, re.M))


async def complete(client, prompt: list[int], cancel_after: int | None = None) -> str:
    """The text of one streamed completion, left after so many pieces if that is said."""
    stream = await client.completions.create(
        model="pair",
        prompt=prompt,
        max_tokens=NUM_TOKENS,
        temperature=0.0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    pieces: list[str] = []
    async for chunk in stream:
        pieces.append(chunk.choices[0].text)
        if cancel_after is not None and len(pieces) >= cancel_after:
            await stream.close()
            break
    return "".join(pieces)


def test_streams_at_once_with_some_cancelled_say_what_each_says_alone(server, prompts):
    from openai import AsyncOpenAI

    async def ask() -> tuple[list[str], list[str], list[str]]:
        async with AsyncOpenAI(
            base_url=f"{server}/v1", api_key="none", timeout=ANSWER_SECONDS, max_retries=0
        ) as client:
            alone = [await complete(client, prompt) for prompt in prompts[:2]]
            cancelled = [place >= NUM_STREAMS - NUM_CANCELLED for place in range(NUM_STREAMS)]
            at_once = await asyncio.gather(
                *(
                    complete(client, prompt, 2 if is_cut else None)
                    for prompt, is_cut in zip(prompts[:NUM_STREAMS], cancelled, strict=True)
                )
            )
            again = await asyncio.gather(*(complete(client, prompt) for prompt in prompts[:NUM_STREAMS]))
            return alone, at_once, again

    alone, at_once, again = asyncio.run(ask())
    kept = NUM_STREAMS - NUM_CANCELLED
    assert again[:2] == alone
    assert at_once[:kept] == again[:kept]
    for cut, whole in zip(at_once[kept:], again[kept:], strict=True):
        assert whole.startswith(cut)
        assert len(cut) < len(whole)
    assert counter(server, "num_drafts") > 0
    drafted, accepted = counter(server, "num_draft_tokens"), counter(server, "num_accepted_tokens")
    print(f"\nspec_decode metrics: {drafted:.0f} tokens drafted, {accepted:.0f} accepted")
    assert 0 < accepted < drafted
