"""Shared by every test: fixed seeds, Hypothesis profiles, the data folder."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "fast", max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "deep", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


@pytest.fixture(scope="session")
def hornbook_data() -> Path:
    """The folder of benchmark problems and tokenizer files; skips where there is none."""
    folder = os.environ.get("HORNBOOK_DATA")
    if not folder:
        pytest.skip("HORNBOOK_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def codegen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CodeGen of two small layers with random weights, and a tokenizer of bytes."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("codegen")
    torch.manual_seed(0)
    config = transformers.CodeGenConfig(
        vocab_size=300, n_positions=128, n_ctx=128, n_embd=32, n_layer=2, n_head=4, rotary_dim=4
    )
    transformers.CodeGenForCausalLM(config).save_pretrained(folder)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bpe = tokenizers.models.BPE({letter: at for at, letter in enumerate(alphabet)}, [])
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder
