"""A teacher whose output is skewed, for steering: no text, only which structure each answer has."""

import random

import numpy as np

from hornbook.generate.steer import Signatures, Steering, SteerOptions, Verdict

AXES = (5, 3, 2)


class World:
    """A teacher that gives rows in some cells only, and within a cell mostly the same few."""

    def __init__(self, cells: int, seed: int) -> None:
        rng = np.random.RandomState(seed)
        self.gives = rng.choice([0.0, 0.2, 0.5, 0.9], cells, p=[0.15, 0.25, 0.3, 0.3])
        self.pool = np.minimum(1 + rng.zipf(1.4, cells), 400)
        self._weights = 1 / np.arange(1, 401) ** 1.5
        self._rng = random.Random(seed)

    def answer(self, cell: int, avoid: tuple[str, ...]) -> str | None:
        if self._rng.random() >= self.gives[cell]:
            return None
        size = int(self.pool[cell])
        made = ""
        for _ in range(3):  # told what is there, it mostly finds something else
            (pick,) = self._rng.choices(range(size), self._weights[:size])
            made = f"{cell}/{pick}"
            if made not in avoid:
                break
        return made


def run(
    cells: int, calls: int, *, steered: bool, seed: int = 0, options: SteerOptions | None = None
) -> tuple[Steering, World, Signatures]:
    options = options or SteerOptions()
    world, seen = World(cells, seed), Signatures()
    steering = Steering(cells=cells, seed=seed, options=options, neighbours=30)
    index = 0
    for block in range(calls // options.block):
        plan = steering.plan(block)
        if not plan:
            break
        if not steered:
            plan = [(index + place) % cells for place in range(options.block)]
        for cell in plan:
            avoid = steering.nearest(cell, AXES) if steered else ()
            made = world.answer(cell, avoid)
            steering.record(
                index,
                Verdict(
                    cell=cell,
                    accepted=made is not None,
                    shown=True,
                    new=made is not None and seen.add(made) == 0,
                    gist=made or "",
                    usd=0.001,
                ),
            )
            index += 1
    steering.finish()
    return steering, world, seen
