"""The engine: prompts in, answers out, from any number of threads (docs/requests.md)."""

from __future__ import annotations

import atexit
import importlib
import json
import os
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any, Iterator, NamedTuple, Optional, Sequence, Type, Union

from ._errors import InvalidArgumentError, UnsupportedError

if TYPE_CHECKING:
    from . import _engine
else:

    class _Later:
        """The extension of the engine, loaded when it is first asked for something: it is large, and who wants
        boundaries alone needs none of it."""

        def __getattr__(self, name: str) -> Any:
            try:
                module = importlib.import_module("tenon._engine")
            except ImportError as error:
                raise UnsupportedError(
                    f"the engine cannot be loaded: {error}; accepted: a build with the engine, and the libraries "
                    "that it was linked with"
                ) from error
            globals()["_engine"] = module
            return getattr(module, name)

    _engine = _Later()

Message = dict[str, Any]  # "role", "content", and what else the chat template looks at
TokenLogprobs = tuple[float, list[tuple[int, float]]]  # of the token itself, and of the likeliest ids


class Sampling(NamedTuple):
    """How tokens are drawn; values are checked where a request is made."""

    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    max_tokens: int = 256
    seed: int = 0
    ignore_eos: bool = False
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Sequence[tuple[int, float]] = ()
    min_tokens: int = 0
    logprobs: int = -1  # how many of the likeliest ids are told with every token; -1: none at all


class Outcome(NamedTuple):
    """How a request ended. finish_reason is a name of FinishReason in tenon/serve/request.h."""

    finish_reason: str
    stop: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    first_token_seconds: Optional[float]
    seconds_per_token: Optional[float]


class Completion(NamedTuple):
    """A whole answer."""

    text: str
    tokens: list[int]
    logprobs: list[TokenLogprobs]
    outcome: Outcome


class Part(NamedTuple):
    """What has come since the last part; tokens may be ahead of the text. The last one has the outcome."""

    text: str
    tokens: list[int]
    logprobs: list[TokenLogprobs]
    outcome: Optional[Outcome]


class Reply:
    """An answer as it comes: iterate it once, or complete() it. Leaving it before its end cancels it."""

    def __init__(self, raw: _engine.Reply) -> None:
        self._raw = raw

    def __iter__(self) -> Iterator[Part]:
        try:
            while True:
                text, tokens, logprobs, told = self._raw.wait()
                outcome = None if told is None else Outcome(**told)
                yield Part(text, tokens, logprobs, outcome)
                if outcome is not None:
                    return
        finally:
            self._raw.cancel()  # an ended request keeps its outcome

    def complete(self) -> Completion:
        """Waits for all of it. Raises what ended the request where it failed."""
        texts: list[str] = []
        tokens: list[int] = []
        logprobs: list[TokenLogprobs] = []
        outcome: Optional[Outcome] = None
        for part in self:
            texts.append(part.text)
            tokens += part.tokens
            logprobs += part.logprobs
            outcome = part.outcome
        assert outcome is not None
        return Completion("".join(texts), tokens, logprobs, outcome)

    def cancel(self) -> None:
        """Asks for the end, from any thread."""
        self._raw.cancel()


_open: "weakref.WeakSet[Engine]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for engine in list(_open):
        if engine._process == os.getpid():
            engine.close()


class Engine:
    """A checkpoint, opened with `tp` ranks that are threads of this process. Any thread may call.

    model:       directory of the checkpoint
    target:      "cuda", "hip" or "cpu"; None: "cuda" or "hip" where there is such a device, else "cpu"
    max_batch:   sequences that run together
    max_context: prompt and answer of one sequence, in tokens
    cache_tokens: tokens of the kv cache; -1: what a device has room for; 0: max_batch * max_context
    deadline:    the longest that a rank waits for another one, in seconds
    """

    def __init__(
        self,
        model: Union[str, "os.PathLike[str]"],
        *,
        tp: int = 1,
        target: Optional[str] = None,
        max_batch: int = 16,
        max_context: int = 4096,
        max_tokens_per_step: int = 256,
        cache_tokens: int = -1,
        prefix_states: int = 16,
        max_queued: int = 1024,
        transport: str = "auto",
        deadline: float = 30.0,
    ) -> None:
        if target is None:
            from ._communicator import default_target

            target = default_target()
        self._process = os.getpid()
        self._raw = _engine.Engine.open(
            os.fspath(model), tp, target, max_batch, max_context, max_tokens_per_step, cache_tokens,
            prefix_states, max_queued, transport, round(deadline * 1000),
        )
        _open.add(self)

    def submit(
        self,
        prompt: Union[str, Sequence[int]],
        sampling: Sampling = Sampling(),
        *,
        stop: Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        skip_special: bool = True,
    ) -> Reply:
        """Queues a text to be continued as it is, or token ids. Does not wait."""
        drawn = _engine.sampling(*sampling)
        stops, ends = _stops(stop), list(stop_ids)
        if isinstance(prompt, str):
            return Reply(self._raw.submit_text(prompt, drawn, stops, ends, skip_special))
        return Reply(self._raw.submit_ids(list(prompt), drawn, stops, ends, skip_special))

    def submit_chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling = Sampling(),
        *,
        tools: Optional[Sequence[dict[str, Any]]] = None,
        enable_thinking: Optional[bool] = None,
        stop: Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        skip_special: bool = True,
    ) -> Reply:
        """Queues a conversation, rendered by the checkpoint's template. Does not wait."""
        chat = _chat(messages, tools, enable_thinking)
        drawn = _engine.sampling(*sampling)
        return Reply(self._raw.submit_chat(chat, drawn, _stops(stop), list(stop_ids), skip_special))

    def generate(
        self,
        prompts: Sequence[Union[str, Sequence[int]]],
        sampling: Sampling = Sampling(),
        *,
        stop: Sequence[str] = (),
        stop_ids: Sequence[int] = (),
    ) -> list[Completion]:
        """Answers to all prompts, which run together. Each is what it would be alone."""
        if isinstance(prompts, str):
            raise InvalidArgumentError("prompts is one text; accepted: a list of texts or of lists of token ids")
        replies = [self.submit(prompt, sampling, stop=stop, stop_ids=stop_ids) for prompt in prompts]
        return [reply.complete() for reply in replies]

    def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling = Sampling(),
        *,
        tools: Optional[Sequence[dict[str, Any]]] = None,
        enable_thinking: Optional[bool] = None,
        stop: Sequence[str] = (),
    ) -> Completion:
        """The answer to a conversation."""
        return self.submit_chat(
            messages, sampling, tools=tools, enable_thinking=enable_thinking, stop=stop
        ).complete()

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Optional[Sequence[dict[str, Any]]] = None,
        enable_thinking: Optional[bool] = None,
    ) -> str:
        """The text that a conversation becomes, with the answer about to begin."""
        return self._raw.render(_chat(messages, tools, enable_thinking))

    def encode(self, text: str) -> list[int]:
        return self._raw.encode(text)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return self._raw.decode(list(ids), skip_special)

    @property
    def counts(self) -> dict[str, int]:
        """Requests so far: accepted is the sum of queued, running, finished, failed and cancelled."""
        return self._raw.counts()

    @property
    def max_context(self) -> int:
        return self._raw.max_context()

    @property
    def max_batch(self) -> int:
        return self._raw.max_batch()

    def health(self) -> None:
        """Raises why the engine is dead, if it is."""
        self._raw.health()

    def close(self) -> None:
        """Ends every request as "stopped" and gives devices and memory back."""
        self._raw.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()


def _chat(
    messages: Sequence[Message], tools: Optional[Sequence[dict[str, Any]]], enable_thinking: Optional[bool]
) -> _engine.ChatPrompt:
    try:
        texts = json.dumps(messages), json.dumps(tools)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"messages and tools: {error}; accepted: what JSON can hold"
        ) from error
    return _engine.chat_prompt(*texts, enable_thinking)


def _stops(stop: Sequence[str]) -> list[str]:
    return [stop] if isinstance(stop, str) else list(stop)
