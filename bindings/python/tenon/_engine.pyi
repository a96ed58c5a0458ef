from typing import Any, Optional, Sequence

Part = tuple[str, list[int], list[tuple[float, list[tuple[int, float]]]], Optional[dict[str, Any]]]

class Sampling: ...
class ChatPrompt: ...

def sampling(
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    max_tokens: int,
    seed: int,
    ignore_eos: bool,
    repetition_penalty: float,
    frequency_penalty: float,
    presence_penalty: float,
    logit_bias: Sequence[tuple[int, float]],
    min_tokens: int,
    logprobs: int,
) -> Sampling: ...
def chat_prompt(messages: str, tools: str, enable_thinking: Optional[bool]) -> ChatPrompt: ...

class Reply:
    def wait(self) -> Part: ...
    def cancel(self) -> None: ...

class Engine:
    @staticmethod
    def open(
        model: str,
        tp: int,
        target: str,
        max_batch: int,
        max_context: int,
        max_tokens_per_step: int,
        cache_tokens: int,
        prefix_states: int,
        max_queued: int,
        transport: str,
        deadline_ms: int,
    ) -> Engine: ...
    def submit_ids(
        self, ids: Sequence[int], sampling: Sampling, stops: Sequence[str], stop_ids: Sequence[int], skip_special: bool
    ) -> Reply: ...
    def submit_text(
        self, text: str, sampling: Sampling, stops: Sequence[str], stop_ids: Sequence[int], skip_special: bool
    ) -> Reply: ...
    def submit_chat(
        self,
        chat: ChatPrompt,
        sampling: Sampling,
        stops: Sequence[str],
        stop_ids: Sequence[int],
        skip_special: bool,
    ) -> Reply: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int], skip_special: bool) -> str: ...
    def render(self, chat: ChatPrompt) -> str: ...
    def counts(self) -> dict[str, int]: ...
    def health(self) -> None: ...
    def max_context(self) -> int: ...
    def max_batch(self) -> int: ...
    def close(self) -> None: ...
