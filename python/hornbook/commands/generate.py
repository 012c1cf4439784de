"""Commands that make data: with the built-in teacher, or with a model behind an endpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from hornbook import progress
from hornbook.commands.shared import DATA, SEVERAL, Accept, Json, Out, app, summary
from hornbook.errors import ConfigError
from hornbook.manifest import Report

generate = App(
    name="generate",
    group=DATA,
    help="Make textbooks, exercises, problems, a practice pool, and curricula.",
)
app.command(generate)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A model behind an OpenAI-compatible endpoint."""

    model: str = ""
    """The model's name at the endpoint; for `evaluate` a folder or a Hub name too."""
    base_url: str = ""
    """The endpoint (vLLM, llama.cpp, SGLang, a vendor); empty: OPENAI_BASE_URL, else OpenAI's."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key."""
    batch: Annotated[bool, Parameter(negative="")] = False
    """Use the Batch API."""
    replay: Annotated[bool, Parameter(negative="")] = False
    """Ask nobody: only what the ledger holds."""
    ledger: Path | None = None
    """The file of plans, calls and verdicts (default: beside --out)."""
    concurrency: int = 16
    """Most calls under way at once."""
    budget_usd: float | None = None
    """Most money; needs both prices."""
    budget_tokens: int | None = None
    """Most tokens, prompts and answers together."""
    budget_s: float | None = None
    """Most seconds of asking."""
    price_in: float | None = None
    """US dollars per million prompt tokens."""
    price_out: float | None = None
    """US dollars per million answer tokens."""

    def check_unused(self, *others: bool) -> None:
        """Refuses options that only a model has a use for, where none is named.

        Args:
            others: Whether others of the command's that need a model were given.

        Raises:
            ConfigError: If there are some.
        """
        if self != Endpoint() or any(others):
            raise ConfigError(
                "the options of an endpoint, and those that say `with --model`, need a model: "
                "give --model NAME, or leave them out"
            )

    def options(self, out: Path) -> dict[str, Any]:
        """As the library takes them.

        Raises:
            ConfigError: If no model is named, or only one price is.
        """
        if not self.model:
            raise ConfigError("no teacher: give --model NAME (and --base-url if it is local)")
        if (self.price_in is None) != (self.price_out is None):
            raise ConfigError("give both --price-in and --price-out, or neither")
        prices = None
        if self.price_in is not None and self.price_out is not None:
            prices = {self.model: (self.price_in, self.price_out)}
        return {
            "model": self.model,
            "base_url": self.base_url or None,
            "api_key_env": self.api_key_env,
            "teacher": "replay" if self.replay else "openai-batch" if self.batch else "openai",
            "ledger": self.ledger or out.with_name(f"{out.name}.ledger"),
            "concurrency": self.concurrency,
            "budget_usd": self.budget_usd,
            "budget_tokens": self.budget_tokens,
            "budget_s": self.budget_s,
            "prices": prices,
        }


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a model is asked for, and what of it is accepted."""

    curriculum: str = "python"
    """With --model: python, sql, or a TOML file."""
    rows: int | None = None
    """With --model: ask until so many rows held up, instead of --count slots."""
    steer: bool = True
    """With --model: move towards cells that are empty or bring something new."""
    stop_when: str = ""
    """With --model: such as "marginal novelty < 50" (new structures per 1,000 rows)."""
    mutants: int = 6
    """With --model: broken versions of each solution that its tests must notice."""
    repair: Annotated[bool, Parameter(negative="")] = False
    """With --model: ask once more, with the reason, where an answer was turned away."""
    benchmark: Annotated[list[str] | None, SEVERAL] = None
    """With --model: turn away what shares 13 words in a row with it (humaneval, mbpp, a file)."""


def _asked(
    kind: Literal["textbooks", "exercises"],
    out: Path,
    count: int,
    seed: int,
    asked: Asked,
    endpoint: Endpoint,
    accept_unsafe: bool,
) -> Report:
    """Rows from a model."""
    from functools import partial

    from hornbook.evaluate import run_programs
    from hornbook.generate.curriculum import load
    from hornbook.generate.gate import GateOptions
    from hornbook.generate.llm import generate_llm
    from hornbook.generate.slots import Spec
    from hornbook.generate.steer import SteerOptions

    with progress.shown():
        return generate_llm(
            kind,
            out,
            count=count if asked.rows is None else None,
            rows=asked.rows,
            seed=seed,
            spec=Spec(kind=kind, curriculum=load(asked.curriculum)),
            steer=SteerOptions(enabled=asked.steer, stop_when=asked.stop_when),
            gate=GateOptions(
                mutants=asked.mutants,
                repair=asked.repair,
                benchmarks=tuple(asked.benchmark or ()),
            ),
            verify=partial(run_programs, accept_unsafe=accept_unsafe),
            **endpoint.options(out),
        )


@generate.command
def textbooks(
    *,
    out: Out,
    characters: int = 1_000_000,
    count: int = 1_000,
    levels: Annotated[tuple[int, ...], SEVERAL] = (1,),
    seed: int = 0,
    asked: Asked = Asked(),
    endpoint: Endpoint = Endpoint(),
    accept: Accept = False,
    as_json: Json = False,
) -> None:
    """Make textbook sections: with the built-in teacher, or with a model if --model is given.

    Parameters
    ----------
    characters
        Built-in teacher: how much.
    count
        With --model: how many sections to ask for.
    levels
        Built-in teacher: which levels.

    Examples:
        hornbook generate textbooks --characters 2000000 --levels 1 2 --out textbooks/

        hornbook generate textbooks --model MODEL --base-url http://localhost:8000/v1 --count 500
            --budget-tokens 3000000 --out textbooks/
    """
    from hornbook.generate import textbooks as make

    if endpoint.model:
        report = _asked("textbooks", out, count, seed, asked, endpoint, accept)
    else:
        endpoint.check_unused(asked != Asked(), accept)
        with progress.shown():
            report = make(out, characters=characters, levels=levels, seed=seed)
    summary(report, as_json)


@generate.command
def exercises(
    *,
    out: Out,
    count: int = 2000,
    levels: Annotated[tuple[int, ...], SEVERAL] = (1,),
    examples: float = 0.0,
    seed: int = 0,
    asked: Asked = Asked(),
    endpoint: Endpoint = Endpoint(),
    accept: Accept = False,
    as_json: Json = False,
) -> None:
    """Make exercises (signature, docstring, solution, tests): built-in, or by --model.

    Parameters
    ----------
    levels
        Built-in teacher: which levels.
    examples
        Built-in teacher: share of docstrings with a doctest line, printed from execution.

    Examples:
        hornbook generate exercises --count 5000 --out exercises/

        hornbook generate exercises --model MODEL --rows 1000 --benchmark humaneval --repair
            --price-in 0.15 --price-out 0.60 --budget-usd 5 --out exercises/

        hornbook generate exercises --model MODEL --base-url http://localhost:8000/v1
            --curriculum sql --count 500 --budget-tokens 2000000 --out sql/
    """
    from hornbook.generate import exercises as make

    if endpoint.model:
        report = _asked("exercises", out, count, seed, asked, endpoint, accept)
    else:
        endpoint.check_unused(asked != Asked(), accept)
        with progress.shown():
            report = make(out, count=count, levels=levels, examples=examples, seed=seed)
    summary(report, as_json)


@generate.command
def curriculum(
    *,
    topic: Annotated[str, Parameter(name="--from")],
    out: Out,
    chapters: int = 12,
    topics: int = 12,
    audiences: int = 12,
    endpoint: Endpoint = Endpoint(),
) -> None:
    """Ask a model for a curriculum on a topic: a TOML file to read, change and generate from.

    Parameters
    ----------
    topic
        What it is about.
    chapters
        How many chapters to ask for.
    topics
        How many leaf topics of each chapter.
    audiences
        How many readers.

    Examples:
        hornbook generate curriculum --from "statistics in Python" --model MODEL
            --budget-tokens 200000 --out stats.toml
    """
    from hornbook.generate.curriculum import load
    from hornbook.generate.grow import grow

    made = grow(
        topic,
        out,
        chapters=chapters,
        topics=topics,
        audiences=audiences,
        **endpoint.options(out),
    )
    read = load(made)
    print(f"{made}: {len(read.topics):,} topics, {len(read.audiences)} audiences")


@generate.command
def problems(
    *,
    out: Out,
    count: int = 300,
    levels: Annotated[tuple[int, ...], SEVERAL] = (1,),
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Make held-out problems, from compositions that no training source ever gets.

    Examples:
        hornbook generate problems --count 300 --out problems/
    """
    from hornbook.generate import heldout

    with progress.shown():
        report = heldout(out, count=count, levels=levels, seed=seed)
    summary(report, as_json)


@generate.command
def pool(*, out: Out, files: int = 2000, seed: int = 0, as_json: Json = False) -> None:
    """Make repository-like files with the paper's four defects, hiding some useful ones.

    Examples:
        hornbook generate pool --files 2000 --out pool/
    """
    from hornbook.generate import pool as make

    with progress.shown():
        report = make(out, count=files, seed=seed)
    summary(report, as_json)
