"""Request bodies for fuzzing: interesting ones as a table, generated ones, and the ways to damage them."""

from __future__ import annotations

import random
from collections.abc import Callable

import orjson

from tests.fast.json_cases import ACCEPTED, LEFT_OPEN, REJECTED
from tests.fast.json_suite import SUITE
from tests.model.requests import random_request, random_value, write, write_escaped

# Bodies that once mattered, or that stand at an edge of the code: blocks of 16 bytes in strings, chunks of 64 in texts,
# caps of the tables, lengths of buffers for escaped keys, words across escapes.
CORPUS: list[bytes] = [
    *(case for case in (ACCEPTED | REJECTED | LEFT_OPEN | SUITE).values() if len(case) < 3000),
    b'{"messages":[{"role":"user","content":"' + b"x" * 63 + b'\\u00e9"}]}',
    b'{"messages":[{"role":"user","content":"' + b"x" * 62 + b'\\ud83d\\ude00"}]}',
    b'{"messages":[{"role":"user","content":[{"type":"text","text":"a"},"b",{"type":"image_url","image_url":{}}]}]}',
    b'{"messages":[{"role":"user","content":7,"content":[null,{"text":{}}]},[],{"content":null}]}',
    b'{"messages":[{"content":["a"],"content":["b"],"content":"c"}],"messages":[],"messages":[{}]}',
    b'{"messages":0,"input":[{"role":"user","content":"x"}],"messages":[{}],"input":"y"}',
    b'{"input":[{"role":"user"}],"input":[1,2],"prompt":[[1],[2,3],[]]}',
    b'{"prompt":["a",["b"],3,null],"input":[[[[]]]]}',
    b'{"prompt":[[0,4294967295,4294967296,-1,-0,1.0,1e1,99999999999]]}',
    b'{"tools":[ ],"tool_choice":{"a":[ "\\\\", " " ]},"messages":[{}]}',
    b'{"tools":[{"a":"' + b"\\\\" * 40 + b'"}],"messages":[{"role":"\\u0073ystem"},{"role":"us\\u0065r"}]}',
    b'{"' + b"\\u0061" * 33 + b'":1,"\\u006dodel":"\\ud83d\\ude00","cont\\u00e9nt":0}',
    b'{"max_tokens":9223372036854775807,"n":-9223372036854775808,"max_output_tokens":-0,"max_completion_tokens":1E0}',
    b'{"user":"","session_id":"\\u0000","cache_salt":"\\ud800\\udc00","model":"\xf0\x9f\x98\x80"}',
    b'{"messages":[{"role":"' + b"long" * 1100 + b'"},{"role":"user","\\n":"' + b"x" * 4200 + b'"}]}',
    b'{"a":' * 255 + b"0" + b"}" * 255,
    b"[" * 1023 + b'{"a":1e309}' + b"]" * 1023,
    b'["' + b"a" * 15 + b'"]',
    b'["' + b"a" * 14 + b"\x1f" + b'"]',
    b'["' + b"a" * 16 + b"\\",
    b'["\xe2\x82',
    b'["\\ud83d\\u',
    b"-",
    b"1e",
    b"tru",
    b'{"stream":tru\x00e}',
    b"17976931348623157" + b"9" * 292,
    b"0." + b"0" * 400 + b"1e710",
]

# What parsers trip over, and the words of requests.
SNIPPETS: list[bytes] = [
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"0", b"-", b"-0", b"00", b".", b"e", b"E+", b" ", b"\n", b"\t",
    b"\x00", b"\x1f", b"\x7f", b"\\u", b"\\ud83d", b"\\ude00", b"\\u0000", b"\\n", b"\\/", b'\\"', b"true", b"false",
    b"null", b"NaN", b"1e308", b"1e309", b"1.7976931348623158e308", b"1.7976931348623159e308", b"1e-400",
    b"9223372036854775807", b"9223372036854775808", b"4294967296", b"\xc3\xa9", b"\xe2\x82\xac", b"\xf0\x9f\x98\x80",
    b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf", b"\xff", b"[[[[", b"]]]]", b'{"a":{"a":',
    b'"a":', b'{"a":1}', b"{}", b"[]", b'"model":', b'"messages":[', b'"role":', b'"role":"user",', b'"content":',
    b'"content":[', b'"text":"x"', b'{"type":"text","text":"x"}', b'"prompt":[', b'"prompt":[[1,2]]', b'"input":[{',
    b'"tools":[]', b'"stream":true', b'"max_tokens":1', b'"cache_salt":"', b'"m\\u006fdel":"x"', b'"user":"u"',
    b'"chat_template":', b'"add_generation_prompt":false', b'"instructions":"',
]  # fmt: skip


def random_body(rng: random.Random) -> bytes:
    """Mostly damaged requests, some whole ones, some that are no JSON at all."""
    pick = rng.random()
    if pick < 0.07:
        return rng.randbytes(rng.randrange(200))
    if pick < 0.14:
        return b"".join(rng.choice(SNIPPETS) for _ in range(rng.randrange(60)))
    body = rng.choice(CORPUS) if pick < 0.3 else valid_body(rng)
    if pick > 0.9:
        return body
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        body = rng.choice(MUTATIONS)(body, rng)[:100_000]
    return body


def valid_body(rng: random.Random) -> bytes:
    pick = rng.random()
    if pick < 0.1:
        return orjson.dumps(random_value(rng, 6))
    request = random_request(rng)
    if pick < 0.2:
        text = rng.choice(["x", "é", "漢", "😀", '"', "\\", "\n", "\x01"]) * rng.randrange(5000)
        request["messages"] = [{"role": "user", "content": text}]
    elif pick < 0.3:
        for key in rng.sample(list(request), min(len(request), 2)):
            request[key] = random_value(rng)  # of any type
    return rng.choice([write, write_escaped])(request, rng)


def insert_snippet(body: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(body) + 1)
    return body[:at] + rng.choice(SNIPPETS) + body[at + rng.choice([0, 0, 1, 3]) :]


def cut_end(body: bytes, rng: random.Random) -> bytes:
    return body[: rng.randrange(len(body) + 1)]


def cut_out(body: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(body) + 1)
    return body[:at] + body[at + rng.randrange(1, 30) :]


def flip_bit(body: bytes, rng: random.Random) -> bytes:
    if not body:
        return body
    at = rng.randrange(len(body))
    return body[:at] + bytes([body[at] ^ 1 << rng.randrange(8)]) + body[at + 1 :]


def repeat_piece(body: bytes, rng: random.Random) -> bytes:
    """Copies of a piece in its place: long strings, deep nesting, many items."""
    at, n = rng.randrange(len(body) + 1), rng.choice([1, 1, 2, 8, 40])
    return body[:at] + body[at : at + n] * rng.choice([2, 3, 17, 300]) + body[at:]


def move_piece(body: bytes, rng: random.Random) -> bytes:
    at, source = rng.randrange(len(body) + 1), rng.randrange(len(body) + 1)
    return body[:at] + body[source : source + rng.randrange(60)] + body[at:]


def repeat_key(body: bytes, rng: random.Random) -> bytes:
    """A second value for some field, before or behind the others."""
    field = rng.choice([b"model", b"messages", b"prompt", b"input", b"tools", b"role", b"content", b"text", b"n"])
    member = b'"%b":%b' % (field, orjson.dumps(random_value(rng, 2)))
    at = body.find(rng.choice([b"{", b"}", b",", b'"']), rng.randrange(len(body) + 1))
    if at < 0:
        return body
    return (
        body[: at + 1] + member + b"," + body[at + 1 :]
        if body[at] != ord("}")
        else body[:at] + b"," + member + body[at:]
    )


def nest(body: bytes, rng: random.Random) -> bytes:
    depth = rng.choice([1, 2, 7, 64, 255, 256, 1023, 1024])
    opener, closer = rng.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'{"messages":[', b"]}"), (b'[1,{"":', b"}]")])
    return opener * depth + body + closer * depth


def join_two(body: bytes, rng: random.Random) -> bytes:
    other = valid_body(rng)
    return body[: rng.randrange(len(body) + 1)] + other[rng.randrange(len(other) + 1) :]


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    insert_snippet, insert_snippet, insert_snippet, cut_end, cut_out, flip_bit, repeat_piece, move_piece, repeat_key,
    repeat_key, nest, join_two,
]  # fmt: skip
