"""What visitors may not do, tried through the raw HTTP API: it is refused, and nothing is read, written or shown."""

import http.client
import io
import json
import os
import zipfile
from dataclasses import replace
from urllib.parse import quote, urlsplit

import pytest
from gradio_client import Client
from servers import served

from numprune.loading import load
from numprune.plan.recipe import CalibrationRecipe
from numprune.ui.serving import Policy
from numprune.ui.session_report import session_report
from numprune.ui.workbench import Workbench

SECRET = "the-secret-of-the-server"
MODEL = "tiny-stories"
SMALL = {"data": "self", "samples": 4, "sequence_length": 32}
HTML = "<img src=x onerror=alert(1)><script>alert(2)</script>"


class Page:
    """A running dashboard for others, and raw requests to it."""

    def __init__(self, address, folder):
        self.address, self.folder = address, folder
        self.host = urlsplit(address).netloc
        status, _, headers = self.ask("/login", b"username=ada&password=pass", kind="application/x-www-form-urlencoded")
        assert status == 200
        self.cookie = "; ".join(each.split(";")[0] for name, each in headers if name.lower() == "set-cookie")

    def ask(self, path, body=None, *, kind="application/json", cookie=None, method=None, **headers):
        """Status, body and headers of an answer; the path is sent as it is given."""
        connection = http.client.HTTPConnection(self.host, timeout=20)
        sent = {"Content-Type": kind, **({"Cookie": cookie} if cookie else {}), **headers}
        connection.putrequest(method or ("GET" if body is None else "POST"), path, skip_host="Host" in sent)
        for name, value in {**sent, "Content-Length": str(len(body or b""))}.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body)
        answer = connection.getresponse()
        done = answer.status, answer.read(), answer.getheaders()
        connection.close()
        return done

    def get(self, path, **headers):
        return self.ask(path, cookie=self.cookie, **headers)

    def post(self, path, given, **headers):
        body = given if isinstance(given, bytes) else json.dumps(given).encode()
        return self.ask(path, body, cookie=self.cookie, **headers)

    def call(self, endpoint, *data, session="attempts", **headers):
        """What an endpoint answers, as (whether it worked, the text of the answer)."""
        given = b'{"data": %s, "session_hash": "%s"}' % (_json(list(data)), session.encode())
        status, body, _ = self.post(f"/gradio_api/call/{endpoint}", given, **headers)
        if status != 200:
            return False, body.decode()
        _, told, _ = self.get(f"/gradio_api/call/{endpoint}/{json.loads(body)['event_id']}")
        return "event: complete" in told.decode(), told.decode()


def _json(value):
    return (
        value.raw if isinstance(value, Raw) else _list(value) if isinstance(value, list) else json.dumps(value).encode()
    )


def _list(values):
    return b"[" + b", ".join(map(_json, values)) + b"]"


class Raw:
    """JSON that Python would not write."""

    def __init__(self, raw):
        self.raw = raw


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """With a password and a list of models, and without a folder for exports."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "secret.txt").write_text(SECRET * 50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMPRUNE_CACHE", str(folder / "cache"))
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        patch.chdir(folder)
        bench = Workbench(load(MODEL, device="cpu"), policy=Policy(models=(MODEL,)))
        bench.start = replace(bench.start, calibration=CalibrationRecipe("self", 4, 32))
        bench.load(bench.start, "the running program", scorers=["newton"])
        with served(bench, auth=("ada", "pass")) as address:
            made = Page(address, folder)
            made.bench = bench
            made.client = Client(address, auth=("ada", "pass"), verbose=False)
            made.facts = made.client.predict(model=MODEL, samples=4, sequence_length=32, api_name="/load")
            made.kept = made.client.predict(recipe=made.facts["recipe"], name="mine", api_name="/prune")["name"]
            done = made.client.submit(recipe=made.facts["recipe"], name="mine", api_name="/export")
            done.result()
            (folder / "gradio/link.txt").symlink_to(folder / "secret.txt")
            made.file = next((folder / "gradio").rglob("*.zip"))
            yield made
            made.client.close()


def everything(page):
    """The files that lie there, with their sizes: an attempt may leave none but what gradio keeps of uploads."""
    return {path: path.stat().st_size for path in page.folder.rglob("*") if path.is_file()}


@pytest.fixture
def untouched(page):
    """Nothing is written, and what was open stays."""
    before, models = everything(page), page.bench.used
    yield
    assert everything(page) == before
    assert page.bench.used == models


# Without the password.

CLOSED = [
    ("/config", None),
    ("/gradio_api/info", None),
    ("/gradio_api/call/load", {"data": [MODEL]}),
    ("/gradio_api/queue/join", {"data": [MODEL], "fn_index": 0, "session_hash": "a"}),
    ("/gradio_api/run/predict", {"data": [MODEL], "fn_index": 0, "session_hash": "a"}),
    ("/gradio_api/upload", {}),
    ("/gradio_api/file={file}", None),
    ("/gradio_api/file={secret}", None),
    ("/gradio_api/component_server", {"data": {}, "component_id": 1, "fn_name": "preview", "session_hash": "a"}),
]


@pytest.mark.parametrize(("path", "given"), CLOSED, ids=[row[0] for row in CLOSED])
@pytest.mark.usefixtures("untouched")
def test_nothing_answers_without_the_password(page, path, given):
    path = path.format(file=quote(str(page.file)), secret=quote(str(page.folder / "secret.txt")))
    status, body, _ = page.ask(path, None if given is None else json.dumps(given).encode())
    assert status in (401, 403, 404, 422), (status, body[:200])
    assert SECRET.encode() not in body
    assert b"PK\x03\x04" not in body


@pytest.mark.parametrize("cookie", ["access-token=", "access-token=ada", "access-token-unsecure-x=../../x", "a=b; c"])
def test_made_up_cookies_open_nothing(page, cookie):
    assert page.ask("/config", cookie=cookie)[0] == 401


@pytest.mark.parametrize(
    ("user", "password"), [("ada", ""), ("ada", "PASS"), ("", "pass"), ("ada' --", "x"), ("a" * 9999, "b")]
)
def test_wrong_passwords_open_nothing(page, user, password):
    body = f"username={quote(user)}&password={quote(password)}".encode()
    status, _, headers = page.ask("/login", body, kind="application/x-www-form-urlencoded")
    assert status in (400, 422)
    assert not [each for name, each in headers if name.lower() == "set-cookie" and "token" in each]


# Files.

PATHS = [
    "/gradio_api/file={secret}",
    "/gradio_api/file=secret.txt",
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/file=../../../../../../etc/passwd",
    "/gradio_api/file=..%2f..%2f..%2f..%2fetc%2fpasswd",
    "/gradio_api/file={gradio}/../secret.txt",
    "/gradio_api/file={gradio}/%2e%2e/secret.txt",
    "/gradio_api/file={link}",
    "/gradio_api/file=file:///etc/passwd",
    "/gradio_api/file=http://127.0.0.1:1/x",
    "/gradio_api/file=//etc/passwd",
    "/gradio_api/file={secret}%00.zip",
    "/gradio_api/file=/proc/self/environ",
    "/gradio_api/file={package}/errors.py",
    "/gradio_api/file={cache}",
    "/static/../../../../../etc/passwd",
    "/assets/../../../../../etc/passwd",
    "/gradio_api/custom_component/../../etc/passwd",
    "/theme.css/../secret.txt",
    "/svelte/../../../../etc/passwd",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.usefixtures("untouched")
def test_no_file_of_the_server_is_read(page, path):
    import numprune

    names = {
        "secret": page.folder / "secret.txt",
        "gradio": page.folder / "gradio",
        "link": page.folder / "gradio/link.txt",
        "package": os.path.dirname(numprune.__file__),  # noqa: PTH120
        "cache": page.folder / "cache",
    }
    status, body, _ = page.get(path.format(**{name: quote(str(each)) for name, each in names.items()}))
    assert SECRET.encode() not in body
    assert b"root:" not in body
    assert b"class NumpruneError" not in body
    assert status >= 300 or b"<!doctype html" in body[:100].lower(), (status, body[:200])


# Models, texts and recipes.

LOADS = [
    ("/etc", "may not be loaded here"),
    ("../tiny-stories", "may not be loaded here"),
    ("{folder}", "may not be loaded here"),
    ("tiny-images", "may not be loaded here"),
    ("owner/name", "may not be loaded here"),
    ("tiny-stories\u0000", "may not be loaded here"),
    ("x" * 100_000, "may not be loaded here"),
    (HTML, "may not be loaded here"),
    (None, "may not be loaded here"),
    (7, "may not be loaded here"),
    (["tiny-stories"], "may not be loaded here"),
    ({"a": 1}, "may not be loaded here"),
]


@pytest.mark.parametrize(("name", "says"), LOADS, ids=[repr(row[0])[:30] for row in LOADS])
@pytest.mark.usefixtures("untouched")
def test_other_models_are_not_loaded(page, name, says):
    given = name.format(folder=page.folder) if isinstance(name, str) else name
    worked, told = page.call("load", given, "self", 4, 32, 0, "newton")
    assert not worked
    assert says in told, told[:300]
    assert "Traceback" not in told


TEXTS = [
    "secret.txt",
    "{folder}/secret.txt",
    "{folder}/cache/texts/../../secret.txt",
    "/etc/passwd",
    "self,/etc/passwd",
    "{folder}/*.txt",
    "file:///etc/passwd",
    "http://127.0.0.1:1/a.txt",
    "owner/data",
    "/dev/zero",
    "/proc/self/environ",
    "",
]


@pytest.mark.parametrize("data", TEXTS)
@pytest.mark.usefixtures("untouched")
def test_other_texts_are_not_read(page, data):
    worked, told = page.call("load", MODEL, data.format(folder=page.folder), 4, 32, 0, "newton")
    assert not worked
    assert SECRET not in told
    assert "may not be read" in told or "neither a file nor a dataset" in told, told[:300]


def deep(levels):
    return Raw(b'{"a":' * levels + b"1" + b"}" * levels)


NUMBERS = {
    "NaN": Raw(b"NaN"),
    "minus infinity": Raw(b"-Infinity"),
    "negative": -1,
    "huge": 1e308,
    "beyond": Raw(b"1e999"),
    "text": "0.3",
    "null": None,
    "a list": [0.3],
    "true": True,
    "digits": Raw(b"1" * 5000),
}


@pytest.mark.parametrize("what", NUMBERS)
@pytest.mark.parametrize("place", ["ratio", "damping"])
@pytest.mark.usefixtures("untouched")
def test_numbers_that_are_none_prune_nothing(page, what, place):
    if (place, what) == ("damping", "huge"):
        pytest.skip("1e308 is a number a damping may be")
    parts = {name: value for name, value in page.facts["recipe"].items() if name != place}
    body = b"{" + b", ".join(json.dumps(name).encode() + b": " + _json(value) for name, value in parts.items())
    recipe = Raw(body + b', "' + place.encode() + b'": ' + _json(NUMBERS[what]) + b"}")
    worked, told = page.call("prune", recipe, "", session="numbers")
    assert not worked
    assert "Unexpected error" not in told, told[:400]


RECIPES = {
    "another model": {"model": "/etc"},
    "another file": {"calibration": {**SMALL, "data": "/etc/passwd"}},
    "a scorer that is none": {"scorer": "__import__('os').system('id')"},
    "a method that is none": {"method": HTML},
    "an unknown key": {HTML: 1},
    "units that are none": {"keep": {"0.mlp": ["a"]}},
    "units beyond": {"keep": {"0.mlp": [10**9]}},
    "a module that is none": {"ratios": {"../../x": 0.5}},
    "ratios of another kind": {"ratios": [1]},
    "a version of later": {"version": 99},
    "more samples than memory": {"calibration": {**SMALL, "samples": 10**12}},
    "no samples": {"calibration": {**SMALL, "samples": -5}},
    "healing for ever": {"healing": -1},
    "deep": {"keep": deep(50)},
    "not an object": None,
}


@pytest.mark.parametrize("what", RECIPES)
@pytest.mark.usefixtures("untouched")
def test_recipes_that_ask_for_what_is_not_theirs_are_refused(page, what):
    change = RECIPES[what]
    if what == "deep":
        recipe = Raw(
            json.dumps(page.facts["recipe"] | {"keep": 0})
            .encode()
            .replace(b'"keep": 0', b'"keep": ' + change["keep"].raw)
        )
    else:
        recipe = None if change is None else page.facts["recipe"] | change
    worked, told = page.call("prune", recipe, "", session="recipes")
    assert not worked
    assert "Unexpected error" not in told, told[:500]
    assert "root:" not in told


@pytest.mark.parametrize(
    "body", [b"", b"[", b"null", b"7", deep(100_000).raw, b'{"data": ' * 500, b"\xff\xfe", b'{"data": 7}']
)
@pytest.mark.usefixtures("untouched")
def test_bodies_that_are_no_request_are_refused(page, body):
    status, told, _ = page.post("/gradio_api/call/load", body)
    if status == 200:
        _, told, _ = page.get(f"/gradio_api/call/load/{json.loads(told)['event_id']}")
        assert b"event: error" in told
    assert page.get("/config")[0] == 200


# Other tabs.


@pytest.mark.parametrize("session", ["another", "", "../x", HTML])
def test_the_model_of_another_tab_is_not_there(page, session):
    for endpoint, given in (("compare", (page.kept, "Once", 4, 1)), ("export", (page.kept, "transformers", {}))):
        worked, told = page.call(endpoint, page.facts["recipe"], *given, session=session)
        assert not worked
        assert "press Prune" in told or (session == "" and told == "Internal Server Error")


def test_calls_that_name_no_tab_are_not_one_tab(page):
    """Two visitors whose programs send no session share nothing."""
    recipe, told = page.facts["recipe"], []
    for endpoint, data in (("prune", [recipe, "shared"]), ("compare", [recipe, "shared", "Once", 2, 1])):
        status, body, _ = page.post(f"/gradio_api/call/{endpoint}", {"data": data})
        if status == 200:
            _, body, _ = page.get(f"/gradio_api/call/{endpoint}/{json.loads(body)['event_id']}")
        told.append(body.decode())
    assert "event: complete" not in told[1], told


@pytest.mark.parametrize("token", [None, "", "tests", 0, [], {}, "0" * 22])
@pytest.mark.usefixtures("untouched")
def test_plans_are_shown_to_those_who_know_the_tab_s_secret_alone(page, token):
    _, config, _ = page.get("/config")
    channel = next(
        each["id"] for each in json.loads(config)["components"] if each["props"].get("elem_id") == "np-channel"
    )
    given = {"data": {"token": token, "edits": []}, "component_id": channel, "fn_name": "preview", "session_hash": "a"}
    status, body, _ = page.post("/gradio_api/component_server", given)
    assert status >= 400 or json.loads(body) is None, body[:200]


# From another page, and uploads.


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example", "http://127.0.0.1.nip.example:7860"]
)
@pytest.mark.usefixtures("untouched")
def test_other_pages_may_not_ask_in_a_visitor_s_name(page, origin):
    for kind in ("application/json", "text/plain"):
        status, _, headers = page.post(
            "/gradio_api/call/load", {"data": ["/etc"]}, Origin=origin, kind=kind, Sec_Fetch_Site="cross-site"
        )
        allowed = {name.lower(): value for name, value in headers}.get("access-control-allow-origin")
        assert allowed not in (origin, "*")
        assert status in (400, 403, 415, 422, 200)


def uploaded(page, name, content):
    edge = "----edge"
    body = (
        (
            f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
            "Content-Type: text/plain\r\n\r\n"
        ).encode()
        + content
        + f"\r\n--{edge}--\r\n".encode()
    )
    return page.post("/gradio_api/upload", body, kind=f"multipart/form-data; boundary={edge}")


@pytest.mark.parametrize(
    "name",
    ["../../evil.txt", "/tmp/evil.txt", "..\\..\\evil.txt", "a/../../evil.txt", "....//evil.txt", "%2e%2e%2fevil.txt"],
)
def test_an_upload_lands_where_uploads_do(page, name):
    before = set(page.folder.rglob("*evil*"))
    status, body, _ = uploaded(page, name, b"text")
    made = set(page.folder.rglob("*evil*")) - before
    if status == 200:
        for path in json.loads(body):
            assert os.path.realpath(path).startswith(str(page.folder / "gradio"))
    assert all(page.folder / "gradio" in each.parents for each in made)
    assert not any(os.path.exists(each) for each in ("/tmp/evil.txt", "/evil.txt"))  # noqa: PTH110


def test_an_upload_that_is_too_large_is_refused(page):
    status, _, _ = uploaded(page, "large.txt", b"a" * (21 << 20))
    assert status in (400, 413)


def test_an_upload_that_unpacks_to_very_much_is_not_unpacked(page):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", b"0" * (64 << 20))
    status, body, _ = uploaded(page, "bomb.zip", packed.getvalue())
    assert status == 200
    before = everything(page)
    worked, told = page.call("load", MODEL, json.loads(body)[0], 4, 32, 0, "newton")
    assert not worked
    assert "may not be read" in told
    assert everything(page) == before


# HTML.


@pytest.mark.parametrize("place", ["name", "prompt", "format", "option"])
def test_html_is_never_part_of_an_answer_s_page(page, place, monkeypatch):
    monkeypatch.setattr("numprune.ui.comparison.held_out_text", lambda: ["Once upon a time. " * 20])
    recipe, session = page.facts["recipe"], "html"
    worked, told = page.call("prune", recipe, HTML if place == "name" else "mine", session=session)
    assert worked, told
    name = "mine" if place != "name" else HTML[:40]
    if place == "prompt":
        worked, told = page.call("compare", recipe, name, HTML, 2, 1, session=session)
    elif place in ("format", "option"):
        format, options = (HTML, {}) if place == "format" else ("transformers", {HTML: HTML})
        worked, told = page.call("export", recipe, name, format, options, session=session)
        assert not worked
    # The answers are data; whoever shows it, as the page and its report do, escapes it.
    _, body, _ = page.get("/")
    bench = page.bench
    loaded = bench.load(bench.start, session, scorers=["newton"])
    report = session_report(loaded, bench.plan(bench.fresh(loaded)), bench.variants(session), {})
    assert place != "name" or "&lt;img src=x onerror=alert(1)&gt;" in report
    for markup in ("<img src=x", "<script>alert(2)"):
        assert markup not in report
        assert markup not in body.decode()
    bench.release(session)
