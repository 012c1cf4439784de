"""The words of the procedural teacher: small operations with phrasings and code.

An operation turns one kind of value into another and knows how to say so in English and how to
write itself in Python. `levels` composes operations into functions; nothing here executes code.
Templates use `{x}` for the value at hand and `{k}` for a small constant, which is not part of an
operation's name: "keep the numbers greater than 3" and "... than 7" are the same operation.
"""

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One step of a pipeline."""

    name: str
    """What a structural signature calls it."""
    takes: str
    """Kind of value it needs: `numbers`, `text`, `words` or `counts`."""
    gives: str
    """Kind of value it makes; anything else than those four ends a pipeline."""
    phrases: tuple[str, ...]
    """Ways to say it: imperatives for a step, noun phrases for a result."""
    code: str
    """Its Python expression."""
    word: str
    """Its part in a function's name."""
    constants: tuple[int | str, ...] = ()
    """Values that `{k}` takes."""

    def draw(self, rng: Random, x: str) -> tuple[str, str]:
        """A phrase and the expression over `x`, with the same constant."""
        k = rng.choice(self.constants) if self.constants else ""
        return rng.choice(self.phrases).format(k=k, x=x), self.code.format(k=k, x=x)


SMALL = (2, 3, 4, 5, 6, 7, 8, 9)
DIVISORS = (3, 4, 5, 6, 7)
FEW = (1, 2, 3)

# name, adjective ("numbers that are ..."), test of {n}, word, constants
CONDITIONS: tuple[tuple[str, str, str, str, tuple[int, ...]], ...] = (
    ("even", "even", "{n} % 2 == 0", "even", ()),
    ("odd", "odd", "{n} % 2 == 1", "odd", ()),
    ("positive", "positive", "{n} > 0", "positive", ()),
    ("negative", "negative", "{n} < 0", "negative", ()),
    ("above", "greater than {k}", "{n} > {k}", "large", SMALL),
    ("below", "less than {k}", "{n} < {k}", "small", SMALL),
    ("multiple", "divisible by {k}", "{n} % {k} == 0", "divisible", DIVISORS),
    ("unequal", "not equal to {k}", "{n} != {k}", "other", SMALL),
)

# name, imperative on "each number", expression of {n}, word, constants
CHANGES: tuple[tuple[str, tuple[str, ...], str, str, tuple[int, ...]], ...] = (
    ("add", ("add {k} to each number", "increase each number by {k}"), "{n} + {k}", "add", SMALL),
    (
        "subtract",
        ("subtract {k} from each number", "decrease each number by {k}"),
        "{n} - {k}",
        "subtract",
        SMALL,
    ),
    (
        "times",
        ("multiply each number by {k}", "scale each number by {k}"),
        "{n} * {k}",
        "scale",
        SMALL,
    ),
    (
        "square",
        ("square each number", "replace each number by its square"),
        "{n} ** 2",
        "square",
        (),
    ),
    ("negate", ("negate each number", "flip the sign of each number"), "-{n}", "negate", ()),
    (
        "absolute",
        ("take the absolute value of each number", "drop the sign of each number"),
        "abs({n})",
        "absolute",
        (),
    ),
    (
        "remainder",
        ("take each number modulo {k}", "replace each number by its remainder modulo {k}"),
        "{n} % {k}",
        "modulo",
        DIVISORS,
    ),
    (
        "halve",
        ("halve each number", "divide each number by 2, rounding down"),
        "{n} // 2",
        "half",
        (),
    ),
)


def _filters() -> list[Operation]:
    return [
        Operation(
            name=f"keep_{name}",
            takes="numbers",
            gives="numbers",
            phrases=(f"keep the numbers that are {adjective}", f"keep only numbers {adjective}"),
            code="[n for n in {x} if " + test.replace("{n}", "n") + "]",
            word=word,
            constants=constants,
        )
        for name, adjective, test, word, constants in CONDITIONS
    ]


def _maps() -> list[Operation]:
    return [
        Operation(
            name=name,
            takes="numbers",
            gives="numbers",
            phrases=phrases,
            code="[" + expression.replace("{n}", "n") + " for n in {x}]",
            word=word,
            constants=constants,
        )
        for name, phrases, expression, word, constants in CHANGES
    ]


def _step(
    name: str,
    kinds: str,
    phrases: tuple[str, ...],
    code: str,
    word: str,
    constants: tuple[int | str, ...] = (),
) -> Operation:
    takes, gives = kinds.split(">")
    return Operation(
        name=name,
        takes=takes,
        gives=gives,
        phrases=phrases,
        code=code,
        word=word,
        constants=constants,
    )


_N, _T, _W, _C = "numbers>numbers", "text>text", "words>words", "counts>counts"

STEPS: tuple[Operation, ...] = (
    *_filters(),
    *_maps(),
    _step("sort", _N, ("sort the numbers", "put the numbers in order"), "sorted({x})", "sorted"),
    _step(
        "sort_down",
        _N,
        ("sort the numbers from largest to smallest", "put the numbers in descending order"),
        "sorted({x}, reverse=True)",
        "descending",
    ),
    _step("reverse", _N, ("reverse the list", "turn the list around"), "{x}[::-1]", "reversed"),
    _step(
        "unique",
        _N,
        ("remove duplicates", "keep one of each number"),
        "list(dict.fromkeys({x}))",
        "unique",
    ),
    _step("skip", _N, ("skip the first {k}", "drop the first {k}"), "{x}[{k}:]", "rest", FEW),
    _step(
        "every_other",
        _N,
        ("take every second number", "skip every other number"),
        "{x}[::2]",
        "every",
    ),
    # text
    _step("lower", _T, ("make the text lower case", "lower the text"), "{x}.lower()", "lower"),
    _step("upper", _T, ("make the text upper case", "raise the text"), "{x}.upper()", "upper"),
    _step("swap_case", _T, ("swap the case of each letter",), "{x}.swapcase()", "swap"),
    _step("reverse_text", _T, ("reverse the text", "write it backwards"), "{x}[::-1]", "reversed"),
    _step(
        "no_spaces",
        _T,
        ("remove the spaces", "delete every space"),
        '{x}.replace(" ", "")',
        "compact",
    ),
    _step("dashes", _T, ("replace spaces by dashes",), '{x}.replace(" ", "-")', "dashed"),
    _step(
        "no_vowels",
        _T,
        ("remove the vowels", "drop every vowel"),
        '"".join(c for c in {x} if c.lower() not in "aeiou")',
        "consonants",
    ),
    _step(
        "letters",
        _T,
        ("keep only the letters", "remove all but the letters"),
        '"".join(c for c in {x} if c.isalpha())',
        "letters",
    ),
    _step(
        "without",
        _T,
        ("remove every {k}", "delete each letter {k}"),
        '{x}.replace("{k}", "")',
        "without",
        ("a", "e", "o", "r", "s", "t"),
    ),
    _step(
        "double_letters", _T, ("double each character",), '"".join(c * 2 for c in {x})', "doubled"
    ),
    _step("start", _T, ("keep the first {k} characters",), "{x}[:{k}]", "start", (3, 4, 5, 6)),
    _step("end", _T, ("keep the last {k} characters",), "{x}[-{k}:]", "end", (3, 4, 5, 6)),
    _step(
        "sort_letters",
        _T,
        ("sort the characters", "put the characters in order"),
        '"".join(sorted({x}))',
        "sorted",
    ),
    _step("split", "text>words", ("split it into words", "take its words"), "{x}.split()", "words"),
    _step(
        "long_words",
        _W,
        ("keep words longer than {k} letters",),
        "[w for w in {x} if len(w) > {k}]",
        "long",
        (2, 3, 4),
    ),
    _step("capitals", _W, ("capitalize each word",), "[w.capitalize() for w in {x}]", "capital"),
    _step("flip_words", _W, ("reverse each word",), "[w[::-1] for w in {x}]", "flipped"),
    _step("sort_words", _W, ("sort the words",), "sorted({x})", "sorted"),
    _step("by_length", _W, ("sort the words by length",), "sorted({x}, key=len)", "length"),
    _step("turn_words", _W, ("put the words in reverse order",), "{x}[::-1]", "backward"),
    _step(
        "lengths",
        "words>numbers",
        ("take the length of each word",),
        "[len(w) for w in {x}]",
        "lengths",
    ),
    # dictionaries from words to numbers
    _step(
        "rich",
        _C,
        ("keep entries whose value is greater than {k}",),
        "{{w: n for w, n in {x}.items() if n > {k}}}",
        "large",
        SMALL,
    ),
    _step(
        "poor",
        _C,
        ("keep entries whose value is less than {k}",),
        "{{w: n for w, n in {x}.items() if n < {k}}}",
        "small",
        SMALL,
    ),
    _step(
        "even_values",
        _C,
        ("keep entries with an even value",),
        "{{w: n for w, n in {x}.items() if n % 2 == 0}}",
        "even",
    ),
    _step(
        "odd_values",
        _C,
        ("keep entries with an odd value",),
        "{{w: n for w, n in {x}.items() if n % 2 == 1}}",
        "odd",
    ),
    _step(
        "raise_values",
        _C,
        ("add {k} to each value",),
        "{{w: n + {k} for w, n in {x}.items()}}",
        "add",
        SMALL,
    ),
    _step(
        "scale_values",
        _C,
        ("multiply each value by {k}",),
        "{{w: n * {k} for w, n in {x}.items()}}",
        "scale",
        SMALL,
    ),
    _step(
        "square_values",
        _C,
        ("square each value",),
        "{{w: n ** 2 for w, n in {x}.items()}}",
        "square",
    ),
    _step(
        "short_keys",
        _C,
        ("keep entries whose key has fewer than {k} letters",),
        "{{w: n for w, n in {x}.items() if len(w) < {k}}}",
        "short",
        (4, 5, 6),
    ),
    _step(
        "upper_keys",
        _C,
        ("make each key upper case",),
        "{{w.upper(): n for w, n in {x}.items()}}",
        "upper",
    ),
    _step("sort_keys", _C, ("sort the entries by key",), "dict(sorted({x}.items()))", "sorted"),
    _step("keys", "counts>words", ("take the keys",), "list({x})", "keys"),
    _step("values", "counts>numbers", ("take the values",), "list({x}.values())", "values"),
)

RESULTS: tuple[Operation, ...] = (
    _step("list", "numbers>result", ("the list", "the numbers"), "{x}", "list"),
    _step("sum", "numbers>result", ("the sum", "the total"), "sum({x})", "sum"),
    _step("max", "numbers>result", ("the largest or 0",), "max({x}, default=0)", "largest"),
    _step("min", "numbers>result", ("the smallest or 0",), "min({x}, default=0)", "smallest"),
    _step("count", "numbers>result", ("the count", "how many there are"), "len({x})", "count"),
    _step(
        "distinct",
        "numbers>result",
        ("how many differ",),
        "len(set({x}))",
        "distinct",
    ),
    _step("text", "text>result", ("the text", "the result"), "{x}", "text"),
    _step("length", "text>result", ("its length",), "len({x})", "length"),
    _step(
        "vowels",
        "text>result",
        ("the number of vowels",),
        'sum(c in "aeiou" for c in {x}.lower())',
        "vowels",
    ),
    _step(
        "different",
        "text>result",
        ("the number of different characters",),
        "len(set({x}))",
        "distinct",
    ),
    _step("words", "words>result", ("the words", "the list of words"), "{x}", "words"),
    _step("joined", "words>result", ("the words joined by spaces",), '" ".join({x})', "joined"),
    _step("initials", "words>result", ("their first letters",), "[w[0] for w in {x}]", "initials"),
    _step("how_many", "words>result", ("the number of words",), "len({x})", "count"),
    _step(
        "longest", "words>result", ("the longest word",), 'max({x}, key=len, default="")', "longest"
    ),
    _step("dict", "counts>result", ("the dictionary", "the result"), "{x}", "dict"),
    _step("entries", "counts>result", ("the number of entries",), "len({x})", "count"),
    _step("sum_values", "counts>result", ("the sum of the values",), "sum({x}.values())", "sum"),
    _step("key_list", "counts>result", ("the sorted list of keys",), "sorted({x})", "keys"),
    _step(
        "best_key",
        "counts>result",
        ("the key with the largest value, or None",),
        "max({x}, key={x}.get, default=None)",
        "best",
    ),
    _step(
        "best_value",
        "counts>result",
        ("the largest value, or 0",),
        "max({x}.values(), default=0)",
        "largest",
    ),
)

# Two arguments to one list of numbers: `{a}` and `{b}` are the parameters.
PAIRS: tuple[Operation, ...] = (
    _step(
        "pair_sum",
        "lists>numbers",
        ("add the lists pairwise",),
        "[a + b for a, b in zip(first, second)]",
        "sum",
    ),
    _step(
        "pair_product",
        "lists>numbers",
        ("multiply the lists pairwise",),
        "[a * b for a, b in zip(first, second)]",
        "product",
    ),
    _step(
        "pair_max",
        "lists>numbers",
        ("take the larger number of each pair",),
        "[max(a, b) for a, b in zip(first, second)]",
        "larger",
    ),
    _step(
        "pair_gap",
        "lists>numbers",
        ("take the distance of each pair",),
        "[abs(a - b) for a, b in zip(first, second)]",
        "gap",
    ),
    _step(
        "common",
        "lists>numbers",
        ("keep numbers of the first list that are in the second",),
        "[n for n in first if n in second]",
        "common",
    ),
    _step(
        "missing",
        "lists>numbers",
        ("keep numbers of the first list that are not in the second",),
        "[n for n in first if n not in second]",
        "missing",
    ),
    _step("concat", "lists>numbers", ("join the two lists",), "first + second", "joined"),
    _step(
        "over_limit",
        "limit>numbers",
        ("keep numbers greater than the limit",),
        "[n for n in numbers if n > limit]",
        "over",
    ),
    _step(
        "under_limit",
        "limit>numbers",
        ("keep numbers less than the limit",),
        "[n for n in numbers if n < limit]",
        "under",
    ),
    _step(
        "add_limit",
        "limit>numbers",
        ("add the limit to each number",),
        "[n + limit for n in numbers]",
        "raise",
    ),
    _step(
        "clip",
        "limit>numbers",
        ("cap each number at the limit",),
        "[min(n, limit) for n in numbers]",
        "cap",
    ),
    _step(
        "distance",
        "limit>numbers",
        ("take the distance of each number to the limit",),
        "[abs(n - limit) for n in numbers]",
        "distance",
    ),
)
