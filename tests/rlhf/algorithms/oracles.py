"""Inputs and expected outputs from other projects' test suites, each with its source and the tolerance it is held to.

"nan" and "-inf" stand for the numbers of these names. ``test_oracles.py`` holds the project's functions to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Oracle:
    """Inputs, expected outputs, tolerance and source."""

    source: str
    inputs: dict[str, Any]
    expected: dict[str, Any]
    tol: float


ORACLES = {
    "gae/rlax/lam=1.0": Oracle(
        "google-deepmind/rlax@4c5d25b rlax/_src/multistep_test.py (TruncatedGeneralizedAdvantageEstimationTest)",
        {
            "rewards": [[0, 0, 1, 0, -0.5], [0, 0, 0, 0, 1]],
            "values_T_plus_1": [[1, 4, -3, -2, -1, -1], [-3, -2, -1, 0, 5, -1]],
            "discounts": [[0.99, 0.99, 0.99, 0.99, 0.99], [0.9, 0.9, 0.9, 0, 0.9]],
            "lam": 1.0,
        },
        {"advantages": [[-1.45118, -4.4557, 2.5396, 0.5249, -0.49], [3, 2, 1, 0, -4.9]]},
        0.001,
    ),
    "gae/rlax/lam=0.4": Oracle(
        "google-deepmind/rlax@4c5d25b rlax/_src/multistep_test.py (TruncatedGeneralizedAdvantageEstimationTest)",
        {
            "rewards": [[0, 0, 1, 0, -0.5], [0, 0, 0, 0, 1]],
            "values_T_plus_1": [[1, 4, -3, -2, -1, -1], [-3, -2, -1, 0, 5, -1]],
            "discounts": [[0.99, 0.99, 0.99, 0.99, 0.99], [0.9, 0.9, 0.9, 0, 0.9]],
            "lam": 0.4,
        },
        {"advantages": [[0.56731, -6.042, 2.3431, 0.815, -0.49], [1.725, 1.46, 1, 0, -4.9]]},
        0.001,
    ),
    "gae/torchtune/returns": Oracle(
        "meta-pytorch/torchtune@bd2a0fc tests/torchtune/rlhf/test_rewards.py",
        {"values": [[0, 0, 0, 1]], "rewards": [[0, 0, 0, 1]], "gamma": 0.9, "lam": 0.95},
        {"returns": [[0.6579225000000001, 0.7695, 0.9, 1.0]]},
        0.0001,
    ),
    "gae/nemo/lam0": Oracle(
        "NVIDIA-NeMo/RL@7ea279a tests/unit/algorithms/test_ppo.py",
        {"values": [[1, 2, 3]], "rewards": [[0, 0, 5]], "gamma": 1, "lam": 0},
        {"advantages": [[1, 1, 2]]},
        0.001,
    ),
    "gae/nemo/mc": Oracle(
        "NVIDIA-NeMo/RL@7ea279a tests/unit/algorithms/test_ppo.py",
        {"values": [[0.5, 0.5, 0.5, 0.5]], "rewards": [[0, 0, 0, 1]], "gamma": 1, "lam": 1},
        {"advantages": [[0.5, 0.5, 0.5, 0.5]], "returns": [[1, 1, 1, 1]]},
        0.001,
    ),
    "gae/miles/gap1": Oracle(
        "radixark/miles@31f1ca9 tests/fast/backends/training_utils/test_ppo_gae_masks.py",
        {"values": [[0, 0, 0]], "rewards": [[0, 0, 2]], "mask": [[1, 0, 1]], "gamma": 0.9, "lam": 0.5},
        {"first": 0.9, "last": 2.0},
        1e-06,
    ),
    "gae/miles/truncation_zero_bootstrap": Oracle(
        "radixark/miles@31f1ca9 tests/fast/backends/training_utils/test_ppo_gae_masks.py",
        {
            "values": [[0.4, -0.1, 0.25, 0.6]],
            "rewards": [[0.1, -0.2, 0.3, 0.05]],
            "terminal": 1.5,
            "mask": [[1, 1, 1, 1]],
            "gamma": 1,
            "lam": 1,
        },
        {"advantages": [[1.35, 1.75, 1.6, 0.95]]},
        1e-06,
    ),
    "gae/miles/fully_masked": Oracle(
        "radixark/miles@31f1ca9 tests/fast/backends/training_utils/test_ppo_gae_masks.py",
        {"values": [[1, 2, 3, 4]], "rewards": [[1, 1, 1, 1]], "mask": [[0, 0, 0, 0]], "gamma": 0.9, "lam": 0.95},
        {"advantages": [[0, 0, 0, 0]], "returns": [[0, 0, 0, 0]]},
        1e-09,
    ),
    "gae/verl/invariance": Oracle(
        "verl-project/verl@1dda039 tests/trainer/ppo/test_core_algos_on_cpu.py "
        "(test_multi_turn_compute_gae_advantage_return)",
        {
            "rewards": [[0, 0, 0.1, 0.1, 0.1, 0, 0, 0.1, 1, 0, 0]],
            "mask": [[0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0]],
            "values_at_valid": [4, 5, 6, 7, 9],
            "masked_values": "any",
        },
        {"invariant": True},
        0,
    ),
    "reward/torchtune/get_rewards_ppo": Oracle(
        "meta-pytorch/torchtune@bd2a0fc tests/torchtune/rlhf/test_rewards.py",
        {
            "scores": [1, 2, 3],
            "logprobs": [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.6, 0.7, 0.8]],
            "ref_logprobs": [[0.2, 0.3, 0.4], [0.6, 0.7, 0.8], [0.9, 1, 1.1]],
            "kl_coef": 0.5,
            "score_index": [2, 2, 2],
        },
        {
            "kl": [[-0.1, -0.1, -0.1], [-0.2, -0.2, -0.2], [-0.3, -0.3, -0.3]],
            "kl_reward": [[0.05, 0.05, 0.05], [0.1, 0.1, 0.1], [0.15, 0.15, 0.15]],
            "rewards": [[0.05, 0.05, 1.05], [0.1, 0.1, 2.1], [0.15, 0.15, 3.15]],
        },
        0.0001,
    ),
    "kl/trl/k1": Oracle(
        "huggingface/trl v0.11.x tests/test_ppo_trainer.py (removed from later versions)",
        {
            "logprobs": [[0.5, 0.2, 0.1], [0.6, 0.2, 0.1]],
            "ref_logprobs": [[0.4, 0.3, 0], [0.7, 0.1, 0.3]],
            "estimator": "k1",
        },
        {"kl": [[0.1, -0.1, 0.1], [-0.1, 0.1, -0.2]]},
        1e-05,
    ),
    "kl/trl/mse_k2": Oracle(
        "huggingface/trl v0.11.x tests/test_ppo_trainer.py (removed from later versions)",
        {
            "logprobs": [[0.5, 0.2, 0.1], [0.6, 0.2, 0.1]],
            "ref_logprobs": [[0.4, 0.3, 0], [0.7, 0.1, 0.3]],
            "estimator": "k2",
        },
        {"kl": [[0.005, 0.005, 0.005], [0.005, 0.005, 0.02]]},
        1e-05,
    ),
    "kl/trl/full1": Oracle(
        "huggingface/trl v0.11.x tests/test_ppo_trainer.py (removed from later versions)",
        {"p": [0.98, 0.01, 0.01], "q": [0.01, 0.01, 0.98]},
        {"kl": 4.4474},
        0.001,
    ),
    "kl/trl/full2": Oracle(
        "huggingface/trl v0.11.x tests/test_ppo_trainer.py (removed from later versions)",
        {"p": [0.49, 0.02, 0.49], "q": [0.01, 0.98, 0.01]},
        {"kl": 3.7361},
        0.001,
    ),
    "kl/nemo/k1": Oracle(
        "NVIDIA-NeMo/RL@7ea279a tests/unit/algorithms/test_loss_functions.py",
        {"logprobs": [[-1, -1, -1]], "ref_logprobs": [[0, -15, -30]], "estimator": "k1"},
        {"kl": [[-1, 14, 29]]},
        0.001,
    ),
    "kl/nemo/k2": Oracle(
        "NVIDIA-NeMo/RL@7ea279a tests/unit/algorithms/test_loss_functions.py",
        {"logprobs": [[-1, -1, -1]], "ref_logprobs": [[0, -15, -30]], "estimator": "k2"},
        {"kl": [[0.5, 98, 420.5]]},
        0.001,
    ),
    "kl/nemo/k3": Oracle(
        "NVIDIA-NeMo/RL@7ea279a tests/unit/algorithms/test_loss_functions.py",
        {"logprobs": [[-1, -1, -1]], "ref_logprobs": [[0, -15, -30]], "estimator": "k3"},
        {"kl": [[0.7183, 13, 28]]},
        0.001,
    ),
    "kl/nemo/k2/clamped": Oracle(
        "NVIDIA-NeMo/RL@7ea279a tests/unit/algorithms/test_loss_functions.py",
        {
            "logprobs": [[-1, -1, -1]],
            "ref_logprobs": [[0, -15, -30]],
            "estimator": "k2",
            "input_clamp": 20,
            "output_clamp": 10,
        },
        {"kl": [[0.5, 10, 10]]},
        0.001,
    ),
    "kl/nemo/k3/clamped": Oracle(
        "NVIDIA-NeMo/RL@7ea279a tests/unit/algorithms/test_loss_functions.py",
        {
            "logprobs": [[-1, -1, -1]],
            "ref_logprobs": [[0, -15, -30]],
            "estimator": "k3",
            "input_clamp": 20,
            "output_clamp": 10,
        },
        {"kl": [[0.7183, 10, 10]]},
        0.001,
    ),
    "ppo/nemo/clip": Oracle(
        "NVIDIA-NeMo/RL@7ea279a tests/unit/algorithms/test_loss_functions.py",
        {"adv": [[1, -1, 2]], "old": [[-1, -1, -1]], "new": [[-1.69315, -1, -0.59453]], "clip": 0.2},
        {"loss": -0.6333, "ratio": [[0.5, 1, 1.5]], "per_token": [[-0.5, 1, -2.4]]},
        0.001,
    ),
    "ppo/nemo/is": Oracle(
        "NVIDIA-NeMo/RL@7ea279a tests/unit/algorithms/test_loss_functions.py",
        {
            "adv": [[1, -1, 2]],
            "old": [[-1, -1, -1]],
            "new": [[-1.69315, -1, -0.59453]],
            "clip": 0.2,
            "rollout": [[-0.5, -1.5, -0.8]],
        },
        {"loss": -0.2065, "is_weights": [[0.6065, 1.6487, 0.8187]]},
        0.001,
    ),
    "ppo/nemo/dual_clip": Oracle(
        "NVIDIA-NeMo/RL@7ea279a tests/unit/algorithms/test_loss_functions.py",
        {"adv": [[1, -1, -4]], "old": [[-1, -1, -3]], "new": [[-1.69315, -1, -0.69741]], "clip": 0.2, "dual_clip": 3},
        {"loss": 4.1667},
        0.001,
    ),
    "ppo/nemo/reinforce": Oracle(
        "NVIDIA-NeMo/RL@7ea279a tests/unit/algorithms/test_loss_functions.py",
        {"adv": [[1, -1, 2]], "new": [[-0.5, -1, -1.5]]},
        {"loss": 0.8333},
        0.001,
    ),
    "agg/openrlhf/token_mean": Oracle(
        "OpenRLHF/OpenRLHF@3c3be62 tests/test_loss_aggregation.py",
        {"loss": [[1, 2, 0], [3, 4, 5], [7, 0, 0]], "mask": [[1, 1, 0], [1, 1, 1], [1, 0, 0]]},
        {"value": 3.6666666666666665},
        1e-06,
    ),
    "agg/openrlhf/seq_mean": Oracle(
        "OpenRLHF/OpenRLHF@3c3be62 tests/test_loss_aggregation.py",
        {"loss": [[1, 3, 9], [2, 4, 0], [8, 0, 0]], "mask": [[1, 1, 0], [1, 1, 0], [1, 0, 0]]},
        {"value": 4.333333333333333},
        1e-06,
    ),
    "agg/openrlhf/grad_accum": Oracle(
        "OpenRLHF/OpenRLHF@3c3be62 tests/test_loss_aggregation.py",
        {"loss": [[[1, 2, 0]], [[3, 4, 5], [6, 7, 0]]], "mask": [[[1, 1, 0]], [[1, 1, 1], [1, 1, 0]]]},
        {"value": 4.0, "per_microbatch_mean_wrong": 3.25},
        1e-06,
    ),
    "metric/openrlhf/kl_names": Oracle(
        "OpenRLHF/OpenRLHF@3c3be62 tests/test_loss_aggregation.py",
        {"new": [[-0.2, -0.4]], "old": [[-0.3, -0.1]], "rollout": [[-1.3, -1.1]]},
        {"ppo_kl": 0.1, "vllm_kl": -1.0},
        1e-06,
    ),
    "stat/torchtune/var": Oracle(
        "meta-pytorch/torchtune@bd2a0fc tests/torchtune/rlhf/test_rewards.py",
        {"x": [1, 2, 3, 4, 5], "mask": [1, 1, 1, 0, 0]},
        {"mean": 2.0, "var": 1.0},
        1e-05,
    ),
    "stat/torchtune/rowmean": Oracle(
        "meta-pytorch/torchtune@bd2a0fc tests/torchtune/rlhf/test_rewards.py",
        {"x": [[1, 2, 3, 4, 5], [2, 3, 4, 5, 6]], "mask": [[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]},
        {"mean": [2.0, 5.0]},
        1e-05,
    ),
    "stat/verl/mean": Oracle(
        "verl-project/verl@1dda039 tests/utils/test_torch_functional.py",
        {"x": [1, 2, 3, 4], "mask": [1, 0, 0, 1]},
        {"mean": 2.5},
        1e-05,
    ),
    "stat/verl/mean_nan_masked": Oracle(
        "verl-project/verl@1dda039 tests/utils/test_torch_functional.py",
        {"x": [1, 2, "nan", 4], "mask": [1, 0, 0, 1]},
        {"mean": 2.5},
        1e-05,
    ),
    "stat/verl/mean_nan_kept": Oracle(
        "verl-project/verl@1dda039 tests/utils/test_torch_functional.py",
        {"x": [1, 2, "nan", 4], "mask": [1, 0, 1, 0]},
        {"mean": "nan"},
        1e-05,
    ),
    "stat/trlx/running_moments": Oracle(
        "CarperAI/trlx@3340c2f tests/test_utils.py (RunningMoments)",
        {"batches": ["arange(100)", "ones(100)", "exp(arange(10))", [-10, -1, 0, 1, 10]]},
        {
            "batch_std": [29.011491975882016, 0.0, 2571.3379665801585, 7.106335201775948],
            "final_mean": 83.10840953732374,
            "final_std": 591.1360751912632,
        },
        1e-06,
    ),
    "util/openai/label_logprobs": Oracle(
        "openai/summarize-from-feedback@7009674 summarize_from_feedback/utils/test_torch_utils.py",
        {
            "cases": [
                {"logits": [0, 0], "labels": 1},
                {"logits": [[2, 2, 2], [1, 0, "-inf"]], "labels": [2, 0]},
                {"logits": [[[2, 2]], [[1, 0]]], "labels": [[0], [1]]},
            ]
        },
        {
            "logprobs": [
                -0.6931471805599453,
                [-1.0986122886681098, -0.3132616875182228],
                [[-0.6931471805599453], [-1.3132616875182228]],
            ]
        },
        1e-06,
    ),
    "kl/adaptive_controller": Oracle(
        "openai/lm-human-preferences@cbfd210 train_policy.py AdaptiveKLController (formula); trace derived",
        {"init": 0.15, "target": 6, "horizon": 10000, "n_steps": 512, "current": [12, 12, 3, 6]},
        {"value": [0.151536, 0.15308773, 0.15152011, 0.15152011]},
        1e-07,
    ),
}
