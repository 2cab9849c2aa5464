"""Safety of the search server: paths, headers, limits, tokens, other sites, damaged images."""

import contextlib
import io
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vizsla.web.search.thumbnails import Uploads
from vizsla.web.shell.access import Access, RateLimit, is_cross_site, rate_limit_key

Open = Callable[..., Any]
TOKEN = "a-token-for-everything"
CHANGE = "the-token-for-changes"


def raw(served: Any, request: bytes) -> bytes:
    """Sends bytes as they are: clients tidy paths and headers up."""
    port = int(served.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                received += chunk
    return received


def get_raw(served: Any, path: str) -> bytes:
    return raw(served, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())


# ── only images of the gallery ───────────────────────────────────────────────────────────────────

ESCAPES = [
    "../secret.png",
    "..%2fsecret.png",
    "%2e%2e/secret.png",
    "red/../../secret.png",
    "red/..%2f..%2fsecret.png",
    "..%5csecret.png",
    "%252e%252e%252fsecret.png",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "//etc/passwd",
    "file:///etc/passwd",
    "red/red-0.png%00.jpg",
    "red/red-0.png/",
    "./red/red-0.png",
    "red//red-0.png",
    "RED/red-0.png",
    "..;/secret.png",
    "%c0%ae%c0%ae/secret.png",
    "out.png",
    "outside/secret.png",
    "loop.png",
]


def test_no_path_leads_out_of_the_gallery(
    open_search: Open, pictures: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(pictures, tmp_path / "gallery")
    secret = tmp_path / "secret.png"
    Image.new("RGB", (9, 9), (1, 2, 3)).save(secret)
    served = open_search(folder=folder)
    (folder / "out.png").symlink_to(secret)  # there, but no image of the gallery
    (folder / "outside").symlink_to(tmp_path)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    for path in ESCAPES:
        for end in ("", "/thumb", "/thumb?size=large"):
            answer = get_raw(served, f"/v1/images/{path}{end}")
            status = int(answer[9:12])
            assert 400 <= status < 500, (path, answer[:200])
            assert secret.read_bytes() not in answer and b"root:" not in answer
        for path_of_page in (f"/static/{path}", f"/static/../../{path}", f"/queries/{path}.jpg"):
            assert 400 <= int(get_raw(served, path_of_page)[9:12]) < 500


def test_images_replaced_by_links_to_elsewhere_are_404(
    open_search: Open, pictures: Path, tmp_path: Path
) -> None:
    """The gallery knows the id, but the file now leads away: replaced after it was indexed."""
    folder = shutil.copytree(pictures, tmp_path / "gallery")
    served = open_search(folder=folder)
    (tmp_path / "blue").mkdir()
    for name in ("red-0.png", "blue/blue-0.png"):
        Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / name)
    (folder / "red/red-0.png").unlink()
    (folder / "red/red-0.png").symlink_to(tmp_path / "red-0.png")
    shutil.rmtree(folder / "blue")
    (folder / "blue").symlink_to(tmp_path / "blue")
    (folder / "red/red-1.png").unlink()
    (folder / "red/red-1.png").symlink_to(folder / "red/red-2.png")  # within: an image as any
    os.mkfifo(folder / "pipe")
    (folder / "red/red-3.png").unlink()
    (folder / "red/red-3.png").symlink_to(folder / "pipe")  # reading it would never end
    for name in ("red/red-0.png", "blue/blue-0.png", "red/red-3.png"):
        for path in (f"/v1/images/{name}", f"/v1/images/{name}/thumb"):
            assert served.get(path).status_code == 404
        view = served.get("/view", params={"result": name}, headers={"Accept": "text/html"})
        assert view.status_code == 404
    assert served.get("/v1/images/red/red-1.png").status_code == 200
    assert served.search(json={"id": "red/red-0.png", "k": 1}) == ["red/red-0.png"]


# ── headers ──────────────────────────────────────────────────────────────────────────────────────


def test_every_answer_has_the_security_headers(open_search: Open) -> None:
    served = open_search()
    answers = [
        served.get(path)
        for path in (
            "/", "/?id=red/red-0.png", "/?k=nonsense", "/view?result=red/red-0.png", "/marks.csv",
            "/static/search.css", "/static/none", "/v1/images/red/red-0.png", "/healthz",
            "/v1/images/red/red-0.png/thumb", "/v1/images/none", "/metrics", "/openapi.json", "/no",
        )
    ]  # fmt: skip
    answers += [served.post(json={}), served.client.put("/v1/search"), served.post("/queries")]
    assert {answer.status_code for answer in answers} == {200, 404, 405, 422}
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "data:" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers
        assert answer.headers["cache-control"]


def test_pages_hold_no_script_style_or_handler_of_their_own(served: Any) -> None:
    own = r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|javascript:"
    view = "/view?id=red/red-0.png&result=a%20%26%20<b>/a-0.png"
    for path in ("/", "/?id=red/red-0.png", view):
        text = served.get(path, headers={"Accept": "text/html"}).text
        assert not re.search(own, text)
        assert "a & <b>" not in text and "https://" not in text


def test_names_and_words_are_escaped(served: Any) -> None:
    nasty = '"><img src=x onerror=alert(1)>'
    for params in ({"text": nasty}, {"id": nasty}, {"where.label": nasty}, {"filter": nasty}):
        text = served.get("/", params=params, headers={"Accept": "text/html"}).text
        assert nasty not in text and "<img src=x" not in text


# ── limits ───────────────────────────────────────────────────────────────────────────────────────


def test_every_kind_of_body_has_a_limit(open_search: Open) -> None:
    served = open_search(body_bytes=20_000)
    block = b"x" * 30_000
    for path in ("/v1/search", "/v1/embed", "/queries"):
        assert served.client.post(path, content=block).status_code == 413
        assert served.client.post(path, files={"image": block}).status_code == 413
        answer = served.client.post(path, content=(block[:1000] for _ in range(40)))
        assert answer.status_code == 413 and "20000 bytes" in answer.text
    head = b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
    assert raw(served, head).startswith(b"HTTP/1.1 413 ")
    assert served.search(image="red/red-0.png", data={"k": 1})


def test_all_bodies_together_have_a_limit(open_search: Open, wait_until: Any) -> None:
    served = open_search(total_body_bytes=50_000, body_bytes=40_000)

    def status_of_a_body() -> int:
        return int(served.client.post("/v1/search", content=b"x" * 20_000).status_code)

    port = int(served.url.rsplit(":", 1)[1])
    head = b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Length: 39999\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(head + b"x" * 39_000)
        wait_until(lambda: status_of_a_body() == 503)
        answer = served.client.post("/v1/search", content=b"x" * 20_000)
        assert answer.status_code == 503 and "try again" in answer.json()["error"]
        assert served.search(json={"id": "red/red-0.png", "k": 1})  # small ones still pass
    wait_until(lambda: status_of_a_body() == 415)  # once the slow client has gone


def test_pictures_have_a_limit_of_pixels(served: Any) -> None:
    file = io.BytesIO()
    Image.new("1", (6000, 6000)).save(file, "PNG")
    answer = served.post(image=file.getvalue())
    assert answer.status_code == 422 and "36,000,000 pixels" in answer.json()["error"]
    width = (60_000).to_bytes(4, "big")  # a header with a false size
    header = b"IHDR" + width + width + b"\x08\x02\0\0\0"
    lying = b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + header + zlib.crc32(header).to_bytes(4, "big")
    assert served.post(image=lying).status_code == 422


def test_the_format_is_recognised_by_content(served: Any) -> None:
    data = served.bytes_of("red/red-0.png")
    for name, kind in (("a.txt", "text/plain"), ("../../a.exe", "application/x-msdownload")):
        answer = served.client.post("/v1/search", files={"image": (name, data, kind)})
        assert answer.json()["results"][0]["id"] == "red/red-0.png"
    for content in (b"<svg onload=alert(1)>", b"%!PS\n(%pipe%id) run", b"GIF89a", b"", b"\0" * 99):
        files = {"image": ("a.png", content, "image/png")}
        answer = served.client.post("/v1/search", files=files)
        assert answer.status_code == 422 and "cannot be used" in answer.json()["error"]


def test_odd_bodies_are_refused(served: Any) -> None:
    form = {"content-type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    for headers, body, status in [
        ({"content-type": "text/html"}, b"<p>", 415),
        ({"content-type": "application/json"}, b"{", 400),
        ({"content-type": "application/json"}, b"\xff\xfe", 400),
        ({"content-type": "application/json"}, b"[" * 100_000, 400),
        ({"content-type": "application/json"}, b'{"k": NaN}', 400),
        ({"content-type": "application/json", "content-encoding": "gzip"}, b"{}", 415),
        ({"content-type": "multipart/form-data"}, b"x", 400),
        (form, b"garbage", 400),
        ({"content-type": "multipart/form-data; boundary=x; charset=zip"}, b"--x--", 422),
        (form, part % (b"k", b"\0") + b"--x--\r\n", 422),
        (form, part % (b"text", b"y" * 70_000) + b"--x--\r\n", 400),
        (form, (part % (b"id", b"a")) * 3000 + b"--x--\r\n", 400),
        ({"content-type": "application/x-www-form-urlencoded"}, b"k=%ff", 422),
        ({"content-type": "application/x-www-form-urlencoded"}, b"a=b&" * 5000, 400),
    ]:
        answer = served.client.post("/v1/search", content=body, headers=headers)
        assert answer.status_code == status, (headers, body[:40], answer.text)
        assert answer.json()["error"]
    many = [("image", ("x", served.bytes_of("red/red-0.png")))] * 17
    assert served.client.post("/v1/search", files=many).status_code == 422


def test_each_address_has_a_rate_limit(open_search: Open) -> None:
    served = open_search(per_minute=60)  # one a second, ten at once
    body = {"id": "red/red-0.png", "k": 1}
    answers = [served.post(json=body) for _ in range(15)]
    assert [answer.status_code for answer in answers[:10]] == [200] * 10
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    page = served.get("/?id=red/red-0.png", headers={"Accept": "text/html"})
    assert page.status_code == 429 and "Too many requests" in page.text
    assert served.get("/healthz").status_code == 200
    assert served.get("/v1/images/red/red-0.png/thumb").status_code == 200


def test_rate_limits_recover_and_forget_old_addresses() -> None:
    now = [0.0]
    limit = RateLimit(60, clock=lambda: now[0])
    assert [limit.wait("1.2.3.4") for _ in range(11)][-2:] == [0.0, 1.0]
    assert limit.wait("1.2.3.5") == 0.0
    now[0] += 2.0
    assert [limit.wait("1.2.3.4") for _ in range(3)] == [0.0, 0.0, 1.0]
    for i in range(20_000):
        limit.wait(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}")
    assert len(limit._buckets) == 10_000
    assert RateLimit(0).wait("1.2.3.4") == 0.0
    assert rate_limit_key("2001:db8::1") == rate_limit_key("2001:db8::ffff") == "2001:db8::/64"
    assert rate_limit_key("2001:db8:0:1::1") != rate_limit_key("2001:db8::1")


# ── who may ask ──────────────────────────────────────────────────────────────────────────────────


def test_a_token_closes_all_but_health_and_static_files(open_search: Open) -> None:
    served = open_search(token=TOKEN)
    paths = ["/", "/v1/images/red/red-0.png", "/v1/images/red/red-0.png/thumb", "/openapi.json",
             "/metrics", "/view?result=red/red-0.png", "/queries/x.jpg", "/no"]  # fmt: skip
    for path in paths:
        for headers in ({}, {"Authorization": "Bearer wrong-token-wrong"}):
            answer = served.get(path, headers=headers)
            assert answer.status_code == 401 and "gallery" not in answer.text
            assert answer.headers["www-authenticate"].startswith("Basic")
    assert served.post(json={"id": "red/red-0.png"}).status_code == 401
    assert served.get("/healthz").status_code == served.get("/static/search.css").status_code == 200
    assert served.get("/", auth=("anyone", TOKEN)).status_code == 200
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert served.post(json={"id": "red/red-0.png"}, headers=bearer).status_code == 200


def test_guessing_tokens_is_rate_limited(open_search: Open) -> None:
    served = open_search(token=TOKEN, per_minute=60)
    tried = [served.get("/", auth=("a", f"guess-{i:020}")).status_code for i in range(20)]
    assert tried[:10] == [401] * 10 and 429 in tried


def test_other_sites_cannot_send_for_a_visitor(open_search: Open) -> None:
    served = open_search(changes=CHANGE)
    host = served.url.removeprefix("http://")
    for headers, status in [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": f"http://{host}"}, 200),
        ({}, 200),
    ]:
        assert served.post(json={"id": "red/red-0.png"}, headers=headers).status_code == status
    assert not is_cross_site("GET", {"sec-fetch-site": "cross-site"})


def test_unknown_host_names_are_refused(open_search: Open) -> None:
    served = open_search(hosts=frozenset({"search.example"}))
    for host, status in [
        ("127.0.0.1:8000", 200), ("localhost", 200), ("[::1]:8000", 200),
        ("search.example:80", 200), ("evil.example", 421), ("127.0.0.1.evil.example", 421),
        ("", 421), ("[", 421),
    ]:  # fmt: skip
        assert served.get("/healthz", headers={"Host": host}).status_code == status, host
    assert Access().knows_host("anything")


# ── bad images ─────────────────────────────────────────────────────────────────────────────────


def resident() -> float:
    """MiB of this process, in which the server runs."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line
    )
    return int(line.split()[1]) / 1024


def post_all(served: Any, files: list[bytes]) -> dict[int, int]:
    seen: dict[int, int] = {}
    for data in files:
        answer = served.client.post(
            "/v1/search", content=data, headers={"content-type": "image/x"}, params={"k": 1}
        )
        seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
        assert answer.status_code in (200, 413, 422), (answer.status_code, answer.text)
    return seen


def mutated(files: list[bytes], n: int, seed: int = 0) -> list[bytes]:
    """Bytes changed, cut out, doubled, cut off; most of them behind the first few."""
    draw = random.Random(seed)
    found = []
    for i in range(n):
        data = bytearray(files[i % len(files)])
        for _ in range(draw.choice([1, 1, 3, 20])):
            at, size = draw.randrange(len(data)), draw.choice([1, 1, 4, 60])
            kind = draw.choice(["set", "set", "flip", "cut", "double", "zero"])
            if kind == "set":
                data[at : at + size] = draw.randbytes(size)
            elif kind == "flip":
                data[at] ^= 1 << draw.randrange(8)
            elif kind == "cut" and len(data) > 2 * size:
                del data[at : at + size]
            elif kind == "double":
                data[at:at] = data[at : at + size]
            else:
                data[at : at + size] = bytes(len(data[at : at + size]))
        found.append(bytes(data[: draw.randrange(len(data))] if i % 5 == 0 else data))
    return found


def formats(seed: int = 0) -> list[bytes]:
    noise = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), np.uint8)
    found = []
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "AVIF", "JPEG2000"):
        file = io.BytesIO()
        Image.fromarray(noise).save(file, kind)
        found.append(file.getvalue())
    return found


def test_damaged_pictures_are_refused_or_read(served: Any) -> None:
    seen = post_all(served, mutated(formats(), 150))
    assert seen[422] > 50 and seen[200] > 20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
def test_odd_files_and_thousands_of_damaged_pictures(served: Any, shared: Path) -> None:
    edge = [path.read_bytes() for path in sorted((shared / "data/edge").iterdir())]
    assert len(edge) == 83
    first = post_all(served, edge)
    post_all(served, edge)
    before = resident()
    small = [data for data in edge if 100 < len(data) < 400_000]
    seen = post_all(served, mutated([*small, *formats()], 2000))
    grown = resident() - before
    print(f"edge {first}, mutated {seen}, memory {before:.0f} MiB, then {grown:+.0f} MiB")
    assert sum(seen.values()) == 2000 and seen[422] > 500
    assert grown < 300  # the uploads that are kept fill up to 256 MiB
    assert served.search(image="red/red-0.png", data={"k": 1}) == ["red/red-0.png"]


def test_old_uploads_are_forgotten(served: Any) -> None:
    served.engine.uploads = Uploads(max_uploads=5)
    uploads, names = served.engine.uploads, []
    for i in range(8):
        file = io.BytesIO()
        Image.new("RGB", (30, 30), (i * 9, 80, 90)).save(file, "PNG")
        names += served.post(image=file.getvalue()).json()["queries"]
    assert len(uploads) == 5
    assert served.post(json={"query": names[-1]}).status_code == 200
    gone = served.post(json={"query": names[0]})
    assert gone.status_code == 404 and "no longer kept" in gone.json()["error"]
    served.engine.uploads = Uploads(max_bytes=1)
    for name in ("red/red-0.png", "red/red-1.png"):
        served.post(image=name)
    assert len(served.engine.uploads) == 1


# ── the schema ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "examples", [4, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_schemathesis_finds_no_failure(
    open_search: Open, pictures: Path, tmp_path: Path, examples: int
) -> None:
    folder = shutil.copytree(pictures, tmp_path / "copy")
    served = open_search(folder=folder, changes=CHANGE)
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", served.url + "/openapi.json",
        "--max-examples", str(examples), "--generation-database", "none", "--no-color",
        "--phases", "fuzzing" if examples < 100 else "coverage,fuzzing",
        # What is sound depends on the gallery and on images, which no schema can say.
        "--exclude-checks", "positive_data_acceptance,negative_data_rejection",
        "--suppress-health-check", "all",
        "--header", f"Authorization: Bearer {CHANGE}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-1000:]
    assert re.search(r"(\d+) generated, \1 passed", done.stdout)
