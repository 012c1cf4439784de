"""Whoever answers: a checkpoint of ours, a causal model of transformers', an endpoint.

Each draws completions for (problem, sample) pairs. What it draws for one depends on the model, the
options and the pair's place in the whole list, and not on the batch: greedy and sampled answers of
a model in fp32 are the same at any batch size. Prompts that a model continues lose their last
newlines first, since in training text that newline is often one token with the indentation after
it; a chat endpoint is asked for a whole function in a fenced block, and a completions endpoint
(base models) goes on from the prompt as a local model does.

    model = open_model("runs/demo/final"); model.draw([(problem, 0)], [0])
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from hornbook.errors import ConfigError, InputError, need
from hornbook.evaluate.problems import Problem
from hornbook.files import StrPath, read_json
from hornbook.manifest import input_hash

Backend = Literal["auto", "hornbook", "transformers", "endpoint", "completions"]
Pair = tuple[Problem, int]
Draw = Callable[[Sequence[Pair], Sequence[int]], Sequence[str | None]]
"""Pairs of a problem and a sample's number, with their places in the whole list -> texts; None
where the prompt leaves no room in the model's context."""

CONTINUED = "the prompt without its last newlines, which the model writes"
CHAT = (
    "Complete this Python function. Answer with one ```python block that holds the whole function "
    "with everything it needs, and nothing else.\n\n```python\n{prompt}```"
)
ASIS = "{prompt}"
"""For prompts that are not the start of a program, such as MBPP's worked tasks."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """Someone who answers, with what a score by it depends on."""

    draw: Draw
    model_id: str
    """Of the weights, or the endpoint's name for them."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How answers are drawn."""
    fenced: bool = False
    """Answers are prose with fenced code."""
    group: int = 64
    """How many pairs to ask for at a time: what a kill can cost."""


def open_model(
    name: StrPath,
    *,
    backend: Backend = "auto",
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    stop: Sequence[str] = (),
    device: str | None = None,
    endpoint: Mapping[str, Any] | None = None,
) -> Model:
    """Opens a model; its weights are read when it is first asked.

    Args:
        name: A folder, a Hub name, or the endpoint's name of a model.
        backend: `auto` takes `endpoint` if `endpoint` is given, `hornbook` for a folder with a Phi
            checkpoint and `tokenizer.json`, else `transformers`. `endpoint` asks for chat
            completions, `completions` has the prompt itself continued (`/v1/completions`).
        max_new_tokens: Most tokens of a completion.
        temperature: 0 for greedy.
        top_p: The share of probability drawn from.
        seed: Of the draws.
        batch_size: Prompts at a time; changes no answer in fp32.
        stop: Strings that end a completion.
        device: Such as `cuda`; the first accelerator if None.
        endpoint: `ledger` (a path) and the options of `complete_all`.

    Raises:
        InputError: If a folder holds no model.
        ConfigError: If an option makes no sense.
    """
    if backend == "auto":
        backend = "endpoint" if endpoint is not None else _kind(Path(name))
    settings: dict[str, Any] = {
        "backend": backend,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "batch_size": batch_size,
    }
    options = {key: value for key, value in settings.items() if key != "backend"}
    if backend in ("endpoint", "completions"):
        if endpoint is None:
            raise ConfigError(f"the backend `{backend}` needs an endpoint and a ledger")
        del settings["batch_size"], options["batch_size"]
        chat = backend == "endpoint"
        from hornbook.generate.client import address_of

        address = address_of(endpoint.get("base_url"))
        stops = None if chat else tuple(stop)
        return Model(
            draw=_Endpoint(str(name), address or "", endpoint, options, stops),
            model_id=f"{name} at {address or 'the default endpoint'}",
            settings={**settings, "prompt": CHAT if chat else CONTINUED},
            fenced=chat,
            group=4 * int(endpoint.get("concurrency", 16)),
        )
    folder = Path(name)
    settings["prompt"] = CONTINUED
    ours = backend == "hornbook"
    if ours and not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder}: has no tokenizer.json; name a checkpoint's folder")
    drawing = {"stop": tuple(stop), **options}
    draw = _Local(_open_ours if ours else _open_transformers, name, device, drawing)
    model_id = input_hash(folder) if folder.exists() else f"hub:{name}"
    return Model(draw=draw, model_id=model_id, settings=settings, group=max(64, 4 * batch_size))


def _kind(folder: Path) -> Backend:
    if folder.is_dir():
        config = folder / "config.json"
        known = read_json(config).get("model_type") if config.is_file() else "phi"
        return "hornbook" if known == "phi" else "transformers"
    return "transformers"


def _bare(prompt: str) -> tuple[str, str]:
    """A prompt without its last newlines, and those."""
    bare = prompt.rstrip("\n")
    return bare, prompt[len(bare) :]


@dataclass
class _Local:
    """A model on this machine, opened when it is first asked."""

    open: Callable[[StrPath, str], "_Opened"]
    """Of a name and a device."""
    name: StrPath
    device: str | None
    drawing: Mapping[str, Any]
    _opened: "_Opened | None" = None

    def __call__(self, pairs: Sequence[Pair], places: Sequence[int]) -> list[str | None]:
        need("torch", "train")
        import torch

        if self._opened is None:
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            self._opened = self.open(self.name, device)
        split = [_bare(problem.prompt) for problem, _ in pairs]
        fit = [at for at, (bare, _) in enumerate(split) if self._opened.fits(bare)]
        texts = self._opened.complete(
            [split[at][0] for at in fit], places=[places[at] for at in fit], **self.drawing
        )
        answers: list[str | None] = [None] * len(pairs)
        for at, text in zip(fit, texts, strict=True):
            answers[at] = text.removeprefix(split[at][1])
        return answers


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A model that is in memory."""

    complete: Callable[..., Sequence[str]]
    """Of prompts, `places` and what `drawing` holds."""
    fits: Callable[[str], bool]
    """Whether a prompt leaves room in its context."""


def _open_ours(name: StrPath, device: str) -> _Opened:
    """A checkpoint of this package: batched, with a key-value cache."""
    from hornbook.model import Phi
    from hornbook.model.sample import generate
    from hornbook.tokenizer import Tokenizer

    folder = Path(name)
    options: dict[str, Any] = {} if device == "cpu" else {"device": device}
    model = Phi.from_pretrained(folder, **options)
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    room = model.config.max_position_embeddings
    return _Opened(
        complete=partial(generate, model, tokenizer),
        fits=lambda prompt: len(tokenizer.encode(prompt)) < room,
    )


def _open_transformers(name: StrPath, device: str) -> _Opened:
    """Any causal language model that transformers opens."""
    need("transformers", "eval")
    import torch
    import transformers

    from hornbook.evaluate.transformers_model import complete, context

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(name))
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            str(name), dtype=torch.float32, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: no model for transformers ({error})") from error
    room = context(model)
    return _Opened(
        complete=partial(complete, model.to(device).eval(), tokenizer),
        fits=lambda prompt: len(tokenizer(prompt)["input_ids"]) < room,
    )


@dataclass
class _Endpoint:
    """A model behind an OpenAI-compatible endpoint: every call is in the ledger."""

    name: str
    address: str
    """Part of each call's identity: two servers may call two models by one name."""
    endpoint: Mapping[str, Any]
    options: Mapping[str, Any]
    stop: tuple[str, ...] | None
    """None: chat. Else the prompt is continued up to one of these."""

    def __call__(self, pairs: Sequence[Pair], places: Sequence[int]) -> list[str]:
        from hornbook.generate.client import Request, TeacherError, complete_all
        from hornbook.generate.ledger import Ledger
        from hornbook.generate.prompts import clean

        params: dict[str, Any] = {
            "max_tokens": self.options["max_new_tokens"],
            "temperature": self.options["temperature"],
        }
        if self.options["top_p"] < 1:
            params["top_p"] = self.options["top_p"]
        if self.stop:
            # Endpoints take four; the others cut when the text is here.
            params["stop"] = list(self.stop[:4])

        def asked(problem: Problem) -> dict[str, Any]:
            text = clean(problem.prompt)
            if self.stop is not None:
                return {"prompt": _bare(text)[0]}
            text = (CHAT if problem.preamble else ASIS).format(prompt=text)
            return {"messages": [{"role": "user", "content": text}]}

        requests = [
            Request(
                slot=f"{problem.task_id}/{number} {self.address}".rstrip(),
                **asked(problem),
                # A seed for each, so that several samples of a problem differ where it counts.
                params={**params, "seed": self.options["seed"] + number},
                prompt_id="evaluate-1",
            )
            for problem, number in pairs
        ]
        options = {key: value for key, value in self.endpoint.items() if key != "ledger"}
        texts = []
        with Ledger(self.endpoint["ledger"]) as ledger:
            for response in complete_all(
                requests, ledger=ledger, **{**options, "model": self.name}
            ):
                if response.verdict == "failed":
                    raise TeacherError(
                        f"{response.request.slot}: no answer ({response.error}); run again to go on"
                    )
                texts.append(response.text if response.verdict in ("ok", "truncated") else "")
        if self.stop is None:
            return texts
        ends = [_bare(problem.prompt)[1] for problem, _ in pairs]
        return [text.removeprefix(end) for text, end in zip(texts, ends, strict=True)]
