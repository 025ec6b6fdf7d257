"""Measure the speed of `tl serve` beside that of `tl predict` on the same files and cores, in alternating rounds.

    TL_SHARED=... python benchmarks/serve.py [model.onnx] [--rounds 3] [--images 600] [--clients 16]

Without a model, MobileNetV2 with ImageNet weights is exported. The images are PACS cartoons, 227 px. Each of the
clients keeps one connection and sends one image per request to POST /predict, again as soon as it has the answer. They
share one process and the machine's cores with the server, so the time of that process, which a lab's clients spend on
other machines, is reported too. `tl predict` is `predict_iter` on files in the page cache, with its rows as JSON lines.
"""

import argparse
import json
import os
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHARED = Path(os.environ["TL_SHARED"])
BOUNDARY = "image-boundary"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", type=Path)
    for name, default in (("rounds", 3), ("images", 600), ("clients", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    files = sorted((SHARED / "data" / "pacs-cartoon").rglob("*.jpg"))
    paths = [str(files[i % len(files)]) for i in range(given.images)]
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or export(Path(folder) / "mobilenet.onnx", paths[:4])
        compare(model, paths, given.rounds, given.clients)


def export(path: Path, images: list[str]) -> Path:
    os.environ.setdefault("TL_WEIGHTS_DIR", str(SHARED / "weights"))
    from tl.exporter.export import export_pretrained
    from tl.progress import Silent

    export_pretrained("mobilenet_v2", "imagenet", images, path, Silent())
    return path


def compare(model: Path, paths: list[str], rounds: int, clients: int) -> None:
    import tl.runtime

    words = [sys.executable, "-m", "tl", "serve", str(model), "--port", "0", "--json", "--device", "cpu"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        port = json.loads(server.stdout.readline())["port"]
        found = []
        with tl.runtime.load(model, device="cpu") as predictor:
            for number in range(rounds + 1):
                cpu = cpu_now()
                labels, predicted = predict(predictor, paths)
                predict_cpu_ms = 1000 * (cpu_now() - cpu) / len(paths)
                before = cpu_seconds(server.pid)
                served = ask(port, paths, clients)
                served["server_cpu_ms"] = 1000 * (cpu_seconds(server.pid) - before) / len(paths)
                assert served.pop("labels") == labels
                if number:  # the first round warms up
                    found.append({"predict_per_s": predicted, "serve_per_s": len(paths) / served["seconds"], **served})
                    found[-1]["predict_cpu_ms"] = predict_cpu_ms
        for one in found:
            print({name: round(value, 3) for name, value in one.items()})
        report(found, len(paths))
    finally:
        server.terminate()
        server.wait()


def predict(predictor, paths: list[str]) -> tuple[list[str], float]:
    """Return labels and images/s of what `tl predict -o out.jsonl` does."""
    from tl.runtime.output.writers import open_writer

    labels, started = [], time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as out,
        open_writer(Path(out) / "rows.jsonl", predictor.fields) as writer,
    ):
        for result in predictor.predict_iter(paths):
            writer.write(result)
            labels.append(result.label)
    return labels, len(paths) / (time.perf_counter() - started)


def report(found: list[dict[str, float]], images: int) -> None:
    def median(name: str) -> float:
        return statistics.median(one[name] for one in found)

    cores = len(os.sched_getaffinity(0))
    ratios = [one["serve_per_s"] / one["predict_per_s"] for one in found]
    # What the server would have if the clients ran elsewhere: their time is taken from the cores it computes on.
    own = [one["client_cpu_ms"] * images / 1000 / cores for one in found]
    free = [images / (one["seconds"] - spent) / one["predict_per_s"] for one, spent in zip(found, own, strict=True)]
    print(f"tl predict {median('predict_per_s'):.1f} images/s, tl serve {median('serve_per_s'):.1f} images/s")
    print(f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) on {cores} cores")
    print(f"ratio without the clients' own time {statistics.median(free):.3f}")
    print(f"latency p50 {median('p50_ms'):.1f} ms, p99 {median('p99_ms'):.1f} ms")
    spent = [median(f"{name}_cpu_ms") for name in ("predict", "server", "client")]
    print("CPU per image: tl predict {:.2f} ms, server {:.2f} ms, clients {:.3f} ms".format(*spent))


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(port: int, paths: list[str], clients: int) -> dict[str, object]:
    """Run the clients in a process of their own."""
    words = [sys.executable, __file__, "clients", str(port), str(clients)]
    done = subprocess.run(words, input="\n".join(paths), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def run_clients(port: int, clients: int, paths: list[str]) -> None:
    """Send all images over the given number of connections, and print times and labels. As cheap as Python allows."""
    requests = {path: request(Path(path).read_bytes()) for path in dict.fromkeys(paths)}
    selector, answers, times = selectors.DefaultSelector(), [b""] * len(paths), [0.0] * len(paths)
    waiting = list(enumerate(paths))[::-1]
    cpu, started = cpu_now(), time.perf_counter()

    def send(connection: socket.socket) -> None:
        number, path = waiting.pop()
        times[number] = time.perf_counter()
        connection.sendall(requests[path])
        selector.modify(connection, selectors.EVENT_READ, number)

    for _ in range(min(clients, len(paths))):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(connection, selectors.EVENT_READ)
        send(connection)
    left = len(paths)
    while left:
        for key, _ in selector.select():
            answers[key.data] += key.fileobj.recv(1 << 16)
            head, found, body = answers[key.data].partition(b"\r\n\r\n")
            if not found or len(body) < int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0]):
                continue
            assert head.startswith(b"HTTP/1.1 200"), answers[key.data]
            times[key.data] = time.perf_counter() - times[key.data]
            left -= 1
            if waiting:
                send(key.fileobj)
    seconds, cpu = time.perf_counter() - started, cpu_now() - cpu
    labels = [json.loads(answer.partition(b"\r\n\r\n")[2])["results"][0]["label"] for answer in answers]
    times.sort()
    shares = {"p50_ms": 0.5, "p99_ms": 0.99}
    latency = {name: 1000 * times[min(int(share * len(times)), len(times) - 1)] for name, share in shares.items()}
    print(json.dumps({"seconds": seconds, **latency, "client_cpu_ms": 1000 * cpu / len(paths), "labels": labels}))


def request(image: bytes) -> bytes:
    part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n'.encode()
    body = part + image + f"\r\n--{BOUNDARY}--\r\n".encode()
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{sys.argv[2]}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n".encode() + body


def cpu_now() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    if sys.argv[1:2] == ["clients"]:
        run_clients(int(sys.argv[2]), int(sys.argv[3]), sys.stdin.read().split("\n"))
    else:
        main()
