from __future__ import annotations

from rlhf.config.keys import fields_of, section_of, sections, types_of
from rlhf.config.reference import PAGE, render


def test_the_committed_page_is_the_generated_one():
    assert PAGE.read_text(encoding="utf-8") == render(), "run python -m rlhf.config.reference"


def test_every_field_is_described():
    for _, section in sections():
        leaves = {name for name, kind in types_of(section).items() if section_of(kind) is None}
        assert leaves <= {name for name, field in fields_of(section).items() if field.description}, section


def test_rows_say_type_default_limit_and_meaning():
    rows = render().splitlines()
    assert any(row.startswith("| `name` | text | required |  | ") for row in rows)
    assert any(row.startswith("| `algorithm.gamma` | a number | `1.0` | from 0 to 1 | γ") for row in rows)
    assert any(row.startswith("| `model.scratch.heads` | a whole number | `4` | from 1 to 1048576 | ") for row in rows)
    assert any(row.startswith("| `data.max_rows` | a whole number or null | `null` | at least 1 | ") for row in rows)


def test_a_section_in_several_places_shows_the_defaults_of_each():
    page = render()
    assert "## `sft.optimizer`, `reward.optimizer`, `dpo.optimizer`, `ppo.optimizer`, `ppo.critic_optimizer`" in page
    assert "## `rewards.<name>`, `early_stop.scorer`" in page
    assert "`1e-06` in `ppo.optimizer`, `9e-06` in `ppo.critic_optimizer`" in page
    assert "- `placement.policy`: The policy in PPO, and the trained model in SFT and DPO." in page


def test_the_algorithms_defaults_are_listed():
    rows = render().splitlines()
    header = "| `algorithm.name` | `kl_in` | `clip_range` | `clip_range_high` | `whiten_advantages` | `loss_mean` | "
    assert header + "`drop_uniform_groups` |" in rows
    assert '| `ppo` | `"reward"` | `0.2` | – | `true` | `"token"` | `false` |' in rows
    assert '| `gspo` | `"loss"` | `0.0003` | `0.0004` | `false` | `"sequence"` | `false` |' in rows
    assert '| `cispo` | `"loss"` | – | `4.0` | `false` | `"token"` | `false` |' in rows


def test_every_row_has_as_many_cells_as_its_table():
    for table in render().split("\n\n"):
        rows = [row.replace("\\|", "").count("|") for row in table.splitlines() if row.startswith("|")]
        assert rows in ([], [6] * len(rows), [8] * len(rows)), table
