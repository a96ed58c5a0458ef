"""Reference logits and greedy answers from `transformers`, for the tests of an engine.

    python tools/tiny/goldens.py                # tests/data/goldens/<model>/: config.json, logits.safetensors, summary.json
    python tools/tiny/goldens.py --greedy 50    # tests/data/goldens/tiny/greedy.json

The logits are computed on the CPU.  What the files hold is written down in tests/data/goldens/README.md.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeTopKRouter

from checkpoint import build_model, quantised_modules, read_config, read_tensors
from evaluate import greedy, load, read_problems
from fakequant import quantise_inputs
from random_weights import random_tensors, splitmix64
from shape import BASE_TOKENS, RANDOM

TINY = Path("checkpoints/tiny")
GOLDENS = Path("tests/data/goldens")
LENGTHS = (1, 2, 3, 63, 64, 65, 200)
DECODE_STEPS = 4
GREEDY_TOKENS = 160


def token_ids(start, count, limit):
    return torch.from_numpy((splitmix64(np.arange(start, start + count)) % np.uint64(limit)).astype(np.int64))


class Routing:
    """Records which experts every router chose, and by how much."""

    def __init__(self, model):
        self.chosen, self.margins = [], []
        for module in model.modules():
            if isinstance(module, Qwen3_5MoeTopKRouter):
                module.register_forward_hook(self.record)

    def record(self, router, _, output):
        logits, _, indices = output
        ordered = logits.float().sort(-1, descending=True).values
        self.chosen.append(indices.sort(-1).values)
        self.margins.append(ordered[:, router.top_k - 1] - ordered[:, router.top_k])

    def take(self):
        """The choices and margins since the last call, over all layers and tokens."""
        taken = (torch.cat(self.chosen), torch.cat(self.margins)) if self.chosen else None
        self.chosen, self.margins = [], []
        return taken


@torch.no_grad()
def prefill_and_decode(model, length, limit):
    """Logits after the prompt and after each of the teacher-forced tokens: [1 + DECODE_STEPS, vocab]."""
    prompt = token_ids(1000 * length, length, limit)
    forced = token_ids(7777 + 1000 * length, DECODE_STEPS, limit)
    output = model(input_ids=prompt[None], use_cache=True, logits_to_keep=1)
    rows, cache = [output.logits[0, -1]], output.past_key_values
    for token in forced:
        rows.append(model(input_ids=token.view(1, 1), past_key_values=cache, use_cache=True).logits[0, -1])
    states = [layer.recurrent_states[0] for layer in cache.layers if hasattr(layer, "recurrent_states")]
    assert states and all(state.dtype == torch.float32 for state in states)
    assert cache.get_seq_length() == length + DECODE_STEPS
    return torch.stack(rows).float()


def run(config, tensors, dtype, quantise, limit):
    """Logits and routing for every prompt length."""
    model = build_model(config, tensors, dtype)
    if quantise:
        quantise_inputs(model, quantised_modules(tensors))
    routing = Routing(model)
    return {length: (prefill_and_decode(model, length, limit), routing.take()) for length in LENGTHS}


def rms(x):
    return x.double().pow(2).mean().sqrt().item()


def compare(exact, rounded, plain):
    """One entry of summary.json."""
    (a, routing_a), (b, routing_b), (c, _) = exact, rounded, plain
    entry = {
        "logits_std": a.std().item(),
        "bf16q_fp32q_rms": rms(b - a), "bf16q_fp32q_max": (b - a).abs().max().item(),
        "bf16q_fp32q_rms_of_each_row": [rms(row) for row in b - a],
        "fp32q_fp32_rms": rms(a - c), "fp32q_fp32_max": (a - c).abs().max().item(),
        "same_argmax": int((a.argmax(-1) == b.argmax(-1)).sum()),
    }
    if routing_a:
        entry["routings"] = len(routing_a[0])
        entry["routings_that_differ"] = int((routing_a[0] != routing_b[0]).any(-1).sum())
        entry["smallest_router_margin"] = routing_a[1].min().item()
    return entry


def samples(tensors):
    """The first values of a few tensors, to check a generator of random weights with."""
    shown = {}
    for name, value in tensors.items():
        kind = (value.dtype, name.rsplit(".", 2)[-2:][-1], value.ndim)
        shown.setdefault(kind, {name: {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape),
                                       "first": value.flatten()[:4].double().tolist()}})
    return {name: entry for group in shown.values() for name, entry in group.items()}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def write_goldens(name, config, tensors, limit):
    folder = GOLDENS / name
    folder.mkdir(parents=True, exist_ok=True)
    quantised = bool(quantised_modules(tensors))
    plain = run(config, tensors, torch.float32, False, limit)
    exact = run(config, tensors, torch.float32, True, limit) if quantised else plain
    rounded = run(config, tensors, torch.bfloat16, quantised, limit)
    logits = {}
    for length in LENGTHS:
        logits[f"fp32q.T{length}"] = exact[length][0].contiguous()
        logits[f"bf16q.T{length}"] = rounded[length][0].contiguous()
    save_file(logits, folder / "logits.safetensors")
    (folder / "logits.safetensors").chmod(0o644)
    summary = {"model": name, "tensors": len(tensors), "lengths": {
        str(length): compare(exact[length], rounded[length], plain[length]) for length in LENGTHS}}
    if name in RANDOM:
        summary["samples"] = samples(tensors)
        write_json(folder / "config.json", config)
    write_json(folder / "summary.json", summary)
    for length, entry in summary["lengths"].items():
        print(f"{name:13s} T={length:4s} std {entry['logits_std']:.3f}  bf16q-fp32q rms {entry['bf16q_fp32q_rms']:.5f} max "
              f"{entry['bf16q_fp32q_max']:.4f}  fp32q-fp32 rms {entry['fp32q_fp32_rms']:.5f}  routings that differ "
              f"{entry.get('routings_that_differ', 0)}/{entry.get('routings', 0)}", flush=True)


def write_greedy(count):
    model = load(TINY, torch.bfloat16, "cuda" if torch.cuda.is_available() else "cpu", quantise_activations=True)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    questions = [question for question, _ in read_problems(TINY / "eval.jsonl")[:count]]
    rows = greedy(model, tokenizer, questions, GREEDY_TOKENS, batch_size=count)
    (GOLDENS / "tiny").mkdir(parents=True, exist_ok=True)
    body = ",\n".join(json.dumps({"question": q, "token_ids": ids}) for q, ids in zip(questions, rows))
    (GOLDENS / "tiny" / "greedy.json").write_text(f"[\n{body}\n]\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one model instead of all")
    parser.add_argument("--greedy", type=int, metavar="N", help="instead: greedy answers to the first N problems")
    args = parser.parse_args()
    if args.greedy:
        write_greedy(args.greedy)
        return
    for name, config in RANDOM.items():
        if args.only in (None, name):
            write_goldens(name, config, random_tensors(config), limit=config["text_config"]["vocab_size"])
    if args.only in (None, "tiny"):
        write_goldens("tiny", read_config(TINY), read_tensors(TINY), limit=BASE_TOKENS)


if __name__ == "__main__":
    main()
