"""Functions of a list of numbers."""

from __future__ import annotations

import numpy as np

from model.data.families.coding.kind import Arguments, Fields, Kind, numbers, space


def _list(rng: np.random.Generator, fields: Fields) -> Arguments:
    return (numbers(rng),)


ABOVE = Kind(
    "above(xs)",
    ("the numbers of xs above $k",
     "everything in xs above $k",
     "xs without the numbers up to $k",
     "all x in xs that are larger than $k", "what is greater than $k in xs",
     "xs without everything up to $k"),
    ("def above(xs):\n    return [x for x in xs if x > $k]",
     "def above(xs):\n    out = []\n    for x in xs:\n        if x > $k:\n            out.append(x)\n    return out",
     "def above(xs):\n    return list(filter(lambda x: x > $k, xs))",
     "def above(xs):\n    out = list(xs)\n    for x in xs:\n        if x <= $k:\n            out.remove(x)\n"
     "    return out"),
    ((" > ", " < "), ("return list(filter", "return (filter"), ("append(x)", "add(x)"), ("<= $k", "< 0"),
     ("x > $k", "x > $k + 9")),
    space(k=range(3, 25)), _list, lambda fields, xs: (np.array(xs, int)[np.array(xs, int) > fields["k"]]).tolist(),
)  # fmt: skip

MULTIPLES = Kind(
    "multiples(xs)",
    ("how many of xs are multiples of $k",
     "the number of items of xs that $k divides",
     "how many times an item of xs is a multiple of $k",
     "the count of numbers in xs that $k divides",
     "how many x in xs have no remainder by $k", "the number of times $k divides an item of xs"),
    ("def multiples(xs):\n    return sum(x % $k == 0 for x in xs)",
     "def multiples(xs):\n    n = 0\n    for x in xs:\n        if x % $k == 0:\n            n += 1\n    return n",
     "def multiples(xs):\n    return len([x for x in xs if x % $k == 0])",
     "def multiples(xs):\n    return [x % $k for x in xs].count(0)"),
    ((" % ", " // "), ("== 0", "== 1"), ("n += 1", "n += x"), ("sum(", "max("), ("count(0)", "count(1)"),
     ("return len([", "return len(")),
    space(k=range(2, 13)), _list, lambda fields, xs: int((np.array(xs, int) % fields["k"] == 0).sum()),
)  # fmt: skip

EVERY = Kind(
    "every(xs)",
    ("every item of xs whose index is a multiple of $k",
     "each item of xs $k places after the one before, from the first",
     "the first one of $k items of xs, and so on",
     "the items of xs in steps of $k, from the first",
     "xs at 0, $k and so on", "the first item of xs and each one $k places on"),
    ("def every(xs):\n    return xs[::$k]",
     "def every(xs):\n    return [xs[i] for i in range(0, len(xs), $k)]",
     "def every(xs):\n    return [x for i, x in enumerate(xs) if i % $k == 0]",
     "def every(xs):\n    out = []\n    for i in range(len(xs)):\n        if i % $k == 0:\n"
     "            out.append(xs[i])\n"
     "    return out"),
    (("[::$k]", "[$k::]"), ("range(0,", "range(1,"), ("== 0", "== 1"), ("len(xs), ", "len(xs) - 1, "),
     ("i, x in", "x, i in"), ("append(xs[i])", "append(i)")),
    space(k=range(2, 7)), lambda rng, fields: (numbers(rng, 3, 7),),
    lambda fields, xs: [xs[i] for i in range(len(xs)) if not i % fields["k"]],
)  # fmt: skip

GAPS = Kind(
    "gaps(xs)",
    ("how many neighbours in xs differ by more than $k",
     "the number of jumps of more than $k in xs",
     "how many steps in xs go beyond $k",
     "the count of steps in xs larger than $k, up or down",
     "how often the next number of xs is more than $k away", "the number of jumps in xs beyond $k"),
    ("def gaps(xs):\n    return sum(abs(a - b) > $k for a, b in zip(xs, xs[1:]))",
     "def gaps(xs):\n    n = 0\n    for i in range(1, len(xs)):\n        if abs(xs[i] - xs[i - 1]) > $k:\n"
     "            n += 1\n"
     "    return n",
     "def gaps(xs):\n    d = [abs(xs[i + 1] - xs[i]) for i in range(len(xs) - 1)]\n"
     "    return len([x for x in d if x > $k])",
     "def gaps(xs):\n    n, last = 0, None\n    for x in xs:\n        if last is not None and abs(x - last) > $k:\n"
     "            n += 1\n        last = x\n    return n"),
    (("abs(", "("), ("len(xs) - 1", "len(xs)"), ("range(1, ", "range(2, "), ("xs[1:]", "xs[2:]"), (" > $k", " < $k"),
     ("last = x", "last = n")),
    space(k=range(2, 12)), lambda rng, fields: (numbers(rng, 2, 5),),
    lambda fields, xs: int((np.abs(np.diff(xs)) > fields["k"]).sum()),
)  # fmt: skip

CLIP = Kind(
    "clip(xs)",
    ("xs with each number kept in $low to $high",
     "xs with the bounds $low and $high: what is beyond is cut",
     "the numbers of xs, cut to $low to $high",
     "xs, where less than $low becomes $low and more than $high becomes $high",
     "the numbers of xs, at least $low and at most $high", "xs cut to the bounds $low and $high"),
    ("def clip(xs):\n    return [min(max(x, $low), $high) for x in xs]",
     "def clip(xs):\n    out = []\n    for x in xs:\n        if x < $low:\n            x = $low\n"
     "        if x > $high:\n"
     "            x = $high\n        out.append(x)\n    return out",
     "def clip(xs):\n    return [$low if x < $low else $high if x > $high else x for x in xs]",
     "def clip(xs):\n    return [sorted([$low, x, $high])[1] for x in xs]"),
    (("max(x, $low)", "max(x, $high)"), ("x > $high", "x < $high"), ("min(max", "max(max"), (")[1]", ")[0]"),
     ("x = $low", "x = 0"), ("else $high if", "else $low if")),
    space(low=range(2, 10), high=range(12, 26)), _list,
    lambda fields, xs: np.clip(np.array(xs, int), fields["low"], fields["high"]).tolist(),
)  # fmt: skip

TOP = Kind(
    "top(xs)",
    ("the $k largest numbers of xs, the largest first",
     "the $k highest numbers of xs, the highest first",
     "xs in falling order, the first $k",
     "the first $k of xs if sorted downwards",
     "the best $k of xs from the largest on", "the $k highest of xs, falling"),
    ("def top(xs):\n    return sorted(xs, reverse=True)[:$k]",
     "def top(xs):\n    xs = sorted(xs)\n    xs.reverse()\n    return xs[:$k]",
     "def top(xs):\n    return sorted(xs)[::-1][:$k]",
     "def top(xs):\n    xs, out = list(xs), []\n    for i in range($k):\n        out.append(max(xs))\n"
     "        xs.remove(max(xs))\n"
     "    return out"),
    ((", reverse=True", ""), ("[::-1]", ""), ("    xs.reverse()\n", ""), ("[:$k]", "[$k:]"),
     ("append(max", "append(min"),
     ("xs = sorted(xs)", "xs = xs.sort()")),
    space(k=range(1, 6)), lambda rng, fields: (numbers(rng, 5, 6, 60),),
    lambda fields, xs: [-x for x in np.sort(-np.array(xs)).tolist()[: fields["k"]]],
)  # fmt: skip

FIRST_OVER = Kind(
    "first_over(xs)",
    ("the index of the first number of xs above $k, or -1",
     "at which place of xs the numbers pass $k first, else -1",
     "the index at which xs first passes $k, or else -1",
     "where xs first exceeds $k, and -1 if it never does",
     "the place, from 0, of the first x above $k; -1 for none", "at which index xs passes $k, else -1"),
    ("def first_over(xs):\n    for i, x in enumerate(xs):\n        if x > $k:\n            return i\n    return -1",
     "def first_over(xs):\n    for i in range(len(xs)):\n        if xs[i] > $k:\n            return i\n    return -1",
     "def first_over(xs):\n    return next((i for i, x in enumerate(xs) if x > $k), -1)",
     "def first_over(xs):\n    over = [i for i, x in enumerate(xs) if x > $k]\n    return over[0] if over else -1"),
    (("return i\n", "return x\n"), ("return -1", "return 0"), (" > $k", " < $k"), ("), -1)", "))"),
     ("i, x in", "x, i in"),
     (" if over else -1", ""), ("range(len(xs))", "range(1, len(xs))")),
    space(k=range(5, 24)), _list,
    lambda fields, xs: int(np.argmax(np.array(xs) > fields["k"])) if max(xs, default=0) > fields["k"] else -1,
)  # fmt: skip

SCALE = Kind(
    "scale(xs)",
    ("each number of xs times $a, plus $b",
     "each x of xs multiplied by $a, plus $b",
     "xs times $a and then moved up by $b",
     "xs, where x becomes $a * x + $b", "$a * x + $b for all x in xs",
     "xs multiplied by $a and moved up by $b"),
    ("def scale(xs):\n    return [$a * x + $b for x in xs]",
     "def scale(xs):\n    out = []\n    for x in xs:\n        out.append($a * x + $b)\n    return out",
     "def scale(xs):\n    return list(map(lambda x: $a * x + $b, xs))",
     "def scale(xs):\n    out = list(xs)\n    for i in range(len(out)):\n        out[i] = out[i] * $a + $b\n"
     "    return out"),
    (("$a * x + $b", "$a * (x + $b)"), ("+ $b", "- $b"), ("list(map", "(map"), ("append(", "add("), ("* $a", "+ $a"),
     ("out[i] =", "out =")),
    space(a=range(2, 10), b=range(1, 20)),
    lambda rng, fields: (numbers(rng, 1, 5, 20),),
    lambda fields, xs: (np.array(xs) * fields["a"] + fields["b"]).tolist(),
)  # fmt: skip

KINDS = (ABOVE, MULTIPLES, EVERY, GAPS, CLIP, TOP, FIRST_OVER, SCALE)
