"""Trains the byte-level BPE of the tiny model and writes everything of `checkpoints/tiny` that is not a weight.

    python tools/tiny/tokenizer.py --gsm8k gsm8k_train.jsonl

writes tokenizer.json, tokenizer_config.json, config.json and generation_config.json next to the hand-written
chat_template.jinja.  The tokenizer has the form of Qwen3.5's: NFC, the Qwen3.5 split pattern, ByteLevel, no BOS.
"""

import argparse
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import gsm8k
import problems
from shape import ADDED_TOKENS, BASE_TOKENS, END_OF_TEXT, IM_END, TINY, TOKEN_ID

SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def train(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=BASE_TOKENS, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == BASE_TOKENS
    for text, special in ADDED_TOKENS:
        token = AddedToken(text, special=special, normalized=False)
        tokenizer.add_special_tokens([token]) if special else tokenizer.add_tokens([token])
    assert all(tokenizer.token_to_id(text) == number for text, number in TOKEN_ID.items())
    return tokenizer


def tokenizer_config():
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(TOKEN_ID[text]): {"content": text, "lstrip": False, "normalized": False, "rstrip": False,
                                  "single_word": False, "special": special} for text, special in ADDED_TOKENS},
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": TINY["text_config"]["max_position_embeddings"],
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gsm8k", help="gsm8k_train.jsonl, mixed into the training text of the BPE")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/tiny"))
    args = parser.parse_args()
    texts = [part for p in problems.problems(1, 60_000, held_out=False) for part in (p.question, p.answer)]
    if args.gsm8k:
        texts += [part for p in gsm8k.read(args.gsm8k) for part in (p.question, p.answer)]
    train(texts).save(str(args.out / "tokenizer.json"))
    write_json(args.out / "tokenizer_config.json", tokenizer_config())
    write_json(args.out / "config.json", TINY)
    write_json(args.out / "generation_config.json",
               {"do_sample": False, "eos_token_id": [IM_END, END_OF_TEXT], "pad_token_id": END_OF_TEXT})


if __name__ == "__main__":
    main()
