"""TRL's GRPOTrainer on a workload; transformers generates.

``python -m benchmarks.trl_grpo FOLDER WORKLOAD STEPS`` prints the seconds of each step's parts as one line of JSON. It
runs with the folder of ``requirements/bench.txt`` in ``PYTHONPATH``; everything else is the project's own environment.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks import models, workload
from benchmarks.workload import Workload


class Clock(TrainerCallback):
    """Seconds of the parts of each step: from one generation to the next."""

    def __init__(self, updates: int, samples: int) -> None:
        """``updates`` is the number of optimizer steps of a step."""
        self.updates, self.samples, self.found = updates, samples, list[dict[str, float]]()
        self.current = dict[str, float]()
        self.last = time.perf_counter()

    def mark(self, part: str) -> None:
        """End a part; the next one begins."""
        now = time.perf_counter()
        self.current[part], self.last = now - self.last, now

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End the step with its last optimizer step."""
        if state.global_step % self.updates == 0:
            self.mark("update")
            parts = {name: seconds for name, seconds in self.current.items() if name != "tokens"}
            self.found.append({**self.current, "publish": 0.0, "step": sum(parts.values()), "samples": self.samples})
            self.current.clear()


class TimedTrainer(GRPOTrainer):
    """Tells generation and scoring apart. What precedes generation in a step is part of ``generate``."""

    clock: Clock

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        answer = super()._generate_single_turn(*args, **kwargs)
        self.clock.mark("generate")
        self.clock.current["tokens"] = sum(map(len, answer[0]))
        return answer

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        answer = super()._generate_and_score_completions(inputs)
        assert len(answer["completion_ids"]) == self.clock.samples, "the work is not the floor's"
        self.clock.mark("score")
        return answer


def config(work: Workload, folder: str, steps: int) -> GRPOConfig:
    """The workload as TRL's configuration; ``loss_type`` is the paper's, as in the other contestants."""
    fixed = {} if work.mean is not None else {"min_new_tokens": work.new}
    return GRPOConfig(
        output_dir=folder,
        seed=workload.SEED,
        use_cpu=True,
        bf16=work.dtype == "bfloat16",
        per_device_train_batch_size=work.minibatch,
        steps_per_generation=work.minibatches,
        num_generations=work.group,
        num_iterations=work.epochs,
        max_completion_length=work.new,
        max_steps=steps * work.epochs * work.minibatches,
        temperature=1.0,
        generation_kwargs=fixed,
        beta=workload.BETA,
        epsilon=workload.CLIP,
        loss_type="grpo",
        learning_rate=workload.LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )


def measure(folder: Path, work: Workload, steps: int) -> list[dict[str, float]]:
    """Seconds of each step's parts, and its samples and response tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    reward = AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=torch.float32)
    clock = Clock(work.epochs * work.minibatches, work.samples)
    with tempfile.TemporaryDirectory() as output:
        trainer = TimedTrainer(
            model=str(folder / "policy"),
            reward_funcs=reward,
            args=config(work, output, steps),
            train_dataset=Dataset.from_dict({"prompt": models.prompts(work.samples)}),
            processing_class=tokenizer,
            reward_processing_classes=tokenizer,
            callbacks=[clock],
        )
        trainer.clock = clock
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        trainer.train()
    return clock.found


if __name__ == "__main__":
    _work = Workload.from_argument(sys.argv[2])
    print(json.dumps(measure(Path(sys.argv[1]) / _work.models, _work, int(sys.argv[3]))))
