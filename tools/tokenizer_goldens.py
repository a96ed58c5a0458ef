"""Writes tests/data/tokenizer/: token ids and decoded text by the PyPI package `tokenizers`, the reference.

    pip install tokenizers
    python tools/tokenizer_goldens.py            # goldens.json and the small tokenizers it refers to
    python tools/tokenizer_goldens.py --fuzz N --tokenizer FILE > cases.jsonl   # N random cases for one tokenizer

A case holds the input as hex of its bytes, because some inputs are not UTF-8. The rule for those is ours: each
maximal ill-formed piece becomes U+FFFD before encoding, which is what bytes.decode("utf-8", "replace") does.
"""

import argparse
import json
import random
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests/data/tokenizer"
QWEN_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
              r"|\s*[\r\n]+|\s+(?!\S)|\s+")

# Small texts in several scripts, so that merges exist over bytes of multi-byte characters.
CORPUS = """
The quick brown fox jumps over the lazy dog. I'm sure they've said we'll see what he'd do, don't you?
for (int i = 0; i < 10; ++i) { printf("%d\\n", i); }   // a comment    with   runs of spaces
Die Füße tragen den Bären über die Straße; größer, schöner, weiter. L'été à la plage, garçon, œuvre, naïve.
Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.
人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。
すべての人間は、生れながらにして自由であり、かつ、尊厳と権利とについて平等である。
모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.
มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ
सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।
সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।
يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.
👩‍👩‍👧‍👦 👍🏽 🇩🇪🇯🇵 😀😃😄 ❤️ ☕️ 1️⃣
""".strip().splitlines()

TEXTS = [
    "", " ", "  ", "   a", "a   ", "a   b", "\n", "\n\n", " \n", "\n ", "\r\n", "a\r\nb\r\n\r\nc", "\t", "\t\tx", " \t \n \t x",
    "Hello, world!", "Hello  world", "HELLO WORLD", "hello-world_foo.bar/baz", "a.b.c...d", "!!!", " !!!\n\n", "?!\r\n", "--\n\n--",
    "0", "12", "123", "1234567890", "3.14159", "-42", "1,000,000", "x1y2z3", "½ ¾ ² ³", "٣٤٥", "一二三", "ⅣⅫ",
    "I'm", "I'M", "you're", "YOU'RE", "they've", "we'll", "he'd", "it's", "don't", "'S'T'RE'VE'M'LL'D", "'ſ", "o'clock", "''s", "rock 'n' roll", "'",
    "人工智能", "今天天气很好,我们去公园。", "「引用」…", "日本語テスト", "ひらがなカタカナ漢字", "한국어 문장", "全角 空白", "１２３ＡＢＣ",
    "สวัสดีครับ", "ภาษาไทย ไม่มีช่องว่าง", "नमस्ते दुनिया", "क्षत्रिय", "বাংলা ভাষা", "தமிழ் மொழி", "తెలుగు", "မြန်မာ", "ខ្មែរ", "བོད་ཡིག",
    "العربية", "مُحَمَّد", "שָׁלוֹם", "فارسی‌نویسی", "Ελληνικά", "Русский текст", "Ünïcödé", "Straße", "İstanbul", "ΑΒΓ ΐ",
    "é", "e\u0301", "e\u0301e\u0301", "A\u030A", "\u212B", "\u1112\u1161\u11ab", "ﬁ", "①", "ｶﾞ", "\u0344", "\u0958", "\u2126", "n\u0303o", "a\u0328\u0301", "a\u0301\u0328", "xe\u0301 e\u0301y", "\u00e9 \u00e9", "a naïve token b", "nai\u0308ve token",
    "\u0301", " \u0301", "x\u0301\u0302\u0303y", "1\u0301", "!\u0301", "\n\u0301",
    "😀", "👍🏽", "👩‍👩‍👧‍👦", "🇩🇪", "❤️", "1️⃣", "a😀b", " 😀", "😀😀😀", "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "\0", "a\0b", "\x01\x02\x03", "\x7f", "\x1b[31mred\x1b[0m", "\x0b\x0c", "a\x0bb", "\x85", "a\x85b", "\u00a0", "a\u00a0b", "\u1680", "\u180e", "a\u180eb",
    "\u2000\u2001\u2002", "\u200b", "a\u200bb", "\u200c\u200d", "\u2028", "a\u2028b", "\u2029", "\u202f", "\u205f", "\u3000", "\u3000a", "\ufeff", "\ufeffa", "\ufffd", "\uffff", "\U0010ffff", "\ue000",
    "<|im_start|>", "<|im_end|>", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n", "a<|im_end|>b", " <|im_end|> ", "<|im_end|><|im_end|>",
    "<|im_end", "<<|im_end|>>", "<|IM_END|>", "<think>x</think>", "</think>\n\n", "<tool_call>\n<function=f>\n</function>\n</tool_call>", "<tool_response>", "<|endoftext|>x",
    "e\u0301<think>e\u0301</think>e\u0301", "tail space <think> lead", "\u0301<|im_end|>\u0301", "1<think>2", "  <think>  ",
    "def f(x):\n    return x ** 2\n\n\nprint(f(3))\n", "int main() {\n\treturn 0;\n}\n", "SELECT * FROM t WHERE a='b';", "{\"a\": [1, 2.5e-3, null]}", "https://example.com/a?b=c&d=%20#e", "user@example.com",
    "   leading", "trailing   ", "tab\tseparated\tvalues", "many\n\n\n\nlines", "mixed \n \n  \n   x", "\n\n  x", "x  \n\n  ", "a \r b", "\r\r\r", "a\n\r\nb",
    "#### 42", "She has 3 apples and buys 5 more. How many?", "\\n \\t \\\\", "$5.00 + €3", "100% sure", "a—b–c", "“quoted” ‘text’", "x²+y³=z", "H₂O", "→ ← ↑ ↓", "∑∫∂", "©®™",
    "a" * 23, "a" * 24, "a" * 25, "ab" * 200, "the " * 100, " " * 100, " " * 100 + "x", "\n" * 50, "人" * 60, "é" * 40, "e\u0301" * 40, "😀" * 30, "." * 77, "=" * 80, "-" * 64 + "\n", "0" * 40,
    "supercalifragilisticexpialidocious" * 4, "Lorem ipsum dolor sit amet, consectetur adipiscing elit. " * 5,
] + CORPUS

BROKEN = [
    b"\xff", b"a\xffb", b"\x80", b"\x80\x80", b"\xc3", b"\xc3(", b"\xe2\x82", b"\xe2\x82a", b"\xe2(\xa1", b"\xf0\x9f\x98", b"\xf0\x9f\x98 x", b"\xf0\x28\x8c\xbc",
    b"\xc0\x80", b"\xc1\xbf", b"\xe0\x80\x80", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf0\x80\x80\x80", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xfe\xff", b"ok \xe4\xba then",
    b"<|im_end|>\xff<think>", b"\xe4\xba<|im_end|>", b"caf\xe9", b"\xc3\xa9\xc3", b"\xf0\x9f<|im_end|>\x98\x80",
]


def small_tokenizer():
    """Qwen3.5's form over several scripts, with added tokens of every kind we accept."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=1200, show_progress=False, min_frequency=1,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False)
                                  for t in ("<|im_start|>", "<|im_end|>", "<|im_end|>>", "<|endoftext|>")])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False),
                          AddedToken("naïve token", normalized=True), AddedToken("e\u0301 e\u0301", normalized=True)])
    return tokenizer


def case(tokenizer, raw):
    ids = tokenizer.encode(raw.decode("utf-8", "replace"), add_special_tokens=False).ids
    return {"hex": raw.hex(), "ids": ids, "kept": tokenizer.decode(ids, skip_special_tokens=False),
            "skipped": tokenizer.decode(ids, skip_special_tokens=True)}


def decoding_cases(tokenizer, size):
    """Id lists that no encoding gives: broken characters, special tokens anywhere, ids past the vocabulary."""
    rng = random.Random(7)
    for _ in range(60):
        ids = [rng.randrange(size + 5) for _ in range(rng.randrange(1, 12))]
        yield {"ids": ids, "kept": tokenizer.decode(ids, skip_special_tokens=False),
               "skipped": tokenizer.decode(ids, skip_special_tokens=True)}


POOLS = [
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", " ", "  \t\n\r", ".,;:!?-_=+*/\\|()[]{}<>\"'`~@#$%^&",
    "'sS'tT're'VE'm'LL'd", "àéîõüçñßøåÀÉ", "\u0300\u0301\u0302\u0303\u0308\u0327\u0328", "人工智能今天天气", "ぁあカガ", "한국어가각", "กขคงำิีึื่้๊๋", "कखगि्ंःा", "مُحَمَّدٌ",
    "😀👍🏽👩‍👧❤️🇩🇪", "\x00\x01\x0b\x0c\x1c\x1d\x1e\x1f\x7f\x85\xa0\u1680\u180e\u2000\u200a\u200b\u200d\u2028\u2029\u202f\u205f\u2060\u3000\ufeff",
    "½²Ⅳ٣１𝟘", "ſKıİ",
]


def random_text(rng, added):
    parts = []
    for _ in range(rng.randrange(1, 12)):
        kind = rng.random()
        if kind < 0.12 and added:
            parts.append(rng.choice(added))
        elif kind < 0.22:
            parts.append("".join(chr(c) for c in (rng.randrange(0x110000) for _ in range(rng.randrange(1, 4)))
                                 if not 0xD800 <= c < 0xE000))
        elif kind < 0.32:
            parts.append("".join(chr(rng.randrange(0x3000)) for _ in range(rng.randrange(1, 5))))
        elif kind < 0.4:
            parts.append(rng.choice(CORPUS)[:rng.randrange(80)])
        else:
            pool = rng.choice(POOLS)
            parts.append("".join(rng.choice(pool) for _ in range(rng.choice([1, 1, 2, 3, 5, 9, 40]))))
    raw = "".join(parts).encode("utf-8")
    if rng.random() < 0.1 and raw:
        at = rng.randrange(len(raw))
        raw = raw[:at] + bytes([rng.randrange(256)]) + raw[at + rng.randrange(2):]
    return raw


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fuzz", type=int, help="print this many random cases instead")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "models/tiny/tokenizer.json")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.fuzz:
        tokenizer = Tokenizer.from_file(str(args.tokenizer))
        added = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
        rng = random.Random(args.seed)
        for _ in range(args.fuzz):
            json.dump(case(tokenizer, random_text(rng, added)), sys.stdout)
            print()
        return
    OUT.mkdir(parents=True, exist_ok=True)
    small_tokenizer().save(str(OUT / "small.json"), pretty=False)
    inputs = [text.encode("utf-8") for text in TEXTS] + BROKEN
    goldens = []
    for path in ("tests/data/tokenizer/small.json", "models/tiny/tokenizer.json"):
        tokenizer = Tokenizer.from_file(str(ROOT / path))
        size = tokenizer.get_vocab_size()
        goldens.append({"tokenizer": path, "cases": [case(tokenizer, raw) for raw in inputs],
                        "decoding": list(decoding_cases(tokenizer, size))})
    lines = json.dumps(goldens, ensure_ascii=True).replace('{"hex"', '\n{"hex"').replace('{"tokenizer"', '\n{"tokenizer"')
    (OUT / "goldens.json").write_text(lines + "\n")


if __name__ == "__main__":
    main()
