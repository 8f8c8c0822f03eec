"""Access control of the server."""

from urllib.parse import parse_qs, urlsplit

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from isopose.errors import InputError
from isopose.serve.guard import Access
from isopose.serve.launch import run_server
from isopose.serve.pages import add_guard, add_pages
from reporters import RecordingReporter

TOKEN = "a-token-of-some-length"
SIGNS = 'a+b&c=d;e"f\\g h%20#i'


def client(access, base="http://127.0.0.1:8470"):
    app = FastAPI()
    add_pages(app, "serve.html")

    @app.post("/change")
    def change():
        return "changed"

    @app.get("/read")
    def read(q: str = ""):
        return q

    add_guard(app, access)
    return TestClient(app, base_url=base, follow_redirects=False)


LOCAL = Access("127.0.0.1", 8470)
OPEN = Access("0.0.0.0", 8470, TOKEN)


def test_local_requests_are_answered():
    assert client(LOCAL).get("/read").status_code == 200
    assert client(LOCAL).post("/change", headers={"X-Isopose": "1"}).json() == "changed"
    assert client(LOCAL, "http://localhost:8470").get("/read").status_code == 200
    assert client(LOCAL, "http://[::1]:8470").get("/read").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Isopose": "1", "Origin": "http://evil.example"},
        {"X-Isopose": "1", "Origin": "null"},
        {"X-Isopose": "1", "Origin": "http://127.0.0.1:9999"},
        {"X-Isopose": "1", "Sec-Fetch-Site": "cross-site"},
        {"X-Isopose": "1", "Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_cross_site_requests_change_nothing(headers):
    assert client(LOCAL).post("/change", headers=headers).status_code == 403


def test_cross_site_requests_read_nothing():
    assert client(LOCAL).get("/read", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client(LOCAL).get("/read", headers={"Origin": "http://evil.example"}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "[::1"},
        {"Host": "evil.example@127.0.0.1"},
        {"Host": "127.0.0.1/evil.example"},
        {"Host": "127.0.0.1:port"},
        {"Host": "127.0.0.1:99999"},
        {"Host": ""},
        {"Origin": "http://["},
        {"Origin": "127.0.0.1:8470"},
    ],
    ids=str,
)
def test_a_malformed_header_is_refused_in_one_line(headers):
    response = client(LOCAL).get("/read", headers=headers)
    assert response.status_code == 403
    reason = "does not use that name" if "Host" in headers else "requests from other sites are refused"
    assert reason in response.text


@pytest.mark.parametrize("access", [LOCAL, OPEN])
def test_dns_rebinding_is_refused(access):
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    response = client(access, "http://evil.example:8470").get("/read", headers=bearer)
    assert response.status_code == 403
    assert "does not use that name" in response.text


def test_a_public_address_needs_a_token_that_is_removed_from_the_url():
    them = client(OPEN, "http://192.168.1.5:8470")
    assert them.get("/read").status_code == 401
    assert them.get("/read?token=another-token-as-long").status_code == 401
    assert them.get("/read", headers={"Cookie": "isopose-8470=wrong"}).status_code == 401
    assert them.get("/read", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert them.post(f"/change?token={TOKEN}", headers={"X-Isopose": "1"}).status_code == 401
    response = them.get(f"/read?q=&q=7&token={TOKEN}")
    assert (response.status_code, response.headers["location"]) == (303, "/read?q=&q=7")
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert them.get("/read?q=7").json() == "7"
    assert them.post("/change", headers={"X-Isopose": "1"}).json() == "changed"


def test_a_token_is_accepted_as_a_header():
    headers = {"Authorization": f"Bearer {TOKEN}", "X-Isopose": "1"}
    assert client(OPEN, "http://10.0.0.2:8470").post("/change", headers=headers).json() == "changed"


def test_a_token_with_special_characters_is_kept_in_the_cookie():
    them = client(Access("0.0.0.0", 8470, SIGNS), "http://10.0.0.2:8470")
    assert them.get("/read", params={"token": SIGNS}).status_code == 303
    assert them.get("/read").status_code == 200


def test_the_printed_address_contains_the_whole_token(tmp_path, monkeypatch):
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)
    reporter = RecordingReporter()
    run_server(lambda _: FastAPI(), tmp_path, Access("127.0.0.1", 0, SIGNS), reporter, browser=False)
    address = next(line for line in reporter.lines if "isopose is at" in line).split()[3]
    assert parse_qs(urlsplit(address).query) == {"token": [SIGNS]}


def test_a_public_address_without_a_token_or_with_a_short_one_is_refused():
    with pytest.raises(InputError, match=r"0\.0\.0\.0: others can reach it, expected --token"):
        Access("0.0.0.0", 1)
    with pytest.raises(InputError, match="expected 16 characters or more, got 5"):
        Access("127.0.0.1", 1, "short")
    with pytest.raises(InputError, match="expected ASCII letters, digits and signs only"):
        Access("127.0.0.1", 1, "a-tökén-of-some-length")


def test_every_response_has_the_content_security_policy():
    for path in ("/", "/read", "/nowhere", "/static/serve.js"):
        headers = client(LOCAL).get(path).headers
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
    refused = client(LOCAL).post("/change")
    assert "frame-ancestors 'none'" in refused.headers["content-security-policy"]


def test_files_outside_the_static_folder_are_not_served():
    for path in ("/static/../guard.py", "/static/%2e%2e/guard.py", "/static/..%2fguard.py"):
        assert client(LOCAL).get(path).status_code == 404
