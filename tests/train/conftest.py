"""An in-memory data set with the interface of `hornbook.PackedDataset`."""

from typing import Any

import numpy as np
import pytest

LENGTH, VOCABULARY = 24, 32


class Rows:
    """Rows that count up from a random start by a random stride; each is a function of its number.

    The first third of a row is prompt, the first label has no loss, two documents meet at a place
    that differs by row.
    """

    identity = "counting"
    samples_per_epoch = 48

    def batch(self, first: int, count: int) -> dict[str, Any]:
        ids = np.empty((count, LENGTH + 1), dtype=np.int64)
        bounds = []
        for place in range(count):
            draw = np.random.Generator(
                np.random.Philox(key=[9, (first + place) % self.samples_per_epoch])
            )
            start, stride, cut = draw.integers([VOCABULARY, 4, LENGTH - 2])
            ids[place] = (start + (1 + stride) * np.arange(LENGTH + 1)) % VOCABULARY
            bounds.append(np.array([0, cut + 1, LENGTH], dtype=np.int32))
        labels = ids[:, 1:].copy()
        labels[:, 0] = -100
        # Rows differ in how many labels they have, so that means of means are wrong.
        labels[(first + np.arange(count)) % 2 == 0, LENGTH // 2 :] = -100
        prompt = np.zeros(labels.shape, dtype=bool)
        prompt[:, : LENGTH // 3] = True
        return {
            "input_ids": ids[:, :-1].copy(),
            "labels": labels,
            "prompt_mask": prompt,
            "cu_seqlens": bounds,
        }


@pytest.fixture
def rows() -> Rows:
    return Rows()
