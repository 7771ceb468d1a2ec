"""From what was typed to the spec of a model: which files, under which names."""

from __future__ import annotations

from pathlib import Path

import pytest

from xinf.cli.wish import choose_name, make_spec
from xinf.core.config import load
from xinf.core.errors import InvalidRequest
from xinf.core.records import EngineSpec


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "XINF_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def spec(
    model: str,
    *engine_args: str,
    engine: str = "vllm",
    dtype: str = "auto",
    quantization: str | None = None,
    served_names: tuple[str, ...] = (),
) -> EngineSpec:
    return make_spec(
        load(environ={}),
        model=model,
        engine=engine,
        name=choose_name("m", model),
        served_names=served_names,
        device="auto",
        dtype=dtype,
        quantization=quantization,
        tensor_parallel_size=1,
        max_model_len=None,
        trust_remote_code=False,
        engine_args=engine_args,
        env=(),
    )


@pytest.mark.parametrize(("typed", "model", "revision", "names"), [
    ("Org/Name", "Org/Name", None, ("m", "Org/Name")),
    ("hf://Org/Name", "Org/Name", None, ("m",)),
    ("Org/Name@v1", "Org/Name", "v1", ("m",)),
    ("modelscope://Org/Name@v1", "modelscope://Org/Name", "v1", ("m",)),
])  # fmt: skip
def test_model_of_a_hub_stays_a_reference(typed: str, model: str, revision: str | None, names: tuple[str, ...]) -> None:
    made = spec(typed)
    assert (made.model, made.revision, made.commit, made.served_names) == (model, revision, None, names)


def test_revision_that_the_engine_would_take_is_the_models(tmp_path: Path) -> None:
    made = spec("Org/Name", "revision=v2", "max_num_seqs=4")
    assert (made.revision, made.engine_args) == ("v2", {"max_num_seqs": 4})
    assert spec("Org/Name@v1", "revision=v2").revision == "v1"
    (tmp_path / "config.json").write_text('{"architectures": ["X"]}')
    local = spec(str(tmp_path), "revision=v2")
    assert (local.model, local.revision, local.engine_args) == (str(tmp_path), None, {"revision": "v2"})


def test_number_of_devices_that_the_engine_would_take_is_what_is_looked_for() -> None:
    made = spec("Org/Name", "tensor-parallel-size=2", "max_num_seqs=4")
    assert (made.tensor_parallel_size, made.engine_args) == (2, {"max_num_seqs": 4})
    for wrong in ("0", "two", "1.5", "True"):
        with pytest.raises(InvalidRequest, match=f"tensor_parallel_size={wrong} is no number of devices"):
            spec("Org/Name", f"tensor_parallel_size={wrong}")


def test_simulated_engine_takes_any_name() -> None:
    made = spec("whatever you like", engine="sim")
    assert (made.model, made.revision, made.files) == ("whatever you like", None, "whatever you like")


@pytest.mark.parametrize("dtype", ["fp8", "zork", "", "int8"])
def test_type_that_nothing_is_computed_in_is_refused(dtype: str) -> None:
    with pytest.raises(InvalidRequest, match="no type that an engine computes in"):
        spec("Org/Name", dtype=dtype)
    assert spec("anything", engine="sim", dtype=dtype).dtype == dtype


def test_type_may_be_written_in_capitals() -> None:
    assert spec("Org/Name", dtype="BF16").dtype == "bf16"


@pytest.mark.parametrize("name", ["", " ", " m", "a\nb"])
def test_name_that_no_client_could_ask_for_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="no name that a client could ask for"):
        spec("Org/Name", served_names=(name,))


def test_quantization_is_refused_before_anything_is_written() -> None:
    with pytest.raises(InvalidRequest, match="'zork' is no method that vllm is known to have"):
        spec("Org/Name", quantization="zork")


def test_quantization_of_a_plugin_is_passed_on_by_hand() -> None:
    made = spec("Org/Name", "quantization=zork")
    assert (made.quantization, made.engine_args) == (None, {"quantization": "zork"})


def test_quantization_is_written_as_the_engine_compares_it() -> None:
    assert spec("Org/Name", quantization="FP8").quantization == "fp8"


def test_the_simulated_engine_takes_any_quantization() -> None:
    assert spec("any", engine="sim", quantization="zork").quantization == "zork"


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [
        ("host=0.0.0.0", "leave it out: clients reach the gateway, not the engine"),
        ("--api_key=x", "make keys with `xinf key create`"),
        ("served-model-name=m", "use --served-name"),
    ],
)
def test_engine_argument_that_is_not_the_users_is_refused_at_once(argument: str, remedy: str) -> None:
    with pytest.raises(InvalidRequest, match="is set by xinf itself") as refused:
        spec("Org/Name", argument)
    assert refused.value.remedy == remedy
    assert "seed" in spec("Org/Name", "seed=1").engine_args
