"""Checks that a folder holds a whole sequence classifier, and finds the label whose logit is the score.

transformers initialises missing weights at random and drops weights that its class does not have; either makes scores
meaningless. So tensor names and shapes are compared before any weight is read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from rlhf.config.schema import ModelConfig
from rlhf.errors import UserError
from rlhf.models.folder import from_folder
from rlhf.models.load import classifier_settings, load_classifier

OLD_BUFFERS = (".inv_freq", ".masked_bias", ".attn.bias", ".attention.bias", ".position_ids")
"""Suffixes of buffers that older versions of transformers saved."""
MOST_NAMED = 4
"""Number of weights named in a message."""


@dataclass(frozen=True, kw_only=True)
class ClassifierFolder:
    """Comparison of a model folder with the sequence classifier made from it. Sets hold tensor names."""

    path: str
    architecture: type[PreTrainedModel]
    is_classifier: bool
    """Whether its config.json names a sequence classifier as its architecture."""
    labels: Mapping[int, str]
    """Index of each label → its name."""
    modules: frozenset[str]
    """Top-level modules of the classifier."""
    head: frozenset[str]
    """Tensors of the classifier outside its backbone."""
    is_linear: bool
    """Whether the head is one linear layer, which can be applied to the state of any token."""
    missing: frozenset[str]
    """Tensors of the classifier that the folder lacks or has in another shape."""
    unknown: frozenset[str]
    """Tensors of the folder that the classifier does not have."""
    biases: frozenset[str]
    """Biases in the folder for head layers that have none in the architecture: they are added to the classifier."""

    @property
    def has_head(self) -> bool:
        """Whether the folder holds any tensor of a head, or its config.json names a classifier."""
        return self.is_classifier or bool(self.head - self.missing)

    def require_whole(self, key: str) -> None:
        """Check that the folder holds a finished classifier.

        Raises:
            UserError: weights are missing or would be left out; the message names them.
        """
        self._refuse_missing(key, self.missing)
        self._refuse_left_out(key, self.modules)

    def require_backbone(self, key: str) -> None:
        """Check that the folder holds a whole backbone, on which a new head can be initialised.

        Raises:
            UserError: weights are missing or would be left out, or the head is not one linear layer.
        """
        self._refuse_missing(key, self.missing - self.head)
        self._refuse_left_out(key, self.modules - {name.partition(".")[0] for name in self.head})
        if not self.is_linear:
            raise UserError(
                f"{key} = {self.path}: the head of {self.architecture.__name__} is not one linear layer",
                "a new head is one linear layer, applied to the state of a token",
                "give the folder of a causal language model, or of a reward model trained from one",
            )

    def _refuse_missing(self, key: str, missing: Collection[str]) -> None:
        if missing:
            extra = f" (it has {_listed(self.unknown)} besides)" if self.unknown else ""
            raise UserError(
                f"{key} = {self.path} is no {self.architecture.__name__}: it lacks {_listed(missing)}{extra}",
                "missing weights would be initialised at random, and the scores would be random too",
                "give the folder of a finished reward model, a sequence classifier with its head; the reward stage "
                "(reward.init, `model: trained`) trains one from a language model",
            )

    def _refuse_left_out(self, key: str, modules: Collection[str]) -> None:
        """Refuse unknown tensors inside these modules; outside them a folder may keep the heads of other tasks."""
        inside = [n for n in self.unknown if n.partition(".")[0] in modules and not n.endswith(OLD_BUFFERS)]
        if inside:
            raise UserError(
                f"{key} = {self.path}: {self.architecture.__name__} does not have {_listed(inside)}",
                "these weights would be left out, and the model would compute other scores",
                "check config.json against the weights; a model with custom code needs model.trust_remote_code=true",
            )


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:MOST_NAMED])
    return shown + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")


def inspect_classifier(folder: str | Path, config: ModelConfig, own: bool) -> ClassifierFolder:
    """Compare a folder with the classifier that ``load_classifier`` would build, without reading weights.

    Raises:
        UserError: it cannot be loaded, or its architecture has no sequence classifier.
    """
    settings = classifier_settings(folder, config, own)
    options = {"config": settings, "use_safetensors": True, "ignore_mismatched_sizes": True, "device_map": "meta"}
    model, found = from_folder(AutoModelForSequenceClassification, folder, config, output_loading_info=True, **options)
    head = {name: module for name, module in model.named_children() if name in head_names(model)}
    unknown = frozenset(found["unexpected_keys"])
    biases = unknown & _absent_biases(head)
    return ClassifierFolder(
        path=str(folder),
        architecture=type(model),
        is_classifier=any("SequenceClassification" in name for name in settings.architectures or ()),
        labels=dict(settings.id2label),
        modules=frozenset(name for name, _ in model.named_children()),
        head=frozenset(name for name, _ in model.named_parameters() if name.partition(".")[0] in head),
        is_linear=[type(module) for module in head.values()] == [nn.Linear],
        missing=frozenset(found["missing_keys"]) | {name for name, *_ in found["mismatched_keys"]},
        unknown=unknown - biases,
        biases=biases,
    )


def head_names(classifier: PreTrainedModel) -> list[str]:
    """Names of the top-level modules with weights besides the backbone; none if the model declares no backbone."""
    backbone = classifier.base_model
    parts = [] if backbone is classifier else classifier.named_children()
    return [name for name, part in parts if part is not backbone and next(part.parameters(), None) is not None]


def _absent_biases(head: Mapping[str, nn.Module]) -> set[str]:
    """Names of the biases that the head's linear layers could have and lack."""
    layers = ((f"{part}.{name}".rstrip("."), m) for part, root in head.items() for name, m in root.named_modules())
    return {f"{name}.bias" for name, m in layers if isinstance(m, nn.Linear) and m.bias is None}


def load_own(found: ClassifierFolder, config: ModelConfig) -> PreTrainedModel:
    """Load the finished classifier of a folder with all its labels and biases, dropout off."""
    if not found.biases:
        return load_classifier(found.path, config, own=True)
    return load_classifier(found.path, config, _with_biases(found.architecture, found.biases), own=True)


def _with_biases(architecture: type[PreTrainedModel], biases: Collection[str]) -> type[PreTrainedModel]:
    """A subclass whose linear layers have these biases too."""

    def build(self: PreTrainedModel, config: PreTrainedConfig, *arguments: Any, **options: Any) -> None:
        """Initialise the model, and replace the linear layers that lack these biases by layers with a bias."""
        architecture.__init__(self, config, *arguments, **options)
        for bias in biases:
            name = bias.removesuffix(".bias")
            plain = self.get_submodule(name)
            self.set_submodule(name, nn.Linear(plain.in_features, plain.out_features, bias=True))

    # transformers reads the source of __module__ to find whether the class supports other attention functions.
    return type(architecture.__name__, (architecture,), {"__init__": build, "__module__": architecture.__module__})


def start_of_reward(folder: str | Path, config: ModelConfig) -> ClassifierFolder:
    """Inspect the reward stage's initial model: a finished reward model with one label, or a causal language model.

    Raises:
        UserError: the folder holds neither.
    """
    found = inspect_classifier(folder, config, own=True)
    if not found.has_head:
        found.require_backbone("reward.init")
        return found
    found.require_whole("reward.init")
    if len(found.labels) > 1:
        raise UserError(
            f"reward.init = {folder} has {len(found.labels)} labels",
            "a reward model has one score, and the reward stage continues training the head of the folder",
            "start from a reward model with one label, or from a causal language model",
        )
    return found


def label_index(found: ClassifierFolder, label: int | str | None, key: str) -> int:
    """Index of the logit that is the score.

    Args:
        found: the classifier's folder.
        label: index or name of the label, from the recipe; None: the only label.
        key: recipe key of the label, for messages.

    Raises:
        UserError: the classifier has no such label, or it has several and ``label`` is None.
    """
    named = found.labels
    if label is None and len(named) == 1:
        return 0
    index = label if isinstance(label, int) else next((i for i, name in named.items() if name == label), None)
    if index is not None and index in named:
        return index
    shown = ", ".join(f"{i} ({name})" for i, name in list(named.items())[:20])
    what = f"the model in {found.path} has {len(named)} labels" if label is None else f"{key} = {label!r} is no label"
    raise UserError(
        f"{what}{'' if label is None else f' of the model in {found.path}'}",
        f"a score is the logit of one label; the labels are {shown}",
        f"{key}=<index or name>",
    )
