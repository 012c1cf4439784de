"""The plain forms compute in fp32, and run where a card has not been checked."""

import pytest
import torch

from hornbook_kernels import dispatch, reference


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_plain_forms_compute_in_fp32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q = torch.randn(1, 40, 2, 16).to(dtype)
    out, lse = reference.attention(q, q, q)
    _, its = reference.attention(q.double(), q.double(), q.double())
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    assert (lse.double() - its).abs().max() < 1e-5
    logits, labels = torch.randn(8, 100).to(dtype) * 4, torch.arange(8)
    loss = reference.cross_entropy(logits, labels)
    assert loss.dtype == torch.float32
    assert abs(float(loss) - float(reference.cross_entropy(logits.double(), labels))) < 1e-5


def test_what_is_not_checked_on_a_card_runs_the_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "card", lambda device: ("Card", 90))
    monkeypatch.setattr(dispatch, "_HAS_TRITON", True)
    monkeypatch.delenv("HORNBOOK_KERNELS", raising=False)
    cuda = torch.device("cuda")
    assert "not yet checked on Card" in (dispatch.unproven(cuda, torch.float32) or "")
    monkeypatch.setitem(dispatch._RECORD, "cards", ["Card"])
    assert dispatch.unproven(cuda, torch.float32) is None
    monkeypatch.setenv("HORNBOOK_KERNELS", "reference")
    assert dispatch.unproven(cuda, torch.float32) == "the plain form is asked for"
