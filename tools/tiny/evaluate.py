"""Scores a checkpoint with `transformers`: greedy answers, exact match of the number after the last `####`.

    python tools/tiny/evaluate.py checkpoints/tiny --problems checkpoints/tiny/eval.jsonl --activations fp8 --out result.json

The checkpoint may be bf16 or FP8; FP8 weights are dequantised to the run's dtype.  `--activations fp8` also quantises the
inputs of the FP8 linears (see fakequant.py).  Prompts are what chat_template.jinja renders for one user turn.
"""

import argparse
import json
import time

import torch
from transformers import AutoTokenizer

import gsm8k
from checkpoint import build_model, quantised_modules, read_config, read_tensors
from fakequant import quantise_inputs
from shape import END_OF_TEXT, IM_END


def read_problems(path):
    """Questions and expected final numbers of an eval.jsonl or a GSM8K file."""
    with open(path) as lines:
        records = [json.loads(line) for line in lines]
    return [(r["question"], r.get("final") or gsm8k.final_number(r["answer"])) for r in records]


def same_number(a, b):
    try:
        return float(a) == float(b)
    except (TypeError, ValueError):
        return False


def load(folder, dtype, device, quantise_activations, config_from=None):
    tensors = read_tensors(folder)
    model = build_model(read_config(config_from or folder), tensors, dtype, device)
    if quantise_activations:
        quantise_inputs(model, quantised_modules(tensors))
    return model


@torch.no_grad()
def greedy(model, tokenizer, questions, max_new_tokens, batch_size):
    """Generated token ids for each question, without the stop token.  Batches are padded on the left."""
    prompts = [tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False,
                                             add_generation_prompt=True) for question in questions]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    generated = [None] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start:start + batch_size]
        batch = tokenizer([prompts[i] for i in chosen], return_tensors="pt", padding=True, padding_side="left",
                          return_token_type_ids=False).to(model.device)
        out = model.generate(**batch, do_sample=False, max_new_tokens=max_new_tokens,
                             eos_token_id=[IM_END, END_OF_TEXT], pad_token_id=END_OF_TEXT)
        for i, row in zip(chosen, out[:, batch["input_ids"].shape[1]:].tolist()):
            stop = next((at for at, token in enumerate(row) if token in (IM_END, END_OF_TEXT)), len(row))
            generated[i] = row[:stop]
    return generated


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--config-from", help="folder of config.json and tokenizer, when the checkpoint has none")
    parser.add_argument("--problems", default="checkpoints/tiny/eval.jsonl")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--activations", choices=["plain", "fp8"], default="plain")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--out", help="write the predictions as JSON")
    parser.add_argument("--note", default="", help="date and hardware, kept in --out")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    model = load(args.checkpoint, getattr(torch, args.dtype), device, args.activations == "fp8", args.config_from)
    tokenizer = AutoTokenizer.from_pretrained(args.config_from or args.checkpoint)
    asked = read_problems(args.problems)[:args.limit]
    began = time.monotonic()
    rows = greedy(model, tokenizer, [question for question, _ in asked], args.max_new_tokens, args.batch_size)
    predicted = [gsm8k.final_number(text) for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
    correct = sum(same_number(p, expected) for p, (_, expected) in zip(predicted, asked))
    print(f"{args.problems}: {correct}/{len(asked)} = {100 * correct / len(asked):.1f} %  ({args.dtype}, activations "
          f"{args.activations}, {time.monotonic() - began:.0f} s)", flush=True)
    if args.out:
        with open(args.out, "w") as out:
            json.dump({"correct": correct, "total": len(asked), "dtype": args.dtype, "activations": args.activations,
                       "max_new_tokens": args.max_new_tokens, "stop_ids": [IM_END, END_OF_TEXT], "note": args.note,
                       "predicted": predicted}, out, indent=1)
            out.write("\n")


if __name__ == "__main__":
    main()
