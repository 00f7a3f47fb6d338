"""Probes ports without a token: ``python -m tests.launch.stranger ADDRESS:PORT ...`` prints a JSON object.

Each port is ``refused`` (HTTP 401 or 403, gRPC UNAUTHENTICATED), ``unreachable``, or ``open`` with what it answered.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

SECONDS = 3.0
PATHS = ("/api/jobs/", "/api/version", "/metrics", "/nodes?view=summary")
METHODS = (
    "NodeInfoGcsService/GetAllNodeInfo",
    "InternalKVGcsService/InternalKVGet",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/Pull",
    "CoreWorkerService/GetCoreWorkerStats",
    "ReporterService/GetTraceback",
    "LogService/ListLogs",
    "RayletDriver/ClusterInfo",
)
"""One method of every service of Ray; a server answers UNIMPLEMENTED to those of others."""
NO_ANSWERS = {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


def over_http(host: str, port: int) -> Iterator[str]:
    """Status of each path; empty if the server does not speak HTTP."""
    for path in PATHS:
        with socket.create_connection((host, port), timeout=SECONDS) as link:
            link.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            try:
                answer = link.recv(64)
            except OSError:
                return
        if not answer.startswith(b"HTTP/1."):
            return
        yield answer.split()[1].decode()


def over_grpc(host: str, port: int) -> Iterator[str]:
    """Status of each method that the server implements."""
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        for method in METHODS:
            try:
                channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=SECONDS)
                yield f"OK to {method}"
            except grpc.RpcError as error:
                if error.code() not in NO_ANSWERS:
                    yield error.code().name


def told(place: str) -> str:
    """Result for one port."""
    host, _, port = place.rpartition(":")
    try:
        answers = set(over_http(host, int(port))) or set(over_grpc(host, int(port)))
    except OSError:
        return "unreachable"
    return "refused" if answers and answers <= {"401", "403", "UNAUTHENTICATED"} else f"open: {sorted(answers)}"


if __name__ == "__main__":
    with ThreadPoolExecutor(8) as pool:
        print(json.dumps(dict(zip(sys.argv[1:], pool.map(told, sys.argv[1:]), strict=True))))
