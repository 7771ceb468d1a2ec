"""The models of the experiment on residency: what their weights and templates say."""

from __future__ import annotations

import json
import math
import operator
import random
import struct
from array import array
from pathlib import Path
from typing import Any

import pytest

jinja2_sandbox = pytest.importorskip("jinja2.sandbox")

from benchmarks.exact import prose  # noqa: E402
from benchmarks.exact.checkpoint import RECIPES, Recipe, write_checkpoint  # noqa: E402
from benchmarks.exact.script import SPLIT, Group, Script, write_script  # noqa: E402

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": " Weather? "},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSunny."},
    {"role": "user", "content": "And now?"},
]
WEIGHTS = ("model.embed_tokens.weight", "lm_head.weight")
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]


def render(recipe: Recipe, messages: list[dict[str, Any]], **variables: Any) -> str:
    environment = jinja2_sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    given = {"bos_token": recipe.bos, "add_generation_prompt": True, "messages": messages, **variables}
    return str(environment.from_string(recipe.chat_template).render(**given))


@pytest.fixture(params=sorted(RECIPES))
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return RECIPES[request.param]


def answers(script: Script, seed: int, start: int) -> list[int]:
    """An answer as the weights make it: links, any follower of a group, and every second stop is the end."""
    rng = random.Random(seed)
    tokens: list[int] = []
    current = start
    while current != script.end and len(tokens) < 300:
        group = script.groups.get(current, Group.ORDINARY)
        if group is Group.STOP and current not in script.links and rng.random() < 0.5:
            current = script.end
        else:
            current = script.links[current] if current in script.links else rng.choice(script.followers[group])
        tokens.append(current)
    return tokens


def test_answers_end_and_differ(recipe: Recipe) -> None:
    script = write_script(recipe.style)
    start = script.vocabulary.id_of("\n\n")
    found = [answers(script, seed, start) for seed in range(200)]
    assert all(tokens[-1] == script.end for tokens in found)
    lengths = sorted(len(tokens) for tokens in found)
    assert lengths[0] >= 5
    assert lengths[-1] > 60
    assert len({tuple(tokens) for tokens in found}) > 100


def test_chains_are_of_tokens_that_their_text_is_made_into_again(recipe: Recipe) -> None:
    script = write_script(recipe.style)
    pieces = script.vocabulary.pieces()
    n_ids = len(script.vocabulary.ids)
    for token in {*script.links, *script.links.values()}:
        if token < n_ids:
            assert script.vocabulary.is_whole(pieces[token].decode())
    first, second = (script.vocabulary.id_of(text) for text in SPLIT)
    assert script.links[first] == second
    assert script.vocabulary.is_whole("".join(SPLIT))


def test_checkpoint_is_the_same_every_time(recipe: Recipe, tmp_path: Path) -> None:
    one, other = (write_checkpoint(recipe, tmp_path / name) for name in ("a", "b"))
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes()
    changed = one / "model.safetensors"
    before = changed.stat().st_mtime_ns
    write_checkpoint(recipe, tmp_path / "a")
    assert changed.stat().st_mtime_ns == before


def test_templates_have_their_habits() -> None:
    texts = {name: render(recipe, MESSAGES, tools=TOOLS) for name, recipe in RECIPES.items()}
    places = {
        name: (text.index("Be brief"), text.index("get_weather"), text.index("Weather?"))
        for name, text in texts.items()
    }
    assert {name for name, (system, tools, _) in places.items() if tools < system} == {"chatml"}
    assert all(max(system, tools) < user for system, tools, user in places.values())
    assert {name for name, text in texts.items() if " Weather? " not in text} == {"llama3"}
    assert {name for name, text in texts.items() if "hm" not in text} == {"qwen3"}
    silent = render(RECIPES["qwen3"], MESSAGES, tools=TOOLS, enable_thinking=False)
    assert silent == texts["qwen3"] + "<think>\n\n</think>\n\n"


def test_prose_is_of_the_size_and_the_scripts_that_were_asked_for() -> None:
    plain = prose.text(random.Random(1), 4000, is_foreign=False)
    foreign = prose.text(random.Random(1), 4000, is_foreign=True)
    assert plain.isascii()
    assert 3900 <= len(plain.encode()) <= 4000
    assert sum(not letter.isascii() for letter in foreign) > 400
    assert prose.text(random.Random(1), 4000, is_foreign=False) == plain


def test_weights_say_what_the_script_says(recipe: Recipe, tmp_path: Path) -> None:
    """The scores of `lm_head` over normed embeddings: what follows a token stands out, equally where that is meant."""
    script = write_script(recipe.style)
    embeddings, head = (tensor(write_checkpoint(recipe, tmp_path) / "model.safetensors", name) for name in WEIGHTS)
    rows = {token: row for token, row in enumerate(head) if any(row)}
    links = random.Random(1).sample(sorted(script.links), 30)
    checked = [*links, *script.groups, script.vocabulary.id_of("\n\n"), script.vocabulary.id_of(" the")]
    for token in checked:
        scores = {follower: 16 * dot(row, embeddings[token]) for follower, row in rows.items()}
        group = script.groups.get(token, Group.ORDINARY)
        expected = {script.links[token]} if token in script.links else set(script.followers[group])
        least = min(scores[follower] for follower in expected)
        others = max(score for follower, score in scores.items() if follower not in expected)
        assert least > 24
        assert others < least - 14
        equal = {scores[follower] for follower in expected - {script.end}}
        assert len(equal) <= 1


def tensor(path: Path, name: str) -> list[tuple[float, ...]]:
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    described = json.loads(content[8 : 8 + length])[name]
    start, end = described["data_offsets"]
    width = described["shape"][1]
    halves = array("H", content[8 + length + start : 8 + length + end])
    widened = array("I", (half << 16 for half in halves)).tobytes()
    return list(struct.iter_unpack(f"<{width}f", widened))


def dot(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return math.fsum(map(operator.mul, one, other))
