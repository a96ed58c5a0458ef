"""Trains the tiny Qwen3.5 MoE on generated word problems (and a share of GSM8K's training problems).

    python tools/tiny/train.py --seconds 500 --gsm8k gsm8k_train.jsonl --out BF16_FOLDER

Every text is what chat_template.jinja renders; the loss is taken on the answers.  Float32 weights with bf16 autocast, AdamW,
and a learning rate that warms up and then falls linearly to zero over the given wall time.  With the `fla` package
installed, `transformers` uses its kernels for the gated delta rule (see delta_rule.py); without, its slow reference.
"""

import argparse
import multiprocessing
import random
import time

import numpy as np
import torch

import delta_rule  # before the model classes
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as modeling

import gsm8k
import problems
from checkpoint import build_model, release_tensors, write_tensors
from shape import END_OF_TEXT, TINY

IGNORED = -100
WIDTH_STEP = 64  # batches are padded to a multiple of the delta rule's chunk
CHUNK = 4096  # problems drawn, sorted by length and cut into batches together
MAX_TOKENS = 512
PROMPT = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
ANSWER = "{answer}<|im_end|>\n"
EARLIER_TURN = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
SYSTEM = ["You are a helpful assistant.", "Solve the problem step by step.", "You are a patient math teacher.",
          "End your answer with #### and the number."]


# Data --------------------------------------------------------------------------------------------------------------

def render(rng, problem, earlier):
    """Prompt and answer text; now and then with a system turn or an earlier problem in front."""
    prompt = PROMPT.format(question=problem.question)
    if rng.random() < 0.05:
        prompt = EARLIER_TURN.format(question=earlier.question, answer=earlier.answer) + prompt
    if rng.random() < 0.1:
        prompt = f"<|im_start|>system\n{rng.choice(SYSTEM)}<|im_end|>\n{prompt}"
    return prompt, ANSWER.format(answer=problem.answer)


def check_rendering(folder):
    """The strings above are what the chat template of the checkpoint renders."""
    template = AutoTokenizer.from_pretrained(folder).apply_chat_template
    one, two = {"question": "How many?", "answer": "1 + 1 = 2.\n#### 2"}, {"question": "And now?", "answer": "#### 3"}
    turns = [{"role": "user", "content": one["question"]}, {"role": "assistant", "content": one["answer"]},
             {"role": "user", "content": two["question"]}]
    earlier = EARLIER_TURN.format(**one)
    assert template(turns, tokenize=False, add_generation_prompt=True) == earlier + PROMPT.format(**two)
    turns.append({"role": "assistant", "content": two["answer"]})
    assert template(turns, tokenize=False) == earlier + PROMPT.format(**two) + ANSWER.format(**two)


class Batches:
    """Makes the batches of one chunk; one instance lives in each worker process."""

    def __init__(self, folder, gsm8k_path, gsm8k_share, tokens_per_batch):
        self.tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        self.real = gsm8k.read(gsm8k_path) if gsm8k_path else []
        self.real_count = int(CHUNK * gsm8k_share) if self.real else 0
        self.tokens_per_batch = tokens_per_batch

    def __call__(self, chunk):
        rng = random.Random(chunk)
        drawn = problems.problems(chunk, CHUNK - self.real_count, held_out=False) + rng.choices(self.real, k=self.real_count)
        texts = [render(rng, problem, rng.choice(drawn[:100])) for problem in drawn]
        prompts = self.tokenizer.encode_batch_fast([prompt for prompt, _ in texts])
        answers = self.tokenizer.encode_batch_fast([answer for _, answer in texts])
        rows = [(p.ids, a.ids) for p, a in zip(prompts, answers) if len(p.ids) + len(a.ids) <= MAX_TOKENS]
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        batches = []
        while rows:
            width = -(-(len(rows[-1][0]) + len(rows[-1][1])) // WIDTH_STEP) * WIDTH_STEP
            count = max(1, self.tokens_per_batch // width)
            batches.append(pad(rows[-count:], width))
            del rows[-count:]
        return batches


def pad(rows, width):
    """Token ids and labels, padded on the right."""
    ids = np.full((len(rows), width), END_OF_TEXT, np.int16)
    labels = np.full((len(rows), width), IGNORED, np.int16)
    for i, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[i, :end] = prompt + answer
        labels[i, len(prompt):end] = answer
    return ids, labels


def make_in_worker(chunk):
    return worker_batches(chunk)


def start_worker(*arguments):
    global worker_batches
    worker_batches = Batches(*arguments)


def batch_stream(workers, arguments):
    """Endless batches in shuffled order, made by `workers` processes ahead of their use."""
    rng = random.Random(0)
    with multiprocessing.get_context("spawn").Pool(workers, start_worker, arguments) as pool:
        pending, chunk = [], 0
        while True:
            while len(pending) < 2 * workers:
                pending.append(pool.apply_async(make_in_worker, (chunk,)))
                chunk += 1
            ready = pending.pop(0).get() + pending.pop(0).get()
            rng.shuffle(ready)
            yield from ready


# Model -------------------------------------------------------------------------------------------------------------

def dense_experts(self, hidden_states, top_k_index, top_k_weights):
    """All experts on all tokens, weighted by the routing: for a handful of experts this is faster than gathering."""
    weights = torch.zeros(len(hidden_states), self.num_experts, dtype=top_k_weights.dtype, device=hidden_states.device)
    weights = weights.scatter(1, top_k_index, top_k_weights)
    gate, up = torch.einsum("th,eih->eti", hidden_states, self.gate_up_proj).chunk(2, dim=-1)
    y = torch.einsum("eti,ehi->eth", self.act_fn(gate) * up, self.down_proj)
    return torch.einsum("eth,te->th", y, weights.to(y.dtype)).to(hidden_states.dtype)


def shifted_conv(hidden_states, weight, bias=None, activation=None, **_):
    """The causal depthwise convolution as four shifted products (depthwise bf16 kernels of cuDNN train slowly)."""
    x = hidden_states.transpose(1, 2)  # [batch, time, channel], contiguous
    length, taps = x.shape[1], weight.shape[-1]
    padded = F.pad(x, (0, 0, taps - 1, 0))
    weight = weight.to(x.dtype)
    out = sum(padded[:, tap:tap + length] * weight[:, tap] for tap in range(taps))
    return F.silu(out).transpose(1, 2)


def fused_norm(self, x):
    """Qwen3_5MoeRMSNorm.forward in one kernel."""
    with torch.autocast(x.device.type, enabled=False):
        return F.rms_norm(x, x.shape[-1:], (1.0 + self.weight).to(x.dtype), self.eps)


def fused_gated_norm(self, hidden_states, gate):
    """Qwen3_5MoeRMSNormGated.forward in a few kernels."""
    with torch.autocast(gate.device.type, enabled=False):
        normed = F.rms_norm(hidden_states, hidden_states.shape[-1:], self.weight.to(hidden_states.dtype), self.variance_epsilon)
        return normed * F.silu(gate)


def use_training_kernels(model, device):
    """Faster equivalents of what the model classes compute."""
    ALL_EXPERTS_FUNCTIONS.register("dense", dense_experts)
    model.config._experts_implementation = "dense"
    model.config._attn_implementation = "sdpa"
    modeling.causal_conv1d_fn = shifted_conv
    modeling.Qwen3_5MoeRMSNorm.forward = fused_norm
    modeling.Qwen3_5MoeRMSNormGated.forward = fused_gated_norm
    if device == "cuda" and not delta_rule.install(modeling):
        print("fla is not installed: training runs on the slow reference", flush=True)


def balance_loss(router_logits, top_k):
    """Mean over the layers of E * sum(share of tokens * mean probability), 1 * top_k when balanced."""
    losses = []
    for logits in router_logits:
        probability = logits.float().softmax(-1)
        chosen = torch.zeros_like(probability).scatter(1, probability.topk(top_k, -1).indices, 1.0)
        losses.append(logits.shape[-1] * (chosen.mean(0) * probability.mean(0)).sum())
    return torch.stack(losses).mean()


def optimiser(model, rate):
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)


def rate_factor(progress, warm_up=0.02):
    return min(progress / warm_up, (1 - progress) / (1 - warm_up))


def train(model, batches, seconds, peak_rate, device, log_every, save):
    top_k = TINY["text_config"]["num_experts_per_tok"]
    step, tokens, began, history = 0, 0, None, []
    optimise = optimiser(model, peak_rate)
    model.train()
    for ids, labels in batches:
        if step == 10 or began is None:  # the first steps compile kernels
            began, tokens = time.monotonic(), 0
        progress = (time.monotonic() - began) / seconds
        if progress >= 1:
            break
        for group in optimise.param_groups:
            group["lr"] = peak_rate * rate_factor(max(progress, 1e-3))
        ids = torch.from_numpy(ids).to(device, torch.long, non_blocking=True)
        labels = torch.from_numpy(labels).to(device, torch.long, non_blocking=True)
        with torch.autocast(device, torch.bfloat16):
            output = model(input_ids=ids, use_cache=False, output_router_logits=True)
        loss = F.cross_entropy(output.logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        (loss + 0.01 * balance_loss(output.router_logits, top_k)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimise.step()
        optimise.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + ids.numel()
        if step % 500 == 0:
            save()
        history.append(loss.detach())
        if step % log_every == 0:
            mean = torch.stack(history).mean().item()
            history.clear()
            spent = time.monotonic() - began
            print(f"step {step:6d}  {spent:6.1f} s  {tokens / 1e6:7.1f} M tokens  {tokens / spent / 1e3:6.0f} k/s  "
                  f"rate {optimise.param_groups[0]['lr']:.2e}  loss {mean:.4f}", flush=True)
    save()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--tokens-per-batch", type=int, default=32768)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokenizer", default="checkpoints/tiny")
    parser.add_argument("--gsm8k", help="gsm8k_train.jsonl")
    parser.add_argument("--gsm8k-share", type=float, default=0.05)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    check_rendering(args.tokenizer)
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    model = build_model(TINY, None, torch.float32, device)
    use_training_kernels(model, device)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters on {device}", flush=True)
    batches = batch_stream(args.workers, (args.tokenizer, args.gsm8k, args.gsm8k_share, args.tokens_per_batch))
    train(model, batches, args.seconds, args.rate, device, args.log_every,
          save=lambda: write_tensors(args.out, release_tensors(model, TINY), shard_bytes=12_000_000))


if __name__ == "__main__":
    main()
