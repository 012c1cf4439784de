"""Recipes: one typed TOML file says the whole run.

A recipe may `extends` another (by preset name or path) and say only what differs. Every key can be
set from the command line (`--set pretrain.steps=100`). An unknown key is an error that names the
nearest known one. Presets: `demo`, `gpu-20min`, `phi-1-small`, `phi-1`.

    hornbook run phi-1-small --dry-run
"""

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hornbook.dedup import DedupConfig
from hornbook.errors import ConfigError, InputError
from hornbook.generate.gate import GateOptions
from hornbook.generate.procedural import check_levels
from hornbook.generate.steer import SteerOptions
from hornbook.model.config import PhiConfig
from hornbook.quality.filter import FilterConfig
from hornbook.source import SourceConfig
from hornbook.train.schedule import TrainConfig

PRESETS = ("demo", "gpu-20min", "phi-1-small", "phi-1")
DATA_SETS = ("raw", "filtered", "textbooks", "exercises")
"""Names an arm may mix: the deduplicated pool, what the filter kept, and what was generated."""


def _at_least(least: int, **numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < least:
            raise ConfigError(f"{name} = {number}: must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class AnnotateConfig:
    """Labels of educational value (paper, section 2.1)."""

    samples: int = 1000
    annotator: Literal["rubric", "openai"] = "rubric"
    """`rubric`: deterministic, offline. `openai`: an LLM, as in the paper."""
    model: str = ""
    """For `openai`; empty means `generate.model`. It is asked as that one is: `generate.base_url`,
    budgets, retries and, if not `procedural`, `generate.teacher`."""
    price_in: float | None = None
    """Of another model than `generate.model`, where there is a money budget: US dollars per million
    prompt tokens."""
    price_out: float | None = None
    """US dollars per million completion tokens."""
    rubric: str = "paper"
    """For `openai`: `paper` (0 to 10), `additive` (0 to 5), or a TOML file."""
    windows: int = 3
    """For `openai`: how many parts of a long document are shown."""
    structured: Literal["auto", "always", "never"] = "auto"
    """For `openai`: hold answers to the rubric's JSON schema. `auto`: unless the endpoint refuses
    the first call for it."""
    clusters: int = 8
    """Kinds of content that the sample is spread over, besides sources and lengths; 0 for none."""
    repeats: float = 0.0
    """Share of the sample that is scored twice, for the labels' kappa."""


@dataclass(frozen=True, kw_only=True)
class TextbooksConfig:
    """Synthetic textbooks (paper, section 2.2)."""

    characters: int = 1_000_000
    """How much to generate with the procedural teacher."""
    sections: int = 1000
    """How many sections to ask an LLM teacher for."""
    rows: int | None = None
    """Instead: ask until so many sections held up."""
    levels: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        _at_least(1, characters=self.characters, sections=self.sections, rows=self.rows)
        check_levels(self.levels)


@dataclass(frozen=True, kw_only=True)
class ExercisesConfig:
    """Synthetic exercises (paper, section 2.2)."""

    count: int = 2000
    rows: int | None = None
    """LLM teacher: instead of `count` calls, ask until so many exercises held up."""
    levels: tuple[int, ...] = (1,)
    examples: float = 0.0
    """Share of docstrings with a doctest line, printed from execution. Its digits cost a tiny model
    capacity, so the demo has none."""

    def __post_init__(self) -> None:
        _at_least(1, count=self.count, rows=self.rows)
        check_levels(self.levels)
        if not 0 <= self.examples <= 1:
            raise ConfigError(f"examples = {self.examples}: must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """The teacher of textbooks and exercises."""

    teacher: Literal["procedural", "openai", "openai-batch", "replay"] = "procedural"
    """`openai`: any compatible endpoint. `openai-batch`: its Batch API. `replay`: the run's ledger,
    asking nobody."""
    curriculum: str = "python"
    """For an LLM teacher: `python`, `sql`, or a TOML file."""
    model: str = ""
    base_url: str = ""
    """Any OpenAI-compatible endpoint; empty means the vendor's own."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; the key itself never stands in a recipe."""
    concurrency: int = 16
    budget_usd: float | None = None
    budget_tokens: int | None = None
    budget_s: float | None = None
    """Seconds of asking; what is under way then is waited for."""
    max_retries: int = 6
    price_in: float | None = None
    """US dollars per million prompt tokens; a money budget needs both prices."""
    price_out: float | None = None
    """US dollars per million completion tokens."""
    steer: SteerOptions = field(default_factory=SteerOptions)
    gate: GateOptions = field(default_factory=GateOptions)
    textbooks: TextbooksConfig = field(default_factory=TextbooksConfig)
    exercises: ExercisesConfig = field(default_factory=ExercisesConfig)


@dataclass(frozen=True, kw_only=True)
class DecontaminateConfig:
    """Removal of what resembles the test problems (paper, section 5)."""

    benchmarks: tuple[str, ...] = ()
    """`humaneval`, `mbpp` (found through `HORNBOOK_DATA`) or problem files; missing ones fail."""
    if_present: tuple[str, ...] = ()
    """Like `benchmarks`, but left out where the data is not there."""
    ngram: int = 13
    """Words in a row that must not be shared with a public benchmark."""
    heldout_ngram: int = 30
    """The same for held-out procedural problems. Their wording is made of few phrases, so short
    runs of words are shared by unrelated problems: that no composition of theirs is ever generated
    is the guarantee, and this finds whole copies."""
    ast_threshold: float | None = None
    """Against public benchmarks: also remove functions whose syntax trees match at this rate."""
    embedder: Literal["none", "hash", "codegen", "sentence", "http"] = "none"
    """Against public benchmarks: also compare embeddings, of hashed tokens or by a neural model;
    the paper's is `codegen`."""
    embedder_model: str = ""
    """That model: a name or a folder; the paper's is Salesforce/codegen-350M-mono."""
    embedder_url: str = ""
    """For `http`: the endpoint."""
    embedding_threshold: float = 0.16
    """Largest L2 distance of embeddings, scaled to unit length, that counts as similar."""
    combine: Literal["or", "and"] = "or"
    """Whether syntax tree or embedding is enough, or both must be similar to one problem."""

    def __post_init__(self) -> None:
        neural = self.embedder not in ("none", "hash")
        if neural and not self.embedder_model:
            raise ConfigError(f"embedder `{self.embedder}` needs a model: name it: embedder_model")
        if not neural and self.embedder_model:
            raise ConfigError(f"embedder_model is not for embedder `{self.embedder}`")
        if self.embedder != "http" and self.embedder_url:
            raise ConfigError(f"embedder_url is not for embedder `{self.embedder}`")
        if self.combine == "and" and (self.ast_threshold is None or self.embedder == "none"):
            raise ConfigError("combine = 'and' needs an ast_threshold and an embedder")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Which vocabulary."""

    name: str = "codegen"
    """`codegen` (the paper's), `gpt2`, `train`, or the path of a tokenizer.json."""
    vocab_size: int = 640
    """For `train`."""
    characters: int = 2_000_000
    """For `train`: how much text to learn from, in equal shares of the data sets."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Held-out problems and benchmarks."""

    heldout: int = 0
    """How many procedural held-out problems to make and score; 0 for none."""
    heldout_levels: tuple[int, ...] = (1,)
    heldout_split: Literal["test", "dev"] = "test"
    """`dev` is for choosing settings; its problems and those of `test` have nothing in common."""
    benchmarks: tuple[str, ...] = ()
    """`humaneval`, `mbpp`, or problem files in HumanEval's form."""
    samples: int = 1
    temperature: float = 0.0
    max_new_tokens: int = 512
    batch_size: int = 64
    timeout_s: float = 10.0
    stages: tuple[Literal["base", "finetuned"], ...] = ("base", "finetuned")


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """The contamination study (paper, section 5)."""

    contamination: bool = True
    thresholds: tuple[float, ...] = (0.95, 0.9, 0.85, 0.8)
    """AST match rates from which a problem counts as similar to the exercises."""


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """One line of the ablation: what the base model is trained on."""

    data: dict[str, float] = field(default_factory=dict)
    """Data set -> weight in tokens; empty means no pretraining (finetune only)."""
    finetune: bool = True

    def __post_init__(self) -> None:
        for name, weight in self.data.items():
            if name not in DATA_SETS:
                raise ConfigError(f"arm data `{name}` is not one of {', '.join(DATA_SETS)}")
            if not weight > 0:
                raise ConfigError(f"arm data `{name}`: weight {weight} must be above 0")
        if not self.data and not self.finetune:
            raise ConfigError("an arm needs data to pretrain on, or finetuning, or both")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run, resolved."""

    name: str
    description: str = ""
    seed: int = 0
    """Decides all data, and the first model's initialisation and data order."""
    seeds: int = 1
    """How many models to train for each arm, with seeds `seed`, `seed + 1`, ..."""
    skip: tuple[str, ...] = ()
    """Stages to leave out: any of dedup, annotate (with filter), decontaminate, study, report."""
    source: SourceConfig = field(default_factory=SourceConfig)
    dedup: DedupConfig = field(default_factory=DedupConfig)
    annotate: AnnotateConfig = field(default_factory=AnnotateConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    decontaminate: DecontaminateConfig = field(default_factory=DecontaminateConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: PhiConfig = field(default_factory=PhiConfig)
    pretrain: TrainConfig = field(default_factory=TrainConfig.pretrain)
    finetune: TrainConfig = field(default_factory=TrainConfig.finetune)
    arms: dict[str, ArmConfig] = field(default_factory=dict)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    study: StudyConfig = field(default_factory=StudyConfig)

    def __post_init__(self) -> None:
        if not self.arms:
            raise ConfigError("the recipe has no arms: add at least one [arms.NAME] section")
        # As an arm's, the recipe's name is a folder's.
        if not re.fullmatch(r"\w[\w.+ -]*", self.name):
            raise ConfigError(f"name `{self.name}`: use letters, digits, spaces and any of _ . + -")
        _at_least(0, seed=self.seed)
        if self.seeds < 1:
            raise ConfigError(f"seeds = {self.seeds}: at least one model must be trained")
        for name in self.arms:
            # An arm's name is a folder's.
            if not re.fullmatch(r"\w[\w.+-]*", name):
                raise ConfigError(f"arm `{name}`: use letters, digits, and any of _ . + -")
        optional = ("dedup", "annotate", "decontaminate", "study", "report")
        for name in self.skip:
            if name not in optional:
                raise ConfigError(f"skip `{name}`: only {', '.join(optional)} can be left out")
        used = {name for arm in self.arms.values() for name in arm.data}
        if "annotate" in self.skip and "filtered" in used:
            raise ConfigError("an arm uses `filtered`, which needs the stage `annotate`")


def load(name: str | Path, settings: Sequence[str] = (), **changes: Any) -> Recipe:
    """Reads a recipe by preset name or path.

    Args:
        name: `demo`, `gpu-20min`, `phi-1-small`, `phi-1`, or a TOML file.
        settings: `section.key=value`, applied last; values are TOML, a bare word is a string.
        changes: Top-level fields to replace.

    Raises:
        InputError: If there is no such file.
        ConfigError: Naming the unknown key, or the value that does not fit.
    """
    table = _read(str(name), ())
    for setting in settings:
        _apply(table, setting)
    recipe: Recipe = _build(Recipe, table, "")
    return replace(recipe, **changes) if changes else recipe


def from_dict(table: Mapping[str, Any]) -> Recipe:
    """A recipe from a resolved table, as `dataclasses.asdict` gives it."""
    recipe: Recipe = _build(Recipe, table, "")
    return recipe


def _read(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    if name in seen:
        raise ConfigError(f"recipe `{name}` extends itself: {' -> '.join([*seen, name])}")
    if name in PRESETS:
        text = files("hornbook.recipes").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    else:
        path = Path(name)
        if not path.is_file():
            near = difflib.get_close_matches(name, PRESETS, 1)
            hint = f"did you mean `{near[0]}`?" if near else f"presets: {', '.join(PRESETS)}"
            raise InputError(f"{name}: no such recipe; {hint}")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{name}: not readable ({error})") from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not valid TOML: {error}") from error
    parent = table.pop("extends", None)
    if parent is None:
        return table
    if not isinstance(parent, str):
        raise ConfigError(f"{name}: extends = {parent!r}: name a preset or a recipe's file")
    if parent not in PRESETS:
        parent = str(Path(name).parent / parent)
    return _merge(_read(parent, (*seen, name)), table)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        # Arms are a list in all but form: a child's replace the parent's, so that it can drop some.
        both = isinstance(old, dict) and isinstance(value, Mapping) and key != "arms"
        merged[key] = _merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _apply(table: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {setting}: write it as section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        if text.lstrip()[:1] in ("[", "{", '"', "'"):
            raise ConfigError(f"--set {setting}: not a TOML value: {error}") from error
        value = text
    *path, last = key.strip().split(".")
    for name in path:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {setting}: `{name}` is a value, not a section")
    table[last] = value


def _build(kind: Any, value: Any, where: str) -> Any:
    """Checks a TOML value against a type and converts it."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a section, got {value!r}")
        return _build_section(kind, value, where)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        inner = [argument for argument in arguments if argument is not NoneType]
        return _build(inner[0], value, where)
    if origin is Literal:
        if value not in arguments:
            choices = ", ".join(map(str, arguments))
            raise ConfigError(f"{where} = {value!r}: must be one of {choices}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            value = [value]
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_build(arguments[0], item, where) for item in value)
        if len(value) != len(arguments):
            raise ConfigError(f"{where} = {value!r}: must have {len(arguments)} values")
        return tuple(_build(a, item, where) for a, item in zip(arguments, value, strict=True))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a section, got {value!r}")
        return {key: _build(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{where} = {value!r}: must be of type {kind.__name__}")
    return value


def _build_section(kind: Any, table: Mapping[str, Any], where: str) -> Any:
    types = get_type_hints(kind)
    names = [f.name for f in fields(kind)]
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    for name in needed:
        if name not in table:
            raise ConfigError(f"{where or 'the recipe'} has no `{name}`: give it one")
    given = {}
    for key, value in table.items():
        dotted = f"{where}.{key}" if where else key
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(names)}"
            raise ConfigError(f"unknown recipe key `{dotted}`: {hint}")
        given[key] = _build(types[key], value, dotted)
    try:
        return kind(**given)
    except TypeError as error:
        raise ConfigError(f"{where or 'recipe'}: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error
