from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xinf.core.device import Device, Vendor, check_selector, is_selected
from xinf.core.errors import InvalidRequest, StoreCorrupt
from xinf.core.ids import DeploymentName, ReplicaId, check_name, name_from_model, new_replica_id
from xinf.core.records import DeploymentRecord, EngineSpec, ReplicaRecord, decode_record, encode_record


def replica() -> ReplicaRecord:
    return ReplicaRecord(
        id=ReplicaId("qwen-abcde"), deployment=DeploymentName("qwen"), generation=3, spec=EngineSpec(model="m")
    )


def test_record_round_trip_keeps_everything() -> None:
    record = DeploymentRecord(
        name=DeploymentName("qwen"),
        spec=EngineSpec(
            model="Qwen/Qwen2.5-7B-Instruct", engine_args={"block-size": 32, "x": True, "r": 0.5, "s": "t"}
        ),
        replicas=3,
    )
    assert decode_record(encode_record(record), DeploymentRecord) == record


def test_decode_ignores_fields_of_a_newer_version() -> None:
    tree = msgspec.json.decode(encode_record(replica()))
    tree["of_the_future"] = {"a": 1}
    assert decode_record(msgspec.json.encode(tree), ReplicaRecord) == replica()


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"id": 3}'])
def test_decode_names_the_key_of_a_broken_record(data: bytes) -> None:
    with pytest.raises(StoreCorrupt, match="replicas/qwen-abcde"):
        decode_record(data, ReplicaRecord, key="replicas/qwen-abcde")


@given(st.text())
def test_name_from_model_is_always_a_valid_name(model: str) -> None:
    name = name_from_model(model)
    assert check_name(name, what="deployment") == name
    assert new_replica_id(name).startswith(name)


@pytest.mark.parametrize(
    ("model", "name"),
    [("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b-instruct"), ("/models/tiny/", "tiny"), ("///", "model"), ("A_B", "a-b")],
)
def test_name_from_model_reads_well(model: str, name: str) -> None:
    assert name_from_model(model) == name


@pytest.mark.parametrize("name", ["", "-a", "a/b", "A", "a" * 64, "a b", "a\n"])
def test_check_name_refuses(name: str) -> None:
    with pytest.raises(InvalidRequest):
        check_name(name, what="deployment")


@pytest.mark.parametrize("text", ["cpu", "cuda", "cuda:0", "cuda:0,cuda:1", "mps", "GPU-6ba7b810-9dad-11d1"])
def test_check_selector_takes(text: str) -> None:
    assert check_selector(text) == text


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("CUDA:0, cuda:1", "cuda:0,cuda:1"),
        ("Cpu", "cpu"),
        ("cpu ,GPU-6BA7b810-9dad-11d1", "cpu,GPU-6BA7b810-9dad-11d1"),
    ],
)
def test_check_selector_forgives_blanks_and_capitals_but_not_in_a_uuid(text: str, meant: str) -> None:
    assert check_selector(text) == meant


@pytest.mark.parametrize(("text", "remedy"), [("auto,cpu", "`auto` stands alone"), ("gpu", "`xinf devices` lists")])
def test_check_selector_says_what_to_do(text: str, remedy: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_selector(text)
    assert str(refused.value.remedy).startswith(remedy)


@pytest.mark.parametrize("text", ["", "gpu:0", "cuda:x", "cuda:", "cuda:0,", "tpu", f"cuda:{'9' * 5000}"])
def test_check_selector_refuses_with_the_known_kinds(text: str) -> None:
    with pytest.raises(InvalidRequest, match="cuda, rocm"):
        check_selector(text)


def test_is_selected_by_kind_index_and_uuid() -> None:
    device = Device(vendor=Vendor.NVIDIA, index=1, uuid="GPU-1", name="RTX 5090")
    assert [is_selected(device, s) for s in ("cuda", "cuda:1", "GPU-1", "cuda:0", "cpu", "GPU-2")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    assert device.selector == "cuda:1"


def test_is_selected_by_the_uuid_that_its_vendor_gives_it() -> None:
    device = Device(
        vendor=Vendor.CAMBRICON, index=0, uuid="MLU-0000-39-00.0", name="MLU590", extra={"uuid": "MLU-d4e5"}
    )
    assert [is_selected(device, s) for s in ("MLU-0000-39-00.0", "MLU-d4e5", "MLU-0000-3d-00.0")] == [True, True, False]


def test_uuid_of_a_card_selects_what_it_was_divided_into() -> None:
    card = "00000000-0000-0000-6769-df256e271362"
    tiles = [
        Device(vendor=Vendor.INTEL, index=number, uuid=f"{card}-t{number}", name="Max 1550", parent=card)
        for number in range(2)
    ]
    assert [is_selected(tile, card) for tile in tiles] == [True, True]
    assert [is_selected(tile, f"{card}-t1") for tile in tiles] == [False, True]
    assert not is_selected(tiles[0], card.replace("6769", "6760"))
