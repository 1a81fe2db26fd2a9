"""Functions of a number or of a text."""

from __future__ import annotations

from functools import reduce
from string import ascii_lowercase

import numpy as np

from model.data.families.coding.kind import Arguments, Fields, Kind, space, word


def _letters(rng: np.random.Generator, fields: Fields) -> Arguments:
    return (word(rng, 1, 6),)


DIGITS = Kind(
    "digits(n)",
    ("how often the digit $d is in n",
     "how often you write $d to write n",
     "how many times $d is a digit if you write n",
     "the count of $d among the digits of n", "how many digits of n are $d",
     "how many times you write $d to write n"),
    ('def digits(n):\n    return str(n).count("$d")',
     "def digits(n):\n    count = 0\n    while n > 0:\n        if n % 10 == $d:\n            count += 1\n"
     "        n //= 10\n"
     "    return count",
     'def digits(n):\n    return sum(c == "$d" for c in str(n))',
     'def digits(n):\n    return len(str(n).split("$d")) - 1'),
    (('"$d"', "$d"), ("% 10 == $d", "% $d == 0"), ("str(n)", "n"), (")) - 1", "))"), ("count += 1", "count = 1")),
    space(d=range(1, 10)),
    lambda rng, fields: (int("".join(str(fields["d"] if rng.random() < 0.4 else int(rng.integers(1, 10)))
                                     for _ in range(int(rng.integers(2, 7))))),),
    lambda fields, n: [n // 10**place % 10 for place in range(8)].count(fields["d"]),
)  # fmt: skip

FIZZ = Kind(
    "fizz(n)",
    ("the sum of the numbers from 1 to n that $a or $b divides",
     "the total of the numbers up to n, n included, that $a or $b divides",
     "the total of 1 to n, but only multiples of $a or $b",
     "the sum of all multiples of $a or $b up to n",
     "what the numbers 1 to n sum to, only those divided by $a or by $b",
     "the total of multiples of $a or $b, n included"),
    ("def fizz(n):\n    return sum(x for x in range(1, n + 1) if x % $a == 0 or x % $b == 0)",
     "def fizz(n):\n    total = 0\n    for x in range(1, n + 1):\n        if x % $a == 0 or x % $b == 0:\n"
     "            total += x\n"
     "    return total",
     "def fizz(n):\n    xs = [x for x in range(n + 1) if not x % $a or not x % $b]\n    return sum(xs)",
     "def fizz(n):\n    return sum(set(range($a, n + 1, $a)) | set(range($b, n + 1, $b)))"),
    ((" or ", " and "), ("n + 1", "n"), ("total += x", "total += 1"), (") | set(", ") & set("),
     ("not x % $a", "x % $a")),
    space(a=range(2, 6), b=range(6, 10)),
    lambda rng, fields: (fields["a"] * int(rng.integers(2, 8)) + int(rng.integers(2)),),
    lambda fields, n: sum(np.flatnonzero(np.prod([np.arange(n + 1) % fields[key] for key in "ab"], 0) == 0).tolist()),
)  # fmt: skip

DIVISIONS = Kind(
    "divisions(n)",
    ("how often n can be divided by $k without a remainder",
     "the highest number of times that $k divides n",
     "which power of $k is in n at the highest",
     "how many times $k goes into n as a factor",
     "the number of exact divisions of n by $k in a row", "the highest power of $k in n"),
    ("def divisions(n):\n    count = 0\n    while n % $k == 0:\n        n //= $k\n        count += 1\n    return count",
     "def divisions(n):\n    return 0 if n % $k else 1 + divisions(n // $k)",
     "def divisions(n):\n    if n % $k != 0:\n        return 0\n    return divisions(n // $k) + 1",
     "def divisions(n):\n    return sum(n % $k**p == 0 for p in range(1, 20))"),
    (("count += 1", "count += $k"), ("1 + ", "$k + "), (" + 1", " + n"), ("count = 0", "count = 1"), ("0 if ", "1 if "),
     ("return 0\n", "return n\n"), ("range(1, 20)", "range(20)")),
    space(k=range(2, 10)),
    lambda rng, fields: (int(fields["k"] ** int(rng.integers(4)) * int(rng.integers(1, 12))),),
    lambda fields, n: max(power for power in range(16) if n % fields["k"] ** power == 0),
)  # fmt: skip

SEQUENCE = Kind(
    "term(n)",
    ("term n of $a, then $b times the last one plus $c (term 0 is $a)",
     "x after n steps from $a, where a step makes x into $b * x + $c",
     "x from $a on, after x -> $b * x + $c is done n times",
     "$a, and n times $b * x + $c of what is there",
     "the n-th value if you start at $a and take $b * x + $c again and again", "$a after n times x -> $b * x + $c"),
    ("def term(n):\n    x = $a\n    for i in range(n):\n        x = $b * x + $c\n    return x",
     "def term(n):\n    return $a if n == 0 else $b * term(n - 1) + $c",
     "def term(n):\n    if n == 0:\n        return $a\n    return $b * term(n - 1) + $c",
     "def term(n):\n    xs = [$a]\n    for i in range(n):\n        xs.append($b * xs[-1] + $c)\n    return xs[n]"),
    (("range(n)", "range(n + 1)"), ("+ $c", "- $c"), ("x = $a\n", "x = 0\n"), ("$a if n", "0 if n"),
     ("return $a\n", "return 0\n"),
     ("xs[n]", "xs[n - 1]"), ("$b * ", "$b + ")),
    space(a=range(1, 9), b=range(2, 4), c=range(1, 9)),
    lambda rng, fields: (int(rng.integers(8)),),
    lambda fields, n: int(reduce(lambda x, _: fields["b"] * x + fields["c"], range(n), fields["a"])),
)  # fmt: skip

PAD = Kind(
    "pad(s)",
    ('s with "$c" before it, up to $k letters',
     's after enough "$c" for $k letters',
     'enough "$c" before s, and then $k letters in all',
     's filled on the left with "$c" to length $k',
     's, at least $k long by adding "$c" in front', 'enough "$c" and then s, $k letters in all'),
    ('def pad(s):\n    return s.rjust($k, "$c")',
     'def pad(s):\n    return "$c" * ($k - len(s)) + s',
     'def pad(s):\n    while len(s) < $k:\n        s = "$c" + s\n    return s',
     'def pad(s):\n    n = max(0, $k - len(s))\n    return "".join(["$c"] * n) + s'),
    (("rjust", "ljust"), (") + s", ")"), ('"$c" + s\n', 's + "$c"\n'), ("$k - len(s)", "$k"),
     ("rjust($k", "rjust(len(s)"),
     (' * ($k - len(s))', "")),
    space(k=range(4, 10), c=".-*_#0"), _letters,
    lambda fields, s: f"{fields['c'] * fields['k']}{s}"[-max(fields["k"], len(s)) :],
)  # fmt: skip

SHIFT = Kind(
    "shift(s)",
    ("s with each letter moved $k places on in the alphabet, z going on at a",
     "every letter of s, replaced by that $k places on, a after z",
     "each letter of s replaced by another one, $k after it",
     "the small letters of s, $k further, round from z to a",
     "s in a code that moves letters by $k", "every letter of s replaced by the one $k after it, a after z"),
    ('def shift(s):\n    return "".join(chr((ord(c) - 97 + $k) % 26 + 97) for c in s)',
     'def shift(s):\n    out = ""\n    for c in s:\n        out += chr((ord(c) - 97 + $k) % 26 + 97)\n    return out',
     'def shift(s):\n    abc = "abcdefghijklmnopqrstuvwxyz"\n'
     '    return "".join(abc[(abc.index(c) + $k) % 26] for c in s)',
     'def shift(s):\n    abc = "abcdefghijklmnopqrstuvwxyz"\n    to = abc[$k:] + abc[:$k]\n'
     '    return "".join(to[abc.index(c)] for c in s)'),
    (("+ $k", "- $k"), ("ord(c) - 97", "ord(c)"), (" + 97)", ")"), ("out +=", "out ="),
     ("abc[$k:] + abc[:$k]", "abc[$k:]"),
     ("chr((ord(c)", "chr((c")),
    space(k=range(1, 25)), _letters,
    lambda fields, s: "".join(ascii_lowercase[ascii_lowercase.find(c) + fields["k"] - 26] for c in s),
)  # fmt: skip

LONG_WORDS = Kind(
    "long_words(s)",
    ("the words of s with more than $k letters",
     "the words of s without those of up to $k letters",
     "s split into words, and of these all with more than $k letters",
     "a list of all words in s longer than $k",
     "the parts of s between spaces that have over $k letters", "s split, without words of up to $k letters"),
    ("def long_words(s):\n    return [w for w in s.split() if len(w) > $k]",
     "def long_words(s):\n    out = []\n    for w in s.split():\n        if len(w) > $k:\n"
     "            out.append(w)\n    return out",
     "def long_words(s):\n    return list(filter(lambda w: len(w) > $k, s.split()))",
     'def long_words(s):\n    words = s.split(" ")\n'
     '    return [words[i] for i in range(len(words)) if len(words[i]) > $k]'),
    (("s.split()", "s"), ("len(w) > $k", "w > $k"), (" > $k", " < $k"), ("append(w)", "append(len(w))"),
     ("list(filter", "(filter"),
     ("[words[i] for", "[i for")),
    space(k=range(1, 6)),
    lambda rng, fields: (" ".join(word(rng, 1, 6) for _ in range(int(rng.integers(2, 4)))),),
    lambda fields, s: [w for w in s.split(" ") if w[fields["k"] :]],
)  # fmt: skip

STRETCH = Kind(
    "stretch(s)",
    ('s with each letter $k times and "$c" at the end',
     'every letter of s repeated $k times, closed by "$c"',
     's with letters repeated to $k of each, and "$c" at the end',
     's, every letter written $k times, then "$c"',
     '$k of each letter of s in its place, and "$c" after them', 'each letter of s repeated to $k, closed by "$c"'),
    ('def stretch(s):\n    return "".join(c * $k for c in s) + "$c"',
     'def stretch(s):\n    out = ""\n    for c in s:\n        out += c * $k\n    return out + "$c"',
     'def stretch(s):\n    return "".join([c * $k for c in s] + ["$c"])',
     'def stretch(s):\n    return "".join(s[i // $k] for i in range(len(s) * $k)) + "$c"'),
    (("c * $k", "c"), (' + "$c"', ""), (' + ["$c"]', ' + "$c"'), ("i // $k", "i % len(s)"), ("out +=", "out ="),
     ("c * $k", "s * $k")),
    space(k=range(2, 5), c=".!?-*_"),
    lambda rng, fields: (word(rng, 1, 4),),
    lambda fields, s: "".join(np.repeat(list(s), fields["k"]).tolist()) + fields["c"],
)  # fmt: skip

KINDS = (DIGITS, FIZZ, DIVISIONS, SEQUENCE, PAD, SHIFT, LONG_WORDS, STRETCH)
