"""A hosted model answers as a loaded one does: streaming, stop strings, usage, seeds, batches, and the end of them."""

import threading
import time

import pytest
from langchain_core.prompts import PromptTemplate

import hfpipe
from hfpipe.errors import BackendError, UnsupportedOption, UsageError
from hfpipe.generator import open_generator
from hfpipe.types import GenerationOptions, LoadOptions, TextRequest, Usage
from tests.endpoint.servers import MODEL, LoopbackServer, after_text, choice, silent, status


@pytest.fixture
def server():
    with LoopbackServer() as made:
        yield made


@pytest.fixture
def load(server):
    """Loads the model of the server; what is loaded is closed."""
    loaded = []

    def load(**options):
        loaded.append(open_generator(MODEL, LoadOptions(endpoint=server.url, **options)))
        return loaded[-1]

    yield load
    for one in loaded:
        one.close()


def test_an_llm_streams_and_counts(server):
    llm = hfpipe.load(MODEL, endpoint=server.url)
    assert list(llm.stream("one two three")) == ["one ", "two ", "three", ""]
    (answer,) = llm.generate(["one two three"]).generations[0]
    assert answer.text == "one two three"
    assert answer.generation_info["finish_reason"] == "stop"
    assert answer.generation_info["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert "seed" not in answer.generation_info
    chain = PromptTemplate.from_template("Say {what}.") | llm.bind(max_tokens=1)
    assert chain.invoke({"what": "it"}) == "Say "
    assert llm.batch(["a", "b c", "d"]) == ["a", "b c", "d"]


def test_a_prompt_is_a_conversation_and_other_templates_are_text(server):
    """The server has the chat template."""
    llm = hfpipe.HFPipe(MODEL, endpoint=server.url, system="Be brief.")
    llm.invoke("hi")
    assert server.bodies[-1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
    ]
    for template, prompt in [
        ("raw", "hi"),
        ("qa", "Question: hi\n\nAnswer: Let's think step by step."),
        ("<{x}>", "<hi>"),
    ]:
        hfpipe.HFPipe(generator=llm.generator, template=template).invoke("hi")
        assert server.asked[-1][0] == "/v1/completions"
        assert server.bodies[-1]["prompt"] == prompt
        assert "messages" not in server.bodies[-1]


def test_a_chat_model_sends_its_messages(server):
    chat = hfpipe.load_chat(MODEL, endpoint=server.url)
    answer = chat.invoke([("system", "Be brief."), ("human", "What is EEG?")])
    assert answer.content == "What is EEG?"
    assert answer.usage_metadata == {"input_tokens": 3, "output_tokens": 3, "total_tokens": 6}
    assert [one["role"] for one in server.bodies[-1]["messages"]] == ["system", "user"]
    with pytest.raises(UsageError, match="Only the server of an endpoint can count tokens"):
        chat.get_num_tokens("hi")


@pytest.mark.parametrize("ignores", [False, True])
def test_stop_strings_are_exact_whatever_the_server_does(server, load, ignores):
    """Over the borders of events too; and the server is not left generating."""
    server.ignores_stops = ignores
    options = GenerationOptions(stop=("o th", "zzz"))
    (answer,) = load().generate([TextRequest("1", "one two three four", options)])
    assert (answer.text, answer.finish_reason) == ("one tw", "stop")
    assert server.bodies[-1]["stop"] == ["o th", "zzz"]
    assert server.wait_until(lambda: server.running == 0)


def test_the_fifth_stop_string_is_found_here(load):
    """OpenAI takes four."""
    options = GenerationOptions(stop=("v", "w", "x", "y", "b"))
    (answer,) = load().generate([TextRequest("1", "a b c", options)])
    assert answer.text == "a "


def test_a_sampled_answer_has_a_seed_that_repeats_it(server, load):
    def seed(**options):
        (answer,) = load().generate([TextRequest("1", "a", GenerationOptions(**options))])
        return answer.seed, server.bodies[-1].get("seed")

    drawn, sent = seed(temperature=0.5)
    assert drawn is not None
    assert drawn == sent
    assert seed(temperature=0.5, seed=0) == (0, 0)
    assert seed(seed=7) == (7, 7)
    assert seed() == (None, None)
    assert seed(temperature=0) == (None, None)


def test_a_server_that_does_not_count(server, load):
    server.counts = False
    (answer,) = load().generate([TextRequest("1", "a b")])
    assert (answer.text, answer.finish_reason, answer.usage) == ("a b", "stop", None)


def test_length_is_a_finish_reason(load):
    (answer,) = load().generate([TextRequest("1", "a b c", GenerationOptions(max_tokens=2))])
    assert (answer.text, answer.finish_reason, answer.usage) == ("a b ", "length", Usage(3, 2))


def test_no_more_requests_at_once_than_asked_for(server, load):
    server.together = 3
    answers = list(load(batch_size=3).generate(TextRequest(str(i), "a b") for i in range(9)))
    assert {answer.text for answer in answers} == {"a b"}
    assert server.most == 3


def test_connections_are_used_again(server, load):
    generator = load(batch_size=2)
    for _ in range(3):
        assert len(list(generator.generate(TextRequest(str(i), "a b") for i in range(10)))) == 10
    assert len(server.connections) <= 2


def test_a_response_that_does_not_end_after_its_answer_is_not_waited_for(server, load, monkeypatch):
    monkeypatch.setattr("hfpipe.endpoint.server._END_S", 0.05)
    whole = b'data: {"choices": [{"text": "x", "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
    server.faults.append(after_text(lambda handler: (handler.chunk(whole), silent(handler))))
    (answer,) = load().generate([TextRequest("1", "a")])
    assert answer.text == "half x"
    assert server.wait_until(lambda: server.left == 1)


def test_requests_are_pulled_as_there_is_room(server, load):
    server.pause_s = 0.02
    pulled = []

    def requests():
        for i in range(20):
            pulled.append(i)
            yield TextRequest(str(i), "a b c")

    stream = load(batch_size=2).stream(requests())
    next(stream)
    assert len(pulled) == 2
    stream.close()


def test_none_means_that_no_request_is_ready(load):
    """Others end meanwhile."""
    ended = []

    def requests():
        yield TextRequest("first", "a b")
        while not ended:
            yield None
        yield TextRequest("second", "c")

    ended.extend(answer.id for answer in load().generate(requests()))
    assert ended == ["first", "second"]


def test_one_that_fails_leaves_the_others_alone(server, load):
    server.faults += [status(400)]
    answers = {
        answer.id: answer for answer in load(batch_size=1).generate([TextRequest("bad", "x"), TextRequest("good", "y")])
    }
    assert isinstance(answers["bad"].error, BackendError)
    assert answers["good"].text == "y"


def test_an_empty_prompt_is_an_event(load):
    (answer,) = load().generate([TextRequest("1", "")])
    assert answer.error.message == "The prompt is empty."


@pytest.mark.parametrize("template", ["chat", "raw"])
def test_an_empty_prompt_of_a_batch_is_refused_in_its_place(server, template):
    system = "Be brief." if template == "chat" else None
    llm = hfpipe.load(MODEL, endpoint=server.url, system=system, template=template)
    answers = llm.batch(["a", ""], return_exceptions=True)
    assert answers[0] == "a"
    assert answers[1].message == "The prompt is empty."
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("reason", "message"), [("content_filter", "server's filter ended"), ("tool_calls", "The model called a tool")]
)
def test_what_came_before_an_end_without_an_answer_is_kept(server, load, reason, message):
    def fault(handler):
        handler.event(choice("rest", reason, chat=False))
        handler.event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})
        handler.chunk(b"data: [DONE]\n\n")
        handler.chunk(b"")

    server.faults.append(after_text(fault))
    (answer,) = load().generate([TextRequest("1", "a", GenerationOptions(stop=("rest of it",)))])
    assert (answer.text, answer.finish_reason, answer.usage) == ("half rest", "error", Usage(1, 2))
    assert message in answer.error.message
    assert answer.error.hint


def test_an_option_that_is_off_asks_for_nothing(server, load):
    """Where the server takes it, it is sent: the server's default may be another."""
    off = GenerationOptions(top_k=0, min_p=0.0, repetition_penalty=1.0)
    assert [answer.text for answer in load().generate([TextRequest("1", "a", off)])] == ["a"]
    assert {"top_k", "min_p", "repetition_penalty"}.isdisjoint(server.bodies[-1])
    server.own = {"top_k": "integer"}
    assert [answer.text for answer in load().generate([TextRequest("1", "a", off)])] == ["a"]
    assert server.bodies[-1]["top_k"] == 0
    assert {"min_p", "repetition_penalty"}.isdisjoint(server.bodies[-1])


@pytest.mark.parametrize("template", ["chat", "raw"])
def test_llama_cpp_is_known_by_what_it_says_and_asked_by_its_names(server, template):
    """Its server publishes no openapi.json."""
    server.owned_by = "llamacpp"
    llm = hfpipe.load(MODEL, endpoint=server.url, template=template)
    assert llm.invoke("a b", top_k=4, min_p=0.0, repetition_penalty=1.1, seed=7) == "a b"
    sent = server.bodies[-1]
    assert (sent["top_k"], sent["min_p"], sent["seed"]) == (4, 0, 7)
    # Of all tokens, as elsewhere; by itself it looks at the last 64.
    assert (sent["repeat_penalty"], sent["repeat_last_n"]) == (1.1, -1)
    assert "repetition_penalty" not in sent
    llm.invoke("a b", top_k=5)
    assert "repeat_last_n" not in server.bodies[-1]
    assert server.got == ["/openapi.json", "/v1/models"], "asked once"
    with pytest.raises(UnsupportedOption, match="cannot honour eos_token_id"):
        llm.invoke("a b", eos_token_id=3)
    server.owned_by = "someone"
    with pytest.raises(UnsupportedOption, match="cannot honour top_k"):
        hfpipe.load(MODEL, endpoint=server.url, template=template).invoke("a b", top_k=5)


def test_vllm_without_openapi_json_is_known_by_what_it_says(server):
    server.owned_by = "vllm"
    llm = hfpipe.load(MODEL, endpoint=server.url, template="raw")
    given = {"top_k": 4, "min_p": 0.1, "repetition_penalty": 1.1, "seed": 7}
    assert llm.invoke("a b", **given) == "a b"
    assert given.items() <= server.bodies[-1].items()
    with pytest.raises(UnsupportedOption, match="cannot honour eos_token_id"):
        llm.invoke("a b", eos_token_id=3)


def test_do_sample_says_whether_an_answer_is_drawn(server, load):
    """Left out, it is the server's default."""

    def sent(**options):
        (answer,) = load().generate([TextRequest("1", "a", GenerationOptions(**options))])
        assert answer.error is None
        body = server.bodies[-1]
        assert body.get("seed") == answer.seed
        return body.get("temperature"), answer.seed is not None

    assert sent() == (None, False)
    assert sent(do_sample=True) == (1.0, True)
    assert sent(do_sample=True, temperature=0.5) == (0.5, True)
    assert sent(do_sample=True, temperature=0) == (0, False)
    assert sent(do_sample=False) == (0, False)
    assert sent(do_sample=False, temperature=0.5) == (0, False)


def test_leaving_a_stream_ends_its_connections(server, load):
    server.pause_s = 0.02
    stream = load().stream([TextRequest(str(i), "a b c " * 500) for i in range(3)])
    next(stream)
    assert server.wait_until(lambda: server.running == 3)
    stream.close()
    assert server.wait_until(lambda: server.running == 0 and server.left == 3)


def test_closing_ends_its_connections_and_what_waits_has_an_error(server, load):
    server.pause_s = 0.02
    generator = load(batch_size=2)
    answers = []
    requests = [TextRequest(str(i), "a b c " * 500) for i in range(4)]
    thread = threading.Thread(target=lambda: answers.extend(generator.generate(requests)))
    thread.start()
    assert server.wait_until(lambda: server.running == 2)
    generator.close()
    thread.join(10)
    assert not thread.is_alive()
    assert {answer.error.message for answer in answers} == {"The endpoint backend has been closed."}
    assert len(answers) == 4
    assert server.wait_until(lambda: server.running == 0)
    with pytest.raises(BackendError, match="has been closed"):
        next(generator.stream([TextRequest("1", "a")]))
    generator.close()


def test_one_that_is_dropped_leaves_no_thread(server):
    before = set(threading.enumerate())
    hfpipe.load(MODEL, endpoint=server.url).invoke("a")
    assert server.wait_until(lambda: all("hfpipe" not in one.name for one in set(threading.enumerate()) - before))


def test_many_streams_share_one_endpoint(load):
    generator, answers = load(), []
    threads = [
        threading.Thread(target=lambda i=i: answers.extend(generator.generate([TextRequest(str(i), f"a {i}")])))
        for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.text for answer in answers) == [f"a {i}" for i in range(6)]


def test_the_first_text_is_not_held_back(server, load):
    server.pause_s = 0.1
    begun = time.perf_counter()
    stream = load().stream([TextRequest("1", "a " * 50, GenerationOptions(stop=("zzz",)))])
    assert next(stream).text == "a "
    assert time.perf_counter() - begun < 2
    stream.close()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"top_k": 4}, "top_k"),
        ({"eos_token_id": 4}, "eos_token_id"),
        ({"max_length": 64}, "max_length, which counts"),
        ({"min_p": 0.1}, "min_p"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"variables": {"enable_thinking": "false"}}, "variables of the chat template"),
    ],
)
def test_what_the_server_does_not_say_that_it_takes_is_refused_by_name(server, options, named):
    llm = hfpipe.load(MODEL, endpoint=server.url)
    with pytest.raises(UnsupportedOption, match=f"cannot honour {named}"):
        llm.invoke("hi", **options)
    assert server.bodies == []


def test_what_the_server_says_that_it_takes_is_sent(server):
    server.own = {"top_k": "integer", "min_p": "number", "chat_template_kwargs": "object"}
    llm = hfpipe.load(MODEL, endpoint=server.url, variables={"enable_thinking": "false"})
    llm.batch(["hi", "you"], top_k=4, min_p=0.1)
    assert server.bodies[-1]["top_k"] == 4
    assert server.bodies[-1]["min_p"] == 0.1
    assert server.bodies[-1]["chat_template_kwargs"] == {"enable_thinking": False}
    with pytest.raises(UnsupportedOption, match="a last message of the assistant"):
        hfpipe.ChatHFPipe(llm=llm).invoke([("human", "hi"), ("ai", "It is")])
    with pytest.raises(UnsupportedOption, match="add_special_tokens=False"):
        llm.invoke("hi", template="raw", add_special_tokens=False)


def test_what_no_endpoint_can_honour_is_refused_by_name(server):
    for options in (
        {"exact": True},
        {"device": 0},
        {"dtype": "float16"},
        {"ov_config": {"A": 1}},
        {"revision": "main"},
    ):
        (name,) = options
        with pytest.raises(UnsupportedOption, match=f"The endpoint backend cannot honour {name}"):
            hfpipe.load(MODEL, endpoint=server.url, **options)
    with pytest.raises(UnsupportedOption, match="The torch backend cannot honour endpoint"):
        hfpipe.load(MODEL, endpoint=server.url, backend="torch")
    with pytest.raises(UnsupportedOption, match="chat_template_name"):
        hfpipe.load(MODEL, endpoint=server.url, chat_template_name="tool_use").invoke("hi")
    assert server.asked == []
