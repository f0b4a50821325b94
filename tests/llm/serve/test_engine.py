"""Both backends in process: they agree with llm.infer, repeat by seed, end, cancel and refuse."""

import queue
from collections.abc import Iterator, Sequence

import pytest
import torch

from llm.infer.generate import generate
from llm.model.folder import load_model
from llm.serve.backend import Event, Sampling
from llm.serve.engine import Engine, Unobserved
from llm.serve.openvino_backend import OpenVinoBackend
from llm.serve.params import ServeParams
from llm.serve.release import Release, load_backend
from llm.serve.torch_backend import TorchBackend

IDS = [5, 60, 70, 80, 90]


@pytest.fixture(scope="module", params=["torch", "openvino"])
def engine(request: pytest.FixtureRequest, release: Release) -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRISTMILL_ENGINE", request.param)
        one = Engine(lambda: load_backend(release, ServeParams()), release.tokenizer.vocab_size, release.context)
    assert one.name == request.param
    yield one
    one.close()


class Seen(Unobserved):
    def __init__(self) -> None:
        self.num_tokens, self.states = 0, [(0, 0)]

    def state(self, running: int, waiting: int, cache_use: float) -> None:
        assert 0.0 <= cache_use <= 1.0
        self.states.append((running, waiting))

    def tokens(self, count: int) -> None:
        self.num_tokens += count


def run(engine: Engine, ids: list[int], **options: object) -> tuple[list[int], str | None]:
    options = {"max_tokens": 40, "stop_ids": frozenset()} | options
    events = list(engine.stream(ids, Sampling(**options)))  # type: ignore[arg-type]
    assert [event.finish is None for event in events] == [True] * (len(events) - 1) + [False]
    return [token for event in events for token in event.tokens], events[-1].finish


def test_greedy_is_what_infer_generates(engine: Engine, release: Release) -> None:
    model = load_model(release.folder / "hf")
    with torch.no_grad():  # the GGUF file holds f16 matrices
        for weight in model.parameters():
            if weight.ndim == 2 and engine.name == "openvino":
                weight.copy_(weight.half().float())
    expected = generate(model, [IDS], max_new_tokens=40, temperature=0.0, stop_ids=())[0].tokens
    assert run(engine, IDS, temperature=0.0) == (expected, "length")


def test_torch_backend_samples_what_infer_samples(release: Release) -> None:
    engine = Engine(lambda: TorchBackend(release.folder / "hf"), release.tokenizer.vocab_size, release.context)
    model = load_model(release.folder / "hf")
    options = {"temperature": 0.9, "top_p": 0.9, "top_k": 50}
    expected = generate(model, [IDS], max_new_tokens=30, stop_ids=(), seed=[7], **options)[0].tokens
    assert run(engine, IDS, max_tokens=30, seed=7, **options)[0] == expected
    engine.close()


def test_seed_repeats_and_another_differs(engine: Engine) -> None:
    first, second, other = (run(engine, IDS, seed=seed)[0] for seed in (3, 3, 4))
    assert first == second
    assert first != other
    assert run(engine, IDS, seed=-1)[0] == run(engine, IDS, seed=-1)[0]


def test_stop_id_ends_and_is_the_last_token(engine: Engine) -> None:
    tokens, _ = run(engine, IDS, seed=3)
    stop = tokens[10]
    cut = tokens[: tokens.index(stop) + 1]
    assert run(engine, IDS, seed=3, stop_ids=frozenset([stop])) == (cut, "stop")


def test_many_at_once_all_end(engine: Engine) -> None:
    streams = [engine.stream(IDS, Sampling(30, frozenset(), seed=seed)) for seed in range(12)]
    first = [next(stream) for stream in streams]
    for stream, event in zip(streams, first, strict=True):
        rest = list(stream)
        assert sum(len(one.tokens) for one in [event, *rest]) == 30
        assert rest[-1].finish == "length"


def test_leaving_the_stream_cancels(release: Release) -> None:
    seen = Seen()
    engine = Engine(
        lambda: OpenVinoBackend(release.served, release.context),
        release.tokenizer.vocab_size,
        release.context,
        observe=seen,
    )
    stream = engine.stream(IDS, Sampling(4000, frozenset(), temperature=0.0))
    next(stream)
    stream.close()
    # Commands run in order: when this one has ended, the cancelled one is gone.
    assert run(engine, IDS, max_tokens=2)[1] == "length"
    engine.close()
    assert seen.num_tokens < 2000
    assert seen.states[-1] == (0, 0)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 0.7, "top_k": 5}])
def test_scores_are_the_models_own(engine: Engine, release: Release, options: dict[str, float]) -> None:
    events = list(engine.stream(IDS, Sampling(20, frozenset(), num_top=0, **options)))  # type: ignore[arg-type]
    tokens = [token for event in events for token in event.tokens]
    scores = [score for event in events for score in event.scores]
    expected = TorchBackend(release.folder / "hf").score([*IDS, *tokens], 0)[len(IDS) - 1 :]
    assert [one.top for one in scores] == [{}] * 20
    tolerance = 1e-4 if engine.name == "torch" else 0.05  # the GGUF file holds f16 matrices, the cache 8 bits
    assert [one.logprob for one in scores] == pytest.approx([one.logprob for one in expected], abs=tolerance)


def test_torch_gives_alternatives_and_takes_biases(release: Release) -> None:
    engine = Engine(lambda: TorchBackend(release.folder / "hf"), release.tokenizer.vocab_size, release.context)
    greedy = Sampling(3, frozenset(), temperature=0.0, num_top=2)
    (token, *_), (score, *_) = zip(*((e.tokens[0], e.scores[0]) for e in engine.stream(IDS, greedy)), strict=True)
    (best, first), (second, other) = score.top.items()
    assert (token, score.logprob) == (best, first)
    assert first > other
    assert run(engine, IDS, max_tokens=1, temperature=0.0, logit_bias=((best, -100.0),))[0] == [second]
    assert run(engine, IDS, max_tokens=4, logit_bias=((7, 100.0),))[0] == [7] * 4
    assert run(engine, IDS, max_tokens=4, min_p=1.0)[0] == run(engine, IDS, max_tokens=4, temperature=0.0)[0]
    engine.close()


@pytest.mark.parametrize("options", [{"min_p": 0.2}, {"frequency_penalty": 1.8}, {"presence_penalty": -2.0}])
def test_each_option_is_felt_and_repeats(engine: Engine, options: dict[str, float]) -> None:
    first, again = (run(engine, IDS, seed=3, **options)[0] for _ in range(2))
    assert first == again
    assert first != run(engine, IDS, seed=3)[0]


def test_what_openvino_means_otherwise_is_refused(engine: Engine) -> None:
    wishes = {
        "repetition_penalty": 1.2,
        "num_top": 3,
        "logit_bias": ((5, 1.0),),
        "json_schema": "true",
    }
    for name, value in wishes.items():
        assert (name in engine.unsupported) == (engine.name == "torch") ^ (name != "json_schema")
        if name in engine.unsupported:
            with pytest.raises(ValueError, match=f"does not do {name}"):
                run(engine, IDS, **{name: value})


def test_a_wrong_schema_is_refused_before_it_reaches_the_engine(engine: Engine) -> None:
    message = "does not do json_schema" if engine.name == "torch" else "minimum not supported"
    with pytest.raises(ValueError, match=message):
        run(engine, IDS, json_schema='{"type": "integer", "minimum": 3}')
    assert run(engine, IDS, max_tokens=2)[1] == "length"


@pytest.mark.parametrize(
    "ids, options, message",
    [
        ([], {}, "no token"),
        ([1, 100_000], {}, "100000 is outside"),
        ([-1], {}, "-1 is outside"),
        ([1] * 4094, {"max_tokens": 5}, "context"),
        ([1], {"max_tokens": 0}, "context"),
    ],
)
def test_engine_refuses(engine: Engine, ids: list[int], options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(engine, ids, **options)


def test_exact_mode_gives_the_same_text_alone_and_among_many(release: Release) -> None:
    engine = Engine(
        lambda: OpenVinoBackend(release.served, release.context, exact=True),
        release.tokenizer.vocab_size,
        release.context,
    )
    alone = run(engine, IDS, seed=5)[0]
    streams = [engine.stream([*IDS, *extra], Sampling(40, frozenset(), seed=5)) for extra in ([], [7], [8, 9], [9])]
    assert [token for event in streams[0] for token in event.tokens] == alone
    engine.close()


def test_exact_mode_serves_keys_in_turns_one_request_at_a_time(release: Release) -> None:
    seen, ended = Seen(), queue.SimpleQueue[str]()
    engine = Engine(
        lambda: OpenVinoBackend(release.served, release.context, exact=True),
        release.tokenizer.vocab_size,
        release.context,
        observe=seen,
    )

    def submit(name: str, behind: Sequence[str] = ()) -> None:
        def sink(event: Event) -> None:
            if event.finish is None:
                for other in behind:
                    submit(other)
            else:
                ended.put(f"{name} {event.finish}")

        engine.submit(IDS, Sampling(2, frozenset()), sink, owner=name[0])

    submit("a1", behind=("a2", "a3", "a4", "b1", "b2"))
    order = [ended.get(timeout=20) for _ in range(6)]
    engine.close()
    assert order == [f"{name} length" for name in ("a1", "a2", "b1", "a3", "b2", "a4")]
    assert max(seen.states) == (1, 5)


def test_unknown_engine_is_refused(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRISTMILL_ENGINE", "abacus")
    with pytest.raises(ValueError, match="GRISTMILL_ENGINE='abacus'"):
        load_backend(release, ServeParams())


def test_without_openvino_torch_serves_and_says_so(
    release: Release, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("GRISTMILL_ENGINE", raising=False)
    assert load_backend(release, ServeParams()).name == "torch"
    assert "openvino_genai is not installed" in caplog.text
    monkeypatch.setenv("GRISTMILL_ENGINE", "openvino")
    with pytest.raises(ValueError, match="use GRISTMILL_ENGINE=torch"):
        load_backend(release, ServeParams())


def test_vllm_is_an_extra_that_is_asked_for_by_name(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("GRISTMILL_ENGINE", raising=False)
    with pytest.raises(ValueError, match=r"install it with pip install '.\[vllm\]'"):
        load_backend(release, ServeParams(engine="vllm"))


def test_the_environment_goes_before_params(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRISTMILL_ENGINE", "torch")
    assert load_backend(release, ServeParams(engine="openvino")).name == "torch"
    monkeypatch.delenv("GRISTMILL_ENGINE")
    monkeypatch.delenv("GRISTMILL_EXACT", raising=False)
    assert load_backend(release, ServeParams(exact=True)).name == "openvino-exact"
    monkeypatch.setenv("GRISTMILL_EXACT", "0")
    assert load_backend(release, ServeParams(engine="openvino", exact=True)).name == "openvino"
