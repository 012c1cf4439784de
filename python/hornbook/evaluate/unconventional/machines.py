"""Problems on small machines, games and rules that change."""

from typing import Any


def moody_counter(presses: str) -> list[int]:
    """A counter has two buttons, "u" and "d", and shows a number, at first 0. "u" adds 1 and "d"
    takes 1 away. Showing a multiple of 5 other than 0 makes it moody: the buttons then change
    their meaning until it shows a negative number or is pressed a fourth time in that mood,
    whichever comes first (that press still has the changed meaning). A mood cannot begin with the
    press that ended one. Return what it shows after each press.
    """
    shown, mood = 0, 0
    out = []
    for press in presses:
        step = 1 if press == "u" else -1
        moody = mood > 0
        shown += -step if moody else step
        if moody:
            mood -= 1
            if shown < 0:
                mood = 0
        elif shown and shown % 5 == 0:
            mood = 4
        out.append(shown)
    return out


def check_moody_counter(f: Any) -> None:
    assert f("") == []
    assert f("ud") == [1, 0]
    assert f("uuuuu") == [1, 2, 3, 4, 5]
    assert f("uuuuuu") == [1, 2, 3, 4, 5, 4]
    assert f("uuuuuuuuuu") == [1, 2, 3, 4, 5, 4, 3, 2, 1, 2]
    assert f("dddddd") == [-1, -2, -3, -4, -5, -4]
    assert f("ddddddu") == [-1, -2, -3, -4, -5, -4, -3]
    assert f("uuuuuddddd") == [1, 2, 3, 4, 5, 6, 7, 8, 9, 8]
    assert f("uuuuududu" + "uu") == [1, 2, 3, 4, 5, 6, 5, 6, 5, 6, 7]


def vending_sequence(coins: list[int], price: int) -> list[str]:
    """A machine takes coins one at a time and drops a can as soon as `price` is reached, once for
    each coin at most; what is over stays in. After every third can it is stuck: the next coin is
    swallowed without counting, and the machine says "clank" and works again. It says "can" for a
    can, "..." if there is still too little, and "refused" for a coin larger than the price, which
    is given back (also when stuck, and it does not unstick it).
    """
    inside = cans = 0
    stuck = False
    said = []
    for coin in coins:
        if coin > price:
            said.append("refused")
        elif stuck:
            stuck = False
            said.append("clank")
        else:
            inside += coin
            if inside >= price:
                inside -= price
                cans += 1
                stuck = cans % 3 == 0
                said.append("can")
            else:
                said.append("...")
    return said


def check_vending_sequence(f: Any) -> None:
    assert f([], 5) == []
    assert f([5], 5) == ["can"]
    assert f([3, 3, 4], 5) == ["...", "can", "can"]
    assert f([6], 5) == ["refused"]
    assert f([2, 2], 5) == ["...", "..."]
    assert f([5, 5, 5, 5, 5], 5) == ["can", "can", "can", "clank", "can"]
    assert f([5, 5, 5, 9, 1, 5], 5) == ["can", "can", "can", "refused", "clank", "can"]
    assert f([1] * 5, 1) == ["can", "can", "can", "clank", "can"]
    assert f([2, 3, 4, 1, 5, 2, 3], 5) == ["...", "can", "...", "can", "can", "clank", "..."]
    assert f([1] * 13, 1) == ["can", "can", "can", "clank"] * 3 + ["can"]


def elevator_log(calls: list[int], floors: int) -> list[int]:
    """An elevator in a house with floors 0 to `floors` - 1 starts at 0 and serves calls in order,
    but a call for the floor it is at is skipped, and a call for a floor outside the house sends it
    to the middle floor (floors // 2) instead. After every two rides upwards in a row it must visit
    the ground floor before it serves the next call. Return the floors where it stops.
    """
    at = ups = 0
    stops = []
    for call in calls:
        target = call if 0 <= call < floors else floors // 2
        if target == at:
            continue
        if ups == 2:
            stops.append(0)
            at = ups = 0
            if target == at:
                continue
        ups = ups + 1 if target > at else 0
        at = target
        stops.append(at)
    return stops


def check_elevator_log(f: Any) -> None:
    assert f([], 4) == []
    assert f([0], 4) == []
    assert f([2, 2], 4) == [2]
    assert f([3, 1], 4) == [3, 1]
    assert f([9], 5) == [2]
    assert f([-1, 9], 5) == [2]
    assert f([1, 2, 3], 5) == [1, 2, 0, 3]
    assert f([1, 2, 0], 5) == [1, 2, 0]
    assert f([1, 2, 1, 3, 4], 5) == [1, 2, 0, 1, 3, 0, 4]
    assert f([1, 2, 2, 0, 3], 5) == [1, 2, 0, 3]
    assert f([3, 1, 2, 4], 5) == [3, 1, 2, 4]


def stack_language(program: str) -> list[int]:
    """Run words separated by spaces on a stack of whole numbers; return it, bottom first. A number
    pushes itself. "dup" copies the top, "swap" exchanges the top two, "add" replaces the top two by
    their sum. "twin" does the word after it twice, "mute" skips the word after it. A word that
    needs more numbers than there are pushes -1 instead. "twin" and "mute" as the last word do
    nothing; "twin" and "mute" also work on each other as the word after ("mute twin" leaves out
    the "twin" alone; "twin mute" skips two words).
    """
    stack: list[int] = []
    words = program.split()
    skips, times = 0, 1
    for word in words:
        if skips:
            skips -= 1
            continue
        if word == "twin":
            times *= 2
            continue
        if word == "mute":
            skips, times = times, 1
            continue
        for _ in range(times):
            if word == "dup":
                stack.append(stack[-1] if stack else -1)
            elif word in ("swap", "add") and len(stack) < 2:
                stack.append(-1)
            elif word == "swap":
                stack[-1], stack[-2] = stack[-2], stack[-1]
            elif word == "add":
                stack.append(stack.pop() + stack.pop())
            else:
                stack.append(int(word))
        times = 1
    return stack


def check_stack_language(f: Any) -> None:
    assert f("") == []
    assert f("1 2") == [1, 2]
    assert f("1 dup add") == [2]
    assert f("dup") == [-1]
    assert f("1 add") == [1, -1]
    assert f("1 2 swap") == [2, 1]
    assert f("twin 3") == [3, 3]
    assert f("mute 3 4") == [4]
    assert f("twin twin 5") == [5, 5, 5, 5]
    assert f("twin mute 1 2 3") == [3]
    assert f("mute twin 7") == [7]
    assert f("1 2 3 twin add") == [6]
    assert f("9 twin") == [9]
    assert f("1 2 3 twin swap") == [1, 2, 3]


def chess_clock(moves: list[int], start: int, bonus: int) -> tuple[str, int]:
    """Two players, "white" then "black" in turn, use up the seconds in `moves`. Each has `start`
    seconds. A player whose move took less than the other's last move gets `bonus` seconds after
    it; the very first move never does. A player whose clock falls below zero during a move (before
    any bonus) loses at once. Return (winner, seconds left on the winner's clock), or ("none",
    difference between the clocks, as a positive number) when the moves run out.
    """
    clocks = [start, start]
    names = ("white", "black")
    for i, seconds in enumerate(moves):
        player = i % 2
        clocks[player] -= seconds
        if clocks[player] < 0:
            return (names[1 - player], clocks[1 - player])
        if i > 0 and seconds < moves[i - 1]:
            clocks[player] += bonus
    return ("none", abs(clocks[0] - clocks[1]))


def check_chess_clock(f: Any) -> None:
    assert f([], 10, 2) == ("none", 0)
    assert f([3], 10, 2) == ("none", 3)
    assert f([11], 10, 2) == ("black", 10)
    assert f([3, 11], 10, 2) == ("white", 7)
    assert f([3, 2], 10, 2) == ("none", 3)
    assert f([3, 3], 10, 2) == ("none", 0)
    assert f([5, 4, 3], 10, 1) == ("none", 4)
    assert f([10], 10, 2) == ("none", 10)
    assert f([10, 1, 1], 10, 5) == ("black", 14)


def lottery_wheel(wheel: list[int], spins: list[int]) -> int:
    """A wheel has numbered fields in a circle and a pointer at index 0. For each spin s the pointer
    moves s fields on (back if negative). The field it stops at pays its number and is then closed;
    stopping at a closed field pays nothing but opens it again and turns the direction of all later
    spins round. Return the sum paid. The wheel has at least one field.
    """
    closed: set[int] = set()
    at = paid = 0
    direction = 1
    for spin in spins:
        at = (at + direction * spin) % len(wheel)
        if at in closed:
            closed.remove(at)
            direction = -direction
        else:
            paid += wheel[at]
            closed.add(at)
    return paid


def check_lottery_wheel(f: Any) -> None:
    assert f([5], []) == 0
    assert f([5], [1]) == 5
    assert f([5], [1, 1]) == 5
    assert f([5], [1, 1, 1]) == 10
    assert f([1, 2, 3], [1, 1]) == 5
    assert f([1, 2, 3], [-1]) == 3
    assert f([1, 2, 3], [1, 3, 1]) == 2 + 1
    assert f([1, 2, 4], [1, 0, 1, 1]) == 2 + 1 + 4
    assert f([1, 10, 100, 1000], [2, 4, 1, 1]) == 100 + 10 + 1


def password_ferry(attempts: list[str], secret: str) -> list[str]:
    """A ferryman lets in who says the secret. After each wrong attempt the secret changes: its
    first character moves to its end. After a right one it is reversed. An attempt of the wrong
    length leaves the secret as it is and is answered "mumble"; others are answered "board" or
    "wait". After two "wait" in a row (with no other answer between) the ferryman leaves, and every
    attempt after that, whatever it is, is answered "gone".
    """
    said: list[str] = []
    for attempt in attempts:
        if "gone" in said or said[-2:] == ["wait", "wait"]:
            said.append("gone")
        elif len(attempt) != len(secret):
            said.append("mumble")
        elif attempt == secret:
            said.append("board")
            secret = secret[::-1]
        else:
            said.append("wait")
            secret = secret[1:] + secret[:1]
    return said


def check_password_ferry(f: Any) -> None:
    assert f([], "abc") == []
    assert f(["abc"], "abc") == ["board"]
    assert f(["abc", "cba"], "abc") == ["board", "board"]
    assert f(["abc", "abc"], "abc") == ["board", "wait"]
    assert f(["xyz", "bca"], "abc") == ["wait", "board"]
    assert f(["ab", "abc"], "abc") == ["mumble", "board"]
    assert f(["x", "y", "a"], "a") == ["wait", "wait", "gone"]
    assert f(["xyz", "ab", "xyz", "cab"], "abc") == ["wait", "mumble", "wait", "board"]
    assert f(["q", "q", "a", "a"], "a") == ["wait", "wait", "gone", "gone"]


def card_duel(first: list[int], second: list[int]) -> tuple[int, int]:
    """Two piles of cards (1 to 13). In each round both turn over their top card (index 0). The
    higher card wins a point for its owner, except that a 1 beats anything above 10. Equal cards
    are a truce: nobody gets a point and the next decided round counts one point more for each
    truce since the last decided one. The duel ends when a pile is empty, or at once when one side
    leads by 4 or more. Return the points.
    """
    points = [0, 0]
    worth = 1
    for a, b in zip(first, second):
        if a == b:
            worth += 1
            continue
        if a == 1 and b > 10:
            winner = 0
        elif b == 1 and a > 10:
            winner = 1
        else:
            winner = 0 if a > b else 1
        points[winner] += worth
        worth = 1
        if abs(points[0] - points[1]) >= 4:
            break
    return (points[0], points[1])


def check_card_duel(f: Any) -> None:
    assert f([], [1]) == (0, 0)
    assert f([5], [3]) == (1, 0)
    assert f([1], [11]) == (1, 0)
    assert f([13], [1]) == (0, 1)
    assert f([1], [10]) == (0, 1)
    assert f([10], [1]) == (1, 0)
    assert f([2, 2, 3], [2, 2, 1]) == (3, 0)
    assert f([9] * 6, [8] * 6) == (4, 0)
    assert f([5, 5], [5, 5]) == (0, 0)
    assert f([2, 3, 9, 2, 2], [2, 9, 9, 3, 1]) == (0, 4)
    assert f([7, 7, 7, 8, 1], [7, 7, 7, 2, 2]) == (4, 0)
    assert f([12], [1]) == (0, 1)
    assert f([11], [1]) == (0, 1)
    assert f([5, 4, 5, 4, 5], [4, 5, 4, 5, 4]) == (3, 2)


def rumour_days(friends: dict[str, list[str]], starters: list[str]) -> dict[str, int]:
    """A rumour starts with some people on day 0. Each day everyone who first heard it the day
    before tells all their friends (the lists are one-way). A person believes it only on being told
    by two or more people on the same day, or on being told again on a later day; only then does
    that person count as having heard it (on that day) and tell it on. The starters need no
    convincing. Return the day on which each starter and believer heard it.
    """
    heard = dict.fromkeys(starters, 0)
    doubts: set[str] = set()
    day = 0
    fresh = list(starters)
    while fresh:
        day += 1
        told: dict[str, int] = {}
        for person in fresh:
            for friend in friends.get(person, []):
                told[friend] = told.get(friend, 0) + 1
        fresh = []
        for friend, times in told.items():
            if friend in heard:
                continue
            if times > 1 or friend in doubts:
                heard[friend] = day
                fresh.append(friend)
            doubts.add(friend)
    return heard


def check_rumour_days(f: Any) -> None:
    assert f({}, []) == {}
    assert f({}, ["a"]) == {"a": 0}
    assert f({"a": ["b", "c"], "b": ["c"]}, ["a"]) == {"a": 0}
    assert f({"a": ["c"], "b": ["c"]}, ["a", "b"]) == {"a": 0, "b": 0, "c": 1}
    assert f({"a": ["c"], "b": ["d"], "c": ["d"]}, ["a", "b"]) == {"a": 0, "b": 0}
    late = {"a": ["c", "d"], "b": ["c"], "c": ["d", "a"], "d": ["e"]}
    assert f(late, ["a", "b"]) == {"a": 0, "b": 0, "c": 1, "d": 2}
    wide = {"a": ["x", "y"], "b": ["x", "y"], "x": ["z"], "y": ["z"], "z": ["a"]}
    assert f(wide, ["a", "b"]) == {"a": 0, "b": 0, "x": 1, "y": 1, "z": 2}


def rebel_calculator(expression: str) -> int:
    """Evaluate numbers joined by + and - and * strictly from left to right (no precedence), where
    tokens are separated by single spaces. The calculator rebels at each operator that is the same
    as the operator before it: it then uses the next in the circle + to - to * to + instead. (What
    counts as "the operator before" is the one written, not the one used.) The expression starts
    and ends with a number.
    """
    tokens = expression.split(" ")
    value = int(tokens[0])
    before = ""
    for i in range(1, len(tokens), 2):
        written = tokens[i]
        used = {"+": "-", "-": "*", "*": "+"}[written] if written == before else written
        number = int(tokens[i + 1])
        value = {"+": value + number, "-": value - number, "*": value * number}[used]
        before = written
    return value


def check_rebel_calculator(f: Any) -> None:
    assert f("7") == 7
    assert f("1 + 2") == 3
    assert f("1 + 2 * 3") == 9
    assert f("1 + 2 + 3") == 0
    assert f("9 - 2 - 3") == 21
    assert f("2 * 3 * 4") == 10
    assert f("1 + 1 + 1 + 1") == 0
    assert f("5 - 1 + 2 - 3") == 3
    assert f("2 * 2 * 2 + 1 + 1") == 6
    assert f("-3 * -2") == 6
