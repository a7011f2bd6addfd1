"""Whatever the model would rather write, the text matches the pattern, and ends within the row's limit."""

from __future__ import annotations

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import config

from seal_jax.domains.arc.self_edits import Bounds, Choice, parse_choice, pattern, to_json
from seal_jax.engine.constrained import ENDED, FORBIDDEN, Constraint, compile_pattern
from seal_jax.engine.sampler import Sampling, row_keys, sample
from seal_jax.io import tokenizer
from seal_jax.io.hub import find_model
from seal_jax.nn import lora, transformer
from seal_jax.types import PROJECTIONS

STOP = (0, 6)
PIECES = [None, b"a", b"b", b"ab", b"\xc3", b"\xa9", b"stop?", "é".encode(), b"", None, b"aba", b"c", b"a\xc3"]
GREEDY = Sampling(12, temperature=0)


def texts(vocabulary, stop, limit: int):
    """Every row of tokens that ends with a stop token within the limit, with its text."""
    ids = [token for token, piece in enumerate(vocabulary) if piece and token not in stop]
    for length in range(limit):
        for row in itertools.product(ids, repeat=length):
            yield row, b"".join(vocabulary[token] for token in row)


def accepts(constraint: Constraint, row) -> bool:
    """Whether the automaton lets the row be written and then end, with no limit of tokens."""
    table, state = np.asarray(constraint.next_state), int(constraint.start)
    for token in row:
        state = table[state, token]
        if state == FORBIDDEN:
            return False
    endings = {int(table[state, token]) for token in STOP}
    assert endings in ({ENDED}, {FORBIDDEN})  # all stop tokens or none
    return endings == {ENDED}


# ---------------------------------------------------------------------------------------------------------------------
# The automaton


PATTERNS = ["a|ab", "a*?", "(ab)*c?", "(a|ab)b", "[éa]+", "(é|b){2}", "[^a]", "a(ba|b)?é?", "(aba|ab)a"]


@pytest.mark.parametrize("expression", PATTERNS)
def test_it_accepts_what_matches_as_a_whole(expression):
    constraint = compile_pattern(expression, PIECES, STOP)
    found = set()
    for row, spelled in texts(PIECES, STOP, 5):
        text = spelled.decode("utf-8", "replace")
        matches = "\ufffd" not in text and re.fullmatch(expression, text) is not None
        assert accepts(constraint, row) == matches, (row, text)
        found |= {text} if matches else set()
    assert len(found) > 1
    adds_nothing = [token for token, piece in enumerate(PIECES) if not piece and token not in STOP]
    assert (constraint.next_state[ENDED + 1 :, adds_nothing] == FORBIDDEN).all()


@pytest.mark.parametrize("expression", PATTERNS)
def test_near_the_limit_it_allows_what_can_still_end(expression):
    constraint = compile_pattern(expression, PIECES, STOP)
    rows = [(*row, STOP[0]) for row, _ in texts(PIECES, STOP, 5) if accepts(constraint, row)]
    assert constraint.shortest() == min(map(len, rows))
    for limit in range(constraint.shortest(), 5):
        starts = {row[:n] for row in rows if len(row) <= limit for n in range(len(row))}
        for start in starts:
            state = constraint.start
            for token in start:
                state = constraint.after(state, token)
            expected = {row[len(start)] for row in rows if len(row) <= limit and row[: len(start)] == start}
            allowed = np.flatnonzero(constraint.allowed(state, jnp.asarray(limit - len(start))))
            assert set(allowed.tolist()) - {STOP[1]} == expected, (limit, start)


def test_a_limit_below_the_shortest_match_ends_amid_a_match():
    constraint = compile_pattern("aba{30}", PIECES, STOP)
    for left in (0, 1, 5):
        assert np.flatnonzero(constraint.allowed(constraint.start, jnp.asarray(left))).tolist() == [1, 3, 10]


def test_logits_without_a_token_are_forbidden():
    constraint = compile_pattern(".*", PIECES, STOP, vocab_size=20)
    assert constraint.next_state.shape[1] == 20
    assert (constraint.next_state[ENDED + 1 :, len(PIECES) :] == FORBIDDEN).all()


@pytest.mark.parametrize(
    ("expression", "stop", "said"),
    [
        ("a", (), r"stop tokens are \[\]; expected at least one, all in 0\.\.12"),
        ("a", (13,), r"stop tokens are \[13\]"),
        ("a(", (0,), r"no automaton can be made of the pattern 'a\('"),
        ("a(?=b)", (0,), "no automaton"),
        ("ad", (0,), r"of the pattern 'ad': .*missing tokens"),
        ("a*d", (0,), r"no text that matches 'a\*d' can be spelled"),
        ("[a" + "b" * 100, (0,), r"'\[ab{75}\.\.\.'"),
    ],
)
def test_what_cannot_be_written_is_refused(expression, stop, said):
    with pytest.raises(ValueError, match=said):
        compile_pattern(expression, PIECES, stop)


# ---------------------------------------------------------------------------------------------------------------------
# Decoding

WIDTH = 3
LIST = r"x[0-9]{1,3}(,x[0-9]{1,3})*;"
WORDS = [None, None, *(bytes([c]) for c in b"x0123456789,;yz"), b"x1", b"23", b",x", b"45,", b"9;", b"no", b";;"]
VOCABULARY = WORDS + [b"other"] * (61 - len(WORDS))


@pytest.fixture(scope="module")
def model(make_tiny):
    return make_tiny(tie_embeddings=False, num_layers=1)


@pytest.fixture(scope="module")
def listing():
    return compile_pattern(LIST, VOCABULARY, (1,))


def write(
    model, constraint, *, groups=8, k=4, sampling=GREEDY, limits=None, keys=None, adapter=None, prompts=None, **more
):
    """[E, K] continuations of one prompt a group."""
    prompts = np.arange(groups) if prompts is None else np.asarray(prompts)
    tokens = (prompts[:, None, None] * 7 + np.arange(WIDTH) * 3) % 61
    keys = row_keys(0, np.arange(groups)[:, None, None], np.arange(k)) if keys is None else keys
    limits = np.broadcast_to(sampling.max_tokens if limits is None else limits, (groups, 1, k))
    return sample(
        keys, model.model, model.params, adapter, tokens.astype(np.int32), np.ones(tokens.shape, bool), limits,
        sampling=sampling, stop=(1,), constraint=constraint, **more,
    )  # fmt: skip


def read_back(out) -> list[str]:
    rows = zip(out.tokens.reshape(-1, out.tokens.shape[-1]).tolist(), out.lengths.reshape(-1).tolist(), strict=True)
    return [b"".join(VOCABULARY[token] or b"?" for token in row[:length]).decode() for row, length in rows]


def adapters(model, count: int):
    def one(seed):
        fresh = lora.init(jax.random.key(seed), model.params["blocks"], PROJECTIONS, max_rank=2, rank=2, alpha=4)
        return fresh.replace(b=jax.tree.map(lambda b: 0.3 * jax.random.normal(jax.random.key(seed), b.shape), fresh.b))

    return lora.stack([one(seed) for seed in range(count)])


@pytest.mark.parametrize(
    "sampling", [GREEDY, Sampling(12, temperature=5.0), Sampling(12, temperature=0.8, top_p=0.5, top_k=3)], ids=str
)
def test_every_text_matches_and_ends_within_its_limit(model, listing, sampling):
    limits = np.arange(32).reshape(8, 1, 4) % 10 + 3
    assert listing.shortest() == 3  # x1, 9; and the stop token
    out = write(model, listing, sampling=sampling, limits=limits)
    assert out.stopped.all()
    assert (out.lengths < limits).all()
    found = read_back(out)
    assert [text for text in found if not re.fullmatch(LIST, text)] == []
    assert len(set(found)) > 8


def test_below_the_shortest_match_a_text_is_the_beginning_of_one(model, listing):
    out = write(model, listing, sampling=Sampling(12), limits=np.array([0, 1, 2, 2]))
    assert not out.stopped.any()
    assert out.lengths[0, 0].tolist() == [0, 1, 2, 2]
    endings = ["", ";", "1;", "x1;"]
    for text in read_back(out):
        assert any(re.fullmatch(LIST, text + ending) for ending in endings), text


def test_greedy_takes_the_likeliest_token_allowed(model, listing):
    out = write(model, listing, k=1, sampling=Sampling(30, temperature=0))
    for group in range(8):
        prompt = (group * 7 + np.arange(WIDTH) * 3) % 61
        row, state = [*prompt.tolist()], listing.start
        for n in range(int(out.lengths[group, 0, 0])):
            logits = model.logits(np.array([row + [0] * (WIDTH + 30 - len(row))]))[0, len(row) - 1]
            allowed = np.asarray(listing.allowed(state, jnp.asarray(30 - n)))
            row.append(int(np.where(allowed, logits, -np.inf).argmax()))
            state = listing.after(state, row[-1])
        assert out.tokens[group, 0, 0, : len(row) - WIDTH].tolist() == row[WIDTH:]


def test_draws_follow_the_distribution_over_what_is_allowed(model):
    """Chi-square of 2,000 draws of a digit: 9 degrees of freedom, p = 1e-4 at 33.7. Top-k counts the digits alone."""
    digits = compile_pattern("[0-9]", VOCABULARY, (1,))
    prompt = np.arange(WIDTH)[None] * 3
    logits = model.logits(prompt)[0, -1, 3:13].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum() * 2000
    drawn = write(model, digits, groups=1, k=2000, sampling=Sampling(2))
    found = np.bincount(np.asarray(drawn.tokens[..., 0]).reshape(-1), minlength=61)[3:13]
    assert found.sum() == 2000
    assert ((found - expected) ** 2 / expected).sum() < 33.7
    drawn = write(model, digits, groups=1, k=2000, sampling=Sampling(2, top_k=4))
    assert set(np.unique(drawn.tokens[..., 0]).tolist()) == set((np.argsort(-logits)[:4] + 3).tolist())


def test_a_constraint_that_forbids_nothing_changes_nothing(model):
    table = np.full((2, 61), 1, np.int16)
    table[ENDED], table[1, 1] = ENDED, ENDED
    nothing = Constraint(jnp.asarray(table), jnp.int32(1), jnp.asarray([1], jnp.int32))
    sampling = Sampling(12, temperature=0.9, top_k=40, top_p=0.95)
    free, bound = write(model, None, sampling=sampling), write(model, nothing, sampling=sampling)
    jax.tree.map(np.testing.assert_array_equal, free, bound)
    assert not any(re.fullmatch(LIST, text) for text in read_back(free))  # left free, this model keeps to no pattern


@pytest.mark.slow
def test_a_row_does_not_depend_on_its_neighbours_or_on_when_it_is_left_alone(model, listing, mesh):
    sampling, many = Sampling(16), adapters(model, 8)
    keys = row_keys(5, np.arange(8)[:, None, None], np.arange(2))
    together = write(model, listing, k=2, sampling=sampling, keys=keys, adapter=many)
    assert len(set(together.lengths.reshape(-1).tolist())) > 3  # so they do not end together
    split = write(model, listing, k=2, sampling=sampling, keys=keys, adapter=many, mesh=mesh)
    assert len(split.tokens.sharding.device_set) == 2
    jax.tree.map(np.testing.assert_array_equal, together, split)
    for e in range(8):
        alone = write(
            model, listing, groups=1, k=2, sampling=sampling, keys=keys[e : e + 1], prompts=[e],
            adapter=lora.stack([lora.take(many, e)]),
        )  # fmt: skip
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[e])


def test_a_constraint_of_another_vocabulary_is_refused(model):
    with pytest.raises(ValueError, match=r"knows 13 tokens and the model has logits for 61; .*vocab_size=61"):
        write(model, compile_pattern("b+", PIECES, (1,)))


# ---------------------------------------------------------------------------------------------------------------------
# Self-edits for ARC, spelled by the embedded model's tokenizer


@functools.cache
def smollm2():
    try:
        files = find_model("smollm2-135m")
    except OSError as error:
        pytest.skip(f"SmolLM2-135M is neither cached nor downloadable: {error}")
    loaded = tokenizer.load_tokenizer(files)
    return loaded, tokenizer.make_codec(loaded, files)


@pytest.mark.slow
def test_every_self_edit_of_a_random_model_parses():
    loaded, codec = smollm2()
    bounds, pieces = Bounds(learning_rate=(3e-5, 2e-3), epochs=(1, 12)), tokenizer.vocabulary(loaded)
    constraint = compile_pattern(pattern(bounds), pieces, codec.stop, vocab_size=len(pieces) + 64)
    assert constraint.next_state.shape[0] < 320
    assert constraint.shortest() <= 85
    shape = config(len(pieces) + 64, width=8, layers=1)
    prompts = np.full((1, 1, 4), 50, np.int32)
    out = sample(
        row_keys(0, np.arange(4)[None, None]), transformer.graph(shape), transformer.random_params(0, shape), None,
        prompts, prompts > 0, np.full((1, 1, 4), [85, 95, 100, 100]),
        sampling=Sampling(100, temperature=0.8), stop=codec.stop, constraint=constraint,
    )  # fmt: skip
    assert out.stopped.all()
    found = [
        codec.decode(row[:n]) for row, n in zip(out.tokens[0, 0].tolist(), out.lengths[0, 0].tolist(), strict=True)
    ]
    choices = [parse_choice(text, bounds) for text in found]
    assert all(isinstance(choice, Choice) for choice in choices), choices
    assert [to_json(choice) for choice in choices if isinstance(choice, Choice)] == found
    assert len(set(choices)) == 4
