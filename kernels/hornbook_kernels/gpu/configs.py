"""Tile sizes, warps and pipeline stages for each kernel and card: a table, not a search.

Chosen from what the compiler says (registers, spills, shared memory; see `kernels/compiled.json`).
`python benchmarks/kernels.py --tune` times the candidates on a card and prints rows for this table.
"""

from dataclasses import dataclass

import torch

ARCHITECTURES = (80, 90, 100)


@dataclass(frozen=True)
class Config:
    """How one kernel is cut up.

    Attributes:
        rows: Queries in a tile (tokens, for kernels other than attention).
        columns: Keys in a tile (heads or vocabulary entries, for the others); for attention a
            multiple of 64, the width of a group of dropout bits, or 32.
        warps: Warps of a program.
        stages: Depth of the software pipeline.
        registers: Most registers a thread may have, so that more programs fit; 0 for no cap.
        precision: How fp32 is multiplied: `"tf32x3"` on tensor cores in three parts, `"ieee"`
            without them. Half precision takes no notice.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    registers: int = 0
    precision: str = "tf32x3"

    def options(self) -> dict[str, int]:
        """What Triton is told at launch. Its default for fused multiply-add changes in 3.10."""
        options = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}
        return options | ({"maxnreg": self.registers} if self.registers else {})


# kernel -> (architecture, padded head dimension) -> tile, in half precision: without dropout and
# documents, then with either. Their bits and bounds need registers, hence the second one.
_HALF: dict[str, dict[tuple[int, int], tuple[Config, Config]]] = {
    "forward": {
        (80, 32): (Config(128, 64, 4, 3), Config(128, 64, 8, 3)),
        (80, 64): (Config(128, 64, 4, 3), Config(128, 64, 8, 3)),
        (80, 128): (Config(64, 64, 8, 2), Config(64, 64, 8, 2)),
        (90, 32): (Config(128, 64, 8, 3), Config(128, 64, 8, 3, 128)),
        (90, 64): (Config(128, 64, 8, 3), Config(64, 64, 4, 3, 168)),
        (90, 128): (Config(128, 64, 8, 2), Config(128, 64, 8, 2)),
        (100, 32): (Config(128, 64, 8, 3), Config(128, 64, 8, 3)),
        (100, 64): (Config(128, 64, 8, 3), Config(128, 64, 8, 3)),
        (100, 128): (Config(128, 64, 8, 2), Config(64, 64, 8, 2)),
    },
    "backward_q": {
        (80, 32): (Config(128, 64, 8, 2), Config(64, 64, 4, 2)),
        (80, 64): (Config(128, 64, 8, 2), Config(64, 64, 8, 2)),
        (80, 128): (Config(64, 64, 8, 2), Config(64, 64, 8, 2)),
        (90, 32): (Config(128, 64, 8, 3), Config(64, 64, 4, 3)),
        (90, 64): (Config(64, 64, 4, 3), Config(64, 64, 4, 3)),
        (90, 128): (Config(128, 64, 8, 2), Config(64, 64, 8, 2)),
        (100, 32): (Config(128, 64, 8, 3), Config(128, 64, 8, 3)),
        (100, 64): (Config(128, 64, 8, 3), Config(128, 64, 8, 3)),
        (100, 128): (Config(64, 64, 8, 2), Config(128, 64, 8, 2)),
    },
    "backward_kv": {
        (80, 32): (Config(32, 64, 4, 2), Config(32, 64, 4, 2)),
        (80, 64): (Config(32, 64, 4, 2), Config(32, 64, 8, 2)),
        (80, 128): (Config(32, 64, 8, 2), Config(32, 64, 8, 2)),
        (90, 32): (Config(64, 64, 4, 3), Config(32, 64, 4, 3)),
        (90, 64): (Config(64, 128, 8, 3), Config(32, 64, 4, 3)),
        (90, 128): (Config(32, 64, 8, 2), Config(32, 64, 8, 2)),
        (100, 32): (Config(64, 64, 4, 3), Config(64, 64, 8, 2)),
        (100, 64): (Config(64, 64, 4, 3), Config(32, 64, 4, 2)),
        (100, 128): (Config(64, 64, 8, 2), Config(32, 64, 8, 2)),
    },
}

# Summing the gradient of keys over the heads that share them takes registers too: there the second
# tile stands for both, or where it spills one of these.
_GROUPED = {
    (80, 64): Config(32, 32, 4, 2),
    (90, 128): Config(32, 32, 4, 2),
    (100, 128): Config(32, 32, 8, 2),
}

# fp32, by padded head dimension: small tiles. The kernel that holds dk and dv has no registers left
# for the three parts of k and v above 32.
_PARTS, _EXACT = Config(16, 32, 8, 1), Config(16, 32, 8, 1, precision="ieee")
_WHOLE = {
    "forward": {32: _PARTS, 64: Config(16, 64, 4, 1), 128: _PARTS},
    "backward_q": {32: _PARTS, 64: _PARTS, 128: _PARTS},
    "backward_kv": {32: _PARTS, 64: _EXACT, 128: _EXACT},
}
# Tiles of one card: on sm_80 the assembler spills to fit more programs, unless told how many
# registers it may take; on sm_100 the 64 columns do fit, and the others spill.
_WHOLE_ONLY = {
    ("backward_kv", 80, 64): Config(16, 32, 8, 1, 128, precision="ieee"),
    ("backward_kv", 100, 64): Config(16, 64, 8, 1),
}


def attention(
    kernel: str,
    architecture: int,
    head_dim: int,
    dtype: torch.dtype,
    extras: bool,
    grouped: bool = False,
) -> Config:
    """The tile of an attention kernel.

    Args:
        kernel: `"forward"`, `"backward_q"` or `"backward_kv"`.
        architecture: One of `ARCHITECTURES`.
        head_dim: One of `dispatch.HEAD_DIMS`.
        dtype: One of `dispatch.DTYPES`. fp32 has small tiles.
        extras: Whether there is dropout or documents.
        grouped: Whether more than one head of queries shares a head of keys.

    Returns:
        The configuration.
    """
    padded = 128 if head_dim == 96 else head_dim
    if dtype == torch.float32:
        return _WHOLE_ONLY.get((kernel, architecture, padded), _WHOLE[kernel][padded])
    if kernel == "backward_kv" and grouped:
        return _GROUPED.get((architecture, padded), _HALF[kernel][architecture, padded][True])
    return _HALF[kernel][architecture, padded][extras]
