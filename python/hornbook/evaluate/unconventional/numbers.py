"""Problems on numbers."""

from typing import Any


def toll_bridge_total(plates: list[int]) -> int:
    """A toll keeper looks at number plates in order and adds up what is paid.

    A plate pays the sum of its decimal digits. If that sum is a multiple of 3 the plate pays
    double, unless the plate before it also had a sum that is a multiple of 3; then it pays
    nothing. Plates are positive.
    """
    total = 0
    before = False
    for plate in plates:
        paid = sum(int(digit) for digit in str(plate))
        lucky = paid % 3 == 0
        if not lucky:
            total += paid
        elif not before:
            total += 2 * paid
        before = lucky
    return total


def check_toll_bridge_total(f: Any) -> None:
    assert f([]) == 0
    assert f([10]) == 1
    assert f([12]) == 6
    assert f([12, 21]) == 6
    assert f([12, 21, 3]) == 6
    assert f([12, 1, 21]) == 13
    assert f([5, 7, 999]) == 66
    assert f([100, 200, 111, 222, 301]) == 13


def shy_binary(n: int) -> str:
    """Write n >= 0 in binary, but every 1 that stands right after another 1 hides: it is written
    as "-". A hidden 1 still counts as a 1 for the digit after it. Zero is written "0". At the end,
    if more digits are hidden than not, a "!" is put in front.
    """
    digits = bin(n)[2:]
    out = ""
    for i, digit in enumerate(digits):
        out += "-" if i > 0 and digit == "1" and digits[i - 1] == "1" else digit
    return "!" + out if 2 * out.count("-") > len(out) else out


def check_shy_binary(f: Any) -> None:
    assert f(0) == "0"
    assert f(1) == "1"
    assert f(3) == "1-"
    assert f(7) == "!1--"
    assert f(6) == "1-0"
    assert f(15) == "!1---"
    assert f(14) == "1--0"
    assert f(13) == "1-01"
    assert f(27) == "1-01-"
    assert f(31 * 4) == "!1----00"
    for n in range(64):
        assert f(n).replace("-", "1").replace("!", "") == format(n, "b")


def quarrelling_divisors(n: int) -> int:
    """The divisors of n (n >= 1) stand in a row from the smallest to the largest. Two neighbours
    quarrel if one of them is odd and the other is even. Return how many pairs of neighbours
    quarrel, minus how many do not, times the number of digits of n.
    """
    row = [d for d in range(1, n + 1) if n % d == 0]
    balance = 0
    for left, right in zip(row, row[1:]):
        balance += 1 if (left + right) % 2 else -1
    return balance * len(str(n))


def check_quarrelling_divisors(f: Any) -> None:
    assert f(1) == 0
    assert f(2) == 1
    assert f(3) == -1
    assert f(6) == 1 + 1 + 1
    assert f(4) == 1 - 1
    assert f(9) == -2
    assert f(12) == 2 * (1 + 1 + 1 - 1 - 1)
    assert f(15) == -3 * 2
    assert f(100) == 3 * (1 - 1 + 1 + 1 - 1 + 1 + 1 - 1)
    assert f(64) == 2 * (1 - 5)


def leap_frog_sum(start: int, leaps: list[int]) -> int:
    """A frog sits on the number `start` and makes the leaps in turn: it jumps forward by an even
    leap and backward by an odd one. A leap that would bring it below zero is not made and instead
    turns round the meaning of even and odd for all leaps after it. Return the sum of all numbers
    it sat on, with the first, counting a number once for each time it sat there (a leap that is
    not made adds nothing).
    """
    place, total, forward = start, start, 0
    for leap in leaps:
        target = place + leap if leap % 2 == forward else place - leap
        if target < 0:
            forward = 1 - forward
            continue
        place = target
        total += place
    return total


def check_leap_frog_sum(f: Any) -> None:
    assert f(0, []) == 0
    assert f(5, [2]) == 12
    assert f(5, [3]) == 7
    assert f(5, [7]) == 5
    assert f(5, [7, 7]) == 17
    assert f(5, [7, 2]) == 8
    assert f(0, [1, 1, 2]) == 1
    assert f(0, [1, 1, 2, 3]) == 1
    assert f(10, [2, 3, 4, 5]) == 10 + 12 + 9 + 13 + 8
    assert f(1, [3, 3, 4]) == 1 + 4 + 0
    assert f(1, [3, 3, 4, 2, 2]) == 1 + 4 + 0 + 2


def odd_change(amount: int) -> list[int]:
    """Pay `amount` >= 0 with coins of 1, 4 and 9, always taking the largest coin that fits, but
    never the same coin more than twice in a row: after two in a row the largest *other* coin that
    fits must be taken, and where there is none, the rest is left unpaid. Return the coins in order.
    """
    coins: list[int] = []
    while amount > 0:
        tired = coins[-1] if len(coins) > 1 and coins[-1] == coins[-2] else None
        fitting = [coin for coin in (9, 4, 1) if coin <= amount and coin != tired]
        if not fitting:
            break
        coins.append(fitting[0])
        amount -= fitting[0]
    return coins


def check_odd_change(f: Any) -> None:
    assert f(0) == []
    assert f(1) == [1]
    assert f(3) == [1, 1]
    assert f(8) == [4, 4]
    assert f(12) == [9, 1, 1]
    assert f(27) == [9, 9, 4, 4, 1]
    assert f(36) == [9, 9, 4, 9, 4, 1]
    assert f(7) == [4, 1, 1]
    assert f(9) == [9]
    assert f(40) == [9, 9, 4, 9, 9]


def clock_debt(minutes: list[int]) -> str:
    """A clock starts at 12:00. Each entry moves it on by that many minutes, but whenever it then
    shows an hour with an odd number (1 to 12 on the dial), it falls back by 5 minutes for each
    entry taken so far, this one included. Return what it shows at the end as "H:MM", on a dial
    from 1 to 12.
    """
    now = 0
    for taken, step in enumerate(minutes, 1):
        now += step
        hour = now // 60 % 12 or 12
        if hour % 2 == 1:
            now -= 5 * taken
    return f"{now // 60 % 12 or 12}:{now % 60:02d}"


def check_clock_debt(f: Any) -> None:
    assert f([]) == "12:00"
    assert f([30]) == "12:30"
    assert f([60]) == "12:55"
    assert f([60, 10]) == "12:55"
    assert f([120]) == "2:00"
    assert f([120, 60]) == "2:50"
    assert f([720]) == "12:00"
    assert f([660]) == "10:55"
    assert f([120, 1, 1, 180]) == "4:42"
    assert f([60, 0, 120]) == "2:55"
    assert f([780]) == "12:55"
    assert f([840]) == "2:00"


def hungry_digits(n: int) -> int:
    """The digits of n >= 0 eat each other from left to right: a digit eats the one to its right if
    it is larger by exactly one or two, and grows by one (but never above 9). It then goes on with
    the next. A digit that cannot eat its neighbour hands over to it. Return the number that the
    digits left over make.
    """
    digits = [int(digit) for digit in str(n)]
    left = [digits[0]]
    for digit in digits[1:]:
        if left[-1] - digit in (1, 2):
            left[-1] = min(9, left[-1] + 1)
        else:
            left.append(digit)
    return int("".join(map(str, left)))


def check_hungry_digits(f: Any) -> None:
    assert f(0) == 0
    assert f(7) == 7
    assert f(21) == 3
    assert f(31) == 4
    assert f(41) == 41
    assert f(12) == 12
    assert f(987) == 9
    assert f(5432) == 64
    assert f(54) == 6
    assert f(544) == 7
    assert f(11) == 11
    assert f(90210) == 9030


def staircase_price(steps: int, broken: list[int]) -> int:
    """Climb stairs numbered 1 to `steps` one at a time. Stepping on stair i costs i, but a broken
    stair is skipped: it costs nothing, and the stair after it costs triple (if that one is broken
    too, it is skipped as well and the tripling passes on, without growing). Stairs whose number
    ends in 0 are free, and a tripling that meets one is used up. Return the whole cost.
    """
    cost, factor = 0, 1
    for stair in range(1, steps + 1):
        if stair in broken:
            factor = 3
            continue
        if stair % 10:
            cost += factor * stair
        factor = 1
    return cost


def check_staircase_price(f: Any) -> None:
    assert f(0, []) == 0
    assert f(3, []) == 6
    assert f(3, [1]) == 9
    assert f(3, [3]) == 3
    assert f(4, [2, 3]) == 13
    assert f(10, []) == 45
    assert f(11, [9]) == 36 + 11
    assert f(11, [10]) == 45 + 33
    assert f(12, [9, 10]) == 36 + 33 + 12
    assert f(5, [1, 2, 3, 4, 5]) == 0


def echo_number(n: int, k: int) -> int:
    """Start with n >= 1. Do k times: write the number after itself, then take away as many of its
    last digits as the original number n has odd digits, then drop leading zeros. If nothing is
    left, the result is 0 and stays 0. Return the number.
    """
    odd = sum(int(digit) % 2 for digit in str(n))
    text = str(n)
    for _ in range(k):
        text = text + text
        text = text[: len(text) - odd].lstrip("0")
        if not text:
            return 0
    return int(text)


def check_echo_number(f: Any) -> None:
    assert f(2, 0) == 2
    assert f(2, 1) == 22
    assert f(2, 3) == 22222222
    assert f(1, 1) == 1
    assert f(1, 5) == 1
    assert f(13, 1) == 13
    assert f(12, 1) == 121
    assert f(12, 2) == 12112
    assert f(240, 1) == 240240
    assert f(105, 1) == 1051
    assert f(999, 4) == 999


def fair_split_gap(weights: list[int]) -> int:
    """Two people share weights (positive) lying in a row. They take turns; the one whose turn it
    is takes from the left end if the row has an odd length, else from the right end. After taking
    a weight that is heavier than all that the other one has together, a person must pass their
    next turn (the other takes twice). Return the first person's sum minus the second's.
    """
    sums = [0, 0]
    row = list(weights)
    skip = [False, False]
    turn = 0
    while row:
        if skip[turn]:
            skip[turn] = False
        else:
            taken = row.pop(0 if len(row) % 2 else -1)
            skip[turn] = taken > sums[1 - turn]
            sums[turn] += taken
        turn = 1 - turn
    return sums[0] - sums[1]


def check_fair_split_gap(f: Any) -> None:
    assert f([]) == 0
    assert f([4]) == 4
    assert f([1, 2]) == 1
    assert f([5, 1, 1]) == 5 - 2
    assert f([1, 5, 2]) == 1 - 2 + 5
    assert f([3, 3, 3, 3]) == 3 - 3 - 3 + 3
    assert f([2, 1, 1, 1]) == 1 - 2 + 1 - 1
    assert f([9, 1, 1, 1, 1]) == 9 - 1 - 1 + 1 - 1
