"""Problems on lists and records."""

from typing import Any


def heavy_neighbours(row: list[int]) -> list[int]:
    """Keep a number if the sum of its direct neighbours is more than twice the number; an end has
    one neighbour and is compared with it alone, not twice. Of the numbers not kept, those standing
    at an even index are replaced by -1 and the others vanish. A list of one number is empty after
    this.
    """
    out = []
    for i, value in enumerate(row):
        beside = row[max(0, i - 1) : i] + row[i + 1 : i + 2]
        kept = bool(beside) and sum(beside) > (2 * value if len(beside) == 2 else value)
        if kept:
            out.append(value)
        elif i % 2 == 0 and len(row) > 1:
            out.append(-1)
    return out


def check_heavy_neighbours(f: Any) -> None:
    assert f([]) == []
    assert f([5]) == []
    assert f([1, 2]) == [1]
    assert f([2, 1]) == [-1, 1]
    assert f([3, 1, 3]) == [-1, 1, -1]
    assert f([1, 3, 1]) == [1, 1]
    assert f([4, 4, 4]) == [-1, -1]
    assert f([0, 5, 2, 9, 1]) == [0, 2, 1]
    assert f([-1, -1, -1]) == [-1, -1]
    assert f([-3, 0, 7, 0, 2]) == [-3, 0, -1, 0, -1]


def relay_race(speeds: list[int], distances: list[int]) -> list[int]:
    """Runners with the given speeds stand in a queue. For each distance the first in the queue runs
    it in ceil(distance / speed) minutes and then goes to the end of the queue if that took at most
    3 minutes, or leaves for good. When the queue is empty, the fastest of those who left (the
    earlier to leave, of equals) comes back, as the only one, for the next distance. There is at
    least one runner, and speeds are positive. Return the minutes of each distance.
    """
    queue = list(speeds)
    left: list[int] = []
    times = []
    for distance in distances:
        if not queue:
            queue.append(left.pop(left.index(max(left))))
        runner = queue.pop(0)
        minutes = -(-distance // runner)
        times.append(minutes)
        (queue if minutes <= 3 else left).append(runner)
    return times


def check_relay_race(f: Any) -> None:
    assert f([1], []) == []
    assert f([2], [3, 3]) == [2, 2]
    assert f([1], [4, 2]) == [4, 2]
    assert f([1, 5], [4, 10, 10]) == [4, 2, 2]
    assert f([1, 2], [9, 9, 4, 2]) == [9, 5, 2, 1]
    assert f([3, 1], [6, 3, 9, 1]) == [2, 3, 3, 1]
    assert f([1, 1, 4], [4, 4, 16, 5]) == [4, 4, 4, 2]


def shadow_sort(items: list[int]) -> list[int]:
    """Sort the numbers upwards, but a number that is smaller than everything before it in the
    original list casts a shadow: the number right after it in the original list is left out of the
    result. A number left out can cast a shadow itself. The first number always casts one.
    """
    lost: set[int] = set()
    low: int | None = None
    for i, item in enumerate(items):
        if low is None or item < low:
            low = item
            lost.add(i + 1)
    return sorted(item for i, item in enumerate(items) if i not in lost)


def check_shadow_sort(f: Any) -> None:
    assert f([]) == []
    assert f([1]) == [1]
    assert f([1, 2]) == [1]
    assert f([3, 2, 1]) == [3]
    assert f([3, 1, 2, 4]) == [3, 4]
    assert f([5, 9, 8, 7, 1, 6]) == [1, 5, 7, 8]
    assert f([2, 2, 2]) == [2, 2]
    assert f([0, 5, -1, 5, -1, 3]) == [-1, -1, 0, 3]


def pantry_rotation(jars: list[tuple[str, int]], days: int) -> list[str]:
    """Each jar is (name, best before day). On each day 1, 2, ..., `days` one jar is opened: of the
    jars not yet past their day (day <= best before) the one with the latest day, except that every
    third day it is the one with the earliest day. Ties go to the name first in the alphabet. If no
    such jar is left, the past jar listed first is thrown away and "-" is noted with its name, as
    "-name"; if there are no jars at all, "fasting" is noted. Return the notes.
    """
    left = list(jars)
    notes = []
    for day in range(1, days + 1):
        good = [jar for jar in left if jar[1] >= day]
        if good:
            sign = 1 if day % 3 == 0 else -1
            chosen = min(good, key=lambda jar: (sign * jar[1], jar[0]))
            left.remove(chosen)
            notes.append(chosen[0])
        elif left:
            notes.append("-" + left.pop(0)[0])
        else:
            notes.append("fasting")
    return notes


def check_pantry_rotation(f: Any) -> None:
    assert f([], 2) == ["fasting", "fasting"]
    assert f([("a", 1)], 0) == []
    assert f([("a", 0)], 2) == ["-a", "fasting"]
    assert f([("a", 5), ("b", 9)], 2) == ["b", "a"]
    assert f([("b", 5), ("a", 5)], 1) == ["a"]
    assert f([("a", 9), ("b", 8), ("c", 7), ("d", 3)], 4) == ["a", "b", "d", "c"]
    assert f([("a", 1), ("b", 1), ("c", 1)], 3) == ["a", "-b", "-c"]
    assert f([("x", 3), ("w", 3), ("z", 4), ("y", 4)], 4) == ["y", "z", "w", "-x"]


def mirror_merge(left: list[int], right: list[int]) -> list[int]:
    """Walk along `left` from its start and `right` from its end at the same time. At each step, if
    the two numbers are equal, write one of them; if not, write the larger, but negative. When one
    list is used up, go on with what is left of the other in its walking direction, leaving out
    numbers that were written before (with or without the minus).
    """
    out: list[int] = []
    back = right[::-1]
    for a, b in zip(left, back):
        out.append(a if a == b else -max(a, b))
    rest = left[len(back) :] + back[len(left) :]
    for value in rest:
        if value not in out and -value not in out:
            out.append(value)
    return out


def check_mirror_merge(f: Any) -> None:
    assert f([], []) == []
    assert f([1], [1]) == [1]
    assert f([1], [2]) == [-2]
    assert f([1, 2], [2, 1]) == [1, 2]
    assert f([1, 2], [1, 2]) == [-2, -2]
    assert f([1, 2, 3], []) == [1, 2, 3]
    assert f([], [1, 2, 3]) == [3, 2, 1]
    assert f([1, 5, 5, 6, 1], [7, 1]) == [1, -7, 5, 6]
    assert f([4], [4, 9, 8, 4]) == [4, 8, 9]
    assert f([2], [9, 5, 5]) == [-5, 9]


def seat_swap(seats: list[str], wishes: dict[str, str]) -> list[str]:
    """People sit in a row. From the left, each person in turn (in the order of the seats at the
    start) who has a wish asks the wished-for person to change seats with whoever sits to the right
    of the asker at that moment. Nothing happens if nobody sits to the right, if the wished-for
    person is not in the row, or is the asker or already to the right of the asker. Return the row
    at the end. Names are different.
    """
    row = list(seats)
    for asker in seats:
        wish = wishes.get(asker)
        place = row.index(asker)
        if wish is None or wish not in row or wish == asker or place + 1 == len(row):
            continue
        other = row.index(wish)
        row[place + 1], row[other] = row[other], row[place + 1]
    return row


def check_seat_swap(f: Any) -> None:
    assert f([], {}) == []
    assert f(["a"], {"a": "b"}) == ["a"]
    assert f(["a", "b", "c"], {}) == ["a", "b", "c"]
    assert f(["a", "b", "c"], {"a": "c"}) == ["a", "c", "b"]
    assert f(["a", "b", "c"], {"a": "b"}) == ["a", "b", "c"]
    assert f(["a", "b", "c"], {"c": "a"}) == ["a", "b", "c"]
    assert f(["a", "b", "c"], {"b": "a"}) == ["c", "b", "a"]
    assert f(["a", "b", "c", "d"], {"a": "d", "d": "c"}) == ["a", "d", "c", "b"]
    assert f(["a", "b", "c", "d"], {"a": "d", "b": "b", "d": "a"}) == ["c", "d", "a", "b"]


def lantern_levels(lanterns: list[int]) -> list[int]:
    """Each lantern has a brightness >= 0. Every minute, all at once, each lantern that is brighter
    than both its neighbours (an end has one) gives 1 to each neighbour it has, if it has that much
    to give. Return the row once a minute changes nothing, or after 20 minutes.
    """
    row = list(lanterns)
    for _ in range(20):
        change = [0] * len(row)
        for i, value in enumerate(row):
            beside = [j for j in (i - 1, i + 1) if 0 <= j < len(row)]
            if beside and all(value > row[j] for j in beside) and value >= len(beside):
                for j in beside:
                    change[j] += 1
                    change[i] -= 1
        if not any(change):
            break
        row = [value + delta for value, delta in zip(row, change)]
    return row


def check_lantern_levels(f: Any) -> None:
    assert f([]) == []
    assert f([7]) == [7]
    assert f([2, 2]) == [2, 2]
    assert f([0, 1, 0]) == [0, 1, 0]
    assert f([0, 2, 0]) == [0, 2, 0]
    assert f([1, 0]) == [1, 0]
    assert f([5, 0]) == [3, 2]
    assert f([1, 5, 1]) == [3, 1, 3]
    assert f([3, 0, 0, 0]) == [1, 1, 1, 0]
    assert sum(f([9, 1, 4, 0, 3])) == 17
    assert f([5, 3, 5, 0]) == f([5, 3, 5, 0][::-1])[::-1]


def secret_guests(arrivals: list[tuple[int, int]]) -> int:
    """Guests come to a party as (arrival, departure), with arrival < departure; a guest is there
    from the arrival up to but not including the departure. A guest is secret if, at the moment of
    arriving, the number of guests already there (who arrived strictly earlier) is odd, and at the
    moment of leaving, the number of guests there (not counting who leaves then) is even.
    Return how many guests are secret.
    """
    count = 0
    for start, end in arrivals:
        there = sum(1 for a, b in arrivals if a < start < b)
        still = sum(1 for a, b in arrivals if a <= end < b)
        count += there % 2 == 1 and still % 2 == 0
    return count


def check_secret_guests(f: Any) -> None:
    assert f([]) == 0
    assert f([(0, 5)]) == 0
    assert f([(0, 5), (1, 6)]) == 1
    assert f([(0, 5), (1, 4)]) == 0
    assert f([(0, 5), (5, 6)]) == 0
    assert f([(0, 9), (1, 9), (1, 9)]) == 2
    assert f([(0, 9), (1, 5), (5, 9), (2, 3)]) == 2
    assert f([(0, 3), (2, 4), (3, 8), (4, 5)]) == 2
    assert f([(0, 2), (1, 3), (2, 4), (3, 5)]) == 2
    assert f([(0, 9), (0, 9), (0, 9), (0, 9), (1, 2)]) == 0
    assert f([(0, 9), (0, 9), (0, 9), (1, 9)]) == 1


def fickle_queue(commands: list[str]) -> list[str]:
    """Carry out commands on a queue and return the names served. "+name" puts a name at the end.
    "!" serves the front (nothing if the queue is empty). "~" makes the queue fickle: the very next
    "+" goes to the front instead, and the very next "!" serves the end; each of the two is used up
    on its own, and a second "~" before that does nothing more. A name already in the queue is not
    put in again, but uses up the fickleness all the same.
    """
    queue: list[str] = []
    served = []
    front = end = False
    for command in commands:
        if command == "~":
            front = end = True
        elif command == "!":
            if queue:
                served.append(queue.pop(-1 if end else 0))
            end = False
        else:
            name = command[1:]
            if name not in queue:
                queue.insert(0 if front else len(queue), name)
            front = False
    return served


def check_fickle_queue(f: Any) -> None:
    assert f([]) == []
    assert f(["!"]) == []
    assert f(["+a", "+b", "!", "!"]) == ["a", "b"]
    assert f(["+a", "~", "+b", "!", "!"]) == ["a", "b"]
    assert f(["+a", "~", "+b", "+c", "!", "!", "!"]) == ["c", "b", "a"]
    assert f(["+a", "+b", "~", "!", "!"]) == ["b", "a"]
    assert f(["~", "!", "+a", "+b", "!"]) == ["a"]
    assert f(["+a", "~", "+a", "+b", "!"]) == ["b"]
    assert f(["+a", "~", "+a", "+b", "!", "!"]) == ["b", "a"]
    assert f(["~", "~", "+a", "+b", "+c", "!", "!"]) == ["c", "a"]


def harvest_plan(fields: dict[str, list[int]]) -> list[str]:
    """Each field has a list of weekly yields. The total of a field is the sum of its yields, but a
    week with a larger yield than the week before counts double, and a zero ends the counting for
    that field. Return the names of the fields from the largest total to the smallest; equal totals
    stand in the order of the names backwards (z before a). Fields with total 0 are named with "?"
    after their name.
    """
    totals = {}
    for name, yields in fields.items():
        total = 0
        for week, amount in enumerate(yields):
            if amount == 0:
                break
            total += 2 * amount if week > 0 and amount > yields[week - 1] else amount
        totals[name] = total
    names = sorted(sorted(totals, reverse=True), key=lambda name: -totals[name])
    return [name if totals[name] else name + "?" for name in names]


def check_harvest_plan(f: Any) -> None:
    assert f({}) == []
    assert f({"a": []}) == ["a?"]
    assert f({"a": [1], "b": [2]}) == ["b", "a"]
    assert f({"a": [1], "b": [1]}) == ["b", "a"]
    assert f({"a": [1, 2], "b": [4]}) == ["a", "b"]
    assert f({"a": [3, 0, 9], "b": [4]}) == ["b", "a"]
    assert f({"x": [0, 5], "y": [0]}) == ["y?", "x?"]
    assert f({"p": [2, 2], "q": [1, 1, 1], "r": [5, 1]}) == ["r", "p", "q"]
    assert f({"a": [5, 5], "b": [9, 1], "c": [11]}) == ["c", "b", "a"]
    assert f({"a": [1, 5], "b": [10]}) == ["a", "b"]
    assert f({"a": [1, 5], "b": [12]}) == ["b", "a"]
