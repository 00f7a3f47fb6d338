"""The client of a scoring service, over real sockets, while the service fails, stalls and answers invalidly."""

from __future__ import annotations

import socket
import threading
import time
from datetime import date

import numpy as np
import pytest

from rlhf import http_retries
from rlhf.config.schema import EndpointConfig
from rlhf.errors import MachineryError, UserError
from rlhf.roles import endpoint as module
from rlhf.roles.endpoint import Endpoint
from tests.rlhf.service import Service, serve

PROMPTS, RESPONSES, ROWS = ["p0", "p1", "p2"], ["r", "", "rrr"], [{"answer": "18"}, {}, {"n": 1}]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_retries, "FIRST_WAIT", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", module.TOKEN):
        monkeypatch.delenv(name, raising=False)


def asking(service: Service, deadline: float = 30.0, **options: object) -> Endpoint:
    return Endpoint(EndpointConfig(url=service.url, **{"retries": 2, "timeout_seconds": 10.0, **options}), deadline)


def scores(endpoint: Endpoint, count: int = 3) -> list[float]:
    return endpoint(PROMPTS[:count], RESPONSES[:count], ROWS[:count]).tolist()


def test_samples_are_scored_in_their_order_with_their_rows():
    with serve() as service:
        assert scores(asking(service)) == [1.0, 0.0, 3.0]
        assert service.asked == [{"prompts": PROMPTS, "responses": RESPONSES, "rows": ROWS}]


def test_no_samples_are_no_request():
    with serve() as service:
        assert scores(asking(service), 0) == []
        assert service.asked == []


def test_requests_are_cut_and_their_scores_put_together():
    responses = ["x" * (i % 7) for i in range(50)]
    with serve() as service:
        found = asking(service, batch_size=8)(responses, responses, [{}] * 50)
        assert found.tolist() == [i % 7 for i in range(50)]
        assert sorted(len(asked["prompts"]) for asked in service.asked) == [2, 8, 8, 8, 8, 8, 8]


def test_requests_run_side_by_side_over_connections_that_are_kept():
    three = threading.Barrier(3)  # no request is answered before three are open

    def together(number, asked):
        three.wait(timeout=30)
        return None

    with serve(together) as service:
        endpoint = asking(service, batch_size=1, connections=3, timeout_seconds=60.0, deadline=200.0)
        for _ in range(3):
            assert endpoint(["p"] * 12, ["rr"] * 12, [{}] * 12).tolist() == [2.0] * 12
        assert len(service.asked) == 36
        assert service.busiest == 3
        assert service.sockets == 3


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 599])
def test_what_may_pass_is_asked_again(status):
    with serve(lambda number, asked: status if number < 2 else None) as service:
        assert scores(asking(service)) == [1.0, 0.0, 3.0]
        assert len(service.asked) == 3
        assert service.asked[0] == service.asked[2]


def test_only_the_request_that_failed_is_asked_again():
    failed = []

    def once(number, asked):
        if asked["prompts"] == ["p1"] and not failed:
            failed.append(number)
            return 503
        return None

    with serve(once) as service:
        assert scores(asking(service, batch_size=1)) == [1.0, 0.0, 3.0]
        assert sorted(asked["prompts"] for asked in service.asked) == [["p0"], ["p1"], ["p1"], ["p2"]]


def test_the_service_may_say_how_long_to_wait():
    with serve(lambda number, asked: (429, {"Retry-After": "1"}) if number == 0 else None) as service:
        began = time.monotonic()
        assert scores(asking(service)) == [1.0, 0.0, 3.0]
        assert time.monotonic() - began >= 1.0


def test_fail_names_address_samples_attempts_and_the_last_error():
    with serve(lambda number, asked: 503) as service, pytest.raises(MachineryError) as caught:
        scores(asking(service))
    assert len(service.asked) == 3
    assert f"reward endpoint {service.url} gave no scores for samples 0 to 2" in str(caught.value)
    assert "after 3 attempts; last error: HTTP 503" in str(caught.value)


def test_nobody_listens():
    with socket.socket() as closed:  # bound and not listening, so that no other process takes the port
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/score"
        endpoint = Endpoint(EndpointConfig(url=url, retries=1), 30.0)
        with pytest.raises(MachineryError, match="after 2 attempts; last error: ConnectError"):
            scores(endpoint)


def test_a_connection_that_is_cut_is_made_again():
    with serve(
        lambda number, asked: (200, {"Content-Length": "99", "Connection": "close"}) if number == 0 else None
    ) as service:
        assert scores(asking(service)) == [1.0, 0.0, 3.0]
        assert service.sockets == 2


def test_a_late_answer_is_a_failure_that_may_pass():
    with serve(lambda number, asked: 1.0 if number == 0 else None) as service:
        assert scores(asking(service, timeout_seconds=0.2)) == [1.0, 0.0, 3.0]
        assert len(service.asked) == 2


def test_an_answer_that_trickles_is_late_too():
    """Each byte arrives in time for a socket's own timeout; the request as a whole does not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/score"

        def trickle() -> None:
            connection, _ = listener.accept()
            with connection:
                for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n" + b" " * 900:
                    try:
                        connection.sendall(bytes([byte]))
                    except OSError:
                        return
                    time.sleep(0.02)

        threading.Thread(target=trickle, daemon=True).start()
        endpoint = Endpoint(EndpointConfig(url=url, retries=0, timeout_seconds=0.3), 30.0)
        with pytest.raises(MachineryError, match=r"after 1 attempts; last error: no answer within 0\.3 s"):
            scores(endpoint)


def test_dropped_samples_are_those_of_the_failed_request(capsys):
    with serve(lambda number, asked: 503 if "p1" in asked["prompts"] else None) as service:
        found = scores(asking(service, batch_size=1, on_failure="drop"))
        assert (found[0], found[2]) == (1.0, 3.0)
        assert np.isnan(found[1])
        assert len(service.asked) == 2 + 3
    assert (
        "samples 1 to 1 of a block after 3 attempts; last error: HTTP 503. These samples are dropped."
        in capsys.readouterr().out
    )


def test_retry_goes_on_after_the_attempts_are_used_up():
    with serve(lambda number, asked: 500 if number < 6 else None) as service:
        assert scores(asking(service, retries=0, on_failure="retry")) == [1.0, 0.0, 3.0]
        assert len(service.asked) == 7


@pytest.mark.parametrize("policy", ["fail", "retry", "drop"])
def test_the_deadline_ends_all_attempts(policy):
    with serve(lambda number, asked: 5.0) as service:
        endpoint = asking(service, deadline=0.5, retries=50, timeout_seconds=0.2, on_failure=policy)
        if policy == "drop":
            assert np.isnan(scores(endpoint)).all()
        else:
            with pytest.raises(MachineryError, match="gave no scores"):
                scores(endpoint)
        assert len(service.asked) <= 3, "of 51 attempts"


@pytest.mark.parametrize("policy", ["fail", "retry", "drop"])
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (400, "answered samples 2 to 2 of a block with HTTP 400; sample 2, prompt 'p2'"),
        (404, "HTTP 404"),
        (401, "HTTP 401"),
        ((302, {"Location": "/elsewhere"}), "redirects are not followed"),
        (b"<html>oops", "a body that is not JSON: '<html>oops'"),
        (b"", "a body that is not JSON: ''"),
        (b"[" * 5000, "a body that is not JSON"),
        (b"\xff\xfe", "a body that is not JSON"),
        (b"[1.0]", "a body without scores: '[1.0]'"),
        ({"score": [1.0]}, "a body without scores"),
        ({"scores": 1.0}, "returned float, not a list"),
        ({"scores": None}, "returned NoneType, not a list"),
        ({"scores": []}, "returned 0 scores for 1 responses"),
        ({"scores": [1.0, 2.0]}, "returned 2 scores for 1 responses"),
        ({"scores": ["1.0"]}, "returned '1.0' (str) for sample 2, prompt 'p2'"),
        ({"scores": [None]}, "returned None (NoneType) for sample 2, prompt 'p2'"),
        (b'{"scores": [NaN]}', "returned nan for sample 2, prompt 'p2'"),
        (b'{"scores": [-Infinity]}', "returned -inf for sample 2"),
        (b'{"scores": [1e39]}', "returned 1e+39 for sample 2"),
        (b'{"scores": [' + b"9" * 400 + b"]}", "for sample 2"),
        (b" " * 2**17 + b'{"scores": [1.0]}', "more than 66,560 bytes"),
    ],
)
def test_nonsense_stops_the_run_and_names_the_sample_whatever_the_policy(policy, answer, said):
    with serve(lambda number, asked: answer if "p2" in asked["prompts"] else None) as service:
        with pytest.raises(UserError) as caught:
            scores(asking(service, batch_size=1, on_failure=policy))
        assert said in str(caught.value)
        assert f"reward endpoint {service.url}" in caught.value.what and caught.value.fix
        assert len(service.asked) <= 3, "asking again would not help"


def test_after_an_error_the_endpoint_can_be_asked_again():
    with serve(lambda number, asked: 400 if number == 0 else None) as service:
        endpoint = asking(service)
        with pytest.raises(UserError):
            scores(endpoint)
        assert scores(endpoint) == [1.0, 0.0, 3.0]


def test_the_token_is_sent_and_shown_nowhere(monkeypatch, capsys):
    monkeypatch.setenv("RLHF_REWARD_TOKEN", " hunter22-and-more\n")
    with serve(lambda number, asked: 400) as service:
        with pytest.raises(UserError) as caught:
            scores(asking(service))
        assert service.headers[0]["Authorization"] == "Bearer hunter22-and-more"
    assert "hunter22" not in str(caught.value) + "".join(capsys.readouterr())


def test_a_token_at_the_cut_of_a_message_is_hidden_too(monkeypatch):
    monkeypatch.setenv("RLHF_REWARD_TOKEN", "hunter22-and-more")
    body = b"x" * 190 + b"hunter22-and-more is refused"
    with serve(lambda number, asked: (400, {}, body)) as service, pytest.raises(UserError) as caught:
        scores(asking(service))
    assert "hunter22" not in str(caught.value) and "***" in str(caught.value)


def test_without_a_token_nothing_is_sent():
    with serve() as service:
        scores(asking(service))
        assert "Authorization" not in service.headers[0]


def test_a_token_that_no_header_can_hold_is_refused_without_being_shown(monkeypatch):
    monkeypatch.setenv("RLHF_REWARD_TOKEN", "hunter22\r\nX-More: 1")
    with serve() as service, pytest.raises(UserError, match="RLHF_REWARD_TOKEN is not a valid token") as caught:
        asking(service)
    assert "hunter22" not in str(caught.value)


def test_any_text_and_any_row_become_json():
    text = 'naïve ☃ \n "quoted" \U0001f600'
    row = {
        "day": date(2024, 2, 29),
        "nan": float("nan"),
        "deep": [{"x": (1, 2.5, True, None)}],
        "bytes": b"ab",
        "half": "\ud800",
    }
    with serve() as service:
        asking(service)([text], [text], [row])
        [asked] = service.asked
    assert asked["prompts"] == asked["responses"] == [text]
    assert asked["rows"] == [
        {"day": "2024-02-29", "nan": None, "deep": [{"x": [1, 2.5, True, None]}], "bytes": "b'ab'", "half": "\ud800"}
    ]
