"""The search server's API: what is found, what is served, what changes."""

import io
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vizsla import SearchClient
from vizsla.data.images import read_image
from vizsla.errors import DataError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.search.index import open_index
from vizsla.search.index_files import rewrite
from vizsla.web.search import engine as searching
from vizsla.web.search.gallery import Gallery

Open = Callable[..., Any]
CHANGE = "the-token-for-changes"
AUTH = {"Authorization": f"Bearer {CHANGE}"}


# ── searching ────────────────────────────────────────────────────────────────────────────────────


def test_a_picture_finds_itself_first(served: Any) -> None:
    for name in ("red/red-1.png", "a & <b>/a-3.png"):
        answer = served.post(image=name, data={"k": 5}).json()
        first = answer["results"][0]
        assert (first["id"], first["label"]) == (name, name.partition("/")[0])
        assert first["score"] == pytest.approx(1, abs=1e-6)
        scores = [one["score"] for one in answer["results"]]
        assert scores == sorted(scores, reverse=True) and len(scores) == 5
        assert served.get("/v1/" + first["image"]).content == served.bytes_of(name)
        assert answer["gallery"] == 24 and answer["model_id"] == served.engine.model.model_id
        (kept,) = answer["queries"]  # the same again, by its name
        assert served.search(json={"query": kept, "k": 5}) == [o["id"] for o in answer["results"]]


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_every_runtime_gives_the_vectors_of_the_gallery(open_search: Open, runtime: str) -> None:
    served = open_search(runtime=runtime)
    gallery = served.engine.gallery
    for row, name in enumerate(gallery.ids):
        (found,) = served.post("/v1/embed", image=name).json()["embeddings"]
        assert np.allclose(found["vector"], gallery.index.vectors(np.array([row]))[0], atol=1e-5)
        assert served.search(image=name, data={"k": 3}) == served.search(json={"id": name, "k": 3})
    assert served.engine.model.network.compute.runtime == runtime  # and did not fall back to torch


def test_all_ways_to_send_a_search_give_the_same_results(served: Any) -> None:
    name = "green/green-2.png"
    wanted = served.search(image=name, data={"k": "4"})
    data = served.bytes_of(name)
    assert served.search(json={"id": name, "k": 4}) == wanted
    assert served.search(json={"id": [name], "k": "4"}) == wanted
    assert served.search(data={"id": name, "k": "4"}) == wanted
    assert served.search(params={"id": name, "k": 4}) == wanted
    body = {"content": data, "headers": {"content-type": "image/png"}, "params": {"k": 4}}
    assert served.search(**body) == wanted


def test_answers_are_those_of_the_index(served: Any) -> None:
    gallery = served.engine.gallery
    for row, name in enumerate(gallery.ids):
        vector = gallery.index.vectors(np.array([row]))
        ranking = gallery.index.search(vector, 7, model_id=gallery.index.model_id)
        answer = served.post(json={"id": name, "k": 7}).json()["results"]
        assert [one["id"] for one in answer] == ranking.row(0)
        assert [one["score"] for one in answer] == ranking.scores[0].tolist()


def test_filters_hold(served: Any) -> None:
    found = served.post(json={"id": "red/red-0.png", "k": 50, "filter": ["domain=photo"]}).json()
    assert len(found["results"]) == 12
    assert {one["attributes"]["domain"] for one in found["results"]} == {"photo"}
    both = ["domain=photo", "label=red|blue", "price>3"]
    for one in served.post(json={"id": "red/red-0.png", "filter": both}).json()["results"]:
        assert one["label"] in ("red", "blue") and one["attributes"]["price"] > 3
    unknown = served.search(json={"id": "red/red-0.png", "filter": "price=null"})
    assert len(unknown) == 5
    assert served.search(json={"id": "red/red-0.png", "filter": 'label="a & <b>"', "k": 2})
    nothing = served.post(json={"id": "red/red-0.png", "filter": "label=blew"}).json()
    assert nothing["results"] == []
    assert nothing["hints"][0].startswith("no image has label=blew; nearest values: blue, ")
    page = served.get("/", params={"id": "red/red-0.png", "filter": "label=blew"}).text
    assert "No image has label=blew; nearest values: blue, " in page


def test_a_part_of_an_image_is_searched_with(served: Any) -> None:
    both = Image.new("RGB", (160, 60))
    for left, name in ((0, "red/red-2.png"), (80, "blue/blue-3.png")):
        both.paste(Image.open(io.BytesIO(served.bytes_of(name))), (left, 0))
    file = io.BytesIO()
    both.save(file, "PNG")
    sent = served.post(image=file.getvalue(), data={"k": 3, "box": "80,0,80,60"}).json()
    first = sent["results"][0]
    assert first["id"] == "blue/blue-3.png" and first["score"] == pytest.approx(1, abs=1e-6)
    left = served.post(image=file.getvalue(), data={"k": 3, "box": "0,0,0.5,1"}).json()
    assert left["results"][0]["id"] == "red/red-2.png"
    (kept,) = sent["queries"]  # by its name, of a JPEG
    for box in ("80,0,80,60", [0.5, 0, 0.5, 1]):
        found = served.search(json={"query": kept, "k": 3, "box": box})
        assert found[0] == "blue/blue-3.png"
    assert served.search(json={"query": kept, "k": 3}) != found


def test_a_part_of_a_kept_upload_is_cut_out_of_its_file(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(3).integers(0, 255, (600, 1600, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    box = {"k": 24, "box": "1500,500,40,40"}
    wanted = served.post(image=file.getvalue(), data=box).json()["results"]
    (kept,) = served.post(image=file.getvalue()).json()["queries"]
    found = served.post(json={"query": kept, **box}).json()["results"]
    assert [(one["id"], one["score"]) for one in found] == [
        (one["id"], one["score"]) for one in wanted
    ]
    monkeypatch.setattr(searching, "MAX_FILE_BYTES", 100)
    other = file.getvalue() + b" "  # too large to be kept: the part is that of its JPEG
    (kept,) = served.post(image=other).json()["queries"]
    assert served.post(json={"query": kept, **box}).json()["results"] != wanted


def test_a_part_of_a_gallery_image_is_cut_out_of_its_file(served: Any) -> None:
    name, box = "green/green-1.png", (10, 5, 40, 30)
    part = Image.open(io.BytesIO(served.bytes_of(name))).crop((10, 5, 50, 35))
    file = io.BytesIO()
    part.save(file, "PNG")
    wanted = served.post(image=file.getvalue(), data={"k": 24}).json()["results"]
    found = served.post(json={"id": name, "box": box, "k": 24}).json()["results"]
    assert found == wanted and found != served.post(json={"id": name, "k": 24}).json()["results"]


def test_negative_examples_and_marks_change_the_results(served: Any) -> None:
    mixed = {"id": ["red/red-0.png", "blue/blue-0.png"], "k": 12}
    plain = served.search(json=mixed)
    assert {name.partition("/")[0] for name in plain} >= {"red", "blue"}
    without = served.search(json={**mixed, "not_id": "blue/blue-1.png"})
    assert without[:3] != plain[:3] and all(name.startswith("red") for name in without[:3])
    marks = {"right": ["red/red-1.png", "red/red-2.png"], "wrong": ["blue/blue-1.png"]}
    marked = served.search(json={**mixed, **marks})
    assert [name.partition("/")[0] for name in marked[:4]] == ["red"] * 4


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 422, "nothing to search with"),
        ({"k": 0, "id": "red/red-0.png"}, 422, "greater than or equal to 1"),
        ({"k": 201, "id": "red/red-0.png"}, 422, "from 1 to 200"),
        ({"id": "no-such.png"}, 404, "no image 'no-such.png'"),
        ({"query": "0" * 32}, 404, "no longer kept"),
        ({"text": "a dog"}, 422, "colours does not read text"),
        ({"id": "red/red-0.png", "filter": "colour=red"}, 422, "no attribute 'colour'"),
        ({"id": "red/red-0.png", "filter": "nonsense"}, 422, "not a condition"),
        ({"id": "red/red-0.png", "filter": "price<cheap"}, 422, "price"),
        ({"id": "red/red-0.png", "filter": "id=@/etc/passwd"}, 422, "not by id"),
        ({"id": "red/red-0.png", "filter": " ID =@/etc/passwd"}, 422, "not by id"),
        ({"url": "http://169.254.169.254/"}, 422, "'url' is not a field"),
        ([1], 422, "expected an object"),
        ({"id": "red/red-0.png", "box": "1,2,3"}, 422, "^box '1,2,3': expected left, top"),
        ({"id": "red/red-0.png", "box": "0,0,90,5"}, 422, "^box 0,0,90,5 reaches beyond"),
        ({"id": "red/red-0.png", "query_tiles": "9x9"}, 422, "^query_tiles='9x9': choose from 1"),
        ({"id": ["red/red-0.png", "red/red-1.png"], "box": "0,0,9,5"}, 422, "but there are 2"),
        ({"text": "a dog", "box": "0,0,9,5"}, 422, "but there are 0"),
    ],
)
def test_bad_searches_get_one_sentence(served: Any, body: Any, status: int, message: str) -> None:
    answer = served.post(json=body)
    error = answer.json()["error"]
    assert answer.status_code == status and message in f"^{error}"  # ^: its beginning
    assert "\n" not in error and "Traceback" not in answer.text


def test_concurrent_clients_share_batches_and_get_their_own_results(served: Any) -> None:
    names = served.ids()
    wrong: list[str] = []

    def ask(name: str) -> None:
        if served.search(image=name, data={"k": 1}) != [name]:
            wrong.append(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in names * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    text = served.get("/metrics").text
    assert 'vizsla_requests_total{route="search",status="200"} 72.0' in text
    assert "vizsla_batch_size_bucket" in text and "vizsla_gallery_images 24.0" in text


# ── words ────────────────────────────────────────────────────────────────────────────────────────


def test_text_results_match_the_model(open_search: Open, tiny_clip: str) -> None:
    served = open_search(Embedder.build(tiny_clip, weights="random"))
    embedder, gallery = served.engine.model.embedder, served.engine.gallery
    words = embedder.encode_text(["a dog", "a cat"]).detach().numpy()
    scores = gallery.index.vectors() @ words[0]
    wanted = [gallery.ids[i] for i in np.argsort(-scores)]
    assert served.search(json={"text": " a  dog", "k": 24}) == wanted
    image = gallery.vector("red/red-0.png")
    both = served.search(json={"text": "a dog", "id": "red/red-0.png", "text_weight": 2, "k": 24})
    parts = [(gallery.index.vectors() @ vector, w) for vector, w in ((words[0], 2), (image, 1))]
    mixed = sum(w * (s - s.mean()) / s.std() for s, w in parts)
    assert both == [gallery.ids[i] for i in np.argsort(-mixed)]
    found = served.post("/v1/embed", json={"text": ["a dog", "a cat"]}).json()["embeddings"]
    assert np.allclose([one["vector"] for one in found], words, atol=1e-5)


# ── embed, images ────────────────────────────────────────────────────────────────────────────────


def test_embed_returns_the_vectors_of_the_gallery(served: Any) -> None:
    files = [("image", ("a", served.bytes_of(name))) for name in served.ids()[:3]]
    answer = served.client.post("/v1/embed", files=files).json()
    vectors = np.array([one["vector"] for one in answer["embeddings"]])
    assert np.allclose(vectors, served.engine.gallery.index.vectors(slice(0, 3)), atol=1e-6)
    assert answer["dim"] == 13
    for body in ({"json": {}}, {"json": {"text": [""]}}, {"json": {"text": ["a"] * 21}}):
        assert served.post("/v1/embed", **body).status_code == 422


def test_thumbs_are_small_cached_and_tagged(served: Any) -> None:
    path = "/v1/images/red/red-0.png/thumb"
    first = served.get(path)
    picture = Image.open(io.BytesIO(first.content))
    assert first.headers["content-type"] == "image/jpeg" and picture.size == (80, 60)
    (kept,) = served.engine.thumbnails.folder.iterdir()
    assert kept.read_bytes() == first.content
    kept.write_bytes(first.content[:-5])  # cut short: made again
    assert served.get(path).content == first.content
    tag = first.headers["etag"]
    again = served.get(path, headers={"If-None-Match": f'"other", W/{tag}'})
    assert again.status_code == 304 and again.content == b"" and again.headers["etag"] == tag
    assert served.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    assert served.get(path, params={"size": "large"}).headers["etag"] != tag
    assert served.get(path, params={"size": "../.."}).status_code == 422


def test_originals_are_served_with_their_media_type(open_search: Open, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    (folder / "a").mkdir(parents=True)
    for i, kind in enumerate(("png", "jpeg", "webp", "gif", "tiff", "bmp")):
        picture = Image.new("RGB", (20, 30), (40 * i, 250 - 40 * i, 99))
        picture.save(folder / "a" / f"{kind}.jpg", kind)  # the name says what it likes
    served = open_search(folder=folder)
    for kind in ("png", "jpeg", "webp", "gif"):
        answer = served.get(f"/v1/images/a/{kind}.jpg")
        assert answer.headers["content-type"] == f"image/{kind}"
        assert answer.content == served.bytes_of(f"a/{kind}.jpg")
    for kind in ("tiff", "bmp"):  # which browsers do not all show
        answer = served.get(f"/v1/images/a/{kind}.jpg")
        assert answer.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(answer.content)).size == (20, 30)
    (folder / "a" / "png.jpg").write_text("<script>alert(1)</script>")
    assert served.get("/v1/images/a/png.jpg").status_code == 422


# ── changes ──────────────────────────────────────────────────────────────────────────────────────


def test_the_gallery_changes_only_where_that_is_allowed(open_search: Open, pictures: Path) -> None:
    served = open_search()
    for send in (
        lambda: served.post("/v1/images", image="red/red-0.png", headers=AUTH),
        lambda: served.client.delete("/v1/images/red/red-0.png", headers=AUTH),
        lambda: served.client.post("/v1/reload", headers=AUTH),
    ):
        assert send().status_code == 403
    assert len(served.engine.gallery) == 24
    served.client.close()


def test_images_are_added_found_and_removed(
    open_search: Open, pictures: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(pictures, tmp_path / "copy")
    served = open_search(folder=folder, changes=CHANGE)
    new = Image.new("RGB", (30, 30), (250, 240, 10))
    new.save(tmp_path / "sun.png")
    assert served.post("/v1/images", image=(tmp_path / "sun.png").read_bytes()).status_code == 401
    with SearchClient(served.url, token=CHANGE) as client:
        name = client.add(tmp_path / "sun.png", label="yellow", attributes={"price": "7"})
        assert name == "added/sun.png" and (folder / name).is_file()
        (hit,) = client.search(tmp_path / "sun.png", k=1)
        assert (hit.id, hit.label, hit.attributes) == (
            name, "yellow", {"domain": None, "price": 7},
        )  # fmt: skip
        assert client.search(id=name, k=1, filter="label=yellow")[0].id == name
        with pytest.raises(DataError, match="already"):
            client.add(tmp_path / "sun.png")
        for wrong in ({"attributes": {"price": "dear"}}, {"attributes": {"colour": "red"}}):
            with pytest.raises(DataError):
                client.add(tmp_path / "sun.png", **wrong)
        assert sorted(path.name for path in (folder / "added").iterdir()) == ["sun.png"]
        stored = open_index(served.engine.gallery.index.folder)  # it is on the disk already
        assert name in stored.ids and len(stored) == 25
        client.remove(name)
        client.remove("red/red-0.png")
        assert not (folder / name).exists() and (folder / "red/red-0.png").exists()
        assert client.search(id="red/red-1.png", k=1)[0].id == "red/red-1.png"
        with pytest.raises(DataError, match="no such image"):
            client.remove(name)
        with pytest.raises(DataError, match="no image"):
            client.search(id="red/red-0.png")
    assert len(served.engine.gallery) == 23
    with SearchClient(served.url) as stranger, pytest.raises(UsageError, match="token"):
        stranger.remove("red/red-1.png")


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("../../evil.png", "added/evil.png"),
        ("/etc/cron.d/job", "added/job.png"),
        ("C:\\windows\\a.exe", "added/a.png"),
        (".htaccess", "added/htaccess-"),
        ("ä b\x01.png", "added/b-"),
        ("x" * 300, "added/" + "x" * 100 + "-"),
        ("", "added/"),
    ],
)
def test_added_images_stay_in_their_folder(
    open_search: Open, pictures: Path, tmp_path: Path, name: str, made: str
) -> None:
    folder = shutil.copytree(pictures, tmp_path / "copy")
    before = {path for path in tmp_path.rglob("*") if "added" not in path.parts}
    served = open_search(folder=folder, changes=CHANGE)
    data = served.bytes_of("red/red-0.png")
    answer = served.post("/v1/images", image=data, data={"name": name}, headers=AUTH)
    assert answer.status_code == 201, answer.text
    assert answer.json()["id"].startswith(made)
    assert (folder / answer.json()["id"]).read_bytes() == data
    after = {path for path in folder.rglob("*") if "added" not in path.parts}
    assert after <= before


def test_an_added_folder_that_links_elsewhere_is_not_written_to(
    open_search: Open, pictures: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(pictures, tmp_path / "copy")
    (tmp_path / "elsewhere").mkdir()
    (folder / "added").symlink_to(tmp_path / "elsewhere")
    served = open_search(folder=folder, changes=CHANGE)
    answer = served.post("/v1/images", image="red/red-0.png", headers=AUTH)
    assert answer.status_code == 422 and "leads out" in answer.json()["error"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


# ── replacing the index ──────────────────────────────────────────────────────────────────────────


def test_the_index_is_replaced_while_it_is_searched(open_search: Open) -> None:
    """Every answer is that of one state: the one whose version it names."""
    served = open_search(changes=CHANGE)
    index = served.engine.gallery.index
    states: dict[str, dict[str, list[str]]] = {}
    requested = ["red/red-3.png", "blue/blue-2.png", "green/green-1.png"]

    def remember() -> None:
        gallery = Gallery.open(open_index(index.folder), served.folder)
        states[gallery.version] = {
            name: [hit.id for hit in gallery.search(gallery.vector(name)[None], 5, None)[0]]
            for name in requested
        }

    remember()
    stop, wrong, answered = threading.Event(), [], [0]

    def ask() -> None:
        while not stop.is_set():
            for name in requested:
                answer = served.post(json={"id": name, "k": 5})
                got = answer.json()
                if answer.status_code != 200:
                    wrong.append(answer.text)
                    continue
                answered[0] += 1
                wanted = states.get(got["index"], {}).get(name)
                if [one["id"] for one in got["results"]] != wanted:
                    wrong.append(got)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        for gone in ("red/red-0.png", "blue/blue-0.png", "green/green-0.png"):
            other = open_index(index.folder)
            other.remove([gone])
            rewrite(other.view.snapshot)  # another vectors file, as a new build has
            remember()
            assert served.client.post("/v1/reload", headers=AUTH).json()["changed"] is True
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == [] and answered[0] > 20 and len(states) == 4
    assert served.client.post("/v1/reload", headers=AUTH).json()["changed"] is False
    assert len(served.engine.gallery) == 21


def test_a_replaced_index_is_noticed(open_search: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    from vizsla.web.search import engine

    monkeypatch.setattr(engine, "WATCH_SECONDS", 0.05)
    served = open_search(watched=True)
    other = open_index(served.engine.gallery.index.folder)
    other.remove(["red/red-0.png"])
    for _ in range(200):
        if served.get("/healthz").json()["gallery"] == 23:
            break
        threading.Event().wait(0.05)
    assert "red/red-0.png" not in served.search(json={"id": "red/red-1.png", "k": 30})


def test_an_index_of_another_model_is_not_served(open_search: Open, tmp_path: Path) -> None:
    from vizsla.embed.embeddings import Embeddings
    from vizsla.search.index import build_index

    served = open_search(changes=CHANGE)
    folder = served.engine.gallery.index.folder
    build_index(Embeddings.from_arrays(np.eye(13), model_id="another"), folder)
    answer = served.client.post("/v1/reload", headers=AUTH)
    assert answer.status_code == 422 and "the old one stays" in answer.json()["error"]
    assert served.search(image="red/red-0.png", data={"k": 1}) == ["red/red-0.png"]


# ── ready, described ─────────────────────────────────────────────────────────────────────────────


def test_searches_are_refused_until_all_is_warm(serving: Any) -> None:
    import httpx

    from vizsla.web.search.app import create_app
    from vizsla.web.search.service import ServerState

    switch, url = serving
    state = ServerState("embedding", 3, 10)
    switch.app = create_app(state)
    health = httpx.get(url + "/healthz")
    assert health.status_code == 503 and health.json() == {
        "status": "embedding", "done": 3, "total": 10,
    }  # fmt: skip
    for path in ("/v1/images/a.jpg", "/v1/images/a.jpg/thumb", "/queries/a.jpg"):
        answer = httpx.get(url + path)
        assert answer.status_code == 503 and "3 of 10" in answer.json()["error"]
    assert httpx.post(url + "/v1/search", json={"id": "a"}).status_code == 503
    page = httpx.get(url, headers={"Accept": "text/html"})
    assert page.status_code == 503 and "3 of 10 images embedded" in page.text
    state.stage, state.error = "failed", "no weights"
    assert "No weights" in httpx.get(url).text


def test_the_api_is_described_by_its_types(served: Any) -> None:
    described = served.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/v1/search", "/v1/embed", "/v1/images", "/v1/images/{id}", "/v1/images/{id}/thumb",
        "/v1/reload", "/healthz", "/metrics",
    }  # fmt: skip
    search = described["paths"]["/v1/search"]["post"]
    content = search["requestBody"]["content"]
    body = content["application/json"]["schema"]
    assert {"text", "k"} <= set(body["example"]) and body["additionalProperties"] is False
    assert set(content["multipart/form-data"]["schema"]["properties"]) == {
        *body["properties"], "image",
    }  # fmt: skip
    answer = search["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    schemas = described["components"]["schemas"]
    assert set(served.post(json={"id": "red/red-0.png"}).json()) == set(
        schemas[answer.rpartition("/")[2]]["properties"]
    )
    for path, method in (("/v1/images", "post"), ("/v1/images/{id}", "delete")):
        assert described["paths"][path][method]["security"] == [{"token": []}]


def test_the_page_of_the_api_needs_no_other_server(served: Any) -> None:
    page = served.get("/docs")
    assert page.status_code == 200 and "https://" not in page.text
    policy = page.headers["content-security-policy"]
    assert "script-src 'self' 'sha256-" in policy and "https:" not in policy
    for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert f"./static/{name}" in page.text and served.get(f"/static/{name}").status_code == 200


def test_an_address_names_all_methods_that_it_takes(served: Any) -> None:
    assert served.client.put("/v1/images/red/red-0.png").headers["allow"] == "DELETE, GET"
    assert served.client.put("/v1/images/red/red-0.png/thumb").headers["allow"] == "GET"
    assert served.client.get("/v1/search").headers["allow"] == "POST"


def test_the_client_in_python(served: Any) -> None:
    with SearchClient(served.url) as client:
        assert client.is_ready()
        hits = client.search(served.folder / "red" / "red-0.png", k=3, filter="domain=photo")
        assert hits[0].id == "red/red-0.png" and hits[0].score == pytest.approx(1)
        assert client.embed([served.bytes_of("red/red-0.png")]).shape == (1, 13)
        assert client.image("a & <b>/a-0.png") == served.bytes_of("a & <b>/a-0.png")
        with pytest.raises(DataError, match="the image cannot be used: a web page"):
            client.search(b"<html>")
    assert read_image(served.folder / "red" / "red-0.png").size == (80, 60)


def test_a_search_under_way_keeps_its_gallery_while_another_changes_it(served: Any) -> None:
    engine = served.engine
    before = engine.gallery
    last = before.ids[-1]
    vector = before.vector(last)
    found = before.search(vector[None], 5, None)
    engine.remove(before.ids[0])
    assert len(engine.gallery) == len(before) - 1
    assert np.array_equal(before.vector(last), vector)
    assert before.search(vector[None], 5, None) == found
    assert np.array_equal(engine.gallery.vector(last), vector)


def test_surrogates_and_long_blank_filters_are_refused(served: Any) -> None:
    spaces = served.client.post(
        served.url + "/v1/search", json={"id": "red/red-0.png", "filter": " " * 1000}
    )
    assert spaces.status_code == 422
    half = served.client.post(
        served.url + "/v1/search",
        content=b'{"id": "red/red-0.png", "filter": "label=\\ud800"}',
        headers={"Content-Type": "application/json"},
    )
    assert half.status_code == 422 and "unicode" in half.json()["error"]


def test_the_default_k_respects_the_servers_maximum(open_search: Any) -> None:
    served = open_search(k=5)
    answer = served.client.post(served.url + "/v1/search", json={"id": "red/red-0.png"})
    assert len(answer.json()["results"]) == 5
    page = served.client.get(served.url + "/?id=red/red-0.png").text
    assert page.count('class="tile"') == 5 and "<option>5" in page.replace(" selected", "")
