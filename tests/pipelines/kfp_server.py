"""A Kubeflow Pipelines API server for tests: the v2beta1 REST that the generated client calls, over real HTTP.

It holds its state in memory and refuses what the real one refuses: taken names, unknown arguments, a package that is no
pipeline, a namespace in single-user mode or none in multi-user mode, a wrong token.
"""

from __future__ import annotations

import email
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec, PlatformSpec

from tests.http_server import Handler
from tests.http_server import serving as listening

Object = dict[str, Any]
PAGE = 2  # smaller than any client asks for, as a busy server may answer
KINDS = {"NUMBER_DOUBLE": float, "NUMBER_INTEGER": int, "STRING": str, "BOOLEAN": bool}


class Refused(Exception):
    def __init__(self, status: int, body: Object | str) -> None:
        self.status, self.body = status, body


def refused(status: int, code: int, message: str) -> Refused:
    """An error as the gRPC gateway writes it."""
    return Refused(status, {"error": message, "code": code, "message": message, "details": []})


@dataclass
class FakeKFP:
    multi_user: bool = False
    token: str = ""
    delay_s: float = 0.0
    pipelines: dict[str, Object] = field(default_factory=dict)
    versions: dict[str, Object] = field(default_factory=dict)
    experiments: dict[str, Object] = field(default_factory=dict)
    runs: dict[str, Object] = field(default_factory=dict)
    recurring: dict[str, Object] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    failures: list[tuple[str, int, str, dict[str, str]]] = field(default_factory=list)
    """(pattern of "METHOD path", status, body, headers): the next request that fits gets this answer instead."""
    before: dict[str, Callable[[], None]] = field(default_factory=dict)
    """Path -> what happens, once, just before such a POST is answered: another client's doing."""
    host: str = ""

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes, headers: Any) -> Object:
        if self.token and headers.get("Authorization") != f"Bearer {self.token}":
            raise refused(401, 16, "Request header error: there is no user identity header.")
        if method == "POST" and path in self.before:
            self.before.pop(path)()
        parts = path.split("/")
        match [method, *parts]:
            case ["GET", "healthz"]:
                return {"multi_user": self.multi_user, "pipeline_store": "database"}
            case ["GET", "pipelines", "names", name]:
                return self.pipeline_named(name, self.namespace(query))
            case ["POST", "pipelines"]:
                return self.create_pipeline(json.loads(body))
            case ["POST", "pipelines", "upload_version"]:
                return self.create_version(query, uploaded(body, headers["Content-Type"]))
            case ["GET", "pipelines", pipeline, "versions"]:
                found = [v for v in self.versions.values() if v["pipeline_id"] == pipeline]
                return page("pipeline_versions", found, query)
            case ["GET", "experiments"]:
                namespace = self.namespace(query)
                found = [e for e in self.experiments.values() if e["namespace"] == namespace]
                return page("experiments", found, query)
            case ["POST", "experiments"]:
                values = json.loads(body)
                made = {"experiment_id": new_id(), **values, "namespace": self.namespace(values)}
                return self.experiments.setdefault(made["experiment_id"], made)
            case ["POST", "runs"]:
                return self.create_run(json.loads(body), self.runs, "run_id")
            case ["GET", "recurringruns"]:
                found = [r for r in self.recurring.values() if r["experiment_id"] == query["experiment_id"]]
                return page("recurringRuns", found, query)
            case ["POST", "recurringruns"]:
                return self.create_run(json.loads(body), self.recurring, "recurring_run_id")
            case ["DELETE", "recurringruns", recurring]:
                del self.recurring[recurring]
                return {}
        raise refused(404, 5, "Not Found")

    def namespace(self, values: dict[str, Any]) -> str:
        namespace = values.get("namespace", "")
        if self.multi_user and not namespace:
            raise refused(400, 3, "Invalid input error: namespace is required in multi-user mode")
        if namespace and not self.multi_user:
            raise refused(400, 3, "Invalid input error: In single-user mode, namespace must be empty")
        return namespace

    def pipeline_named(self, name: str, namespace: str) -> Object:
        for pipeline in self.pipelines.values():
            if (pipeline["name"], pipeline["namespace"]) == (name, namespace):
                return pipeline
        raise refused(404, 5, f"Failed to get a pipeline with name {name}: not found")

    def create_pipeline(self, values: Object) -> Object:
        namespace = self.namespace(values)
        if any((p["name"], p["namespace"]) == (values["name"], namespace) for p in self.pipelines.values()):
            raise refused(409, 6, f"Already exist error: The name {values['name']} already exist.")
        made = {"pipeline_id": new_id(), **values, "namespace": namespace}
        return self.pipelines.setdefault(made["pipeline_id"], made)

    def create_version(self, query: dict[str, str], package: str) -> Object:
        # The upload handler writes its errors in another form than the gateway.
        try:
            spec, platform = yaml.load_all(package, Loader=yaml.CSafeLoader)
            json_format.ParseDict(spec, PipelineSpec())
            json_format.ParseDict(platform, PlatformSpec())
        except (ValueError, yaml.YAMLError, json_format.ParseError) as error:
            raise Refused(400, {"error_message": f"invalid package: {error}", "error_details": ""}) from None
        pipeline, name = query["pipelineid"], query["name"]
        if any((v["pipeline_id"], v["name"]) == (pipeline, name) for v in self.versions.values()):
            message = {"error_message": "Failed to create a pipeline version", "error_details": "already exists"}
            raise Refused(409, message)
        made = {
            "pipeline_id": self.pipelines[pipeline]["pipeline_id"],
            "pipeline_version_id": new_id(),
            "name": name,
            "display_name": query.get("display_name", name),
            "description": query.get("description", ""),
            # A protobuf Struct on its way out: keys in another order, whole numbers as doubles.
            "pipeline_spec": as_struct({"platform_spec": platform, "pipeline_spec": spec}),
        }
        return self.versions.setdefault(made["pipeline_version_id"], made)

    def create_run(self, values: Object, into: dict[str, Object], key: str) -> Object:
        if values["experiment_id"] not in self.experiments:
            raise refused(404, 5, "experiment not found")
        reference = values["pipeline_version_reference"]
        version = self.versions[reference["pipeline_version_id"]]
        assert version["pipeline_id"] == reference["pipeline_id"]
        declared = version["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
        for name, value in values["runtime_config"].get("parameters", {}).items():
            if name not in declared:
                raise refused(400, 3, f"Invalid input error: parameter {name} is not declared")
            if not isinstance(value, KINDS[declared[name]["parameterType"]]) and not isinstance(value, int):
                raise refused(400, 3, f"Invalid input error: parameter {name} has another type")
        made = {key: new_id(), **values}
        return into.setdefault(made[key], made)


def page(name: str, found: list[Object], query: dict[str, str]) -> Object:
    for predicate in json.loads(query.get("filter") or "{}").get("predicates", ()):
        assert predicate["operation"] == "EQUALS"
        found = [each for each in found if each[predicate["key"]] == predicate["stringValue"]]
    start = int(query.get("page_token") or 0)
    end = start + min(PAGE, int(query.get("page_size", 10)))
    more = {"next_page_token": str(end)} if end < len(found) else {}
    # An empty list is left out, as the gateway does.
    return ({name: found[start:end]} if found else {}) | more | {"total_size": len(found)}


def uploaded(body: bytes, content_type: str) -> str:
    message = email.message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    for part in message.get_payload():  # type: ignore[union-attr]
        if part.get_param("name", header="content-disposition") == "uploadfile":  # type: ignore[union-attr]
            return part.get_payload(decode=True).decode()  # type: ignore[union-attr]
    raise Refused(400, {"error_message": "Failed to read pipeline from file", "error_details": ""})


def as_struct(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_struct(value[key]) for key in sorted(value, reverse=True)}
    if isinstance(value, list):
        return [as_struct(each) for each in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def new_id() -> str:
    return str(uuid.uuid4())


@contextmanager
def serving(kfp: FakeKFP) -> Iterator[FakeKFP]:
    """``kfp`` on a free port of 127.0.0.1; its ``host`` is the address."""

    class Answer(Handler):
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            url = urlsplit(self.path)
            body = self.body()
            kfp.requests.append((self.command, url.path))
            time.sleep(kfp.delay_s)
            for failure in kfp.failures:
                pattern, status, text, headers = failure
                if re.search(pattern, f"{self.command} {url.path}"):
                    kfp.failures.remove(failure)
                    return self.say(status, text, headers)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            try:
                if not url.path.startswith("/apis/v2beta1/"):
                    raise Refused(404, "404 page not found")
                path = url.path.removeprefix("/apis/v2beta1/")
                self.say(200, kfp.answer(self.command, path, query, body, self.headers), {})
            except Refused as error:
                self.say(error.status, error.body, {})

        do_GET = do_POST = do_DELETE = do  # noqa: N815

        def say(self, status: int, body: Object | str, headers: dict[str, str]) -> None:
            content = body.encode() if isinstance(body, str) else body
            kind = {"Content-Type": "text/plain"} if isinstance(body, str) else {}
            with suppress(ConnectionError):  # a client that lost its patience
                self.reply(status, content, kind | headers)

    with listening(Answer) as kfp.host:
        yield kfp
