"""A registry, three agents that are peers, clients that pull, and a Prometheus: what `bench/dashboard record` draws."""
import contextlib
import hashlib
import http.client
import http.server
import json
import pathlib
import random
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request

IMAGES = 48
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Failed(Exception):
    """Something that ends the program with status 1."""


class Front(http.server.BaseHTTPRequestHandler):
    """Stands before the registry: a limit on manifests, a slow line, an outage, and one blob with a wrong byte."""

    protocol_version = "HTTP/1.1"
    registry, spent, down, spoil = "", 0, False, ""

    def do_GET(self):
        front, headers = type(self), {name: self.headers[name] for name in ("Accept", "Range") if name in self.headers}
        if front.down:
            self.send_response(503)
            self.send_header("content-length", "0")
            return self.end_headers()
        request = urllib.request.Request(front.registry + self.path, method=self.command, headers=headers)
        try:
            answer = urllib.request.urlopen(request, timeout=30)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            self.send_response(answer.status)
            for name in ("content-type", "content-length", "content-range", "docker-content-digest"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            if "/manifests/" in self.path:
                front.spent += self.command == "GET"
                self.send_header("ratelimit-limit", "100;w=21600")
                self.send_header("ratelimit-remaining", f"{100 - front.spent};w=21600")
            self.end_headers()
            # An agent may abort a request, and does when it ends.
            with contextlib.suppress(OSError):
                self.send_body(answer)

    do_HEAD = do_GET

    def send_body(self, answer):
        front = type(self)
        while part := answer.read(1 << 16):
            if front.spoil and self.path.endswith(front.spoil):
                part, front.spoil = bytes([part[0] ^ 1]) + part[1:], ""
            self.wfile.write(part)
            time.sleep(len(part) / 3e6)

    def log_message(self, *_):
        pass


def request(url, method="GET", body=None, headers=None):
    sent = urllib.request.Request(url, method=method, data=body, headers=headers or {})
    with urllib.request.urlopen(sent, timeout=60) as answer:
        return answer.read(), answer.headers


def push(tag):
    """Pushes an image of a layer that all have and two of its own; returns the digest of the last."""
    base = f"{Front.registry}/v2/data/spark"
    sizes = {"base": 2 << 20, f"{tag}a": 1 << 20, f"{tag}b": 3 << 19}
    layers = [random.Random(seed).randbytes(size) for seed, size in sizes.items()]
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, "tag": tag}).encode()
    descriptors = []
    for blob, kind in [(config, "config.v1+json")] + [(layer, "layer.v1.tar") for layer in layers]:
        digest = "sha256:" + hashlib.sha256(blob).hexdigest()
        _, headers = request(f"{base}/blobs/uploads/", "POST", b"")
        request(f"{headers['location']}&digest={digest}", "PUT", blob, {"content-type": "application/octet-stream"})
        descriptors.append({"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest, "size": len(blob)})
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptors[0], "layers": descriptors[1:]}
    request(f"{base}/manifests/{tag}", "PUT", json.dumps(manifest).encode(), {"content-type": MANIFEST})
    return descriptors[-1]["digest"]


def pull(mirror, tag):
    """What a container runtime requests for an image."""
    base = f"{mirror}/v2/data/spark"
    digest = request(f"{base}/manifests/{tag}?ns=registry.test", "HEAD", None, {"accept": MANIFEST})[1]["docker-content-digest"]
    manifest = json.loads(request(f"{base}/manifests/{digest}?ns=registry.test", headers={"accept": MANIFEST})[0])
    for part in [manifest["config"], *manifest["layers"]]:
        request(f"{base}/blobs/{part['digest']}?ns=registry.test")


def client(mirror, seed, began, seconds):
    """A node's pods: often the newest image, else one that was pulled before."""
    choice = random.Random(seed)
    while (share := (time.time() - began) / seconds) < 1:
        newest = 1 + int(share * IMAGES)
        tag = newest if choice.random() < 0.5 else choice.randint(max(1, newest - 12), newest)
        # Pulls fail while the registry is down: the picture shows that.
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            pull(mirror, tag)
        time.sleep(choice.uniform(1, 3))


class Place:
    """A folder, and the processes that run in it until the end."""

    def __init__(self, stack):
        self.stack, self.folder = stack, pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hearth-dashboard.")))

    def start(self, name, config, command, ready):
        """Starts a program with its configuration file as `{}`, and waits until `ready` answers."""
        (self.folder / name).mkdir()
        file, log = self.folder / f"{name}.yaml", self.folder / f"{name}.log"
        file.write_text(json.dumps(config))
        command = [part.replace("{}", str(file)) for part in command]
        with log.open("w") as output:
            try:
                child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.folder / name)
            except OSError as error:
                raise Failed(f"cannot start `{command[0]}`: {error}") from error
        self.stack.callback(end, child)
        deadline = time.time() + 30
        while time.time() < deadline and child.poll() is None:
            with contextlib.suppress(OSError):
                return request(ready)
            time.sleep(0.1)
        raise Failed(f"{name} does not answer; the end of its log:\n{log.read_text()[-2000:]}")


def end(child):
    child.terminate()
    try:
        child.wait(30)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start_registry(place):
    """The registry with its images, and its front; returns the address of the front and the last layer of each image."""
    port = free_ports(1)[0]
    Front.registry = f"http://127.0.0.1:{port}"
    config = {"version": "0.1", "log": {"level": "error"}, "http": {"addr": f"127.0.0.1:{port}"}}
    config["storage"] = {"filesystem": {"rootdirectory": str(place.folder / "blobs")}}
    place.start("registry", config, ["docker-registry", "serve", "{}"], f"{Front.registry}/v2/")
    front = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Front)
    place.stack.callback(front.shutdown)
    threading.Thread(target=front.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{front.server_port}", [push(str(tag)) for tag in range(1, IMAGES + 1)]


def start_nodes(place, endpoint, program):
    """Agents that are peers, and a Prometheus that scrapes them; returns its address and those of the mirrors."""
    ports = free_ports(10)
    nodes = [(f"node-{index + 1}", *ports[3 * index : 3 * index + 3]) for index in range(3)]
    scraped = [{"targets": [f"127.0.0.1:{admin}"], "labels": {"instance": name}} for name, _, _, admin in nodes]
    jobs = [{"job_name": "hearth-agent", "static_configs": scraped}]
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}
    arguments = ["--config.file={}", "--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{ports[-1]}"]
    place.start("prometheus", config, ["prometheus", *arguments], f"http://127.0.0.1:{ports[-1]}/-/ready")
    members = ",".join(f"{name}=127.0.0.1:{peer}" for name, _, peer, _ in nodes)
    sets = [{"name": "spark", "images": ["registry.test/data/spark:1", "registry.test/data/spark:2"]}]
    sets.append({"name": "nightly", "images": ["registry.test/data/spark:nightly"]})
    # The smallest store cannot hold all images: it evicts.
    for (name, mirror, peer, admin), limit in zip(nodes, ("160MiB", "120MiB", "80MiB")):
        config = {"dataDir": str(place.folder / name), "mirror": {"listen": f"127.0.0.1:{mirror}"}}
        config["admin"] = {"listen": f"127.0.0.1:{admin}"}
        config["peer"] = {"listen": f"127.0.0.1:{peer}", "name": name, "members": members}
        config["registries"] = [{"host": "registry.test", "endpoints": [endpoint]}]
        config |= {"store": {"limit": limit, "minFree": "0"}, "prepull": {"interval": "10s", "sets": sets}}
        place.start(name, config, [program, "run", "--config", "{}"], f"http://127.0.0.1:{admin}/livez")
    return f"http://127.0.0.1:{ports[-1]}", [f"http://127.0.0.1:{mirror}" for _, mirror, _, _ in nodes]


def run(program, seconds, use):
    """Runs everything for so long, and then `use` with the address of Prometheus and the seconds since the start."""
    with contextlib.ExitStack() as stack:
        place = Place(stack)
        endpoint, last = start_registry(place)
        began = time.time()
        prometheus, mirrors = start_nodes(place, endpoint, str(program.resolve()))
        for seed in range(6):
            threading.Thread(target=client, args=(mirrors[seed % 3], seed, began, seconds), daemon=True).start()
        wait = lambda share: time.sleep(max(0, began + share * seconds - time.time()))
        wait(0.3)
        push("nightly")
        Front.spoil = last[int(IMAGES * 0.4)]
        wait(0.55)
        Front.down = True
        wait(0.7)
        Front.down = False
        wait(1)
        use(prometheus, time.time() - began)
