"""Models on disk in the Hugging Face layout, read and written without transformers.

`config.json` carries both the old flat rotary keys and the new `rope_parameters`, so transformers
4.37 and later open it; weights are safetensors, bit for bit. Reads one file or an index of several,
and never unpickles anything. The first published files of phi-1 (`mixformer-sequential`: q, k and v
as one matrix `mixer.Wqkv`) are read too.

    python -c "from hornbook.model import Phi; Phi.from_pretrained('model/final')"
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hornbook.errors import ConfigError, InputError, StorageError, need
from hornbook.files import read_json, write_text
from hornbook.model.config import PhiConfig
from hornbook.model.phi import Phi

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PLAIN_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "layer_norm_eps",
    "initializer_range",
    "attention_dropout",
    "resid_pdrop",
)
LEGACY_TYPES = ("mixformer-sequential", "phi-msft")
LEGACY_KEYS = {
    "vocab_size": "vocab_size",
    "n_embd": "hidden_size",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "initializer_range": "initializer_range",
    "activation_function": "hidden_act",
}
"""First published key -> today's."""
LEGACY_PARTS = {
    "ln": "input_layernorm",
    "mixer.out_proj": "self_attn.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def config_to_json(
    config: PhiConfig, *, dtype: torch.dtype = torch.float32, eot_id: int | None = None
) -> dict[str, Any]:
    """A model's `config.json`."""
    name = str(dtype).removeprefix("torch.")
    return {
        "architectures": ["PhiForCausalLM"],
        "model_type": "phi",
        **{key: getattr(config, key) for key in PLAIN_KEYS},
        "num_key_value_heads": config.num_attention_heads,
        "hidden_act": "gelu_new",
        "embd_pdrop": 0.0,
        "qk_layernorm": False,
        "tie_word_embeddings": False,
        # transformers 4 reads these two, 5 the group below them.
        "partial_rotary_factor": config.partial_rotary_factor,
        "rope_theta": config.rope_theta,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rope_theta,
            "partial_rotary_factor": config.partial_rotary_factor,
        },
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "torch_dtype": name,
        "dtype": name,
        "use_cache": True,
    }


def config_from_json(data: dict[str, Any], where: Path) -> PhiConfig:
    """The shape that a `config.json` states.

    Raises:
        InputError: If it is another architecture, or asks for what this model does not have.
    """
    if data.get("model_type") in LEGACY_TYPES:
        data = _modern(data)
    if data.get("model_type") != "phi":
        raise InputError(f"{where}: model_type is {data.get('model_type')!r}, expected 'phi'")
    heads = data.get("num_attention_heads")
    wanted: dict[str, tuple[Any, ...]] = {
        "hidden_act": ("gelu_new", "gelu_pytorch_tanh"),
        "qk_layernorm": (False,),
        "tie_word_embeddings": (False,),
        "num_key_value_heads": (None, heads),
    }
    for key, allowed in wanted.items():
        if data.get(key, allowed[0]) not in allowed:
            raise InputError(f"{where}: {key} {data[key]!r} is not supported, only {allowed[0]!r}")
    rope = data.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default" or data.get("rope_scaling"):
        raise InputError(f"{where}: scaled rotary embeddings are not supported")
    values = {key: data[key] for key in PLAIN_KEYS if data.get(key) is not None}
    for key in ("rope_theta", "partial_rotary_factor"):
        found = rope.get(key, data.get(key))
        if found is not None:
            values[key] = found
    try:
        return PhiConfig(**values)
    except (ConfigError, TypeError) as error:
        raise InputError(f"{where}: {error}") from error


def read_config(source: str | Path) -> PhiConfig:
    """The shape of a model in a folder, or of a Hub name.

    Raises:
        InputError: If there is none.
    """
    file = find_folder(source) / "config.json"
    return config_from_json(read_json(file), file)


def load(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
) -> Phi:
    """See `Phi.from_pretrained`."""
    folder = find_folder(source)
    config = config_from_json(read_json(folder / "config.json"), folder / "config.json")
    state: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        for name, tensor in read_tensors(file, device=device):
            state[name] = tensor if dtype is None else tensor.to(dtype)
    model = Phi(config, device="meta")
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    state = _modern_names(state, config)
    # Old files hold the rotary frequencies too, which follow from the configuration.
    state = {name: t for name, t in state.items() if not name.endswith("rotary_emb.inv_freq")}
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or extra:
        raise InputError(
            f"{folder}: {len(missing)} weights are missing ({', '.join(missing[:3])}) and "
            f"{len(extra)} unknown ({', '.join(extra[:3])}); is this a Phi checkpoint?"
        )
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise InputError(
                f"{folder}: {name} has shape {tuple(state[name].shape)}, "
                f"but config.json says {tuple(shape)}"
            )
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(True)


def _modern(data: dict[str, Any]) -> dict[str, Any]:
    """A first published `config.json` in today's keys."""
    made = {new: data[old] for old, new in LEGACY_KEYS.items() if data.get(old) is not None}
    heads, width = made.get("num_attention_heads", 32), made.get("hidden_size", 2048)
    rotary = data.get("rotary_dim")
    if rotary is not None:
        made["partial_rotary_factor"] = rotary / (width // heads)
    return {**made, "model_type": "phi"}


def _modern_names(state: dict[str, Tensor], config: PhiConfig) -> dict[str, Tensor]:
    """Weights by today's names; those of the first published files are renamed.

    These came in two numberings (`transformer.h.3.ln`, and `layers.4.ln` counting the embedding),
    both with q, k and v one above the other in `mixer.Wqkv`.
    """
    if not any(".mixer.Wqkv." in name for name in state):
        return state
    numbered = any(name.startswith("layers.") for name in state)
    last = config.num_hidden_layers + 1
    fixed = {
        "layers.0.wte" if numbered else "transformer.embd.wte": "model.embed_tokens",
        f"layers.{last}.ln" if numbered else "lm_head.ln": "model.final_layernorm",
        f"layers.{last}.linear" if numbered else "lm_head.linear": "lm_head",
    }
    made = {}
    for name, tensor in state.items():
        stem, kind = name.rsplit(".", 1)
        if stem in fixed:
            made[f"{fixed[stem]}.{kind}"] = tensor
            continue
        found = re.fullmatch(r"(?:transformer\.h|layers)\.(\d+)\.(.+)", stem)
        if found is None:
            made[name] = tensor
            continue
        number = int(found[1]) - int(numbered)
        block, part = f"model.layers.{number}", found[2]
        if part == "mixer.Wqkv":
            for piece, third in zip("qkv", tensor.chunk(3), strict=True):
                made[f"{block}.self_attn.{piece}_proj.{kind}"] = third.clone()
        elif part in LEGACY_PARTS:
            made[f"{block}.{LEGACY_PARTS[part]}.{kind}"] = tensor
        elif "rotary" not in part:
            made[name] = tensor
    return made


def save(model: Phi, folder: str | Path, *, tokenizer: Any = None) -> None:
    """See `Phi.save_pretrained`."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}") from error
    write_tensors(folder / WEIGHTS, dict(model.state_dict()))
    write_config(model.config, folder, dtype=model.dtype, tokenizer=tokenizer)


def write_config(
    config: PhiConfig, folder: Path, *, dtype: torch.dtype = torch.float32, tokenizer: Any = None
) -> None:
    """Writes all of a model folder but the weights.

    Raises:
        StorageError: If the disk refuses.
    """
    eot_id = None if tokenizer is None else int(tokenizer.eot_id)
    generation = {"_from_model_config": True, "bos_token_id": eot_id, "eos_token_id": eot_id}
    write_text(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")
    if tokenizer is not None:
        tokenizer.save(folder / "tokenizer.json")
        kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
        write_text(folder / "tokenizer_config.json", json.dumps(kind, indent=2) + "\n")
    data = config_to_json(config, dtype=dtype, eot_id=eot_id)
    write_text(folder / "config.json", json.dumps(data, indent=2) + "\n")


def read_tensors(file: Path, *, device: torch.device | str = "cpu") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a safetensors file, one by one.

    Raises:
        InputError: If it is missing or torn.
    """
    try:
        with safe_open(file, framework="pt", device=str(device)) as handle:
            for name in handle.keys():  # noqa: SIM118 (not a mapping)
                yield name, handle.get_tensor(name)
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not readable as safetensors ({error})") from error


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a safetensors file under a temporary name, syncs it and renames it.

    Raises:
        StorageError: If the disk refuses.
    """
    temporary = file.with_name(file.name + ".tmp")
    try:
        plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(plain, temporary, metadata={"format": "pt"})
        # Another name for the same rights as other files: safetensors makes it private.
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(file)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{file}: {error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def find_folder(source: str | Path) -> Path:
    """A local folder, fetched from the Hub if the source is a name there.

    Raises:
        InputError: If there is neither.
        MissingExtraError: If a Hub name is given without huggingface_hub.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    name = str(source)
    if isinstance(source, Path) or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputError(f"{source}: no such folder")
    need("huggingface_hub", "eval")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the Hub's client raises many kinds
        raise InputError(
            f"{name}: no such folder here, and not to be had from the Hub ({error})"
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        if list(folder.glob("*.distcp")):
            raise InputError(
                f"{folder}: is a training checkpoint; make a model folder of it with "
                f"`hornbook export hf {folder} --out DIR`"
            )
        raise InputError(f"{folder}: holds neither {WEIGHTS} nor {INDEX}")
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise InputError(f"{folder / INDEX}: has no weight_map")
    names = sorted(set(map(str, index.values())))
    if any(Path(name).name != name for name in names):
        raise InputError(f"{folder / INDEX}: names a file outside its folder")
    return [folder / name for name in names]
