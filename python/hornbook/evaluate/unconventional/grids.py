"""Problems on grids."""

from typing import Any


def gardener_walk(garden: list[str]) -> str:
    """A gardener walks a grid of characters ("." grass, "#" stone, letters are flowers; all rows
    as long, at least one cell) from the top left, going right. On stone ahead or at the edge, turn
    right and try again; if all four ways are shut, stop. Pick each flower stepped on (it becomes
    grass). After picking a vowel (a, e, i, o, u) turn right as well. Stop after 30 steps or when
    no flower is left. The start cell is stepped on first, and costs no step. Return the flowers
    picked, in order. The start is never stone.
    """
    cells = [list(row) for row in garden]
    ways = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    r = c = way = 0
    picked = ""
    for step in range(31):
        if cells[r][c] != ".":
            picked += cells[r][c]
            way = (way + 1) % 4 if cells[r][c] in "aeiou" else way
            cells[r][c] = "."
        if step == 30 or not any(cell not in ".#" for row in cells for cell in row):
            break
        for _ in range(4):
            nr, nc = r + ways[way][0], c + ways[way][1]
            if 0 <= nr < len(cells) and 0 <= nc < len(cells[0]) and cells[nr][nc] != "#":
                break
            way = (way + 1) % 4
        else:
            break
        r, c = nr, nc
    return picked


def check_gardener_walk(f: Any) -> None:
    assert f(["."]) == ""
    assert f(["x"]) == "x"
    assert f([".xy"]) == "xy"
    assert f([".#", "xy"]) == "x"
    assert f(["..", "ba"]) == "ab"
    assert f(["a.b", "c.d"]) == "acbd"
    assert f([".#x"]) == ""
    assert f([".e.", ".t.", ".o."]) == "eto"
    assert f(["..", ".b", ".a"]) == "ba"
    assert f(["." * 31 + "z"]) == ""
    assert f(["." * 30 + "z"]) == "z"
    assert f(["." * 31 + "a"]) == ""
    assert f(["e.i", "..t", "o.u"]) == "eoitu"


def sunny_rooms(walls: list[str]) -> int:
    """A floor plan is a grid of "." (floor) and "#" (wall), all rows as long. Sun comes in from the
    left edge along each row up to the first wall, and from the top edge down each column up to the
    first wall. A floor cell reached from both sides is blinding and does not count as sunny; one
    reached from exactly one side is sunny. Return the number of sunny cells minus the number of
    blinding ones.
    """
    if not walls:
        return 0
    left = {
        (r, c) for r, row in enumerate(walls) for c in range(len(row)) if "#" not in row[: c + 1]
    }
    top = {
        (r, c)
        for r, row in enumerate(walls)
        for c in range(len(row))
        if all(walls[k][c] != "#" for k in range(r + 1))
    }
    return len(left ^ top) - len(left & top)


def check_sunny_rooms(f: Any) -> None:
    assert f([]) == 0
    assert f(["."]) == -1
    assert f(["#"]) == 0
    assert f(["..", ".."]) == -4
    assert f([".#.", "..."]) == -1 + 1 - 1 + 1 - 1
    assert f(["#.", ".."]) == 1 + 1 - 1
    assert f(["##", ".."]) == 2
    assert f([".#", "#."]) == -1
    assert f(["..#.", "#..."]) == -1 - 1 + 1 + 1 + 0 + 1


def spiral_tax(grid: list[list[int]]) -> int:
    """Walk the grid in a clockwise spiral from the top left to the inside. Add up the numbers, but
    the number at each corner where the walk turns is taken away instead. The first and the last
    cell of the walk are no turns.
    """
    ways = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    rows = len(grid)
    columns = len(grid[0]) if grid else 0
    seen: set[tuple[int, int]] = set()
    r = c = way = total = 0

    def free(row: int, column: int) -> bool:
        return 0 <= row < rows and 0 <= column < columns and (row, column) not in seen

    while free(r, c):
        seen.add((r, c))
        turned = False
        if not free(r + ways[way][0], c + ways[way][1]):
            way = (way + 1) % 4
            turned = free(r + ways[way][0], c + ways[way][1]) and len(seen) > 1
        total += -grid[r][c] if turned else grid[r][c]
        r, c = r + ways[way][0], c + ways[way][1]
    return total


def check_spiral_tax(f: Any) -> None:
    assert f([]) == 0
    assert f([[7]]) == 7
    assert f([[1, 2, 3]]) == 6
    assert f([[1], [2], [3]]) == 6
    assert f([[1, 2], [3, 4]]) == 1 - 2 - 4 + 3
    assert f([[1, 2, 3], [4, 5, 6], [7, 8, 9]]) == 1 + 2 - 3 + 6 - 9 + 8 - 7 - 4 + 5
    assert f([[1, 2, 3], [4, 5, 6]]) == 1 + 2 - 3 - 6 + 5 + 4
    assert f([[1, 2], [3, 4], [5, 6]]) == 1 - 2 + 4 - 6 - 5 + 3


def rook_picnic(board: list[str]) -> int:
    """On a board of "." (free), "R" (rook) and "b" (basket), a rook eats the first basket it sees
    to the left, right, up and down, unless another rook stands before it. A basket seen by exactly
    two rooks is shared: each gets half of it, rounded down to nothing. A basket seen by any other
    number of rooks (but at least one) goes to those in full, each. Return how many baskets all
    rooks get together.
    """
    total = 0
    for r, row in enumerate(board):
        for c, cell in enumerate(row):
            if cell != "b":
                continue
            seen = 0
            for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                y, x = r + dr, c + dc
                while 0 <= y < len(board) and 0 <= x < len(board[y]) and board[y][x] == ".":
                    y, x = y + dr, x + dc
                if 0 <= y < len(board) and 0 <= x < len(board[y]) and board[y][x] == "R":
                    seen += 1
            total += 0 if seen == 2 else seen
    return total


def check_rook_picnic(f: Any) -> None:
    assert f([]) == 0
    assert f(["Rb"]) == 1
    assert f(["RbR"]) == 0
    assert f(["Rbb"]) == 1
    assert f(["RRb"]) == 1
    assert f([".R.", "RbR", "..."]) == 3
    assert f([".R.", "RbR", ".R."]) == 4
    assert f(["R..b", "....", "...R"]) == 0
    assert f(["R.b", "...", "b.b"]) == 2
    assert f(["b.b"]) == 0


def tetris_floor(columns: int, bars: list[tuple[int, int]]) -> list[int]:
    """Bars fall on a floor of `columns` columns. A bar (start, length) lies flat over the columns
    start, start + 1, ... and comes to rest on the highest stack below it, so all of its columns
    then have one same height, one more than that. Parts of a bar beyond the floor break off; a bar
    wholly beyond it is ignored. When a bar covers the whole floor and, before it fell, all columns
    had the same height, the floor is cleared to zero instead. Return the heights.
    """
    heights = [0] * columns
    for start, length in bars:
        covered = [i for i in range(start, start + length) if 0 <= i < columns]
        if not covered:
            continue
        if len(covered) == columns and len(set(heights)) == 1:
            heights = [0] * columns
            continue
        top = max(heights[i] for i in covered) + 1
        for i in covered:
            heights[i] = top
    return heights


def check_tetris_floor(f: Any) -> None:
    assert f(0, []) == []
    assert f(3, []) == [0, 0, 0]
    assert f(3, [(0, 1)]) == [1, 0, 0]
    assert f(3, [(0, 3)]) == [0, 0, 0]
    assert f(3, [(0, 1), (0, 3)]) == [2, 2, 2]
    assert f(3, [(0, 1), (0, 3), (0, 3)]) == [0, 0, 0]
    assert f(3, [(2, 5)]) == [0, 0, 1]
    assert f(3, [(3, 2), (-4, 2)]) == [0, 0, 0]
    assert f(4, [(0, 2), (1, 2), (3, 1)]) == [1, 2, 2, 1]
    assert f(4, [(-1, 3), (1, 3), (0, 1)]) == [2, 2, 2, 2]


def ant_colours(steps: int, size: int) -> list[str]:
    """An ant stands in the middle of a white floor of size x size tiles (size is odd), looking up.
    At each step it repaints its tile: white to grey, grey to black, black to white; it turns left
    if the tile was white, right if it was black, and keeps on if it was grey; then it moves one
    tile on. Leaving an edge, it comes in at the opposite one. Return the rows after the steps,
    with "." white, "+" grey and "#" black.
    """
    tiles = [["."] * size for _ in range(size)]
    r = c = size // 2
    dr, dc = -1, 0
    for _ in range(steps):
        if tiles[r][c] == ".":
            tiles[r][c] = "+"
            dr, dc = -dc, dr
        elif tiles[r][c] == "+":
            tiles[r][c] = "#"
        else:
            tiles[r][c] = "."
            dr, dc = dc, -dr
        r, c = (r + dr) % size, (c + dc) % size
    return ["".join(row) for row in tiles]


def check_ant_colours(f: Any) -> None:
    assert f(0, 1) == ["."]
    assert f(1, 1) == ["+"]
    assert f(2, 1) == ["#"]
    assert f(3, 1) == ["."]
    assert f(0, 3) == ["...", "...", "..."]
    assert f(1, 3) == ["...", ".+.", "..."]
    assert f(2, 3) == ["...", "++.", "..."]
    assert f(4, 3) == ["...", "++.", "++."]
    assert f(5, 3) == ["...", "+#.", "++."]
    assert f(7, 3) == ["++.", "+#.", "++."]
    assert f(1, 5) == [".....", ".....", "..+..", ".....", "....."]


def domino_fall(row: str, push: int) -> str:
    """Dominoes stand in a row: "|" standing, "." a gap, "X" a heavy one. Push the one at index
    `push` to the right: a standing domino falls ("/") and pushes the one right after it. A gap of
    one is bridged only by a domino that was itself pushed by a falling one (not by the hand); a
    longer gap stops all. A heavy one needs two pushes in the whole story to fall: the first only
    turns it into a standing one "|" and stops all. Push at a gap or outside: nothing happens.
    Return the row.
    """
    cells = list(row)
    at, by_hand = push, True
    while 0 <= at < len(cells):
        if cells[at] == "X":
            cells[at] = "|"
            break
        if cells[at] != "|":
            break
        cells[at] = "/"
        step = 1
        if at + 1 < len(cells) and cells[at + 1] == "." and not by_hand:
            step = 2
        at, by_hand = at + step, False
    return "".join(cells)


def check_domino_fall(f: Any) -> None:
    assert f("", 0) == ""
    assert f("|||", 0) == "///"
    assert f("|||", 1) == "|//"
    assert f("|.|", 0) == "/.|"
    assert f("||.|", 0) == "//./"
    assert f("||..|", 0) == "//..|"
    assert f("|X|", 0) == "/||"
    assert f("||.X|", 0) == "//.||"
    assert f("X||", 0) == "|||"
    assert f(".||", 0) == ".||"
    assert f("||", 5) == "||"
    assert f("||", -1) == "||"
    assert f("||.|.||", 0) == "//././/"


def postal_zones(houses: list[list[int]]) -> list[list[int]]:
    """Each house has a number. Return a grid of the same shape in which each cell holds how many of
    its up to eight neighbours have a number that differs from its own by an odd amount; cells in
    even rows (from 0) get it negated if it is more than 3.
    """
    out = []
    for r, row in enumerate(houses):
        line = []
        for c, number in enumerate(row):
            count = 0
            for y in range(max(0, r - 1), min(len(houses), r + 2)):
                for x in range(max(0, c - 1), min(len(row), c + 2)):
                    count += (houses[y][x] - number) % 2
            line.append(-count if r % 2 == 0 and count > 3 else count)
        out.append(line)
    return out


def check_postal_zones(f: Any) -> None:
    assert f([]) == []
    assert f([[5]]) == [[0]]
    assert f([[1, 2]]) == [[1, 1]]
    assert f([[1, 3]]) == [[0, 0]]
    assert f([[1, 2], [2, 2]]) == [[3, 1], [1, 1]]
    assert f([[2, 2, 2], [2, 1, 2], [2, 2, 2]]) == [[1, 1, 1], [1, 8, 1], [1, 1, 1]]
    assert f([[2, 1, 2], [2, 2, 2]]) == [[1, -5, 1], [1, 1, 1]]
    assert f([[2, 2, 2], [2, 1, 2]]) == [[1, 1, 1], [1, 5, 1]]
    assert f([[2, 2, 2, 1], [2, 2, 2, 2], [2, 2, 2, 2], [1, 2, 2, 2]]) == [
        [0, 0, 1, 3],
        [0, 0, 1, 1],
        [1, 1, 0, 0],
        [3, 1, 0, 0],
    ]
    assert f([[1, 2, 1], [2, 1, 2], [1, 2, 1]]) == [[2, 3, 2], [3, 4, 3], [2, 3, 2]]
    assert f([[2], [2], [2], [1]]) == [[0], [0], [1], [1]]


def river_crossing(river: list[str], jump: int) -> int:
    """Cross a river from the top row to the bottom row over stones. A row is a string of "o"
    (stone) and "~" (water). From a stone you go to a stone in the next row at most `jump` columns
    away; you start on any stone of the first row. A stone reached from more than one stone of the
    row before sinks under you after that crossing step is counted: it counts as reached in its row
    but cannot be left. Return how many stones of the last row are reached.
    """
    if not river:
        return 0
    able = [i for i, cell in enumerate(river[0]) if cell == "o"]
    reached = len(able)
    for row in river[1:]:
        ways = [sum(abs(i - j) <= jump for j in able) for i in range(len(row))]
        stones = [i for i, cell in enumerate(row) if cell == "o" and ways[i]]
        reached = len(stones)
        able = [i for i in stones if ways[i] == 1]
    return reached


def check_river_crossing(f: Any) -> None:
    assert f([], 1) == 0
    assert f(["o~o"], 1) == 2
    assert f(["o~", "~o"], 0) == 0
    assert f(["o~", "~o"], 1) == 1
    assert f(["oo", "oo"], 0) == 2
    assert f(["oo", "oo"], 1) == 2
    assert f(["oo", "oo", "oo"], 1) == 0
    assert f(["oo", "oo", "oo"], 0) == 2
    assert f(["o~~o", "~oo~", "o~~o"], 1) == 2
    assert f(["o~o", "ooo", "ooo"], 1) == 3
    assert f(["o~o~~", "~o~~~", "ooooo"], 1) == 0


def crowded_shelf(shelf: list[str], width: int) -> list[list[str]]:
    """Books (their titles) are put on shelves of the given width, in order. A book is as thick as
    its title has letters; other characters count nothing. A book that does not fit begins the next
    shelf; a book thicker than a whole shelf is left out. On every second shelf (the second, the
    fourth, ...) the books stand in the opposite order. A title that starts with "The " is treated,
    and written, without it.
    """
    shelves: list[list[str]] = []
    room = 0
    for title in shelf:
        name = title[4:] if title.startswith("The ") else title
        thick = sum(char.isalpha() for char in name)
        if thick > width:
            continue
        if not shelves or thick > room:
            shelves.append([])
            room = width
        shelves[-1].append(name)
        room -= thick
    return [row[::-1] if i % 2 else row for i, row in enumerate(shelves)]


def check_crowded_shelf(f: Any) -> None:
    assert f([], 5) == []
    assert f(["ab"], 5) == [["ab"]]
    assert f(["toolong"], 5) == []
    assert f(["ab", "cd", "ef"], 4) == [["ab", "cd"], ["ef"]]
    assert f(["abcd", "ab", "cd", "x"], 4) == [["abcd"], ["cd", "ab"], ["x"]]
    assert f(["The cat", "The dog"], 6) == [["cat", "dog"]]
    assert f(["a-b 1", "c"], 3) == [["a-b 1", "c"]]
    assert f(["abcd", "toolong", "ab", "c"], 4) == [["abcd"], ["c", "ab"]]
    assert f(["Then"], 4) == [["Then"]]
    assert f(["ab", "cd", "e", "f", "gh", "ij"], 2) == [["ab"], ["cd"], ["e", "f"], ["gh"], ["ij"]]
    assert f(["a", "b", "c", "d"], 1) == [["a"], ["b"], ["c"], ["d"]]
    assert f(["ab", "cd", "ef", "gh", "i", "j"], 4) == [["ab", "cd"], ["gh", "ef"], ["i", "j"]]
    assert f(["aa", "bb", "cc", "d", "e"], 2) == [["aa"], ["bb"], ["cc"], ["e", "d"]]
