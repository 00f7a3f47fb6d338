# Two commands for a newcomer: `make quickstart` and `make test`. Each makes what it needs; the second time it is there.
#
# Choices, given on the command line: ENV=cpu or ENV=gpu (otherwise what the machine has), PYTHON=..., VENV=folder,
# BENCH='options of the benchmark', COMPARE='options of the comparison', DEMO='options of the demo'.
# They are assigned with := because some GPU images have a variable named ENV of their own.
ENV := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
PYTHON := $(or $(firstword $(foreach name,python3.11 python3 python3.12,$(shell command -v $(name)))),python3.11)
VENV := .venv
BIN := $(VENV)/bin
PYTEST = HF_HUB_OFFLINE=1 WANDB_MODE=offline $(BIN)/python -m pytest

# Compilers and tools that libraries look for by name (ninja) come from the environment.
export PATH := $(abspath $(BIN)):$(PATH)
# Each run starts dozens of Python processes. Without bytecode on disk each of them would compile the libraries again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help quickstart test mutants verify compare demo chaos gpu-check bench bench-gpu lint env clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: env ## the whole chain on a small model: SFT, reward model, PPO, and what was learned
	$(BIN)/python -m examples.travel.make_data --out data/travel --seed 0
	$(BIN)/rlhf pipeline recipes/quickstart.yaml

# In a container root may install SLURM and Chromium for the tests that drive them; without these those tests are skipped.
test: env ## the tests, without a network
	@test -d /run/systemd/system || tests/system_packages.sh || true
	$(PYTEST) -n 2 --no-loadscope-reorder

mutants: env ## small bugs, put into a copy of the code one at a time: the tests must notice each (an hour or so)
	$(BIN)/python -m tests.mutants.run

verify: env ## every problem with a known optimum, three seeds, into docs/verification.md
	HF_HUB_OFFLINE=1 WANDB_MODE=disabled $(BIN)/python -m examples.optima.verify --out docs/verification.md

compare: env ## base, SFT, QLoRA, DPO, RAFT and RLHF compared by metrics, a judge and (simulated) people
	WANDB_MODE=disabled $(BIN)/python -m examples.travel.compare $(COMPARE)

demo: env ## a model to production, a bad canary that the gateway withdraws, and a round trained on the users' thumbs
	WANDB_MODE=disabled $(BIN)/python -m examples.travel.demo $(DEMO)

chaos: env ## every role, phase and fault, and 500 random faults, into docs/survival.md (hours)
	$(PYTEST) -m slow
	$(BIN)/python -m tests.end_to_end.chaos --seeds 0 1 2 3 4 5 6 7 8 9 --out docs/survival.md
	$(BIN)/python -m tests.end_to_end.chaos --out docs/survival.md --append --runs runs/kills --kinds "controller killed" --faults 20 --steps 20
	$(BIN)/python -m tests.end_to_end.matrix --again --out docs/survival.md

gpu-check: env ## SFT and PPO on one GPU with every role on it: canaries, throughput, memory
	$(BIN)/python -m launch.gpu_check

bench: env .venv-bench/made-from ## steps of PPO and GRPO beside bare vLLM and PyTorch and beside TRL (forty minutes, alone on the machine)
	$(BIN)/python -m benchmarks $(BENCH)

bench-gpu: env ## models of 0.5B and 1.5B parameters on one GPU, beside bare vLLM and PyTorch (under ten minutes)
	$(BIN)/python -m benchmarks.gpu $(BENCH)

# TRL alone, in a folder of its own: it runs on the packages of $(VENV).
.venv-bench/made-from: requirements/bench.txt
	rm -rf $(@D)
	$(BIN)/pip install --quiet --no-deps --target $(@D) -r $<
	cp $< $@

lint: env ## style, imports and types
	$(BIN)/ruff check .
	$(BIN)/mypy

env: ## the pinned environment, in .venv
	@launch/setup_env.sh $(ENV) $(VENV) $(PYTHON)

clean: ## remove the environment and caches; runs and data stay
	rm -rf $(VENV) .venv-bench build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
