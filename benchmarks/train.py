"""How many tokens a second does a training step take in, beside the same model trained by others?

Each arm is a process of its own on the same random rows, dropout 0.1, AdamW, bf16 products (fp32 on
a CPU); arms take turns, for several rounds. Ours is the real loop. MFU = flops_per_token * tokens/s
/ what a large bf16 matrix product reaches on this card, measured in the same run; flops_per_token =
6 N + 12 L d T, N without the embedding. Goals on one GPU: 1.05 times the same model through
transformers with SDPA and compile (by block as ours, or as a whole), 1.5 times HF Trainer's
defaults, 50 % MFU. A ratio is taken only between arms that both compute activations again, or both
do not: our plan may have to, for memory.

That they are one model is checked apart: with weights far wider than fresh ones, whose losses tell
models apart, without dropout and in fp32, the arms' losses must agree to a thousandth.

Results are written after every arm, so that a run that is stopped loses only the arm at hand; an
arm that hangs is ended. Exits with 1 if one of ours failed, if none ran or if the losses differ;
says which goals are met.

    python benchmarks/train.py                     # one GPU: phi-1, 8 to 32 rows of 2048; an hour
    python benchmarks/train.py --quick             # 16 rows, the arms of the goals, each once
    python benchmarks/train.py --quick --minutes 8 # and over after 8 minutes
    python benchmarks/train.py --model phi-1-small
    python benchmarks/train.py --tiny              # a CPU: whether every arm runs, and agrees
"""

import argparse
import importlib.metadata
import itertools
import json
import math
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from children import KEPT, run_child

RESULTS = Path(__file__).parent / "results" / "train.json"
SHAPES: dict[str, dict[str, int]] = {
    "phi-1": {},
    "phi-1-small": {"hidden_size": 1024, "num_hidden_layers": 20, "num_attention_heads": 16},
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    },
}
ARMS = {
    "ours, kernels, compile": {"kernels": "triton", "compile": True},
    "ours, kernels": {"kernels": "triton", "compile": False},
    "ours, compile": {"kernels": "sdpa", "compile": True},
    "ours": {"kernels": "sdpa", "compile": False},
    "transformers + SDPA + compile": {"peer": "transformers", "compile": "blocks"},
    "transformers + SDPA + compile, whole": {"peer": "transformers", "compile": True},
    "transformers + SDPA": {"peer": "transformers", "compile": False},
    "HF Trainer, defaults": {"peer": "trainer"},
    "litgpt + compile": {"peer": "litgpt", "compile": True},
}
GOALS = {
    "transformers + SDPA + compile": 1.05,
    "transformers + SDPA + compile, whole": 1.05,
    "HF Trainer, defaults": 1.5,
}
GOAL_MFU = 0.5
QUICK = ["ours, kernels, compile", "transformers + SDPA + compile", "HF Trainer, defaults"]
QUICK += ["ours, compile", "ours, kernels", "ours"]
"""Arms by what they tell, if not all can be run."""
LINKS = {"NVLink, 8 GPUs of a machine": (8, 360e9), "InfiniBand 400G, 4 machines": (32, 45e9)}
"""Processes, and bytes a second that a ring between them carries for each (80 % of the link)."""
SAME = 1e-3
"""How far apart the losses of arms with the same weights may be."""
QUICK_LIMIT, LIMIT, LEAST = 180.0, 1200.0, 20.0
"""Seconds of an arm with `--quick` and without; none is begun with less than the least left."""


def shape_of(name: str) -> Any:
    from hornbook.model import PhiConfig

    return PhiConfig(**SHAPES[name])


class RandomRows:
    """The same rows for every arm; a function of their number."""

    identity = "random"
    samples_per_epoch = 1 << 20

    def __init__(self, vocabulary: int, length: int) -> None:
        self.vocabulary, self.length = vocabulary, length

    def batch(self, first: int, count: int) -> dict[str, Any]:
        import numpy as np

        ids = np.empty((count, self.length + 1), dtype=np.int64)
        for place in range(count):
            draw = np.random.Generator(np.random.Philox(key=[5, first + place]))
            ids[place] = draw.integers(0, self.vocabulary, self.length + 1)
        return {
            "input_ids": ids[:, :-1].copy(),
            "labels": ids[:, 1:].copy(),
            "prompt_mask": np.zeros((count, self.length), dtype=bool),
            "cu_seqlens": [np.array([0, self.length], dtype=np.int32)] * count,
        }


def measure_ours(task: dict[str, Any]) -> dict[str, Any]:
    import torch

    from hornbook.train import TrainConfig, train
    from hornbook.train.metrics import read_metrics

    shape = shape_of(task["model"])
    length = shape.max_position_embeddings
    config = TrainConfig(
        steps=task["steps"],
        batch_size=task["rows"],
        learning_rate=1e-4,
        sequence_length=length,
        dropout=task["dropout"],
        precision="bf16" if torch.cuda.is_available() else "fp32",
        compile=task["compile"],
        save_every=10**9,
        threads=task["threads"],
    )
    with tempfile.TemporaryDirectory() as out:
        started: list[float] = []

        class Enough(Exception):  # noqa: N818 (ends the run before it writes a checkpoint)
            pass

        def on_step(record: dict[str, Any]) -> None:
            started.append(record["tokens_per_second"])
            if record["step"] == task["steps"] - 1:
                raise Enough

        try:
            rows = RandomRows(shape.vocab_size, length)
            train(config, data=rows, out=out, model=shape, on_step=on_step)
        except Enough:
            pass
        records = read_metrics(Path(out) / "metrics.jsonl")
        lines = (Path(out) / "events.jsonl").read_text(encoding="utf-8").splitlines()
    begun = next(entry for entry in map(json.loads, lines) if entry["event"] == "started")
    plan = {key: begun["plan"][key] for key in ("parallel", "recompute", "compile")}
    return {
        "plan": {**plan, "micro_batch_size": begun["micro_batch_size"]},
        "tokens_per_second": statistics.median(started[task["warmup"] :]),
        "losses": [record["loss"] for record in records],
        "peak_memory_bytes": records[-1]["peak_memory_bytes"],
    }


def hf_model(task: dict[str, Any], shape: Any = None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from hornbook.model import Phi

    with tempfile.TemporaryDirectory() as folder:
        Phi(shape or shape_of(task["model"]), seed=0).save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="sdpa",
            attention_dropout=task["dropout"],
            resid_pdrop=task["dropout"],
            use_cache=False,
        )


def litgpt_model(task: dict[str, Any]) -> Any:
    from litgpt import GPT, Config

    shape = shape_of(task["model"])
    return GPT(
        Config(
            name="phi-1",
            block_size=shape.max_position_embeddings,
            vocab_size=shape.vocab_size,
            padded_vocab_size=shape.vocab_size,
            n_layer=shape.num_hidden_layers,
            n_head=shape.num_attention_heads,
            n_embd=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            rotary_percentage=shape.partial_rotary_factor,
            parallel_residual=True,
            shared_attention_norm=True,
            bias=True,
            lm_head_bias=True,
            gelu_approximate="tanh",
            mlp_class_name="GptNeoxMLP",
            norm_class_name="LayerNorm",
        )
    )


def peer_plan(task: dict[str, Any]) -> dict[str, Any]:
    """What peers do: all rows at once, and nothing computed again.

    But not compiled, transformers' model keeps 139 kB a token and block: of 16 rows of 2048 more
    than 80 GB cards have, and all that one of 141 GB has.
    """
    how = task.get("compile", False)
    rows = task["rows"]
    if not how and task.get("peer") in ("transformers", "trainer") and rows > 8 and rows % 8 == 0:
        rows = 8
    return {"recompute": False, "compile": bool(how), "micro_batch_size": rows}


def compiled(model: Any, how: bool | str) -> Any:
    """A peer's model compiled as a whole, or `"blocks"`: each of transformers' blocks, as ours are.

    As a whole transformers' attention gets a dense mask, which flash attention does not take.
    """
    import torch

    if how != "blocks":
        return torch.compile(model) if how else model
    for block in model.model.layers:
        block.forward = torch.compile(block.forward)
    return model


def measure_plain(task: dict[str, Any]) -> dict[str, Any]:
    """A peer's model in the plainest fast loop: autocast, fused AdamW, clipping, compile."""
    import torch
    import torch.nn.functional as F

    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    shape = shape_of(task["model"])
    model = (hf_model if task["peer"] == "transformers" else litgpt_model)(task)
    model = model.to(device).train()
    called = compiled(model, task["compile"])
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    rows = RandomRows(shape.vocab_size, shape.max_position_embeddings)
    rates, losses = [], []
    size = peer_plan(task)["micro_batch_size"]
    for step in range(task["steps"] - 1):
        batch = rows.batch(step * task["rows"], task["rows"])
        ids, labels = (torch.from_numpy(batch[k]).to(device) for k in ("input_ids", "labels"))
        began = time.perf_counter()
        parts = zip(ids.split(size), labels.split(size), strict=True)
        loss = torch.zeros((), device=device)
        for some, wanted in parts:
            with torch.autocast(device.type, torch.bfloat16, enabled=gpu):
                out = called(some)
                logits = getattr(out, "logits", out)
                part = F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten())
                part = part * (len(some) / len(ids))
            part.backward()
            loss += part.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss))
        rates.append(labels.numel() / (time.perf_counter() - began))
    from hornbook.train.metrics import peak_memory

    return {
        "plan": peer_plan(task),
        "tokens_per_second": statistics.median(rates[task["warmup"] :]),
        "losses": losses,
        "peak_memory_bytes": peak_memory(device),
    }


def measure_trainer(task: dict[str, Any]) -> dict[str, Any]:
    """HF Trainer as it comes, with bf16 on a GPU, which everybody sets."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    gpu = torch.cuda.is_available()
    shape = shape_of(task["model"])
    length = shape.max_position_embeddings
    rows = RandomRows(shape.vocab_size, length)
    data = rows.batch(0, task["rows"] * task["steps"])
    items = [
        {"input_ids": torch.from_numpy(row), "labels": torch.from_numpy(row)}
        for row in data["input_ids"]
    ]
    size = peer_plan(task)["micro_batch_size"]
    ends: list[float] = []
    losses: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if gpu:
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=task["rows"] // size,
            max_steps=task["steps"],
            learning_rate=1e-4,
            weight_decay=0.1,
            bf16=gpu,
            use_cpu=not gpu,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=hf_model(task), args=arguments, train_dataset=items, callbacks=[Clock()]
        )
        trainer.train()
    spans = [after - before for before, after in itertools.pairwise(ends)]
    from hornbook.train.metrics import peak_memory

    return {
        "plan": peer_plan(task),
        "tokens_per_second": task["rows"] * length / statistics.median(spans[task["warmup"] :]),
        "losses": losses,
        "peak_memory_bytes": peak_memory(torch.device("cuda" if gpu else "cpu")),
    }


def check_loss(task: dict[str, Any]) -> float:
    """The loss of an arm's model with wide weights on one row, without dropout, in fp32.

    Fresh weights are so small that any model's loss is about the logarithm of the vocabulary.
    """
    import gc

    import torch
    import torch.nn.functional as F

    from hornbook.model import Phi

    gc.collect()  # what was measured before
    device = torch.device("cpu")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        device = torch.device("cuda")
    shape = shape_of(task["model"])
    shape = replace(shape, initializer_range=2 / math.sqrt(shape.hidden_size))
    batch = RandomRows(shape.vocab_size, min(256, shape.max_position_embeddings)).batch(0, 1)
    ids, labels = (torch.from_numpy(batch[key]).to(device) for key in ("input_ids", "labels"))
    with torch.no_grad():
        if "peer" not in task:
            return float(Phi(shape, seed=0).to(device).eval()(ids, labels=labels))
        logits = hf_model(task, shape).to(device).eval()(ids).logits
        return float(F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten()))


def run_arm(task: dict[str, Any]) -> dict[str, Any]:
    """In the arm's own process."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(task["threads"])
    measure = {"transformers": measure_plain, "litgpt": measure_plain, "trainer": measure_trainer}
    try:
        measured = measure.get(task.get("peer", ""), measure_ours)(task)
        if task.get("peer") != "litgpt":  # it draws weights of its own
            measured["check_loss"] = check_loss(task)
        return measured
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    except ImportError as error:
        return {"failed": f"not installed: {error}"}


def start_arm(arm: str, task: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Runs an arm in a process of its own; what goes wrong there is its result."""
    environment = {**os.environ, "HORNBOOK_KERNELS": ARMS[arm].get("kernels", "sdpa")}
    command = [sys.executable, __file__, "--arm", json.dumps({**ARMS[arm], **task})]
    with tempfile.TemporaryFile() as output:
        why, text = run_child(command, seconds, environment=environment, stdout=output)
        output.seek(0)
        last = output.read().decode(errors="replace").strip().splitlines()[-1:]
    if not why:
        try:
            return dict(json.loads(last[0]))
        except (IndexError, ValueError):
            why = "ended without a result"
    return {"failed": why, "stderr": text[-KEPT:]}


def ceiling() -> float:
    import torch

    from hornbook.train.metrics import matrix_ceiling

    gpu = torch.cuda.is_available()
    place, kind = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    return matrix_ceiling(torch.device(place), kind, seconds=2.0)


def modelled_scaling(parameters: int, step_s: float, rows: int) -> list[dict[str, Any]]:
    """What several GPUs would reach: a model, not a measurement.

    The paper's step of 1024 rows; each process computes its share in micro-batches of the measured
    step (`rows` in `step_s`), then a ring carries 2 (p - 1) / p of its fp32 gradients, none of it
    hidden.
    """
    made = []
    for link, (processes, bandwidth) in LINKS.items():
        micro = max(1, 1024 // (rows * processes))
        compute = micro * step_s
        exchange = 2 * (processes - 1) / processes * 4 * parameters / bandwidth
        share = compute / (compute + exchange)
        made.append({"link": link, "processes": processes, "modelled_efficiency": round(share, 4)})
    return made


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("phi-1", "phi-1-small"), default="phi-1")
    parser.add_argument("--rows", type=int, nargs="+", help="8, 16 and 32; 16 with --quick")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, help="3; 1 with --quick")
    parser.add_argument("--tiny", action="store_true", help="a small model, for a CPU")
    parser.add_argument("--quick", action="store_true", help="the arms that matter most, once")
    parser.add_argument("--minutes", type=float, default=math.inf, help="be over after them")
    parser.add_argument("--arms", nargs="+", choices=sorted(ARMS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(run_arm(json.loads(options.arm))))
        return 0
    # An arm is in a group of its own, so it ends only if this process does so by an exception.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    end = time.monotonic() + 60 * options.minutes
    limit = QUICK_LIMIT if options.quick or options.tiny else LIMIT
    import torch

    from hornbook.train.plan import flops_per_token, parameter_count

    options.rows = options.rows or ([16] if options.quick else [8, 16, 32])
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.arms = options.arms or (QUICK if options.quick else list(ARMS))
    gpu = torch.cuda.is_available()
    if not gpu and not options.tiny:
        parser.error("there is no GPU here; --tiny runs every arm on a CPU")
    model = "tiny" if options.tiny else options.model
    shape = shape_of(model)
    per_token = flops_per_token(shape, shape.max_position_embeddings)
    if options.tiny:
        options.rows, options.rounds, options.steps = [2], 1, min(options.steps, 8)
    warmup = min(8, options.steps // 3)
    top = ceiling()
    report: dict[str, Any] = {
        "question": __doc__.splitlines()[0],
        "model": model,
        "parameters": parameter_count(shape),
        "flops_per_token": per_token,
        "formula": "MFU = flops_per_token * tokens_per_second / matrix_flops_per_second",
        "matrix_flops_per_second": top,
        "measured_on_gpu": gpu,
        "steps": options.steps,
        "rounds": options.rounds,
        "batches": [],
        "left_out": [],
        "scaling": "none of our arms ran" if gpu else "needs a GPU",
        "anchors": "MFU elsewhere: TinyLlama 56 % (A100), llm.c 49 % and MPT-1B 42 % (H100), "
        "phi-1 itself at least 53 % (8 A100, under 4 days)",
        "machine": {
            "device": torch.cuda.get_device_name() if gpu else platform.processor() or "cpu",
            "cores": os.cpu_count(),
            "platform": platform.platform(),
        },
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for rows in options.rows:
        results: dict[str, list[dict[str, Any]]] = {}
        report["batches"].append({"rows": rows, "arms": {}})
        batch = report["batches"][-1]
        for turn, arm in itertools.product(range(options.rounds), options.arms):
            if "failed" in results.get(arm, [{}])[0]:
                continue
            what = f"{rows} rows, round {turn + 1} of {options.rounds}: {arm}"
            left = end - time.monotonic()
            if left < LEAST:
                report["left_out"].append(what)
                continue
            print(what, file=sys.stderr)
            task = {
                "model": model,
                "rows": rows,
                "steps": options.steps,
                "warmup": warmup,
                "dropout": 0.1 if gpu else 0.0,
                "threads": 1 if options.tiny else os.cpu_count() or 1,
            }
            results.setdefault(arm, []).append(start_arm(arm, task, min(limit, left)))
            batch["arms"] = summarise(results, per_token, top)
            save(report, shape, options.out)
        print_table(batch)
    save(report, shape, options.out)
    for what in report["left_out"]:
        print(f"out of time: {what}")
    for goal in report["goals"]:
        print(f"goal {goal['result']}: {goal['goal']} at {goal['rows']} rows: {goal['measured']}")
    print(f"wrote {options.out}")
    wrong = faults(report)
    for fault in wrong:
        print(f"WRONG: {fault}")
    return 1 if wrong else 0


def faults(report: dict[str, Any]) -> list[str]:
    """What makes a run no success; a goal that is missed does not."""
    tried = {
        f"{batch['rows']} rows: {arm}": entry.get("failed")
        for batch in report["batches"]
        for arm, entry in batch["arms"].items()
    }
    found = [f"{what}: {why}" for what, why in tried.items() if why and ": ours" in what]
    if all(tried.values()):
        found.append("no arm ran")
    elif all(why for what, why in tried.items() if ": ours" in what) and any(
        ": ours" in what for what in report["left_out"]
    ):
        found.append("none of ours ran: out of time")
    if report["losses_agree"] is False:
        found.append("losses of the same weights differ, so the arms are not the same model")
    return found


def judge_goals(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Each goal: met, missed, or open where nothing was measured that may be compared."""
    arms = batch["arms"]
    wanted = [
        (f"{goal} times {arm}", goal, arms.get(arm, {}).get("ours_is_faster_by"))
        for arm, goal in GOALS.items()
        if arm in arms
    ]
    shares = [entry["mfu"] for arm, entry in arms.items() if arm[:4] == "ours" and "mfu" in entry]
    wanted.append((f"MFU of {GOAL_MFU}", GOAL_MFU, max(shares, default=None)))
    return [
        {
            "rows": batch["rows"],
            "goal": text,
            "measured": value,
            "result": "open" if value is None else "met" if value >= goal else "missed",
        }
        for text, goal, value in wanted
    ]


def save(report: dict[str, Any], shape: Any, out: Path) -> None:
    """Writes what is known so far."""
    first = report["batches"][0]
    ours = {name: arm for name, arm in first["arms"].items() if name.startswith("ours")}
    rates = [arm["tokens_per_second"] for arm in ours.values() if "mfu" in arm]
    if rates and report["measured_on_gpu"]:
        step_s = first["rows"] * shape.max_position_embeddings / max(rates)
        report["scaling"] = modelled_scaling(report["parameters"], step_s, first["rows"])
    agree = [same_model(batch["arms"]) for batch in report["batches"]]
    report["losses_agree"] = None if set(agree) == {None} else False not in agree
    judged = report["batches"] if report["measured_on_gpu"] else []
    report["goals"] = [goal for batch in judged for goal in judge_goals(batch)]
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f"{out.name}.tmp")
    temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    temporary.replace(out)


def summarise(
    results: dict[str, list[dict[str, Any]]], per_token: int, top: float
) -> dict[str, dict[str, Any]]:
    """Medians over rounds, and each peer's step time over that of our best arm like it."""
    made: dict[str, dict[str, Any]] = {}
    for arm, tried in results.items():
        rounds = [one for one in tried if "failed" not in one]
        if not rounds:
            made[arm] = tried[0]
            continue
        rate = statistics.median(r["tokens_per_second"] for r in rounds)
        made[arm] = {
            "tokens_per_second": round(rate, 1),
            "rounds": [round(r["tokens_per_second"], 1) for r in rounds],
            "mfu": round(per_token * rate / top, 4),
            "peak_memory_gib": round(rounds[0]["peak_memory_bytes"] / 2**30, 3),
            "first_loss": rounds[0]["losses"][0],
            "last_loss": rounds[0]["losses"][-1],
            "check_loss": rounds[0].get("check_loss"),
            "plan": rounds[0]["plan"],
        }
    ours = [entry for arm, entry in made.items() if arm[:4] == "ours" and "mfu" in entry]
    for arm, entry in made.items():
        if arm[:4] == "ours" or "mfu" not in entry or not ours:
            continue
        again = entry["plan"]["recompute"]
        like = [e["tokens_per_second"] for e in ours if e["plan"]["recompute"] == again]
        if like:
            entry["ours_is_faster_by"] = round(max(like) / entry["tokens_per_second"], 3)
        else:
            entry["not_compared"] = "only one of the two computes activations again"
    return made


def same_model(made: dict[str, dict[str, Any]]) -> bool | None:
    """Whether arms with the same weights have the same loss; see `check_loss`. None if fewer than
    two are there to compare.
    """
    same = [arm["check_loss"] for arm in made.values() if arm.get("check_loss") is not None]
    if len(same) < 2:
        return None
    return all(map(math.isfinite, same)) and max(same) - min(same) <= SAME


def print_table(batch: dict[str, Any]) -> None:
    print(f"{batch['rows']} rows")
    for arm, entry in batch["arms"].items():
        if "failed" in entry:
            print(f"  {arm:<36} {entry['failed']}")
            continue
        plan = entry["plan"]
        notes = [f"micro-batches of {plan['micro_batch_size']}"]
        notes += ["activations computed again"] if plan["recompute"] else []
        if "ours_is_faster_by" in entry:
            notes.append(f"ours x{entry['ours_is_faster_by']}")
        notes += [entry["not_compared"]] if "not_compared" in entry else []
        print(
            f"  {arm:<36} {entry['tokens_per_second']:>12,.0f} tokens/s {entry['mfu']:>7.1%} MFU "
            f"{entry['peak_memory_gib']:>7.2f} GiB  {', '.join(notes)}"
        )


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "triton", "transformers", "accelerate", "litgpt"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


if __name__ == "__main__":
    sys.exit(main())
