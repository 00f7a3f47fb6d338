"""A gate's tables in W&B, online or offline as W&B is configured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.config.schema import TrackingConfig
from rlhf.errors import MachineryError
from rlhf.tracking.quiet import quiet_framework_logs
from rlhf.tracking.wandb_run import (
    FINISH_TIMEOUT_SECONDS,
    INIT_TIMEOUT_SECONDS,
    arguments_without_secrets,
    resolve_mode,
)

if TYPE_CHECKING:
    from rlhf.serving.gate_decision import GateDecision


def log_gate(folder: Path, decision: GateDecision, history: Sequence[dict[str, Any]]) -> None:
    """Log the KPIs and the rounds as one W&B run in the gate's folder.

    Raises:
        UserError: W&B is to be online without a key.
        MachineryError: W&B failed; the decision is written.
    """
    import wandb

    from rlhf.serving.gate_report import kpi_table, trend_table

    tables = {"gate/kpis": kpi_table(decision.kpis), "gate/rounds": trend_table(history)}
    content, config = decision.content, TrackingConfig()
    name = f"gate/{content['version'] or content['artefact'][:12] or 'candidate'}/{content['for']}"
    try:
        with quiet_framework_logs(folder / "wandb.log"), arguments_without_secrets():
            run = wandb.init(
                mode=resolve_mode(config),
                dir=folder,
                project=config.project,
                name=name,
                job_type="gate",
                config={"gate": content["gate"], "artefact": content["artefact"], "digest": content["digest"]},
                settings=wandb.Settings(
                    console="off",
                    disable_code=True,
                    init_timeout=INIT_TIMEOUT_SECONDS,
                    finish_timeout=FINISH_TIMEOUT_SECONDS,
                ),
            )
            for key, table in tables.items():
                rows = [list(row) for row in table.rows]
                run.log({key: wandb.Table(columns=list(table.columns), data=rows, allow_mixed_types=True)})
            run.summary["gate/outcome"] = content["outcome"]
            run.finish()
    except wandb.errors.Error as error:
        raise MachineryError(f"W&B failed: {error}; the decision is in {folder / 'gate.json'}") from error
