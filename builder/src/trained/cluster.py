# As much of a Kubernetes API server as a driver needs: it accepts what the driver creates, and starts the executors' pods as
# processes, with the environment that the driver gave them.
import base64
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

pods = {}
processes = []


class ApiServer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return json.loads(text) if text else {}

    def do_GET(self):
        if "websocket" in self.headers.get("Upgrade", "").lower():
            return self.watch()
        kind, items = ("PodList", list(pods.values())) if "/pods" in self.path else ("List", [])
        self.answer({"apiVersion": "v1", "kind": kind, "metadata": {"resourceVersion": "1"}, "items": items})

    # RFC 6455, 4.2.2. Nothing is ever reported: a watch is idle until the driver ends it.
    def watch(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        while self.rfile.read(1):
            pass
        self.close_connection = True

    def created(self):
        value = self.body()
        metadata = value.setdefault("metadata", {})
        metadata.setdefault("uid", "00000000-0000-0000-0000-%012d" % len(pods))
        metadata.setdefault("namespace", "default")
        metadata.setdefault("resourceVersion", "1")
        metadata.setdefault("creationTimestamp", "2020-01-01T00:00:00Z")
        if value.get("kind") == "Pod" and metadata["name"] not in pods:
            value["status"] = {"phase": "Running", "podIP": "127.0.0.1"}
            pods[metadata["name"]] = value
            start(value)
        self.answer(value)

    def changed(self):
        value = self.body()
        name = self.path.split("?")[0].rstrip("/").rsplit("/", 1)[-1]
        known = value if value.get("kind") else {"apiVersion": "v1", "kind": "Status", "status": "Success"}
        self.answer(pods.get(name, known))

    do_POST = created
    do_PUT = created
    do_PATCH = changed
    do_DELETE = changed


def start(pod):
    environment = dict(os.environ)
    # These are the driver's. Its entry point has said where Java is.
    for name in ("PYTHONPATH", "PYSPARK_GATEWAY_PORT", "PYSPARK_GATEWAY_SECRET", "SPARK_ENV_LOADED"):
        environment.pop(name, None)
    fields = {"status.podIP": "127.0.0.1", "metadata.name": pod["metadata"]["name"]}
    for variable in pod["spec"]["containers"][0].get("env", []):
        field = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        environment[variable["name"]] = fields.get(field) or variable.get("value") or ""
    # Nothing is mounted there.
    environment.pop("SPARK_CONF_DIR", None)
    processes.append(subprocess.Popen(["/opt/entrypoint.sh", "executor"], env=environment, stdout=sys.stderr))


# Starts the server, and gives the master's URL for Spark.
def serve():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), ApiServer)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return "k8s://http://127.0.0.1:%d" % server.server_address[1]
