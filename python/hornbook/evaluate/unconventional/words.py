"""Problems on text."""

from typing import Any


def vowel_tides(text: str) -> str:
    """The tide is low at the start. Each vowel (a, e, i, o, u, any case) turns the tide after it
    was written. At high tide letters are written in upper case, at low tide in lower case, and
    spaces are written as "~" at high tide. Other characters stay.
    """
    high = False
    out = ""
    for char in text:
        out += "~" if high and char == " " else char.upper() if high else char.lower()
        if char.lower() in "aeiou":
            high = not high
    return out


def check_vowel_tides(f: Any) -> None:
    assert f("") == ""
    assert f("bcd") == "bcd"
    assert f("a b") == "a~B"
    assert f("aab") == "aAb"
    assert f("Hello World") == "heLLO wo" + "RLD"
    assert f("o o o") == "o~O o"
    assert f("A-1 z") == "a-1~Z"
    assert f("EEE x") == "eEe~X"


def jealous_words(words: list[str]) -> list[str]:
    """A word is jealous if the word before it (in the list as given) is longer. A jealous word
    steals the last letter of the word before it and puts it at its own front. All thefts are
    decided before the first one happens and then happen from left to right, each taking what is
    the last letter at that time. Words left empty are dropped.
    """
    thieves = [i for i in range(1, len(words)) if len(words[i - 1]) > len(words[i])]
    row = list(words)
    for i in thieves:
        if row[i - 1]:
            row[i] = row[i - 1][-1] + row[i]
            row[i - 1] = row[i - 1][:-1]
    return [word for word in row if word]


def check_jealous_words(f: Any) -> None:
    assert f([]) == []
    assert f(["ab"]) == ["ab"]
    assert f(["ab", "c"]) == ["a", "bc"]
    assert f(["a", "bc"]) == ["a", "bc"]
    assert f(["abc", "de", "f"]) == ["ab", "cd", "ef"]
    assert f(["a", ""]) == ["a"]
    assert f(["abcd", "x", "yz", "w"]) == ["abc", "dx", "y", "zw"]
    assert f(["same", "size"]) == ["same", "size"]
    assert f(["ab", "", "c"]) == ["a", "b", "c"]


def museum_labels(names: list[str], width: int) -> list[str]:
    """Make a label of exactly `width` >= 3 characters for each name. A shorter name is centred in
    dots, with the odd dot on the left if the name starts with a capital letter and else on the
    right. A longer name keeps its first and last letter, and between them stands the number of
    letters left out, filled up with stars on the right of the number; if the number does not fit,
    only stars stand there.
    """
    labels = []
    for name in names:
        spare = width - len(name)
        if spare >= 0:
            small = spare // 2
            left = spare - small if name[:1].isupper() else small
            labels.append("." * left + name + "." * (spare - left))
        else:
            number = str(len(name) - 2)
            room = width - 2
            middle = number if len(number) <= room else ""
            labels.append(name[0] + middle.ljust(room, "*") + name[-1])
    return labels


def check_museum_labels(f: Any) -> None:
    assert f([], 5) == []
    assert f(["abc"], 3) == ["abc"]
    assert f(["ab"], 5) == [".ab.."]
    assert f(["Ab"], 5) == ["..Ab."]
    assert f(["Vase", "vase"], 6) == [".Vase.", ".vase."]
    assert f(["sculpture"], 5) == ["s7**e"]
    assert f(["sculpture"], 3) == ["s7e"]
    assert f(["a" * 12 + "z"], 3) == ["a*z"]
    assert f(["a" * 12 + "z"], 4) == ["a11z"]
    assert f(["", "Q"], 4) == ["....", "..Q."]


def knotted_rope(rope: str) -> str:
    """A rope is a string of letters. Wherever the same letter stands twice in a row, the two tie a
    knot: they become one upper-case letter. Go from left to right, once; three in a row make a
    knot and a loose letter. After that, each knot turns the loose letters between it and the next
    knot (or the end) backwards. Input is in lower case.
    """
    tied = ""
    i = 0
    while i < len(rope):
        if rope[i : i + 2] == rope[i] * 2:
            tied += rope[i].upper()
            i += 2
        else:
            tied += rope[i]
            i += 1
    out, loose = "", ""
    knotted = False
    for char in tied:
        if char.isupper():
            out += (loose[::-1] if knotted else loose) + char
            loose, knotted = "", True
        else:
            loose += char
    return out + (loose[::-1] if knotted else loose)


def check_knotted_rope(f: Any) -> None:
    assert f("") == ""
    assert f("abc") == "abc"
    assert f("aa") == "A"
    assert f("aaa") == "Aa"
    assert f("aaaa") == "AA"
    assert f("xyaabcd") == "xyAdcb"
    assert f("aabcddef") == "AcbDfe"
    assert f("abccde") == "abCed"
    assert f("hello world") == "heLdlrow o"


def gossip_chain(message: str, people: int) -> str:
    """A message is whispered along a chain. The first person passes it on as it is. Person number
    p (p = 2, 3, ...) forgets the p-th word of what they hear, if there is one, and says the last
    word twice if p is even. Words are separated by single spaces. Return what the last of
    `people` >= 1 people says.
    """
    words = message.split(" ") if message else []
    for p in range(2, people + 1):
        if len(words) >= p:
            del words[p - 1]
        if p % 2 == 0 and words:
            words.append(words[-1])
    return " ".join(words)


def check_gossip_chain(f: Any) -> None:
    assert f("", 5) == ""
    assert f("one two three", 1) == "one two three"
    assert f("one two three", 2) == "one three three"
    assert f("one two three", 3) == "one three"
    assert f("one two three", 4) == "one three three"
    assert f("a", 2) == "a a"
    assert f("a", 4) == "a a a"
    assert f("a b c d e", 3) == "a c e e"
    assert f("a b c d e", 4) == "a c e e"


def typewriter_jam(keys: str, sticky: str) -> str:
    """Type `keys` on an old typewriter. A letter in `sticky` is typed only at every second press of
    it (the first press does nothing, the second types, and so on, counted for each letter apart).
    "<" takes back the last character on the page, and "#" cleans the machine: from then on nothing
    sticks until the next "<" is pressed, which takes back a character as always and makes the
    letters sticky again with their counts at zero.
    """
    page: list[str] = []
    presses: dict[str, int] = {}
    clean = False
    for key in keys:
        if key == "<":
            if page:
                page.pop()
            if clean:
                clean, presses = False, {}
        elif key == "#":
            clean = True
        elif key in sticky and not clean:
            presses[key] = presses.get(key, 0) + 1
            if presses[key] % 2 == 0:
                page.append(key)
        else:
            page.append(key)
    return "".join(page)


def check_typewriter_jam(f: Any) -> None:
    assert f("", "a") == ""
    assert f("abc", "") == "abc"
    assert f("aaaa", "a") == "aa"
    assert f("abab", "a") == "bab"
    assert f("ab<c", "") == "ac"
    assert f("<<x", "") == "x"
    assert f("a#aa", "a") == "aa"
    assert f("a#a<aa", "a") == "a"
    assert f("a#aa<a", "a") == "a"
    assert f("aba<bb", "ab") == "b"
    assert f("a<a", "a") == "a"


def polite_sorting(names: list[str]) -> list[str]:
    """Sort names by their last letter. Names with the same last letter are polite: the longer one
    lets the shorter one go first; of the same length, the one later in the list goes first. Empty
    names stand at the very end, in the order given.
    """
    places = [i for i, name in enumerate(names) if name]
    places.sort(key=lambda i: (names[i][-1], len(names[i]), -i))
    return [names[i] for i in places] + [name for name in names if not name]


def check_polite_sorting(f: Any) -> None:
    assert f([]) == []
    assert f(["b", "a"]) == ["a", "b"]
    assert f(["xa", "a"]) == ["a", "xa"]
    assert f(["xa", "ya"]) == ["ya", "xa"]
    assert f(["", "b", "", "a"]) == ["a", "b", "", ""]
    assert f(["za", "ab", "aa", "c", "bb"]) == ["aa", "za", "bb", "ab", "c"]
    assert f(["longa", "a", "mida"]) == ["a", "mida", "longa"]


def bracket_weather(forecast: str) -> list[int]:
    """In `forecast` "(" warms by 1, ")" cools by 1, and a digit d repeats the bracket before it d
    more times (a digit without a bracket before it, or after another digit, does nothing). The
    temperature starts at 0 and cannot leave -5 to 5: what would lead out is lost. Return the
    temperature after each character that changed it.
    """
    now = 0
    seen: list[int] = []
    before = ""
    for char in forecast:
        if char in "()":
            moves, kind = 1, char
        elif char.isdigit() and before and before in "()":
            moves, kind = int(char), before
        else:
            moves, kind = 0, ""
        step = moves if kind == "(" else -moves
        after = max(-5, min(5, now + step))
        if after != now:
            seen.append(after)
        now = after
        before = char
    return seen


def check_bracket_weather(f: Any) -> None:
    assert f("") == []
    assert f("(") == [1]
    assert f("()") == [1, 0]
    assert f("(2") == [1, 3]
    assert f("(9(") == [1, 5]
    assert f("7)") == [-1]
    assert f("(22") == [1, 3]
    assert f("(0)") == [1, 0]
    assert f(")9)(") == [-1, -5, -4]
    assert f("(x3") == [1]


def sandwich_cipher(text: str) -> str:
    """Move the bread to the outside: the first and the last character of each word change places,
    if they are different letters of the same case; if they are the same letter, both are removed.
    A word of one character gets a "+" on both sides. Words are split at single spaces and empty
    words stay empty. Then the order of the words is reversed if at least one word was left
    unchanged by all of this (an empty word does not count as unchanged).
    """
    words = []
    still = False
    for word in text.split(" "):
        if len(word) == 1:
            made = f"+{word}+"
        elif len(word) > 1 and word[0] == word[-1]:
            made = word[1:-1]
        elif len(word) > 1 and (
            (word[0].islower() and word[-1].islower()) or (word[0].isupper() and word[-1].isupper())
        ):
            made = word[-1] + word[1:-1] + word[0]
        else:
            made = word
            still = still or bool(word)
        words.append(made)
    return " ".join(words[::-1] if still else words)


def check_sandwich_cipher(f: Any) -> None:
    assert f("") == ""
    assert f("a") == "+a+"
    assert f("bread") == "dreab"
    assert f("ab cd") == "ba dc"
    assert f("level up") == "eve pu"
    assert f("Bread and tea") == "aet dna Bread"
    assert f("BUS") == "SUB"
    assert f("a  b") == "+a+  +b+"
    assert f("x9 ab") == "ba x9"
    assert f("xx ab") == " ba"
    assert f("Bread") == "Bread"
    assert f("BreaD xy") == "DreaB yx"
    assert f("bREAd xY") == "xY dREAb"


def lazy_spelling(text: str) -> int:
    """A lazy writer moves a hand over the keys a to z lying in a circle (a follows z). The hand
    starts on "a". To write a letter it moves the shorter way round; where both are as long, it
    moves forward. A letter that is the same as the one before costs nothing; otherwise it costs
    the number of keys moved, and 1 more if the direction changes from that of the last real move.
    Other characters are skipped; case does not matter. Return the cost.
    """
    cost, place, last = 0, 0, 0
    for char in text.lower():
        if not "a" <= char <= "z":
            continue
        forward = (ord(char) - 97 - place) % 26
        if forward == 0:
            continue
        direction = 1 if forward <= 13 else -1
        cost += min(forward, 26 - forward) + (1 if last == -direction else 0)
        last = direction
        place = ord(char) - 97
    return cost


def check_lazy_spelling(f: Any) -> None:
    assert f("") == 0
    assert f("a") == 0
    assert f("aaa") == 0
    assert f("b") == 1
    assert f("z") == 1
    assert f("n") == 13
    assert f("bz") == 1 + 2 + 1
    assert f("na") == 26
    assert f("B-b!c") == 2
    assert f("za") == 1 + 1 + 1
    assert f("yxw") == 4
    assert f("cab") == 2 + 2 + 1 + 1 + 1
    assert f("no") == 14
    assert f("dz") == 3 + 4 + 1
    assert f("aca") == 5
    assert f("ob") == 12 + 13 + 1
    assert f("bbab") == 1 + 1 + 1 + 1 + 1
