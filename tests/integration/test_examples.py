"""The examples for existing applications, run as they are against a whole deployment over Redis."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator

import httpx
import pytest

from tests.support.examples import run_example, run_in_example, serving_example, working_example
from tests.support.flights import write_flights
from tests.support.stack import ROOT, Stack

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("examples")
    with Stack(folder, write_flights(folder)) as running:
        running.start("gpu", "realtime", "maintenance", "api")
        running.wait_ready()
        assert running.cli("features", "load", "delay", "flights.parquet").returncode == 0
        yield running


def test_a_celery_application_gets_predictions_as_plain_json(stack: Stack) -> None:
    done = run_example(stack, "celery_shop.py", "F3", "nobody", "F4")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"F3": 4.0, "nobody": None, "F4": 5.0}
    assert "nobody unknown-entity" in done.stderr


def test_a_celery_applications_own_task_waits_for_predictions_on_its_own_queue(stack: Stack) -> None:
    with working_example(stack, "celery_shop:shop"):
        done = run_in_example(
            stack, "from celery_shop import latest_first as t; print(t.delay(['F3', 'F9', 'F1']).get(timeout=60))"
        )
    assert done.stdout.strip() == "['F9', 'F3', 'F1']", done.stderr


def test_a_celery_application_starts_a_run_and_is_told_of_one_in_progress(stack: Stack) -> None:
    stack.stop("gpu", signal.SIGTERM)
    run = json.loads(run_example(stack, "celery_shop.py", "--run").stdout)
    again = json.loads(run_example(stack, "celery_shop.py", "--run").stdout)
    stack.start("gpu")
    assert (run["model"], run["state"], run["trigger"]) == ("delay", "queued", "api")
    assert (again["error"]["code"], run["run_id"] in again["error"]["message"]) == ("conflict", True)
    assert stack.wait_run(run["run_id"])["state"] == "published"


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("{'model': 'delay', 'entity_ids': 'F1'}", "BadInput: entity_ids must be a list, not text"),
        ("{'entity_ids': []}", "BadInput: entity_ids holds 0: send 1 to 4096 in a message"),
        ("{'model': 'delay', 'ids': ['F1']}", "unexpected keyword argument 'ids'"),
    ],
)
def test_a_message_that_no_row_can_answer_for_raises_in_a_stock_result(stack: Stack, message: str, error: str) -> None:
    send = f"forecache.send_task('forecache.predict_entities', kwargs={message})"
    code = f"from celery_shop import forecache; {send}.get(timeout=30)"
    done = run_in_example(stack, code)
    assert done.returncode == 1
    assert error in done.stderr.splitlines()[-1]


def test_the_lines_of_the_page_give_a_result(stack: Stack) -> None:
    page = (ROOT / "docs" / "existing.md").read_text()
    lines, _links = re.findall(r"```python\n(.*?)```", page, re.DOTALL)  # links have tests among the attacks
    lines = lines.replace("redis://…", stack.settings.redis_url).replace("FL-000001", "F8")
    code = lines.replace("forecache.AsyncResult", "print(forecache.AsyncResult").replace(
        "get(timeout=30) ", "get(timeout=30)['predictions'][0]['prediction'])"
    )
    done = run_in_example(stack, code)
    assert done.stdout.strip() == "9.0", done.stderr


def test_one_application_for_both_needs_only_the_prefix(stack: Stack) -> None:
    code = """
import os
from celery import Celery
shop = Celery("shop", broker=os.environ["SHOP_BROKER_URL"], backend=os.environ["SHOP_RESULT_URL"])
keys = {"global_keyprefix": "forecache:"}
shop.conf.update(broker_transport_options=keys, result_backend_transport_options=keys)
sent = shop.send_task("forecache.predict_entities", kwargs={"entity_ids": ["F5"]}, queue="forecache.realtime")
print(shop.AsyncResult(sent.id).get(timeout=30)["predictions"][0]["prediction"])
"""
    done = run_in_example(stack, code)
    assert done.stdout.strip() == "6.0", done.stderr


def test_a_fastapi_application_answers_with_and_without_forecache(stack: Stack) -> None:
    with serving_example(stack, "uvicorn", "fastapi_shop:app", "--port", "{port}", probe="/docs") as url:
        known = httpx.get(f"{url}/flights/F6").json()
        unknown = httpx.get(f"{url}/flights/nobody").json()
        stack.stop("api", signal.SIGTERM)
        down = httpx.get(f"{url}/flights/F6")
        stack.start("api")
    assert known["delay_min"] == 7.0
    assert unknown == {"flight": "nobody", "delay_min": None, "note": "no prediction at the moment"}
    assert (down.status_code, down.json()["delay_min"]) == (200, None)
    stack.wait_ready()


def test_a_django_application_answers_with_and_without_forecache(stack: Stack) -> None:
    with serving_example(stack, "django_shop", "runserver", "127.0.0.1:{port}", "--noreload", probe="/flights") as url:
        both = httpx.get(f"{url}/flights", params={"id": ["F6", "nobody"]}).json()
        stack.stop("api", signal.SIGTERM)
        down = httpx.get(f"{url}/flights", params={"id": "F6"})
        stack.start("api")
    assert both == {"delays_min": {"F6": 7.0, "nobody": None}}
    assert (down.status_code, down.json()) == (200, {"delays_min": {"F6": None}})
    stack.wait_ready()


def test_a_background_job_waits_for_the_service_and_prints_what_it_got(stack: Stack) -> None:
    stack.stop("api", signal.SIGTERM)
    stack.start("api")  # the script is there first, and asks until someone listens
    done = run_example(stack, "background_job.py", "F1", "F2", "nobody")
    assert done.returncode == 0, done.stderr
    items = json.loads(done.stdout)["result"]["predictions"]
    assert [item.get("prediction") for item in items] == [2.0, 3.0, None]
