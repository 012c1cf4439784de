"""The model against transformers' own, its files, and its documents."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hornbook.errors import ConfigError, InputError
from hornbook.model import Phi, PhiConfig
from hornbook.model.hf import write_tensors

SHAPE = PhiConfig(
    vocab_size=97,
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=64,
)


def shaken(config: PhiConfig = SHAPE) -> Phi:
    """A model whose every parameter matters: biases and LayerNorms are random too."""
    model = Phi(config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def ids(rows: int = 3, length: int = 33) -> torch.Tensor:
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("config", "parameters", "tensors"),
    [
        (PhiConfig.phi_1(), 1_418_270_720, 341),
        (PhiConfig.phi_1_small(), 356_794_368, 285),
    ],
)
def test_the_paper_s_sizes(config: PhiConfig, parameters: int, tensors: int) -> None:
    model = Phi(config, device="meta")
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == tensors
    assert config.head_dim == 64
    assert config.rotary_dims == 32


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_equal_to_transformers(tmp_path: Path, factor: float) -> None:
    transformers = pytest.importorskip("transformers")
    ours = shaken(replace(SHAPE, partial_rotary_factor=factor, rope_theta=500.0))
    ours.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(theirs).__name__ == "PhiForCausalLM"
    assert list(theirs.state_dict()) == list(ours.state_dict())
    x = ids()
    a, b = ours(x), theirs(x, use_cache=False).logits
    assert (a - b).abs().max() < 1e-5
    F.cross_entropy(b[:, :-1].flatten(0, 1), x[:, 1:].flatten()).backward()
    labels = F.pad(x[:, 1:], (0, 1), value=-100)
    ours(x, labels=labels).backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert (p.grad - q.grad).abs().max() < 1e-5 * max(1.0, float(q.grad.abs().max())), name


@torch.no_grad()
def test_bf16_within_its_rounding(tmp_path: Path) -> None:
    """Ours and theirs in bf16 are as far from fp32 as each other: the rounding, and no more."""
    transformers = pytest.importorskip("transformers")
    exact = shaken()
    exact.save_pretrained(tmp_path)
    x = ids()
    wanted = exact(x)
    ours = Phi.from_pretrained(tmp_path, dtype=torch.bfloat16)(x).float()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    theirs = model(x, use_cache=False).logits.float()
    error = float((theirs - wanted).abs().max())
    assert float((ours - wanted).abs().max()) < 1.5 * error
    assert float((ours - theirs).abs().max()) < 2.5 * error
    with torch.autocast("cpu", torch.bfloat16):
        mixed = exact(x).float()
    assert float((mixed - wanted).abs().max()) < 1.5 * error


def test_both_kinds_of_rotary_keys_are_written_and_read(tmp_path: Path) -> None:
    """transformers 4 reads the flat ones, 5 the group."""
    config = replace(SHAPE, rope_theta=500.0, partial_rotary_factor=1.0)
    shaken(config).save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    group = data["rope_parameters"]
    for key in ("rope_theta", "partial_rotary_factor"):
        assert data[key] == group[key] == getattr(config, key)
    for left_out in (("rope_parameters",), ("rope_theta", "partial_rotary_factor")):
        fewer = {key: value for key, value in data.items() if key not in left_out}
        (tmp_path / "config.json").write_text(json.dumps(fewer))
        assert Phi.from_pretrained(tmp_path).config == config


@pytest.mark.parametrize("numbered", [False, True])
def test_the_first_published_layout_opens(tmp_path: Path, numbered: bool) -> None:
    """q, k and v as one `mixer.Wqkv`, in both of its numberings, and with rotary frequencies."""
    ours, legacy = shaken(), {}
    last = SHAPE.num_hidden_layers
    for name, tensor in ours.state_dict().items():
        stem, kind = name.rsplit(".", 1)
        fixed = {
            "model.embed_tokens": ("transformer.embd.wte", "layers.0.wte"),
            "model.final_layernorm": ("lm_head.ln", f"layers.{last + 1}.ln"),
            "lm_head": ("lm_head.linear", f"layers.{last + 1}.linear"),
        }
        if stem in fixed:
            legacy[f"{fixed[stem][numbered]}.{kind}"] = tensor.clone()
            continue
        _, _, layer, part = stem.split(".", 3)
        block = f"layers.{int(layer) + 1}" if numbered else f"transformer.h.{layer}"
        if part.endswith(("k_proj", "v_proj")):
            continue
        if part.endswith("q_proj"):
            attention = ours.model.layers[int(layer)].self_attn
            parts = [getattr(getattr(attention, f"{p}_proj"), kind) for p in "qkv"]
            legacy[f"{block}.mixer.Wqkv.{kind}"] = torch.cat(parts).detach()
            legacy[f"{block}.mixer.rotary_emb.inv_freq"] = torch.ones(3)
            continue
        renamed = {"input_layernorm": "ln", "self_attn.dense": "mixer.out_proj"}.get(part, part)
        legacy[f"{block}.{renamed}.{kind}"] = tensor.clone()
    write_tensors(tmp_path / "model.safetensors", legacy)
    config = {
        "model_type": "mixformer-sequential" if numbered else "phi-msft",
        "vocab_size": 97,
        "n_embd": 48,
        "n_inner": None,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 64,
        "rotary_dim": 6,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = Phi.from_pretrained(tmp_path)
    assert again.config == SHAPE
    assert torch.equal(again(ids()), ours(ids()))


def test_opens_what_transformers_saves(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.PhiConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=100,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    theirs = transformers.PhiForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="50KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    ours = Phi.from_pretrained(tmp_path)
    assert (ours(ids()) - theirs(ids(), use_cache=False).logits).abs().max() < 1e-5


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    model = shaken().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    again = Phi.from_pretrained(tmp_path, dtype=None)
    assert again.config == model.config
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert a.dtype == b.dtype == torch.bfloat16
        assert torch.equal(a, b), name
    assert not [file.name for file in tmp_path.iterdir() if file.name.endswith(".tmp")]


def test_fresh_weights_follow_the_seed() -> None:
    a, b, c = Phi(SHAPE, seed=4), Phi(SHAPE, seed=4), Phi(SHAPE, seed=5)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.lm_head.weight, c.lm_head.weight)
    assert abs(float(a.model.embed_tokens.weight.detach().std()) - 0.02) < 0.001
    assert float(a.lm_head.bias.detach().abs().max()) == 0.0


def test_packed_documents_equal_separate_ones() -> None:
    model, x = shaken(), ids(2, 30)
    cu_seqlens = [[0, 11, 30], [0, 1, 2, 17, 30]]
    packed = model(x, cu_seqlens=cu_seqlens)
    for row, bounds in enumerate(cu_seqlens):
        for start, end in itertools.pairwise(bounds):
            alone = model(x[row : row + 1, start:end])
            assert (packed[row : row + 1, start:end] - alone).abs().max() < 1e-5
    changed = x.clone()
    changed[0, 3] = (changed[0, 3] + 1) % 97
    other = model(changed, cu_seqlens=cu_seqlens)
    assert torch.equal(other[0, 11:], packed[0, 11:])
    assert not torch.equal(other[0, :11], packed[0, :11])
    assert not torch.allclose(model(changed)[0, 11:], model(x)[0, 11:])


def test_dropout_only_in_training() -> None:
    model = shaken(replace(SHAPE, attention_dropout=0.2, resid_pdrop=0.2))
    plain = shaken()
    assert torch.equal(model.eval()(ids()), plain(ids()))
    model.train()
    torch.manual_seed(0)
    first = model(ids())
    torch.manual_seed(0)
    assert torch.equal(first, model(ids()))
    assert not torch.allclose(first, plain(ids()))


@pytest.mark.parametrize(
    "changes",
    [{"hidden_size": 50}, {"vocab_size": 0}, {"partial_rotary_factor": 1.5}, {"resid_pdrop": 1.0}],
)
def test_impossible_shapes_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        replace(SHAPE, **changes)  # type: ignore[arg-type]


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        Phi.from_pretrained(tmp_path / "absent")
    shaken().save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        Phi.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, match in (
        ({"model_type": "llama"}, "model_type"),
        ({"hidden_act": "silu"}, "hidden_act"),
        ({"num_hidden_layers": 4}, "missing"),
        ({"vocab_size": 98}, "shape"),
        ({"hidden_size": 50}, "multiple"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(InputError, match=match):
            Phi.from_pretrained(tmp_path)
