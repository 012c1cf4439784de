"""The recipe as steps: which stages there are, what each needs, and how each is done.

A step's work imports what it needs, so that planning loads nothing heavy.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hornbook import progress
from hornbook.errors import ConfigError, HornbookError
from hornbook.manifest import MANIFEST, Report
from hornbook.recipe import DecontaminateConfig, Recipe

HELDOUT = "problems/problems.jsonl"
"""The held-out problems, in a run's folder."""

Work = Callable[[Recipe, Path], Report]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage of a run."""

    name: str
    """Also its folder, under the run's."""
    needs: tuple[str, ...]
    """Steps whose folders it reads."""
    work: Work
    """`(recipe, run's folder) -> report`; does nothing where its result is there."""
    alone: bool = True
    """Uses every core, so nothing runs beside it."""


def _pool(recipe: Recipe, root: Path) -> Report:
    from hornbook.generate import pool

    config = recipe.source
    return pool(root / "pool", count=config.pool_files, levels=config.pool_levels, seed=recipe.seed)


def _source(recipe: Recipe, root: Path) -> Report:
    from hornbook.source import gather

    return gather(root / "source", recipe.source, seed=recipe.seed, pool=root / "pool")


def _problems(recipe: Recipe, root: Path) -> Report:
    from hornbook.generate import heldout

    config = recipe.evaluate
    return heldout(
        root / "problems",
        count=config.heldout,
        levels=config.heldout_levels,
        split=config.heldout_split,
        seed=recipe.seed,
    )


def _dedup(recipe: Recipe, root: Path) -> Report:
    from hornbook.dedup import dedup

    return dedup([root / "source"], root / "dedup", **asdict(recipe.dedup))


def _clean(recipe: Recipe) -> str:
    """The folder of the pool after deduplication, which may be left out."""
    return "source" if "dedup" in recipe.skip else "dedup"


def _annotate(recipe: Recipe, root: Path) -> Report:
    from hornbook.quality.annotate import annotate

    config = recipe.annotate

    def run(annotator: Any) -> Report:
        return annotate(
            [root / _clean(recipe)],
            root / "annotate",
            samples=config.samples,
            annotator=annotator,
            clusters=config.clusters,
            repeats=config.repeats,
            seed=recipe.seed,
        )

    if config.annotator != "openai":
        return run("rubric")
    from hornbook.generate.client import complete_all
    from hornbook.generate.labels import annotator as llm_annotator
    from hornbook.generate.ledger import Ledger

    options = annotator_options(recipe, root)
    with Ledger(options.pop("ledger")) as ledger:
        return run(
            llm_annotator(
                partial(complete_all, ledger=ledger, **options),
                model=options["model"],
                rubric=config.rubric,
                windows=config.windows,
                structured=config.structured,
            )
        )


def _filter(recipe: Recipe, root: Path) -> Report:
    from hornbook.quality.filter import filter_documents

    return filter_documents(
        [root / _clean(recipe)],
        root / "filter",
        labels=root / "annotate",
        **{**asdict(recipe.filter), "seed": recipe.seed},
    )


def annotator_options(recipe: Recipe, root: Path) -> dict[str, Any]:
    """How to ask the LLM that annotates: as the teacher is asked, though it may be another model.

    Raises:
        ConfigError: As `teacher`.
    """
    config, of_teacher = recipe.annotate, recipe.generate
    if not config.model or config.model == of_teacher.model:
        return teacher(recipe, root)
    prices = (config.price_in, config.price_out)
    return teacher(recipe, root, config.model, prices, "annotate")


def teacher(
    recipe: Recipe,
    root: Path,
    model: str = "",
    prices: tuple[float | None, float | None] | None = None,
    section: str = "generate",
) -> dict[str, Any]:
    """How to ask the LLM; all calls of a run share one ledger, and so one budget.

    Args:
        recipe: The run's recipe.
        root: The run's folder.
        model: Its name, if it is not the teacher's.
        prices: Its prices, if it is not the teacher.
        section: Where in the recipe they stand.

    Raises:
        ConfigError: If its name, a price that the budget needs, or its key is missing.
    """
    config = recipe.generate
    model = model or config.model
    if not model:
        raise ConfigError("no teacher: --set generate.model=NAME (and generate.base_url if local)")
    price_in, price_out = prices or (config.price_in, config.price_out)
    known = None
    if price_in is not None and price_out is not None:
        known = {model: (price_in, price_out)}
    elif config.budget_usd is not None:
        raise ConfigError(
            f"a budget in US dollars needs prices: --set {section}.price_in=... and "
            f"{section}.price_out=... (dollars per million tokens), or use generate.budget_tokens"
        )
    replayed = config.teacher == "replay"
    if not config.base_url and not replayed and not os.environ.get(config.api_key_env):
        raise ConfigError(f"the environment variable {config.api_key_env} holds no key")
    return {
        "model": model,
        # The offline teacher has no part in what an LLM is asked for.
        "teacher": "openai" if config.teacher == "procedural" else config.teacher,
        "base_url": config.base_url or None,
        "api_key_env": config.api_key_env,
        "concurrency": config.concurrency,
        "budget_usd": config.budget_usd,
        "budget_tokens": config.budget_tokens,
        "budget_s": config.budget_s,
        "max_retries": config.max_retries,
        "prices": known,
        "ledger": root / "ledger.sqlite",
    }


def _from_llm(kind: Any, count: int, rows: int | None, recipe: Recipe, root: Path) -> Report:
    from hornbook.evaluate import run_programs
    from hornbook.generate.curriculum import load
    from hornbook.generate.llm import generate_llm
    from hornbook.generate.slots import Spec

    config = recipe.generate
    return generate_llm(
        kind,
        root / kind,
        count=None if rows else count,
        rows=rows,
        seed=recipe.seed,
        spec=Spec(kind=kind, curriculum=load(config.curriculum)),
        steer=config.steer,
        gate=config.gate,
        verify=run_programs,
        **teacher(recipe, root),
    )


def _textbooks(recipe: Recipe, root: Path) -> Report:
    options = recipe.generate.textbooks
    if recipe.generate.teacher != "procedural":
        return _from_llm("textbooks", options.sections, options.rows, recipe, root)
    from hornbook.generate import textbooks

    return textbooks(
        root / "textbooks",
        characters=options.characters,
        levels=options.levels,
        seed=recipe.seed,
    )


def _exercises(recipe: Recipe, root: Path) -> Report:
    options = recipe.generate.exercises
    if recipe.generate.teacher != "procedural":
        return _from_llm("exercises", options.count, options.rows, recipe, root)
    from hornbook.generate import exercises

    return exercises(
        root / "exercises",
        count=options.count,
        levels=options.levels,
        examples=options.examples,
        seed=recipe.seed,
    )


def data_folder(recipe: Recipe, name: str) -> str:
    """Where a data set stands before decontamination."""
    return {"raw": _clean(recipe), "filtered": "filter"}.get(name, name)


def rounds(recipe: Recipe) -> dict[str, list[str]]:
    """What to decontaminate against, in turn: public benchmarks, then the held-out problems."""
    if "decontaminate" in recipe.skip:
        return {}
    public = list(resolved(recipe).decontaminate.benchmarks)
    found = {"public": public, "heldout": [HELDOUT] if recipe.evaluate.heldout else []}
    return {name: against for name, against in found.items() if against}


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with those benchmarks named that are there only perhaps, as a run's folder keeps
    it: a report of it must not depend on what the next shell finds."""
    config = recipe.decontaminate
    if "decontaminate" in recipe.skip:
        return recipe
    found = [name for name in config.if_present if name not in config.benchmarks and _present(name)]
    named = replace(config, benchmarks=(*config.benchmarks, *found), if_present=())
    return replace(recipe, decontaminate=named)


def missing(recipe: Recipe) -> list[str]:
    """Benchmarks that the recipe would decontaminate against, were they there."""
    config = recipe.decontaminate
    if "decontaminate" in recipe.skip:
        return []
    return [name for name in config.if_present if not _present(name)]


def _present(benchmark: str) -> bool:
    from hornbook.decontaminate import benchmark_path

    try:
        return benchmark_path(benchmark).is_file()
    except HornbookError:
        return False


def packed_from(recipe: Recipe, name: str) -> str:
    """Where a data set stands when it is packed."""
    last = next(reversed(rounds(recipe)), None)
    return data_folder(recipe, name) if last is None else f"decontaminate/{last}/{name}"


def similar(config: DecontaminateConfig) -> dict[str, Any]:
    """The rules that go beyond words, which hold against public benchmarks alone."""
    return {
        "ast_threshold": config.ast_threshold,
        "embedder": None if config.embedder == "none" else config.embedder,
        "embedder_model": config.embedder_model,
        "embedder_url": config.embedder_url,
        "embedding_threshold": config.embedding_threshold,
        "combine": config.combine,
    }


def _decontaminate(label: str, name: str, source: str) -> Work:
    def work(recipe: Recipe, root: Path) -> Report:
        from hornbook.decontaminate import decontaminate

        config = recipe.decontaminate
        heldout = label == "heldout"
        against = [str(root / HELDOUT)] if heldout else rounds(recipe)[label]
        return decontaminate(
            [root / source],
            root / "decontaminate" / label / name,
            benchmarks=against,
            ngram=config.heldout_ngram if heldout else config.ngram,
            **({} if heldout else similar(config)),
        )

    return work


def data_sets(recipe: Recipe) -> list[str]:
    """The data sets that some arm is trained on."""
    used = {name for arm in recipe.arms.values() for name in arm.data}
    if any(arm.finetune for arm in recipe.arms.values()):
        used.add("exercises")
    return [name for name in ("raw", "filtered", "textbooks", "exercises") if name in used]


def _tokenizer(recipe: Recipe, root: Path) -> Report:
    from hornbook.vocabulary import build

    return build(
        root / "tokenizer",
        recipe.tokenizer.name,
        inputs=[root / packed_from(recipe, name) for name in data_sets(recipe)],
        vocab_size=recipe.tokenizer.vocab_size,
        characters=recipe.tokenizer.characters,
    )


def _pack(name: str) -> Work:
    def work(recipe: Recipe, root: Path) -> Report:
        from hornbook.packing import pack

        return pack(
            [root / packed_from(recipe, name)],
            root / "pack" / name,
            tokenizer=root / "tokenizer" / "tokenizer.json",
        )

    return work


def _base(arm: str, seed: int) -> Work:
    def work(recipe: Recipe, root: Path) -> Report:
        from hornbook.train import train_stage

        data = {str(root / "pack" / name): w for name, w in recipe.arms[arm].data.items()}
        return train_stage(
            recipe.pretrain, recipe.model, data, root / base_folder(arm, seed), seed=seed
        )

    return work


def _finetuned(arm: str, seed: int) -> Work:
    def work(recipe: Recipe, root: Path) -> Report:
        from hornbook.train import train_stage

        start: Any = recipe.model
        if recipe.arms[arm].data:
            start = root / base_folder(arm, seed) / "final"
        data = {str(root / "pack" / "exercises"): 1.0}
        return train_stage(recipe.finetune, start, data, root / tuned_folder(arm, seed), seed=seed)

    return work


def base_folder(arm: str, seed: int) -> str:
    """The folder of an arm's base model."""
    return f"train/{arm}/seed-{seed}/base"


def tuned_folder(arm: str, seed: int) -> str:
    """The folder of an arm's finetuned model."""
    return f"train/{arm}/seed-{seed}/finetuned"


def benchmark_names(recipe: Recipe) -> dict[str, str]:
    """Label -> what `evaluate` loads (relative to the run for held-out problems).

    Raises:
        ConfigError: If two have one label.
    """
    names = {"heldout": HELDOUT} if recipe.evaluate.heldout else {}
    for name in recipe.evaluate.benchmarks:
        label = Path(name).stem
        if label in names:
            raise ConfigError(
                f"evaluate.benchmarks: `{name}` would be called `{label}`, as another is: "
                "rename the file"
            )
        names[label] = name
    return names


def _evaluate(model: str, label: str) -> Work:
    def work(recipe: Recipe, root: Path) -> Report:
        from hornbook.evaluate import evaluate_model

        if recipe.pretrain.threads is not None:
            # Evaluations run side by side too; more threads than cores slow every one of them.
            # By variable, so that torch is loaded only if there is something to evaluate.
            os.environ["OMP_NUM_THREADS"] = str(recipe.pretrain.threads)
        config = recipe.evaluate
        name = benchmark_names(recipe)[label]
        return evaluate_model(
            root / name if label == "heldout" else name,
            root / model / "final",
            root / "evaluate" / model.removeprefix("train/") / label,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            samples=config.samples,
            batch_size=config.batch_size,
            timeout_s=config.timeout_s,
            workers=1,
            seed=recipe.seed,
            progress=partial(progress.advance, "programs"),
        )

    return work


def evaluations(recipe: Recipe, root: Path, label: str) -> Iterator[tuple[Path, str, str, str]]:
    """Finished evaluations of this recipe's models: folder, arm, seed, stage.

    What an earlier form of the recipe left in the run's folder is not among them.
    """
    planned = {step.name for step in plan(recipe)}
    for seed in range(recipe.seed, recipe.seed + recipe.seeds):
        for arm in recipe.arms:
            for stage in recipe.evaluate.stages:
                name = f"evaluate/{arm}/seed-{seed}/{stage}/{label}"
                if name in planned and (root / name / MANIFEST).is_file():
                    yield root / name, arm, f"seed-{seed}", stage


def _study(recipe: Recipe, root: Path) -> Report:
    from hornbook.study.contamination import split_study

    return split_study(recipe, root)


def _report(recipe: Recipe, root: Path) -> Report:
    from hornbook.report import build_report

    return build_report(recipe, root)


def plan(recipe: Recipe) -> list[Step]:
    """The steps of a recipe, each after those it needs."""
    steps: list[Step] = []

    def add(name: str, needs: list[str], work: Work, alone: bool = True) -> None:
        known = {step.name for step in steps}
        wanted = tuple(need for need in dict.fromkeys(needs) if need in known)
        steps.append(Step(name=name, needs=wanted, work=work, alone=alone))

    sets = data_sets(recipe)
    if "raw" in sets or "filtered" in sets:
        if "pool" in recipe.source.raw:
            add("pool", [], _pool)
        add("source", ["pool"], _source)
        if "dedup" not in recipe.skip:
            add("dedup", ["source"], _dedup)
    if "filtered" in sets:
        add("annotate", ["source", "dedup"], _annotate)
        add("filter", ["source", "dedup", "annotate"], _filter)
    if recipe.evaluate.heldout:
        add("problems", [], _problems)
    if "textbooks" in sets:
        add("textbooks", [], _textbooks)
    if "exercises" in sets:
        add("exercises", [], _exercises)
    for name in sets:
        source = data_folder(recipe, name)
        for label in rounds(recipe):
            step = f"decontaminate/{label}/{name}"
            add(step, [source, "problems"], _decontaminate(label, name, source))
            source = step
    add("tokenizer", [packed_from(recipe, name) for name in sets], _tokenizer)
    for name in sets:
        add(f"pack/{name}", [packed_from(recipe, name), "tokenizer"], _pack(name))
    models = []
    seeds = range(recipe.seed, recipe.seed + recipe.seeds)
    runs = [(arm, config, seed) for seed in seeds for arm, config in recipe.arms.items()]
    # Bases first: they are the long ones, and short finetunings then fill the gaps beside them.
    for arm, config, seed in runs:
        if config.data:
            base = base_folder(arm, seed)
            add(base, [f"pack/{name}" for name in config.data], _base(arm, seed), alone=False)
            models.append(("base", base))
    for arm, config, seed in runs:
        if config.finetune:
            tuned = tuned_folder(arm, seed)
            needs = [base_folder(arm, seed), "pack/exercises"]
            add(tuned, needs, _finetuned(arm, seed), alone=False)
            models.append(("finetuned", tuned))
    for stage, model in models:
        if stage not in recipe.evaluate.stages:
            continue
        for label in benchmark_names(recipe):
            name = f"evaluate/{model.removeprefix('train/')}/{label}"
            add(name, [model, "problems"], _evaluate(model, label), alone=False)
    done = [step.name for step in steps]
    # It looks for the held-out problems among the exercises.
    studied = recipe.study.contamination and "study" not in recipe.skip
    if studied and recipe.evaluate.heldout and "exercises" in sets:
        add("study/contamination", done, _study)
    if "report" not in recipe.skip:
        add("report", [step.name for step in steps], _report)
    return steps
