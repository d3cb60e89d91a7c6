"""Voices from outside: kept, used, deleted; refused where they are none."""

from __future__ import annotations

import io
import pickle
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from support.bark_models import SUNO, build
from support.servers import running
from support.waiting import LIMIT_S

from bark_accel import small_bark_path
from bark_accel.server import catalogue_routes
from bark_accel.server import voices as voices_of_clients
from bark_accel.server.app import create_app
from bark_accel.server.settings import ModelSpec, Settings
from bark_accel.server.voices import UploadedVoices, read_voice

VOICE = (small_bark_path() / "speaker_embeddings" / "rms.npz").read_bytes()
BODY = {"model": "tts-1", "input": "Good morning", "response_format": "pcm", "seed": 1}


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


def upload(client, content: bytes, name: str = "mine", **form):
    return client.post("/v1/audio/voices", data={"name": name, **form}, files={"file": ("v.npz", content)})


def ids(client) -> list[str]:
    return [voice["id"] for voice in client.get("/v1/audio/voices").json()["voices"]]


def test_a_voice_comes_speaks_and_goes(client):
    assert upload(client, VOICE).status_code == 201 and "mine" in ids(client)
    said = {
        v: client.post("/v1/audio/speech", json={**BODY, "voice": v}).content for v in ("mine", "rms", "slt", "echo")
    }
    assert said["mine"] == said["rms"] == said["echo"] != said["slt"]
    assert upload(client, VOICE).status_code == 409
    assert client.delete("/v1/audio/voices/mine").json()["deleted"] and "mine" not in ids(client)
    assert client.delete("/v1/audio/voices/mine").status_code == 404
    assert client.post("/v1/audio/speech", json={**BODY, "voice": "mine"}).status_code == 400


def test_a_voice_is_listed_for_models_of_its_kind(tmp_path):
    """The small Bark's codes and offsets are not suno's."""
    build(SUNO, width=32, layers=1, heads=2).save_pretrained(tmp_path)
    models = (ModelSpec("small-bark"), ModelSpec("other", str(tmp_path)))
    with running(Settings(models=models)) as server, server.client() as client:
        wide = codes(semantic_prompt=np.arange(9_000, 9_020), fine_prompt=np.zeros((8, 40), int))
        assert upload(client, packed(**wide), "wide", model="other").status_code == 201
        assert upload(client, VOICE, "narrow").status_code == 201

        def listed(model: str) -> set[str]:
            voices = client.get("/v1/audio/voices", params={"model": model}).json()["voices"]
            return {voice["id"] for voice in voices if voice["kind"] == "uploaded"}

        assert (listed("small-bark"), listed("other")) == ({"narrow"}, {"wide"})
        said = client.post("/v1/audio/speech", json={**BODY, "voice": "wide"})
        assert said.status_code == 400 and said.json()["error"]["code"] == "invalid_voice"


@pytest.mark.parametrize("name", ["", "..", "../up", "a/b", "a" * 65, ".hidden", "ä", "x\n", "slt", "alloy"])
def test_names_that_cannot_be(client, name):
    assert upload(client, VOICE, name).status_code in (400, 409)


def test_voices_of_the_model_stay(client):
    for name in ("slt", "alloy", "..%2Fslt", "%2e%2e"):
        assert client.delete(f"/v1/audio/voices/{name}").status_code in (404, 405)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def packed(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def codes(**changed) -> dict:
    return {
        "semantic_prompt": np.arange(20),
        "coarse_prompt": np.zeros((2, 40), int),
        "fine_prompt": np.zeros((6, 40), int),
        **changed,
    }


def bomb() -> bytes:
    """A gigabyte of zeros in few bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("semantic_prompt.npy", "w") as part:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (1 << 27,)})
        part.write(header.getvalue() + bytes(1 << 20))
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        pickle.dumps(Trap()),
        packed(**codes(semantic_prompt=np.array([Trap()], dtype=object))),
        packed(semantic_prompt=np.arange(20)),
        packed(**codes(semantic_prompt=np.array([9999]))),
        packed(**codes(fine_prompt=np.zeros((8, 40), int))),
        packed(**codes(coarse_prompt=np.full((2, 40), np.nan))),
        VOICE[: len(VOICE) // 2],
        bomb(),
    ],
    ids=["empty", "text", "pickle", "objects", "missing", "codes", "codebooks", "nan", "cut", "bomb"],
)
def test_files_that_are_no_voice(client, content):
    answer = upload(client, content)
    assert answer.status_code == 400 and answer.json()["error"]["message"], answer.text
    assert "/tmp" not in answer.text and "mine" not in ids(client)


def test_files_that_are_too_large(client):
    assert upload(client, bytes(1 << 20)).status_code == 413


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(VOICE) - 1), put=st.binary(min_size=1, max_size=8))
def test_damaged_files(client, place, put):
    content = VOICE[:place] + put + VOICE[place + len(put) :]
    answer = upload(client, content, "damaged")
    assert answer.status_code in (201, 400), answer.text
    if answer.status_code == 201:
        client.delete("/v1/audio/voices/damaged")


def test_only_one_of_two_at_once_gets_a_name(client, monkeypatch):
    both = threading.Barrier(2)
    together = lambda content: both.wait(LIMIT_S) is None or read_voice(content)  # noqa: E731
    monkeypatch.setattr(catalogue_routes, "read_voice", together)
    with ThreadPoolExecutor(2) as pool:
        statuses = [answer.status_code for answer in pool.map(lambda _: upload(client, VOICE, "wanted"), range(2))]
    client.delete("/v1/audio/voices/wanted")
    assert sorted(statuses) == [201, 409]


def test_a_voice_that_is_deleted_while_it_is_read(tmp_path, monkeypatch):
    voices = UploadedVoices(tmp_path)
    voices.add("mine", read_voice(VOICE))
    has = [True, False]
    monkeypatch.setattr(voices, "_has", lambda name: has.pop(0))
    (tmp_path / "mine.npz").unlink()
    assert voices.get("mine") is None


def test_voices_of_a_folder_stay(tmp_path):
    for expected in (201, 409):
        with running(Settings(voices_dir=tmp_path)) as server, server.client() as client:
            assert upload(client, VOICE).status_code == expected


def test_a_damaged_voice_is_not_listed(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(voices_of_clients.logger, "warning", lambda *words: said.append(words))
    (tmp_path / "damaged.npz").write_bytes(b"no archive")
    (tmp_path / "good.npz").write_bytes(VOICE)
    voices = UploadedVoices(tmp_path)
    assert voices.names() == ["damaged", "good"] and voices.fitting(lambda preset: True) == ["good"]
    assert [words[1] for words in said] == ["damaged"]


schema = schemathesis.openapi.from_dict(create_app(Settings()).openapi())


@schema.parametrize()
@settings(max_examples=12, suppress_health_check=[*HealthCheck])
def test_no_request_makes_it_fail(server, case):
    case.call_and_validate(base_url=server.url, checks=[not_a_server_error], timeout=LIMIT_S)
