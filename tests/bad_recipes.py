"""Seeded invalid recipes and overrides, made from ``recipes/*.yaml``, with the text that each error must contain."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "recipes").glob("*.yaml"))
QUICKSTART = (ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")
SEED = 20
COMMANDS = ("sft", "reward", "dpo", "ppo", "pipeline")


@dataclass(frozen=True, kw_only=True)
class BadRecipe:
    """What the user gives, and a part of what the refusal must say."""

    name: str
    expected: str
    file: bytes | None = None
    """The recipe's content; None where ``path`` is given."""
    path: str = "run.yaml"
    """Its path, from the folder that the command runs in."""
    overrides: tuple[str, ...] = ()
    command: str = "sft"


WRONG_TYPES: dict[str, tuple[object, ...]] = {
    "seed": ("one", 1.5, True, [1], {"a": 1}, None, ""),
    "sft.epochs": ("two", 2.5, False, [], {"n": 2}, None),
    "sft.optimizer.lr": ("fast", True, [1e-3], {"lr": 1}, None),
    "sft.optimizer.betas": (0.9, [0.9], [0.9, 0.95, 0.99], ["a", "b"], {"a": 0.9}, [None, 0.9]),
    "data.columns": ("prompt", ["prompt"], {"prompt": 3}, {1: "prompt"}),
    "data.bad_rows": ("ignore", 0, ["skip"], {"skip": None}),
    "model.dtype": ("float16", 32, None),
    "placement.policy.offload": ("maybe", 1, None, []),
    "placement.policy.zero_stage": (4, "2", 1.0, -1),
    "tracking.tags": ("a", {"a": "b"}, [1], [["a"]]),
    "rewards": ([], "model", 3, {"a": 3}, {"a": [1]}),
    "rollout": ([], "vllm", 3),
}
"""Key → values of another type than the schema's."""
OUT_OF_RANGE: dict[str, tuple[object, ...]] = {
    "seed": (-1, 2**32, 10**25),
    "sft.epochs": (0, -3, 10**12, 100_001),
    "sft.batch_size": (0, -1, 2**64, 2**24 + 1),
    "sft.optimizer.lr": (0.0, -1e-5, 1e300, 1e-13, 10.5),
    "sft.optimizer.eps": (0.0, 1.5),
    "sft.optimizer.weight_decay": (-0.1, 1e7),
    "reward.batch_size": (0, 2**31),
    "dpo.beta": (0, 1e7),
    "model.lora.rank": (0, 2**20 + 1),
    "model.lora.alpha": (0, 1e7),
    "model.scratch.layers": (0, 1001, 2**31),
    "model.scratch.heads": (0, 2**31),
    "placement.policy.ranks": (0, 10**6 + 1),
    "rollout.engines": (0, 2**31),
    "ppo.oversampling": (0, 1001),
    "algorithm.kl_coef": (-0.1, 1e7),
    "algorithm.length_penalty": (-1, 1e30),
    "recovery.backoff_seconds": (-1, 1e10),
    "checkpoint.before_deadline": (-1, 1e12),
    "feedback.answers": (1, 1001),
    "sft.optimizer.betas": ([1.0, 0.9], [0.9, -0.1]),
    "data.held_out_fraction": (-0.1, 1.0, 5),
    "data.max_rows": (0, 10**30),
    "model.scratch.vocab_size": (257, 10**15),
    "rollout.temperature": (0, -0.5, 100.5, 1e30),
    "rollout.gpu_memory_fraction": (0, 1.01),
    "algorithm.gamma": (1.1, -1),
    "placement.phase_timeout_seconds": (0, -1, 1e12),
    "canaries.min_kl": (0.5,),
}
"""Key → values of the right type that no run can have."""
NOT_FINITE = ("sft.optimizer.lr", "rollout.temperature", "algorithm.lam", "checkpoint.grace_seconds", "dpo.beta")
MISSPELT = {
    "sft.epoch": "sft.epochs",
    "sft.batchsize": "sft.batch_size",
    "sft.optimizer.learning_rate_": "there is no key sft.optimizer.learning_rate_",
    "algorithm.clip_rnage": "algorithm.clip_range",
    "ppo.gamma": "algorithm.gamma",
    "modle": "model",
    "data.path_": "data.path",
    "rollout.temprature": "rollout.temperature",
    "xyzzy": "keys of a recipe",
    "placement.polcy.ranks": "placement.policy",
}
"""A key that does not exist → what the refusal must offer."""


def bad_recipes() -> list[BadRecipe]:
    """All of them; the same whenever they are made."""
    draw = random.Random(SEED)
    cases = [*_wrong(draw, WRONG_TYPES, 16), *_wrong(draw, OUT_OF_RANGE, 45), *_not_finite(draw), *_unknown(draw)]
    return [*cases, *_nested_wrongly(), *_broken_text(), *_not_a_file(), *_overrides()]


def _wrong(draw: random.Random, values: dict[str, tuple[object, ...]], count: int) -> list[BadRecipe]:
    keys = [*values, *draw.choices(list(values), k=count - len(values))]
    return [_case(draw, key, _with(draw, key, draw.choice(values[key])), key) for key in keys[:count]]


def _not_finite(draw: random.Random) -> list[BadRecipe]:
    words = (".nan", ".inf", "-.inf", "1e999", "nan")
    return [
        BadRecipe(name=f"{key}={word}", expected=key, file=_any(draw), overrides=(f"{key}={word}",))
        for key, word in zip(NOT_FINITE, words, strict=True)
    ]


def _unknown(draw: random.Random) -> list[BadRecipe]:
    return [_case(draw, key, _with(draw, key, 1), offered) for key, offered in MISSPELT.items()]


def _case(draw: random.Random, key: str, recipe: dict[str, Any], expected: str) -> BadRecipe:
    value: Any = recipe
    for part in key.split("."):
        value = value[part]
    text = yaml.safe_dump(recipe, sort_keys=False).encode()
    return BadRecipe(name=f"{key}: {value!r:.30}", expected=expected, file=text, command=draw.choice(COMMANDS))


def _any(draw: random.Random) -> bytes:
    return draw.choice(FILES).read_bytes()


def _with(draw: random.Random, key: str, value: object) -> dict[str, Any]:
    """A shipped recipe with one key set."""
    recipe: dict[str, Any] = yaml.safe_load(_any(draw))
    *sections, last = key.split(".")
    inner = recipe
    for section in sections:
        inner[section] = inner.get(section) or {}
        inner = inner[section]
    inner[last] = copy.deepcopy(value)
    return recipe


def _nested_wrongly() -> list[BadRecipe]:
    def changed(name: str, change: Callable[[dict[str, Any]], None], expected: str) -> BadRecipe:
        recipe = yaml.safe_load(QUICKSTART)
        change(recipe)
        return BadRecipe(name=name, expected=expected, file=yaml.safe_dump(recipe, sort_keys=False).encode())

    return [
        changed("all in a section", lambda r: r.update(run=copy.deepcopy(r)), "there is no key run"),
        changed("a section in itself", lambda r: r["sft"].update(sft=dict(r["sft"])), "there is no key sft.sft"),
        changed("a section of another", lambda r: r["sft"].update(rollout=r.pop("rollout")), "no key sft.rollout"),
        changed("a value for a section", lambda r: r.update(sft=3), "sft is 3, expected a section"),
        changed("a dotted key in a file", lambda r: r.update({"sft.epochs": 2}), "write one line for each part"),
        changed("no name", lambda r: r.pop("name"), "name is missing"),
    ]


def _merges() -> str:
    """Each line twice as long as the one before, once ``<<`` has copied what it names."""
    lines = [f"m{i}: &m{i} {{<<: [*m{i - 1}, *m{i - 1}]}}" for i in range(1, 30)]
    return "\n".join(["m0: &m0 {x: 1}", *lines])


def _aliases() -> str:
    """Three to the power of forty times ``x``, if it were written out."""
    lines = [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    return "\n".join(["a0: &a0 [x]", *lines, "tracking: {tags: *a39}"])


BROKEN_TEXT: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "is empty"),
    "only comments": ("# name: a\n", "is empty"),
    "a list": ("- name: a\n- sft: {}\n", "holds list at the top"),
    "a word": ("quickstart\n", "holds str at the top"),
    "two documents": (QUICKSTART + "---\nname: b\n", "another document"),
    "a key twice": (QUICKSTART + "sft: {epochs: 3}\n", "'sft' is set twice"),
    "a name twice": ("name: a\nname: b\n", "run.yaml:2:1"),
    "a tab": ("name: a\nsft:\n\tepochs: 1\n", "run.yaml:3:1"),
    "an open bracket": ("name: a\nsft: {epochs: 1\n", "not valid YAML"),
    "an open quote": ('name: "a\nsft: 3\n', "not valid YAML"),
    "binary": (bytes(range(256)), "is not text"),
    "half of UTF-8": (b"name: caf\xc3", "is not text"),
    "Latin-1": (b"name: caf\xe9\n", "is not text"),
    "UTF-16": (QUICKSTART.encode("utf-16"), "is not text"),
    "a null byte": ("name: a\0b\n", "special characters are not allowed"),
    "a Python object": ("name: !!python/object/apply:os.system [touch pwned]\n", "could not determine a constructor"),
    "a Python name": ("name: !!python/name:os.system\n", "could not determine a constructor"),
    "an unknown alias": ("name: *nobody\n", "undefined alias"),
    "merges of merges": (QUICKSTART + _merges(), "<< merges too many keys"),
    "aliases of aliases": (QUICKSTART + _aliases(), "there is no key a0"),
    "a list of itself": (QUICKSTART + "tracking: {tags: &t [*t]}\n", "tracking.tags"),
    "brackets thousands deep": ("name: a\nx: " + "[" * 5000, "nested too deeply"),
    "a date that is none": ("name: a\nseed: 2024-13-45\n", "expected a whole number"),
    "thousands of digits": ("name: a\nseed: " + "9" * 5000 + "\n", "impossible value"),
    "thousands of hexadecimal digits": (
        QUICKSTART + f"seed: 0x{'f' * 6000}\n",
        "seed = a number of thousands of digits is out of range",
    ),
    "a key that is a list": ("name: a\n? [1, 2]\n: 3\n", "unhashable key"),
    "thousands of unknown keys": (
        QUICKSTART + "".join(f"key_{i}: 1\n" for i in range(5000)),
        "5000 problems",
    ),
    "a key of a hundred thousand letters": (QUICKSTART + f'? "{"k" * 100_000}"\n: 1\n', "there is no key"),
    "escape codes": (QUICKSTART + '"\\e[2J\\e[31m\\nred": 1\n', "there is no key"),
    "rows of data": ('{"prompt": "a"}\n{"prompt": "b"}\n', "not valid YAML"),
    "megabytes": ("name: a\ntags: [" + "1, " * 500_000 + "]\n", "longer than"),
}


def _broken_text() -> list[BadRecipe]:
    return [
        BadRecipe(name=name, expected=expected, file=text if isinstance(text, bytes) else text.encode())
        for name, (text, expected) in BROKEN_TEXT.items()
    ]


def _not_a_file() -> list[BadRecipe]:
    paths = {
        "a folder": (".", "is a folder"),
        "nothing there": ("rum.yaml", "there is no recipe at"),
        "a file that no one may read": ("/proc/self/mem", "cannot read"),
        "a name too long for any file": ("r" * 5000, "cannot read"),
        "a null character in the path": ("a\0b", "cannot read"),
    }
    return [BadRecipe(name=name, expected=expected, path=path) for name, (path, expected) in paths.items()]


OVERRIDES: dict[str, tuple[tuple[str, ...], str]] = {
    "no equals sign": (("sft.epochs",), "cannot read the override 'sft.epochs'"),
    "nothing": (("",), "cannot read the override ''"),
    "only an equals sign": (("=",), "cannot read the override '='"),
    "no key": (("=3",), "cannot read the override '=3'"),
    "a dot too many": (("sft..epochs=3",), "cannot read the override"),
    "a space": (("sft.epochs =3",), "cannot read the override"),
    "an option": (("--sft.epochs=3",), "No such option: --sft.epochs"),
    "an unknown section": (("stf.epochs=3",), "there is no key stf"),
    "an equals sign in the value": (("sft.epochs=3=4",), "sft.epochs is '3=4'"),
    "an empty value": (("sft.epochs=",), "sft.epochs is null"),
    "into a single value": (("name.first=a",), "name is a single value"),
    "into a list": (("sft.optimizer.betas.0=0.5",), "betas"),
    "an open bracket in the value": (("tracking.tags=[a",), "not valid YAML"),
    "thousands of parts": ((".".join("a" * 5000) + "=1",), "cannot read the override"),
    "a hundred thousand letters": (("k" * 100_000 + "=1",), "there is no key"),
    "a folder's name with a null character": (('runs_dir="a\\0b"',), "runs_dir"),
    "a folder's name of half a character": (('runs_dir="\\ud800"',), "runs_dir"),
    "a folder's name that is too long": (("runs_dir=" + "r" * 5000,), "runs_dir"),
    "a store's address for the folder of runs": (("runs_dir=s3://bucket/runs",), "is a URL"),
    "more memory than any machine": (("rollout.memory_gib=1e9",), "GiB of memory"),
    "a run's name that leads elsewhere": (("name=../elsewhere",), "cannot be a folder's name"),
    "several at once": (("sft", "sft.epochs=[", "name.x=1"), "3 problems"),
    "more parameters than any memory": (("model.scratch.hidden_size=65536", "model.scratch.layers=4"), "parameters"),
    "more processes than any machine": (("rollout.engines=100000",), "processes"),
    "a batch beyond any memory": (("reward.batch_size=2147483648",), "reward.batch_size = 2147483648 is out of range"),
    "a learning rate of a thousand": (("sft.optimizer.lr=1000",), "choose a value: from 1e-12 to 10"),
    "a temperature of a thousand": (("rollout.temperature=1000",), "choose a value: from 0.01 to 100"),
    "a decay that turns weights round": (
        ("sft.optimizer.lr=0.01", "sft.optimizer.weight_decay=100"),
        "sft.optimizer.weight_decay = 100 with sft.optimizer.lr = 0.01",
    ),
}


def _overrides() -> list[BadRecipe]:
    return [
        BadRecipe(name=name, expected=expected, file=QUICKSTART.encode(), overrides=overrides, command="pipeline")
        for name, (overrides, expected) in OVERRIDES.items()
    ]
