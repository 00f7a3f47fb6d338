from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rlhf.errors import UserError
from rlhf.evaluation.scorers import Scorer, load_scorer

PROMPTS, RESPONSES = ["p0", "p1", "p2"], ["r0", "", "r2"]


def scorer(tmp_path: Path, body: str, name: str = "score") -> Scorer:
    (tmp_path / "judge.py").write_text(body)
    return load_scorer(f"{tmp_path}/judge.py:{name}")


def failure(tmp_path: Path, body: str) -> UserError:
    """The error of calling a ``score`` with this body."""
    judge = scorer(tmp_path, f"def score(prompts, responses):\n    {body}\n")
    with pytest.raises(UserError) as caught:
        judge(PROMPTS, RESPONSES)
    assert f"{tmp_path}/judge.py:score" in caught.value.what
    return caught.value


@pytest.mark.parametrize(
    "wrap",
    [
        *("list({})", "tuple({})", "numpy.array({})", "torch.tensor({})", "[numpy.float32(x) for x in {}]"),
        *("[torch.tensor(x) for x in {}]", "[torch.tensor(1.0 * x, requires_grad=True) for x in {}]"),
        "[numpy.array(x) for x in {}]",
    ],
)
def test_numbers_in_any_usual_list_are_taken(tmp_path: Path, wrap: str) -> None:
    values = wrap.format("[len(r) for r in responses]")
    scores = scorer(tmp_path, f"import numpy, torch\ndef score(prompts, responses):\n    return {values}\n")(
        PROMPTS, RESPONSES
    )
    assert scores.dtype == np.float64
    assert scores.tolist() == [2.0, 0.0, 2.0]


def test_a_file_may_import_its_neighbours_now_and_later(tmp_path: Path) -> None:
    (tmp_path / "neighbour_now.py").write_text("BASE = 1.0")
    (tmp_path / "neighbour_later.py").write_text("STEP = 0.5")
    body = (
        "import neighbour_now\n"
        "def score(prompts, responses):\n"
        "    import neighbour_later\n"
        "    return [neighbour_now.BASE + neighbour_later.STEP] * len(prompts)\n"
    )
    path = list(sys.path)
    assert scorer(tmp_path, body)(PROMPTS, RESPONSES).tolist() == [1.5] * 3
    assert sys.path == path


HELPED = "import helper\ndef score(prompts, responses):\n    return [helper.VALUE] * len(prompts)\n"
HELPED_LATE = "def score(prompts, responses):\n    import helper\n    return [helper.VALUE] * len(prompts)\n"
HELPED_BY_A_PACKAGE = (
    "from helper.deep import VALUE\ndef score(prompts, responses):\n    return [VALUE] * len(prompts)\n"
)


def helped(folder: Path, body: str, value: float, file: str = "judge.py") -> Scorer:
    """A scorer that returns the value of a helper beside it, which is a module or a package."""
    folder.mkdir()
    package = "helper.deep" in body
    helper = folder / "helper" / "deep.py" if package else folder / "helper.py"
    helper.parent.mkdir(exist_ok=True)
    helper.write_text(f"VALUE = {value}\n")
    if package:
        (folder / "helper" / "__init__.py").touch()
    (folder / file).write_text(body)
    return load_scorer(f"{folder / file}:score")


@pytest.mark.parametrize("first", [HELPED, HELPED_LATE, HELPED_BY_A_PACKAGE])
@pytest.mark.parametrize("second", [HELPED, HELPED_LATE, HELPED_BY_A_PACKAGE])
def test_each_folder_has_its_own_helpers(tmp_path: Path, first: str, second: str) -> None:
    """Python keeps one module per name: the second file would get the first one's helper."""
    one, two = helped(tmp_path / "one", first, 1.0), helped(tmp_path / "two", second, 2.0)
    for _ in range(2):
        assert [scorer(["p"], ["r"]).tolist() for scorer in (one, two)] == [[1.0], [2.0]]
    assert [name for name in sys.modules if name.partition(".")[0] == "helper"] == []


def test_scorers_of_one_folder_share_their_helpers(tmp_path: Path) -> None:
    """A helper that loads a model does so once."""
    body = "import helper\ndef score(prompts, responses):\n    helper.VALUE += 1\n    return [helper.VALUE]\n"
    one = helped(tmp_path / "one", body, 0.0)
    (tmp_path / "one" / "other.py").write_text(body)
    two = load_scorer(f"{tmp_path}/one/other.py:score")
    assert [scorer(["p"], ["r"]).tolist() for scorer in (one, two)] == [[1.0], [2.0]]


def test_a_module_and_a_file_have_their_own_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helped(tmp_path / "one", HELPED_LATE, 1.0, "judge_by_name.py")
    monkeypatch.chdir(tmp_path / "one")
    one, two = load_scorer("judge_by_name:score"), helped(tmp_path / "two", HELPED, 2.0)
    monkeypatch.chdir(tmp_path)
    assert [scorer(["p"], ["r"]).tolist() for scorer in (one, two)] == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("helper", "line", "is_refused"),
    [
        ("numpy.py", "import numpy", True),
        ("numpy.py", "from numpy.linalg import norm", True),
        ("rlhf/__init__.py", "import rlhf.errors", True),
        ("numpy/data.txt", "import numpy", False),  # a folder of data
        ("numpy.py", "import json", False),
        ("json.py", "import json", False),  # the standard library's is meant
        ("judge.py", "import numpy", False),
    ],
)
def test_a_helper_that_would_not_be_found_is_refused(tmp_path: Path, helper: str, line: str, is_refused: bool) -> None:
    (tmp_path / helper).parent.mkdir(exist_ok=True)
    (tmp_path / helper).touch()
    body = f"{line}\ndef score(prompts, responses):\n    return [0.0] * len(prompts)\n"
    if not is_refused:
        assert scorer(tmp_path, body)(["p"], ["r"]).tolist() == [0.0]
        return
    with pytest.raises(UserError, match="lies beside it") as caught:
        scorer(tmp_path, body)
    assert "rename" in caught.value.fix


def test_files_of_one_name_do_not_replace_each_other(tmp_path: Path) -> None:
    """A dataclass or a pickle finds its module by name."""
    body = (
        "import pickle\nclass Answer:\n    value = {}\n"
        "def score(prompts, responses):\n    return [pickle.loads(pickle.dumps(Answer())).value] * len(prompts)\n"
    )
    scorers = []
    for name, value in (("one", 1.0), ("two", 2.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "judge.py").write_text(body.format(value))
        scorers.append(load_scorer(f"{tmp_path}/{name}/judge.py:score"))
    assert [scorer(["p"], ["r"]).tolist() for scorer in scorers] == [[1.0], [2.0]]


def test_a_file_does_not_hide_a_module_of_its_name(tmp_path: Path) -> None:
    import random

    (tmp_path / "random.py").write_text("def score(prompts, responses):\n    return [0.0] * len(prompts)\n")
    load_scorer(f"{tmp_path}/random.py:score")
    assert sys.modules["random"] is random


def test_a_module_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "judges_of_mine").mkdir()
    (tmp_path / "judges_of_mine" / "short.py").write_text(
        "def score(prompts, responses):\n    return [-float(len(r)) for r in responses]\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_scorer("judges_of_mine.short:score")(PROMPTS, RESPONSES).tolist() == [-2.0, 0.0, -2.0]


def test_a_function_that_raises_is_named_with_sample_error_and_line(tmp_path: Path) -> None:
    error = failure(tmp_path, "return [1 / len(r) for r in responses]")
    assert "sample 1, prompt 'p1'" in error.what
    assert error.why == f"ZeroDivisionError: division by zero, at {tmp_path}/judge.py:2"


def test_the_line_is_the_users_not_a_librarys(tmp_path: Path) -> None:
    error = failure(tmp_path, "import json; return [json.loads('{') for r in responses]")
    assert "sample 0" in error.what
    assert error.why.startswith("JSONDecodeError: ")
    assert error.why.endswith(f", at {tmp_path}/judge.py:2")


def test_a_fault_of_the_whole_batch_is_distinguished(tmp_path: Path) -> None:
    error = failure(tmp_path, "return [0.0] if len(responses) == 1 else {}['batch']")
    assert "batch of 3" in error.what
    assert "KeyError: 'batch'" in error.why


def test_a_long_prompt_is_shortened(tmp_path: Path) -> None:
    judge = scorer(tmp_path, "def score(prompts, responses):\n    raise RuntimeError\n")
    with pytest.raises(UserError) as caught:
        judge(["line\n" + "x" * 5000], ["r"])
    assert len(caught.value.what) < 300
    assert "\\nxxx" in caught.value.what


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("return None", "returned NoneType, not a list"),
        ("return 0.5", "returned float, not a list"),
        ("return [0.5]", "returned 1 scores for 3 responses"),
        ("return [0.5, None, 0.5]", "returned None (NoneType) for sample 1, prompt 'p1'"),
        ("return ['0.5'] * 3", "returned '0.5' (str) for sample 0, prompt 'p0'"),
        ("return [[0.5]] * 3", "returned [0.5] (list) for sample 0"),
        ("return [0.5, 0.5, float('nan')]", "returned nan for sample 2, prompt 'p2'"),
        ("return [0.5, float('-inf'), 0.5]", "returned -inf for sample 1, prompt 'p1'"),
    ],
)
def test_a_wrong_answer_is_refused(tmp_path: Path, body: str, what: str) -> None:
    assert what in failure(tmp_path, body).what


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ("no_colon", "names no function"),
        (":score", "names no function"),
        ("missing.py:score", "there is no file"),
        ("no_such_package.module:score", "cannot be imported"),
        ("math:no_such_name", "has no function 'no_such_name'"),
        ("math:pi", "has no function 'pi'"),
    ],
)
def test_a_spec_that_leads_nowhere_is_refused(spec: str, what: str) -> None:
    with pytest.raises(UserError) as caught:
        load_scorer(spec)
    assert what in caught.value.what
    assert caught.value.fix


def test_a_misspelt_function_is_guessed(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        scorer(tmp_path, "def score(p, r): ...\ndef other(p, r): ...\n", name="scroe")
    assert caught.value.fix == "did you mean score? its functions are other, score"


def test_an_import_failure_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        scorer(tmp_path, "import math\nimport no_such_package\n")
    assert "cannot be imported" in caught.value.what
    assert caught.value.why == f"ModuleNotFoundError: No module named 'no_such_package', at {tmp_path}/judge.py:2"


ROWS = [{"answer": 1}, {"answer": 2}, {"answer": 3}]


def test_a_parameter_named_rows_is_given_the_data_rows(tmp_path: Path) -> None:
    judge = scorer(
        tmp_path, "def score(prompts, responses, rows):\n    return [float(row['answer']) for row in rows]\n"
    )
    assert judge.needs_rows
    assert judge(PROMPTS, RESPONSES, ROWS).tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("parameters", ["prompts, responses, *, rows", "p, r, rows", "*texts, rows"])
def test_rows_may_be_asked_for_by_any_signature(tmp_path: Path, parameters: str) -> None:
    judge = scorer(tmp_path, f"def score({parameters}):\n    return [float(len(rows))] * len(rows)\n")
    assert judge(PROMPTS, RESPONSES, ROWS).tolist() == [3.0] * 3


def test_a_third_parameter_of_another_name_is_not_filled(tmp_path: Path) -> None:
    judge = scorer(tmp_path, "def score(prompts, responses, factor=2.0):\n    return [factor] * len(prompts)\n")
    assert not judge.needs_rows
    assert judge(PROMPTS, RESPONSES, ROWS).tolist() == [2.0] * 3


def test_rows_with_a_default_may_be_missing(tmp_path: Path) -> None:
    body = "def score(prompts, responses, rows=None):\n    return [0.0 if rows is None else 1.0] * len(prompts)\n"
    judge = scorer(tmp_path, body)
    assert not judge.needs_rows
    assert judge(PROMPTS, RESPONSES).tolist() == [0.0] * 3
    assert judge(PROMPTS, RESPONSES, ROWS).tolist() == [1.0] * 3


def test_rows_that_are_needed_and_missing_are_asked_for(tmp_path: Path) -> None:
    judge = scorer(tmp_path, "def score(prompts, responses, rows):\n    return [0.0] * len(rows)\n")
    with pytest.raises(UserError, match="needs data rows") as caught:
        judge(PROMPTS, RESPONSES)
    assert "rows=None" in caught.value.fix


def test_a_row_at_fault_is_shown(tmp_path: Path) -> None:
    judge = scorer(
        tmp_path, "def score(prompts, responses, rows):\n    return [1 / (row['answer'] - 2) for row in rows]\n"
    )
    with pytest.raises(UserError, match=r"failed on sample 1, prompt 'p1', row \{'answer': 2\}") as caught:
        judge(PROMPTS, RESPONSES, ROWS)
    assert "ZeroDivisionError" in caught.value.why


def test_a_score_that_is_wrong_is_shown_with_its_row(tmp_path: Path) -> None:
    judge = scorer(tmp_path, "def score(prompts, responses, rows):\n    return [0.0, float('nan'), 0.0]\n")
    with pytest.raises(UserError, match=r"returned nan for sample 1, prompt 'p1', row \{'answer': 2\}"):
        judge(PROMPTS, RESPONSES, ROWS)


@pytest.mark.parametrize("huge", ["1e39", "10**400", "-1e39"])
def test_a_score_beyond_single_precision_is_not_finite(tmp_path: Path, huge: str) -> None:
    assert "for sample 1, prompt 'p1'" in failure(tmp_path, f"return [0.0, {huge}, 0.0]").what


def test_an_async_function_is_awaited_in_one_loop(tmp_path: Path) -> None:
    body = (
        "import asyncio\n"
        "loops = set()\n"
        "async def one(response):\n"
        "    await asyncio.sleep(0)\n"
        "    return float(len(response))\n"
        "async def score(prompts, responses):\n"
        "    loops.add(asyncio.get_running_loop())\n"
        "    assert len(loops) == 1\n"
        "    return await asyncio.gather(*map(one, responses))\n"
    )
    judge = scorer(tmp_path, body)
    assert judge(PROMPTS, RESPONSES).tolist() == [2.0, 0.0, 2.0]
    assert judge(PROMPTS, RESPONSES).tolist() == [2.0, 0.0, 2.0]


def test_an_async_function_that_raises_is_named_with_its_sample(tmp_path: Path) -> None:
    judge = scorer(tmp_path, "async def score(prompts, responses):\n    return [1 / len(r) for r in responses]\n")
    with pytest.raises(UserError, match="failed on sample 1, prompt 'p1'"):
        judge(PROMPTS, RESPONSES)


@pytest.mark.parametrize(
    ("parameters", "fits"),
    [
        ("prompts, responses", True),
        ("prompts, responses, rows", True),
        ("prompts, responses, *, rows=None", True),
        ("*lists", True),
        ("prompts, responses, strict=True", True),
        ("responses", False),
        ("prompts, responses, references", False),
        ("prompts, *, responses", False),
        ("rows, prompts", False),
    ],
)
def test_parameters_are_checked_when_the_function_is_loaded(tmp_path: Path, parameters: str, fits: bool) -> None:
    body = f"def score({parameters}):\n    return []\n"
    if fits:
        scorer(tmp_path, body)
        return
    with pytest.raises(UserError, match="has the parameters") as caught:
        scorer(tmp_path, body)
    assert "(prompts, responses)" in caught.value.fix


@pytest.mark.parametrize(
    "parameters", ["responses, prompts", "completions, prompts", "answers, *, rows", "texts, prompts"]
)
def test_prompts_and_responses_in_the_other_order_are_refused(tmp_path: Path, parameters: str) -> None:
    """They would be scored one for the other."""
    with pytest.raises(UserError, match="prompts are passed first|has the parameters") as caught:
        scorer(tmp_path, f"def score({parameters}):\n    return []\n")
    assert "(prompts, responses" in caught.value.fix


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("class score:\n    def __init__(self, prompts, responses): ...\n", "is a class"),
        ("def score(prompts, responses):\n    yield 0.0\n", "is a generator"),
        ("async def score(prompts, responses):\n    yield 0.0\n", "is a generator"),
        ("def score(prompt: str, response: str):\n    return 0.0\n", "prompt is one text"),
        ("def score(prompts: list[str], response: 'str'):\n    return []\n", "response is one text"),
        ("def score(prompts, responses) -> float:\n    return 0.0\n", "returns float by its annotation"),
        ("from __future__ import annotations\ndef score(p, r) -> dict:\n    return {}\n", "returns dict by its"),
        ("class Score:\n    def __call__(self, prompts, responses): return []\nscore = Score()\n", ""),
        ("def score(prompts: list[str], responses: list[str]) -> list[float]:\n    return []\n", ""),
        ("def score(prompts, responses, model: str = 'a'):\n    return []\n", ""),
        ("async def score(prompts, responses):\n    return []\n", ""),
        ("score = lambda prompts, responses: []\n", ""),
        ("import functools\nscore = functools.partial(lambda a, p, r: [], 1)\n", ""),
    ],
)
def test_what_cannot_return_a_list_of_scores_is_refused_when_it_is_loaded(tmp_path: Path, body: str, what: str) -> None:
    """Its first call is after the actors have started."""
    if not what:
        scorer(tmp_path, body)
        return
    with pytest.raises(UserError, match=what) as caught:
        scorer(tmp_path, body)
    assert caught.value.fix


def test_only_the_functions_of_the_file_itself_are_listed(tmp_path: Path) -> None:
    body = "from pathlib import Path\nfrom os.path import join\ndef score(prompts, responses):\n    return []\n"
    with pytest.raises(UserError) as caught:
        scorer(tmp_path, body, "quality")
    assert caught.value.fix == "its functions are score"


@pytest.mark.parametrize("library", ["signal.signal(signal.SIGUSR2, signal.SIG_DFL)", "raise ValueError(MATH_VERIFY)"])
def test_what_an_alarm_cannot_do_in_a_thread_is_said_with_a_way_out(library: str, tmp_path: Path) -> None:
    head = (
        "import signal\nMATH_VERIFY = \"Math-Verify doesn't support threaded environment due to usage of "
        'signal.alarm() in timeout mechanism"\n'
    )
    body = f"{head}def score(prompts, responses):\n    {library}\n"
    with ThreadPoolExecutor() as thread, pytest.raises(UserError) as caught:
        thread.submit(scorer(tmp_path, body), PROMPTS, RESPONSES).result()
    assert "does not run in the main thread" in caught.value.why and "parsing_timeout=None" in caught.value.why
    assert "main thread" not in failure(tmp_path, "raise ValueError('signal')").why
