"""Asking a server: what is paid for is kept, what is partial is not taken, what is broken is asked again."""

import asyncio
import email.utils
import json
import os
import time

import pytest

from distillctl.errors import UnavailableError
from distillctl.recipe import OpenAITeacher
from distillctl.run_dir import checksums
from distillctl.teachers.openai import client, protocol, server_capabilities
from distillctl.teachers.openai import response_cache as journal_module
from distillctl.teachers.openai.client import Client, RequestFailed
from distillctl.teachers.openai.limits import Budget, BudgetExceeded, RateLimiter
from distillctl.teachers.openai.protocol import Answer, Choice, Malformed, Position, Request
from distillctl.teachers.openai.request_scheduler import RequestScheduler, Stopped, estimate
from distillctl.teachers.openai.response_cache import ResponseCache
from tests.fixtures import stub_server
from tests.fixtures.stub_server import MODEL


def _spec(url="http://127.0.0.1:9/v1", **changes):
    fast = {"concurrency": 8, "timeout_seconds": 60, "backoff_seconds": 0.001, "max_retries": 3}
    return OpenAITeacher(kind="openai", model=MODEL, base_url=url, **{"api": "completions", **fast, **changes})


def _request(text="the king", **changes):
    return Request(
        **{"api": "completions", "model": MODEL, "prompt": text, "max_tokens": 3, "top_logprobs": 5, **changes}
    )


def _ask(folder, spec, work):
    """What ``await work(scheduler)`` gives, with a client and cache that are closed in any case."""

    async def run():
        scheduler = RequestScheduler(
            spec, Client(spec), ResponseCache(folder / "answers.jsonl"), "distillctl collect RECIPE"
        )
        try:
            return await work(scheduler)
        finally:
            await scheduler.client.close()
            scheduler.cache.close()

    return asyncio.run(run())


# ── what is a whole answer ───────────────────────────────────────────────────────────────────────


def _chat(**changes):
    content = [{"token": "a", "logprob": -0.1, "top_logprobs": [{"token": "a", "logprob": -0.1}]}]
    choice = {"index": 0, "message": {"content": "a"}, "finish_reason": "stop", "logprobs": {"content": content}}
    return {"model": "m", "choices": [choice | changes], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}


def test_both_apis_are_read_alike():
    chat = protocol.parse(json.dumps(_chat()).encode(), _request(api="chat"))
    logprobs = {"tokens": ["a"], "token_logprobs": [-0.1], "top_logprobs": [{"a": -0.1}]}
    plain = {**_chat(), "choices": [{"index": 0, "text": "a", "finish_reason": "stop", "logprobs": logprobs}]}
    assert chat == protocol.parse(json.dumps(plain).encode(), _request())
    assert chat.choices == (Choice("a", False, (Position(b"a", ((b"a", -0.1),)),)),)
    assert chat.usage == (3, 1)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"<html>", b'{"choices": 3}', json.dumps({"choices": []}).encode(), b"\xff\xfe", b"null",
        *(json.dumps(_chat(**changes)).encode() for changes in (
            {"finish_reason": None}, {"finish_reason": "content_filter"}, {"logprobs": None},
            {"logprobs": {"content": []}},
            {"message": {"content": "b"}}, {"message": {"content": "", "refusal": "no"}}, {"message": None},
        )),
    ],
)  # fmt: skip
def test_anything_less_than_a_whole_answer_is_none(body):
    with pytest.raises(Malformed):
        protocol.parse(body, _request(api="chat"))


def test_a_space_that_the_server_took_off_is_put_back():
    content = [{"token": " a", "logprob": -0.1, "top_logprobs": [{"token": " a", "logprob": -0.1}]}]
    found = protocol.parse(json.dumps(_chat(logprobs={"content": content})).encode(), _request(api="chat"))
    assert found.choices[0].text == " a"


def test_parts_of_characters_are_read_as_openai_writes_them():
    logprobs = {"tokens": ["bytes:\\xe2\\x82", "bytes:\\xac"], "top_logprobs": [{"bytes:\\xe2\\x82": -0.1}, {"a": -1}]}
    body = {"choices": [{"index": 0, "text": "€", "finish_reason": "stop", "logprobs": logprobs}]}
    found = protocol.parse(json.dumps(body).encode(), _request()).choices[0]
    assert [position.token for position in found.positions] == [b"\xe2\x82", b"\xac"]


def test_marks_that_stand_for_never_are_no_probabilities():
    top = [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -9999.0}]
    content = [{"token": "a", "logprob": -0.1, "top_logprobs": top}]
    found = protocol.parse(json.dumps(_chat(logprobs={"content": content})).encode(), _request(api="chat"))
    assert [token for token, _ in found.choices[0].positions[0].top] == [b"a"]


# ── the cache ──────────────────────────────────────────────────────────────────────────────────


def _answer(text="x", count=2):
    positions = tuple(Position(bytes([200 + i]), ((bytes([200 + i]), -0.5), (b"\n", -1.25))) for i in range(count))
    return Answer((Choice(text, False, positions),), "m", "fp", (5, count))


def test_the_journal_gives_back_what_it_was_given(tmp_path):
    cache = ResponseCache(tmp_path / "a.jsonl")
    cache.keep("one", _answer("é\u2028"), (5, 2), 12.0)
    cache.lose("two", (7, 1))
    cache.close()
    again = ResponseCache(tmp_path / "a.jsonl")
    assert again.get("one") == _answer("é\u2028")
    assert again.get("two") is None
    assert again.used == (12, 3)
    assert again.milliseconds == [12.0]


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_last_line_is_dropped_and_the_next_one_stands_alone(tmp_path, cut):
    path = tmp_path / "a.jsonl"
    cache = ResponseCache(path)
    cache.keep("one", _answer(), (1, 1), 1.0)
    cache.keep("two", _answer(), (1, 1), 1.0)
    cache.close()
    os.truncate(path, path.stat().st_size - cut)
    cache = ResponseCache(path)
    assert (cache.get("one"), cache.get("two")) == (_answer(), None)
    cache.keep("three", _answer("3"), (1, 1), 1.0)
    cache.close()
    assert ResponseCache(path).get("three") == _answer("3")
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_lines_that_are_damaged_are_asked_for_again(tmp_path):
    path = tmp_path / "a.jsonl"
    cache = ResponseCache(path)
    for key in ("one", "two"):
        cache.keep(key, _answer(), (1, 1), 1.0)
    cache.close()
    first, second = path.read_bytes().splitlines(keepends=True)
    for broken in (b"\0" * 40 + b"\n", b"[1]\n", b'{"key": "one"}\n', first.replace(b'"tokens"', b'"tokenz"')):
        path.write_bytes(broken + second)
        found = ResponseCache(path)
        assert (found.get("one"), found.get("two")) == (None, _answer())


def test_half_a_line_of_a_full_disk_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    cache = ResponseCache(path)
    cache.keep("one", _answer(), (1, 1), 1.0)
    whole, calls = os.write, []

    def short(file, data):
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return whole(file, data[:10])

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(UnavailableError, match="No space left"):
        cache.keep("two", _answer(), (1, 1), 1.0)
    monkeypatch.setattr(os, "write", whole)
    cache.keep("three", _answer(), (1, 1), 1.0)
    cache.close()
    assert len(ResponseCache(path)) == 2


# ── limits ───────────────────────────────────────────────────────────────────────────────────────


def test_requests_are_spread_evenly_over_the_minute():
    rate_limiter = RateLimiter(requests_per_minute=60, tokens_per_minute=600)
    assert [rate_limiter.reserve(5, now=100.0) for _ in range(3)] == [0.0, 1.0, 2.0]  # 60 requests a minute
    assert rate_limiter.reserve(100, now=103.0) == 0.0
    assert rate_limiter.reserve(5, now=103.0) == pytest.approx(10.0)  # 600 tokens a minute
    rate_limiter.correct(estimated=5, used=105)
    assert rate_limiter.reserve(5, now=104.0) == pytest.approx(20.0)


def test_a_pause_the_server_asks_for_holds_for_all():
    rate_limiter = RateLimiter(None, None)
    rate_limiter.close(3.0, now=10.0)
    assert rate_limiter.reserve(5, now=11.0) == 2.0
    assert rate_limiter.reserve(5, now=14.0) == 0.0


def test_the_budget_counts_what_is_under_way():
    budget = Budget(_spec(max_tokens_total=100, prices={"input": 1e6, "output": 2e6}, max_cost=150.0))
    budget.reserve((40, 20))
    with pytest.raises(BudgetExceeded, match="max_tokens_total"):
        budget.reserve((40, 20))
    budget.charge((40, 20), (10, 5))
    budget.reserve((20, 5))
    budget.charge((20, 5), (20, 5))
    assert budget.cost(budget.used) == 50.0
    with pytest.raises(BudgetExceeded, match="max_cost"):
        budget.reserve((1, 55))


def test_an_estimate_is_rather_too_high():
    assert estimate(_request("a b c " * 10, n=2)) == (36, 6)


# ── faults ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("failure", stub_server.FAULTS)
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_each_kind_of_fault_is_met_and_asked_again(tmp_path, failure, api):
    """Every request breaks until the last try."""
    rules = {"fault_rate": 0.6, "faults": (failure,), "hang": 5.0}
    slow = failure in ("timeout", "slow drip")
    with stub_server.serve(**rules) as stub:
        spec = _spec(stub.url, api=api, max_retries=40, timeout_seconds=0.3 if slow else 60.0)

        async def work(scheduler):
            scheduler.expected_model = MODEL
            requests = [_request(f"the {word}", api=api) for word in ("king", "sea", "book")[: 1 if slow else 3]]
            return await asyncio.gather(*(scheduler.ask(request) for request in requests)), scheduler.failures

        found, faults = _ask(tmp_path, spec, work)
        assert sum(faults.values()) >= sum(stub.broken.values())
        for answer, request in zip(
            found, [_request(f"the {word}", api=api) for word in ("king", "sea", "book")], strict=False
        ):
            expected = stub.answer(request.body, api == "chat")
            assert answer == protocol.parse(json.dumps(expected).encode(), request)


def test_a_server_that_is_away_for_a_while_is_waited_for(tmp_path):
    with stub_server.serve() as stub:
        port = stub.port
    spec = _spec(f"http://127.0.0.1:{port}/v1", max_retries=200, backoff_seconds=0.05)

    async def work(scheduler):
        asking = asyncio.create_task(scheduler.ask(_request()))
        while not scheduler.failures["no connection"]:
            await asyncio.sleep(0.02)
        with stub_server.serve(port=port):
            return await asking

    assert _ask(tmp_path, spec, work).choices


def test_what_cannot_be_had_ends_after_the_retries(tmp_path):
    with stub_server.serve(fault_rate=1.0, faults=("500",)) as stub:

        async def work(scheduler):
            with pytest.raises(RequestFailed, match="HTTP 500"):
                await scheduler.ask(_request())

        _ask(tmp_path, _spec(stub.url), work)
        assert len(stub.bodies) == 4


def test_when_request_after_request_fails_the_server_is_left_alone(tmp_path):
    with stub_server.serve(fault_rate=1.0, faults=("500",)) as stub:

        async def work(scheduler):
            found = await asyncio.gather(*(scheduler.ask(_request(str(i))) for i in range(60)), return_exceptions=True)
            assert any(isinstance(one, Stopped) for one in found)

        _ask(tmp_path, _spec(stub.url, max_retries=0, concurrency=4), work)
        assert len(stub.bodies) < 30


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2.5"}, 2.5), ({"retry-after-ms": "300"}, 0.3), ({}, None), ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None), ({"retry-after": "inf"}, None),
    ],
)  # fmt: skip
def test_retry_after_in_seconds(headers, seconds):
    assert client.retry_after(headers) == seconds


def test_retry_after_as_a_date():
    found = client.retry_after({"retry-after": email.utils.formatdate(time.time() + 100, usegmt=True)})
    assert 90 < found <= 100


# ── nothing twice ────────────────────────────────────────────────────────────────────────────────


def test_one_question_is_asked_once_whoever_asks_and_never_again(tmp_path):
    with stub_server.serve() as stub:

        async def work(scheduler):
            return await asyncio.gather(*(scheduler.ask(_request()) for _ in range(20)))

        first = _ask(tmp_path, _spec(stub.url), work)
        assert first == _ask(tmp_path, _spec(stub.url), work)
        assert len(stub.bodies) == 1
        changed = _request(prompt="the queen")
        _ask(tmp_path, _spec(stub.url), lambda scheduler: scheduler.ask(changed))
        assert len(stub.bodies) == 2


@pytest.mark.parametrize("usage", [True, False])
def test_the_budget_stops_before_it_is_passed_and_a_higher_one_goes_on(tmp_path, usage):
    with stub_server.serve(usage=usage) as stub:

        async def work(scheduler):
            requests = [_request(f"the king {i}") for i in range(30)]
            return await asyncio.gather(*map(scheduler.ask, requests), return_exceptions=True), sum(
                scheduler.budget.used
            )

        found, used = _ask(tmp_path, _spec(stub.url, max_tokens_total=250), work)
        reasons = {str(one) for one in found if isinstance(one, Stopped)}
        assert len(reasons) == 1
        assert "max_tokens_total (250)" in reasons.pop()
        assert used <= 250
        answered = len(stub.bodies)
        assert answered == sum(isinstance(one, Answer) for one in found) > 0
        found, used = _ask(tmp_path, _spec(stub.url, max_tokens_total=10**6), work)
        assert all(isinstance(one, Answer) for one in found)
        assert len(stub.bodies) == 30  # what was paid for is not paid for again


def test_a_stop_does_not_wait_for_who_was_told_to_come_back_later(tmp_path):
    with stub_server.serve(fault_rate=1.0, faults=("503 later",)) as stub:

        async def work(scheduler):
            asking = asyncio.create_task(scheduler.ask(_request()))
            while not scheduler.failures:
                await asyncio.sleep(0.01)
            scheduler.stop(UnavailableError("enough"))
            with pytest.raises(Stopped, match="enough"):
                await asking

        _ask(tmp_path, _spec(stub.url), work)
        assert len(stub.bodies) == 1


# ── what the server shows ────────────────────────────────────────────────────────────────────────


def _grants(folder, spec, **wanted):
    return _ask(
        folder, spec, lambda scheduler: server_capabilities.ask(scheduler, server_capabilities.Wanted(True, **wanted))
    )


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_fewer_probabilities_than_wanted_are_taken(tmp_path, api):
    with stub_server.serve(most_logprobs=5) as stub:
        found = _grants(tmp_path, _spec(stub.url, api=api, top_logprobs=50))
        assert found.top_logprobs == 5
        assert "the 5 likeliest tokens" in found.describe(_spec(stub.url, api=api))


def test_a_server_that_leaves_probabilities_out_gives_none(tmp_path):
    with stub_server.serve(most_logprobs=None) as stub:
        assert _grants(tmp_path, _spec(stub.url)).top_logprobs == 0


@pytest.mark.parametrize("samples", [True, False])
def test_whether_one_request_brings_several_answers(tmp_path, samples):
    with stub_server.serve(samples=samples) as stub:
        assert _grants(tmp_path, _spec(stub.url), samples=True).samples is samples


@pytest.mark.parametrize("tempers", [True, False])
def test_log_probabilities_after_the_temperature_are_found_out(tmp_path, tempers):
    with stub_server.serve(tempers=tempers) as stub:
        assert _grants(tmp_path, _spec(stub.url), temperature=0.7).untempered is not tempers


def test_grants_are_kept_for_the_same_question_alone(tmp_path):
    with stub_server.serve() as stub:
        spec = _spec(stub.url)
        found = _grants(tmp_path, spec)
    server_capabilities.write(tmp_path / "g.json", found)
    assert server_capabilities.read(tmp_path / "g.json", server_capabilities.Wanted(True).key(spec)) == found
    assert (
        server_capabilities.read(tmp_path / "g.json", server_capabilities.Wanted(True, samples=True).key(spec)) is None
    )
    (tmp_path / "g.json").write_text("{")
    assert server_capabilities.read(tmp_path / "g.json", found.asked) is None


@pytest.mark.parametrize(
    ("rules", "changes", "told"),
    [
        ({}, {"model": "other"}, "HTTP 404"),
        ({"key": "sk-1"}, {}, "HTTP 401"),
        ({"fault_rate": 1.0, "faults": ("500",)}, {}, "HTTP 500"),
    ],
)
def test_a_server_that_cannot_be_used_is_unavailable(tmp_path, rules, changes, told):
    with stub_server.serve(**rules) as stub, pytest.raises(UnavailableError, match=told) as error:
        _grants(tmp_path, _spec(stub.url).model_copy(update=changes))
    assert error.value.next
    assert error.value.where == stub.url


def test_nobody_at_the_address_is_unavailable(tmp_path):
    with stub_server.serve() as stub:
        url = stub.url
    with pytest.raises(UnavailableError, match="no connection"):
        _grants(tmp_path, _spec(url))


def test_a_missing_key_is_told_before_anything_is_sent(monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(UnavailableError, match="SOME_KEY"):
        Client(_spec("https://example.org/v1", api_key_env="SOME_KEY"))
    assert client.key(_spec(api_key_env="SOME_KEY")) is None  # this machine's own server may ask for none


def test_the_key_is_sent_and_never_told(tmp_path, monkeypatch):
    secret = "sk-very-secret-0123456789"
    monkeypatch.setenv("SOME_KEY", secret)
    with stub_server.serve(key="another") as stub:
        spec = _spec(stub.url, api_key_env="SOME_KEY")
        with pytest.raises(UnavailableError, match="Incorrect API key provided") as error:
            _grants(tmp_path, spec)
        assert stub.headers[0]["authorization"] == f"Bearer {secret}"  # the server repeats it in its refusal
    assert secret not in f"{error.value}{error.value.next}{error.value.__cause__!r}{error.value.__context__!r}"


@pytest.mark.parametrize("secret", ["sk-very-secret-0123456789", "hunter-2", "sk-1", "no-key-required", "pässwörter"])
def test_a_secret_leaves_every_message(secret):
    told = client.redacted(f"Incorrect API key provided: {secret}, Bearer {secret}", secret)
    assert told == "Incorrect API key provided: [key], Bearer [key]"


@pytest.mark.parametrize("word", ["none", "EMPTY", "ollama", "test", "x", "a b"])
def test_a_key_that_is_a_word_leaves_messages_readable(word):
    told = f"the model {word} was not found; {word}s and extexts: nothing (Bearer {word})"
    assert client.redacted(told, word) == told.replace(f"Bearer {word}", "Bearer [key]")


@pytest.mark.parametrize("key", ["none", "EMPTY", "ollama", "test", "x", "river", "sk-very-secret-0123456789"])
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_what_a_server_answers_is_left_as_it_is(tmp_path, monkeypatch, key, api):
    """Whatever the key: the answer is that of a server without one."""
    monkeypatch.setenv("SOME_KEY", key)
    speaker = stub_server.Hashed([key, "the", "king"])
    request = _request(f"the king says {key}", api=api, max_tokens=8)
    with stub_server.serve(speaker, key=key) as stub:
        found = _ask(
            tmp_path, _spec(stub.url, api=api, api_key_env="SOME_KEY"), lambda scheduler: scheduler.ask(request)
        )
        expected = protocol.parse(json.dumps(stub.answer(request.body, api == "chat")).encode(), request)
    assert found == expected
    assert key in "".join(token.decode() for position in found.choices[0].positions for token, _ in position.top)


# ── numbers that cannot be ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize(("scale", "shift", "told"), [(2.0, 9.0, "above 0"), (0.0, 3.0, "more than 1")])
def test_log_probabilities_that_are_none_stop_the_work(tmp_path, api, scale, shift, told):
    """Positive ones, as of logits; and negative ones of the probabilities sum to more than 1 there is."""
    with stub_server.serve(stub_server.Hashed(scale=scale), shift=shift) as stub:
        with pytest.raises(UnavailableError, match=told) as error:
            _grants(tmp_path, _spec(stub.url, api=api))
        assert len(stub.bodies) == 2  # asking again would not help
    assert "natural logarithms" in error.value.next


def test_rounding_above_zero_is_none():
    content = [{"token": "a", "logprob": 1e-6, "top_logprobs": [{"token": "a", "logprob": 1e-6}]}]
    found = protocol.parse(json.dumps(_chat(logprobs={"content": content})).encode(), _request(api="chat"))
    assert found.choices[0].positions[0].top == ((b"a", 0.0),)


def test_thoughts_without_an_answer_are_told_from_an_answer():
    for name in ("reasoning_content", "reasoning"):
        message = {"content": None, name: "Okay, the user"}
        body = json.dumps(_chat(message=message, finish_reason="length")).encode()
        assert protocol.parse(body, _request(api="chat")).choices[0].text == "<think>Okay, the user"
        body = json.dumps(_chat(message=message | {"content": "a"})).encode()
        assert protocol.parse(body, _request(api="chat")).choices[0].text == "a"


def test_tokens_that_the_server_does_not_count_are_estimated(tmp_path):
    """A usage of 0 in and 0 out never makes a budget endless."""
    with stub_server.serve(counts_nothing=True) as stub:

        async def work(scheduler):
            requests = [_request(f"the king {i}") for i in range(30)]
            return await asyncio.gather(*map(scheduler.ask, requests), return_exceptions=True), scheduler

        found, scheduler = _ask(tmp_path, _spec(stub.url, max_tokens_total=250), work)
    assert any(isinstance(one, Stopped) for one in found)
    answered = sum(isinstance(one, Answer) for one in found)
    assert 0 < answered < 30
    assert answered == scheduler.uncounted
    assert 0 < sum(scheduler.budget.used) <= 250


# ── lines that someone else wrote ────────────────────────────────────────────────────────────────


def _signed(text):
    return checksums.put(text).encode()


def _line(**changes):
    return _signed(json.dumps({"key": "two", "used": [1, 1], "ms": 1.0, "answer": None} | changes))


def _planted(tokens=(), **changes):
    answer = {"choices": [{"text": "x", "cut": False, "tokens": list(tokens)}], "model": "m",
              "system_fingerprint": None, "usage": [1, 1]}  # fmt: skip
    return _line(answer=answer | changes)


HUGE = 10**400
PLANTED = {
    "nested deeply": b"[" * 100_000 + b"\n",
    "nested in an answer": _signed('{"key": "two", "used": [1, 1], "answer": ' + '{"a":' * 50_000 + "1" + "}" * 50_001),
    "a huge log-probability": _planted([["x", [["x", -HUGE]]]]),
    "a positive log-probability": _planted([["x", [["x", 3.0]]]]),
    "more than all the probability": _planted([["x", [["x", 0.0], ["y", 0.0]]]]),
    "not a number": _planted([["x", [["x", float("nan")]]]]),
    "without end": _planted([["x", [["x", float("inf")]]]]),
    "huge tokens used": _line(used=[HUGE, 1]),
    "tokens used without end": _line(used=[float("inf"), 1]),
    "tokens used below zero": _line(used=[-5, 1]),
    "half a token": _line(used=[0.5, 1]),
    "three counts": _line(used=[1, 1, 1]),
    "no counts": _line(used="ab"),
    "huge usage": _planted(usage=[1e300, HUGE]),
    "huge milliseconds": _line(ms=HUGE, answer={}),
    "milliseconds that are text": _line(ms="soon"),
    "a key that is a list": _line(key=["two"]),
    "a key without end": _line(key="two" * 10_000),
    "an answer that is a list": _line(answer=[]),
    "an answer that is a text": _line(answer="x"),
    "choices that are a number": _planted(choices=3),
    "a token that is no byte": _planted([["\u4e2d", []]]),
    "a token that is half a character": _planted([["\ud800", []]]),
    "a text that is a number": _planted(choices=[{"text": 3, "cut": False, "tokens": []}]),
    "a key more": _planted(secret=1),
    "another key more": _line(more=1),
    "a list": b"[]\n",
    "a number": b"1e999\n",
    "nothing": b"\n",
    "zeros": bytes(5000) + b"\n",
    "no text": b"\xff\xfe\n",
    "a key twice": _signed('{"key": "two", "key": "three", "used": [1, 1]}').replace(b"1]", b"1,"),
    "torn": _planted()[:40] + b"\n",
    "torn at the end": _planted()[:-1],
}  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_line_is_set_aside_counted_and_told(tmp_path, planted, capsys):
    path, aside = tmp_path / "a.jsonl", tmp_path / "answers.damaged.jsonl"
    cache = ResponseCache(path)
    for key in ("one", "three"):
        cache.keep(key, _answer(key), (1, 1), 1.0)
    cache.close()
    first, third = path.read_bytes().splitlines(keepends=True)
    last = planted == "torn at the end"
    path.write_bytes(first + third + PLANTED[planted] if last else first + PLANTED[planted] + third)
    for opening in range(2):
        cache = ResponseCache(path)
        assert [cache.get(key) for key in ("one", "two", "three")] == [_answer("one"), None, _answer("three")]
        assert (cache.used, cache.milliseconds, len(cache)) == ((2, 2), [1.0, 1.0], 2)
        cache.close()
        told = " ".join(capsys.readouterr().err.split())
        assert ("1 damaged line moved to answers.damaged.jsonl" in told) == (opening == 0)
        assert path.read_bytes() == first + third
        assert aside.read_bytes() == PLANTED[planted]


def test_lines_that_are_set_aside_later_come_behind_the_others(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    for lines in (b"[1]\nnot JSON\n", b"[2]\n"):
        with path.open("ab") as file:
            file.write(lines)
        ResponseCache(path).close()
    assert "2 damaged lines moved" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "answers.damaged.jsonl").read_bytes() == b"[1]\nnot JSON\n[2]\n"
    assert path.read_bytes() == b""


def test_a_line_that_never_ends_is_not_held(tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.jsonl"
    monkeypatch.setattr(journal_module, "_LINE_BYTES", 1000)
    path.write_bytes(b"x" * 10_500 + b"\n" + b"[1]\n")
    ResponseCache(path).close()
    assert "2 damaged lines moved" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "answers.damaged.jsonl").stat().st_size == 10_505


@pytest.mark.parametrize("kind", ["link", "FIFO", "folder"])
def test_answers_that_are_no_file_are_not_opened(tmp_path, kind):
    path, other = tmp_path / "a.jsonl", tmp_path / "other"
    other.write_text("mine, and no newline at its end")
    {"link": lambda: path.symlink_to(other), "FIFO": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    with pytest.raises(UnavailableError, match="cannot be written"):
        ResponseCache(path)
    assert other.read_text() == "mine, and no newline at its end"


def test_a_second_name_of_the_answers_keeps_its_bytes(tmp_path):
    path = tmp_path / "a.jsonl"
    cache = ResponseCache(path)
    cache.keep("one", _answer(), (1, 1), 1.0)
    cache.close()
    os.link(path, tmp_path / "backup")
    before = path.read_bytes()
    cache = ResponseCache(path)
    cache.keep("two", _answer(), (1, 1), 1.0)
    cache.close()
    assert (tmp_path / "backup").read_bytes() == before
    assert len(ResponseCache(path)) == 2
