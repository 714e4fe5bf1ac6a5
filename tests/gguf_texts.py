"""Two hundred texts that a tokenizer can go wrong on: code, languages, emoji, white space, tokens' names in text."""

from __future__ import annotations

import random

__all__ = ["texts"]

CODE = (
    "def f(x: int) -> int:\n    return x ** 2  # square\n",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i]*b[i];\r\n}\n",
    "SELECT name, COUNT(*) FROM t WHERE x >= 10.5e-3 GROUP BY name;",
    "const f = async (x) => { await g(`${x}!`); };\n\n\n",
    "#!/bin/sh\nset -euo pipefail; grep -rn 'a\\|b' . | awk '{print $1}'",
    '<div class="a-b_c">&nbsp;<br/>text</div>',
    '{"key": [1, 2.50, -3e7, null, true], "ключ": "значение"}',
    "impl<'a> Iterator for S<'a> { type Item = &'a str; }",
    "\\begin{equation} \\sum_{i=1}^{n} x_i^2 = 10^{-3} \\end{equation}",
    "0x7fff 1234567890 3.14159 1,000,000 2026-11-29T18:30:00Z v1.2.3-rc4",
)
LANGUAGES = (
    "Der schnelle braune Fuchs springt über den faulen Hund; Straße, Größe, Äpfel, Öl.",
    "Das ist's! Geht's dir gut? Ich hab' es nicht gewusst … „Zitat“ – Gedankenstrich.",
    "敏捷的棕色狐狸跳过了懒狗。今天天气很好，我们去公园吧！",
    "第123章：人工智能与机器学习的未来（上）",
    "素早い茶色の狐はのろまな犬を飛び越える。カタカナとひらがな、漢字。",
    "빠른 갈색 여우가 게으른 개를 뛰어넘습니다.",
    "الثعلب البني السريع يقفز فوق الكلب الكسول ١٢٣",
    "השועל החום המהיר קופץ מעל הכלב העצלן",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "तेज भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है। १२३",
    "Ταχίστη αλώπηξ βαφής ψημένη γη, δρασκελίζει υπέρ νωθρού κυνός",
    "L'été, c'est beau. Où êtes-vous ? N'est-ce pas… ça va !",
    "Nguyễn Văn A ăn phở ở Hà Nội",
    "e\u0301 vs é, ﬁ vs fi, Ⅷ, ½, ²³, ａｂｃ, ß→SS, İstanbul ıi",
)
EMOJI = (
    "🎉🎊",
    "👩‍👩‍👧‍👦 family",
    "🇩🇪🇨🇳",
    "a😀b 😀 c",
    "❤️ vs ❤",
    "\U0001f9d1\U0001f3fd‍🚀",
    "\u0378 \U0010fffd",
    "∀x∈ℝ: ⌈x⌉ ≥ x → ¬∃y",
)
SPACES = (
    "", " ", "  ", "   ", "\n", "\n\n", "\n\n\n\n", "\t", "\t\t\tx", " \n \n", "a  b   c    d", "  leading",
    "trailing  ", "\r\n\r\n", "x\n   \n  y",
    "a\u00a0b\u2003c\u200bd", "\u3000全角", "    x = 1\n        y = 2\n", "a \t\n b",
    " a", "\na", "a\n ", "▁under▁score", "▁", "a ▁ b",
)  # fmt: skip
NAMES = (
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|>", "a<|endoftext|>b", " <|im_end|> ", "<|im_end", "|im_end|>",
    "<tool_call>{}</tool_call>",
    "<start_of_turn>user\nhi<end_of_turn>\n", "<bos>x<eos>", "<pad><unk>", "<unused0>", "[PAD151665]",
    "<|fim_prefix|>a", "<s>x</s>", "[INST] x [/INST]", "<|eot_id|>", "<h1>x</h1>", "<0x0A><0xFF>",
    "<|im_start|><|im_start|>",
)  # fmt: skip


def texts(count: int = 200) -> list[str]:
    """So many, the same in every call: all of the above, then mixtures of them."""
    parts = [*CODE, *LANGUAGES, *EMOJI, *SPACES, *NAMES]
    source, found = random.Random(1), list(parts)
    while len(found) < count:
        found.append(source.choice(("", " ", "\n", "  ")).join(source.sample(parts, k=source.randint(2, 5))))
    return found[:count]
