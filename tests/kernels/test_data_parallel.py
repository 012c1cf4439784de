"""Our operators in a module under DistributedDataParallel, in two processes over gloo."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import hornbook_kernels as hk

ROWS, LENGTH, HEADS, DIM, VOCABULARY = 4, 40, 2, 32, 50


class Block(nn.Module):
    """Everything a layer and its loss ask of this package, with keyed dropout and documents."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        width = HEADS * DIM
        self.embedding, self.qkv, self.head = (
            nn.Parameter(torch.randn(shape, generator=generator) * 0.3)
            for shape in ((VOCABULARY, width), (3 * width, width), (VOCABULARY, width))
        )

    def forward(self, tokens: Tensor, labels: Tensor, seed: Tensor) -> Tensor:
        rows, length = tokens.shape
        qkv = F.linear(F.embedding(tokens, self.embedding), self.qkv)
        cos, sin = hk.rotary_tables(length, DIM // 2)
        qkv = hk.apply_rotary(qkv.view(rows, length, 3, HEADS, DIM), cos, sin)
        qkv = hk.apply_rotary_(qkv * 1, cos, sin, layout="interleaved")
        bounds = hk.document_bounds([[0, 13, length]] * rows, length)
        out = hk.attention(qkv, bounds=bounds, dropout_p=0.1, seed=seed, impl="triton")
        flat = out.reshape(rows * length, -1)
        loss = hk.linear_cross_entropy(flat, self.head, None, labels.flatten())
        return loss + hk.cross_entropy(F.linear(flat, self.head), labels.flatten())


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(VOCABULARY, (ROWS, LENGTH + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def gradients(rank: int, world: int, module: nn.Module, model: Block) -> list[Tensor]:
    tokens, labels = (part[rank * ROWS // world : (rank + 1) * ROWS // world] for part in batch())
    loss = module(tokens, labels, torch.tensor(7 + rank))
    loss.backward()
    grads = [parameter.grad for parameter in model.parameters()]
    assert all(grad is not None and bool(grad.abs().sum() > 0) for grad in grads)
    return grads  # type: ignore[return-value]


@pytest.mark.skipif(sys.platform != "linux", reason="gloo")
@pytest.mark.parametrize("options", [{}, {"static_graph": True}], ids=["", "static"])
def test_two_processes_average_their_gradients(tmp_path: Path, options: dict[str, bool]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    commands = [
        [sys.executable, __file__, str(rank), meeting, str(tmp_path), *options] for rank in (0, 1)
    ]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    ends = [(process.communicate(timeout=200)[1], process.returncode) for process in started]
    assert all(code == 0 for _, code in ends), ends
    halves = [gradients(rank, 2, model, model) for rank in (0, 1) for model in [Block()]]
    expected = [(a + b) / 2 for a, b in zip(*halves, strict=True)]
    for rank in (0, 1):
        for made, wanted in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-7)


def main(rank: int, meeting: str, folder: Path, names: list[str]) -> None:
    """One process of the test."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    model = Block()
    module = DistributedDataParallel(model, **dict.fromkeys(names, True))
    torch.save(gradients(rank, 2, module, model), folder / f"{rank}.pt")
    # Gloo's threads need the interpreter to let go of what a backward pass asked of them; whoever
    # ends those threads holds it, and was seen to wait for ever (torch 2.13). Barriers come last.
    for _ in range(4):
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
