"""A real browser that has a page of another site open: what the page sends to the API gets nothing done."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.integration.test_api import Deployment, it  # noqa: F401 - `it` is a fixture
from tests.integration.test_api_connections import serving
from tests.support.browser import Browser, open_browser

pytestmark = [pytest.mark.integration, pytest.mark.browser, pytest.mark.slow]

#: sends what a page may send to another site without asking, and returns once all of it is answered
ATTACK = """
const api = arguments[0], body = '{"inputs":[1]}';
const form = (target) => new Promise((done) => {
  const frame = document.body.appendChild(Object.assign(document.createElement("iframe"), {name: "sink"}));
  const post = document.body.appendChild(document.createElement("form"));
  Object.assign(post, {method: "post", action: target, target: "sink"});
  frame.addEventListener("load", () => setTimeout(done, 200));
  post.submit();
});
const send = (path, options) => fetch(api + path, {method: "POST", mode: "no-cors", ...options}).catch(String);
return (async () => {
  await send("/runs");
  await send("/runs", {referrerPolicy: "no-referrer"});
  await send("/models/delay/rollback");
  await send("/v1/models/delay:predict", {body, headers: {"Content-Type": "text/plain"}});
  await send("/predictions", {body: new Blob([body])});
  navigator.sendBeacon(api + "/runs", body);
  const boxed = document.body.appendChild(document.createElement("iframe"));
  boxed.sandbox = "allow-scripts";
  boxed.srcdoc = `<script>fetch("${api}/runs", {method: "POST", mode: "no-cors"})</script>`;
  await form(api + "/runs");
  const read = await fetch(api + "/runs").then((answer) => answer.text(), String);
  const put = await fetch(api + "/features/a", {method: "PUT", body}).then((answer) => answer.status, String);
  return [read, put];
})();
"""
REBOUND = """
return (async () => {
  const own = {"Content-Type": "application/json", "X-Forwarded-Host": "localhost"};
  const asked = [["GET", "/runs"],
    ["POST", "/runs"], ["PUT", "/features/a"], ["GET", "/predict/a"], ["GET", "/metrics"]];
  return Promise.all(asked.map(([method, path]) => fetch(path, {method, headers: own}).then((one) => one.status)));
})();
"""
OWN = "return fetch('/runs', {method: 'POST'}).then((answer) => answer.status)"


def visit(browser: Browser, port: int) -> tuple[list[object], list[int], int]:
    """Open the other site's page, then the same after its name has been made to lead here, then a page of our own."""
    answers = []
    for page, code in (
        # another port is another origin already
        (f"http://evil.example:{port}/health/live", ATTACK),
        (f"http://evil.example:{port}/health/live", REBOUND),
        (f"http://localhost:{port}/health/live", OWN),
    ):
        browser.driver.get(page)
        answers.append(browser.script(code, f"http://127.0.0.1:{port}"))
    return answers[0], answers[1], answers[2]


async def test_a_page_of_another_site_gets_nothing_done(it: Deployment, tmp_path: Path) -> None:  # noqa: F811
    with open_browser(tmp_path, "--host-resolver-rules=MAP evil.example 127.0.0.1") as browser:
        async with serving(it) as served:
            attacked, rebound, own = await asyncio.to_thread(visit, browser, served.port)
            assert ("TypeError" in str(attacked[0]), "TypeError" in str(attacked[1])) == (True, True)
            assert rebound == [403] * 5, json.dumps(rebound)
            assert own == 202
    assert len(it.runs.started) == 1  # by the page of our own
    assert it.sent == [("forecache.prepare_run", {"run_id": "r1"})]
    assert it.workers.calls == []
