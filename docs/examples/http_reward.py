"""A reward that asks a service over HTTP: a reward model, a judge, a test runner.

Async, so that a worker waits for many answers at a time (`rewards.concurrency`). Its own timeout is
shorter than `rewards.timeout` and raises: an answer that was not judged is left out, never counted as 0.
"""

import os

import aiohttp

from rlft import Invalid

KEY = os.environ.get(
    "JUDGE_KEY"
)  # there only if the configuration says rewards: {env: [JUDGE_KEY]}


class Judge:
    """url: where to post `{"prompt", "completion", "target"}`; answers `{"score": ...}`, or
    `{"refused": "why"}` for what cannot be judged; timeout: seconds for one answer."""

    def __init__(self, url: str, timeout: float = 5.0):
        self.url, self.timeout = url, aiohttp.ClientTimeout(total=timeout)
        self.session = None

    async def __call__(self, completion: str, task) -> float:
        if self.session is None:  # made in the event loop, once, and kept: connections are reused
            headers = {"Authorization": f"Bearer {KEY}"} if KEY else {}
            self.session = aiohttp.ClientSession(timeout=self.timeout, headers=headers)
        question = {"prompt": task.prompt, "completion": completion, "target": task.target}
        async with self.session.post(self.url, json=question) as response:
            response.raise_for_status()
            answer = await response.json()
        if "refused" in answer:
            raise Invalid(answer["refused"])
        return answer["score"]
