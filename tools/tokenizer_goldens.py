"""Writes tests/data/tokenizer/: token ids and decoded text by the PyPI package `tokenizers`, the reference.

    pip install tokenizers transformers unicodedata2
    python tools/tokenizer_goldens.py            # goldens.json and the small tokenizers it refers to
    python tools/tokenizer_goldens.py --fuzz N --tokenizer FILE > cases.jsonl   # N random cases for one tokenizer

A case holds the input as hex of its bytes, because some inputs are not UTF-8. The rule for those is ours: each
maximal ill-formed piece becomes U+FFFD before encoding, which is what bytes.decode("utf-8", "replace") does.
"""

import argparse
import json
import random
import sys
import tempfile
import unicodedata
from pathlib import Path

import unicodedata2

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


def token(content, **flags):
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": False, **flags}


# What tokenizer_config.json may add to small.json: which of its own added tokens are kept, the configuration, texts.
SIZE = 1146  # of small.json's vocabulary
CHAT = ["hi<|im_end|>", "<|im_start|>user\nHi <|im_end|> \n<|im_start|>", "a<|im_end|>>b<think> x </think>", ""]
CONFIGS = [
    ([], {"added_tokens_decoder": {str(SIZE + i): token(t, special=t[1] == "|") for i, t in enumerate(("<|im_start|>", "<|im_end|>", "<think>", "</think>"))}}, CHAT),
    (["<|im_start|>"], {"added_tokens_decoder": {str(SIZE + 1): token("<|im_end|>", special=True), str(SIZE): token("<|im_start|>", special=True)}}, CHAT),
    ([], {}, CHAT), (["<|im_start|>", "<|im_end|>"], {"split_special_tokens": True, "added_tokens_decoder": {str(SIZE + 2): token("<think>")}}, CHAT),
    ([], {"added_tokens_decoder": {str(SIZE): token("<L>", lstrip=True), str(SIZE + 1): token("<R>", rstrip=True), str(SIZE + 2): token("<B>", lstrip=True, rstrip=True, special=True), str(SIZE + 3): token("word", single_word=True), str(SIZE + 4): token(" ", rstrip=True)}},
     ["a <L> b", "a\u3000\t<L><L> b", "<R>  \n x", " <R> <L> <R>", "a  <B>  <B>  b", " <B> ", "word", "a word b", "sword", "words", "word_", "word-word", "\u00e9word", "word\u0301", "\u24b6word", "word\u200d", "word word", "1word", "   a  b", " \u00a0 <B>\u2028x", "\U00010d4aword", "word\U0001f170"]),
    ([], {"added_tokens_decoder": {str(SIZE): token("n\u00e4h", normalized=True), str(SIZE + 1): token("gr\u00fc\u00df"), str(SIZE + 2): token("e\u0301t", normalized=True, single_word=True), str(SIZE + 3): token("e\u0301u"), str(SIZE + 4): token("x x", normalized=True, lstrip=True)}},
     ["na\u0308hen n\u00e4h", "gr\u00fc\u00dfe gru\u0308\u00df", "\u00e9t e\u0301t e\u0301t\u0301", "\u00e9u e\u0301u", "a  x x x x"]),
    (["<|im_start|>", "<think>"], {"added_tokens_decoder": {str(SIZE): token("<|im_start|>", lstrip=True), str(SIZE + 1): token("<think>", rstrip=True, normalized=True)}}, ["a <|im_start|> b <think> c", "<|im_start|>"]),
    (["<think>"], {"eos_token": "<think>", "pad_token": "<|pad|>", "added_tokens_decoder": {str(SIZE): token("<think>")}}, ["a<think>b<|pad|>c"]),
    ([], {"eos_token": "<|im_end|>", "added_tokens_decoder": {str(SIZE): token("<|im_end|>")}}, ["a<|im_end|>b"]),
    ([], {"eos_token": {"__type": "AddedToken", **token("<E>", rstrip=True)}, "bos_token": "<B>", "extra_special_tokens": ["<Q>"]}, ["<B>a<E> b <Q> c"]),
    ([], {"additional_special_tokens": ["<Q>", "<P>"]}, ["a<Q> b<P>"]), ([], {"extra_special_tokens": {"image_token": "<I>"}, "unk_token": "<U>"}, ["a<I> b<U>"]),
    ([], {"added_tokens_decoder": {"64": token("a", special=True)}}, ["banana a", "A a"]),
    ([], {"added_tokens_decoder": {str(SIZE): {"content": "<S>", "special": True}, str(SIZE + 1): {"content": "c\u0327a"}}}, ["<S>c\u0327a \u00e7a"]),
]


def configured():
    """The same by `transformers`, which reads both files."""
    from transformers import PreTrainedTokenizerFast
    base = json.loads((OUT / "small.json").read_text())
    assert len(base["model"]["vocab"]) == SIZE
    for kept, config, texts in CONFIGS:
        added = [dict(t) for t in base["added_tokens"] if t["content"] in kept]
        for at, one in enumerate(added):
            one["id"] = SIZE + at
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "tokenizer.json").write_text(json.dumps({**base, "added_tokens": added, "truncation": None}))
            Path(folder, "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}))
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        cases = []
        for text in texts:
            ids = tokenizer.encode(text, add_special_tokens=False)
            cases.append({"hex": text.encode().hex(), "ids": ids, "kept": tokenizer.decode(ids), "skipped": tokenizer.decode(ids, skip_special_tokens=True)})
        yield {"added_tokens": added, "config": config, "eos": tokenizer.eos_token_id if "eos_token" in config else -1, "size": len(tokenizer), "cases": cases}


def unicode_cases(tokenizer):
    """The ends of every range that the tables of Unicode 9, 14, 16 and 18 may see differently, and marks in disorder."""
    def seen(code):
        c = chr(code)
        return (unicodedata.category(c), unicodedata2.category(c)[0], unicodedata2.combining(c) > 0, unicodedata2.normalize("NFD", c) != c)
    codes = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000 and (seen(c)[0] != unicodedata2.category(chr(c)) or any(seen(c)[2:]))]
    ends = [c for c in codes if seen(c) != seen(c - 1 if c != 0xE000 else 0)]
    yield case(tokenizer, "".join(f"a{chr(c)} 1{chr(c)}" for c in ends).encode())
    rng = random.Random(3)
    marks = [chr(c) for c in codes if unicodedata2.combining(chr(c))]
    for _ in range(60):
        yield case(tokenizer, "".join(rng.choice("ae\u1112\u1161\u11ab\u0915\u00e5") + "".join(rng.choice(marks) for _ in range(rng.randrange(1, 7))) for _ in range(4)).encode())


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
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "checkpoints/tiny/tokenizer.json")
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
    for path in ("tests/data/tokenizer/small.json", "checkpoints/tiny/tokenizer.json"):
        tokenizer = Tokenizer.from_file(str(ROOT / path))
        size = tokenizer.get_vocab_size()
        cases = [case(tokenizer, raw) for raw in inputs] + (list(unicode_cases(tokenizer)) if "small" in path else [])
        goldens.append({"tokenizer": path, "cases": cases,
                        "decoding": list(decoding_cases(tokenizer, size))})
    lines = json.dumps(goldens, ensure_ascii=True).replace('{"hex"', '\n{"hex"').replace('{"tokenizer"', '\n{"tokenizer"')
    (OUT / "goldens.json").write_text(lines + "\n")
    lines = json.dumps(list(configured()), ensure_ascii=True).replace('{"hex"', '\n{"hex"').replace('{"added_tokens":', '\n{"added_tokens":')
    (OUT / "configs.json").write_text(lines + "\n")


if __name__ == "__main__":
    main()
